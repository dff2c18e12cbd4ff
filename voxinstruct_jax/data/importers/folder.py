"""A folder of audio with its texts: beside each file, or in one table. LJSpeech is such a table."""

import csv
import itertools
import posixpath
from collections.abc import Iterator, Mapping
from typing import Any

from voxinstruct_jax.config import InputError
from voxinstruct_jax.data.importers.source import (
    AudioFinder,
    ImportOptions,
    is_audio,
    is_folder,
    language_code,
    make_row,
    open_binary,
    read_lines,
    walk,
)
from voxinstruct_jax.data.manifest import Rejection, Row
from voxinstruct_jax.data.seen import Seen

__all__ = ["read_folder", "read_ljspeech"]

SIDECARS = (".txt", ".lab", ".normalized.txt")
TABLES = (".txt", ".tsv", ".csv", ".psv")
NAME_COLUMNS = ("audio", "file", "path", "filename", "file_name", "audio_file", "wav", "name", "id", "clip")
TEXT_COLUMNS = ("text", "transcript", "transcription", "sentence", "content", "normalized_text")
SPEAKER_COLUMNS = ("speaker", "speaker_id", "client_id", "spk")
LANGUAGE_COLUMNS = ("language", "lang", "locale")
MOST_TEXT_BYTES = 1 << 20
EXAMPLE = 'give a .txt beside each audio file, or one table with lines "name<TAB>text" or "name|text"'


def read_folder(source: str, options: ImportOptions) -> Iterator[Row | Rejection]:
    """Reads a folder of audio whose texts stand beside the files (`a.wav`, `a.txt` or `a.lab`) or in one table.

    A table has lines `name<TAB>text` or `name|text`, or a header (also with commas) that names its columns. Names may
    lack the suffix; files are looked for beside the table and in `wavs`, `wav`, `audio`, `clips`. Audio without a text
    is rejected by name.

    Args:
        source: The folder, or the table in it.
        options: With the language.

    Raises:
        InputError: There are no texts, or several tables.
    """
    if not is_folder(source):
        return _read_table(source, options)
    if _has_sidecars(source):
        return _read_sidecars(source, options)
    return _read_table(_only_table(source), options)


def read_ljspeech(source: str, options: ImportOptions) -> Iterator[Row | Rejection]:
    """Reads `metadata.csv` with lines `id|text|normalised text` beside `wavs/`; the normalised text is what is spoken.

    Source:
        The LJ Speech Dataset 1.1, README.
    """
    table = posixpath.join(source, "metadata.csv") if is_folder(source) else source
    find = AudioFinder(posixpath.dirname(table))
    for number, line in read_lines(table):
        name, *texts = line.split("|")
        written, spoken = texts[0] if texts else "", texts[-1] if texts else ""
        yield make_row(
            number,
            name,
            audio=find(name),
            language=options.language,
            transcript=spoken if spoken.strip() else written,
            extra={"written_text": written} if written != spoken else {},
        )


def _has_sidecars(source: str) -> bool:
    folders = ((filter(is_audio, names), set(names)) for _, names in walk(source))
    return any(_sidecar(name, there) for audio, there in folders for name in audio)


def _sidecar(audio: str, names: set[str]) -> str | None:
    stem = posixpath.splitext(audio)[0]
    return next((stem + suffix for suffix in SIDECARS if stem + suffix in names), None)


def _read_sidecars(source: str, options: ImportOptions) -> Iterator[Row | Rejection]:
    number = 0
    for folder, names in walk(source):
        there = set(names)
        for audio in filter(is_audio, names):
            number += 1
            path = posixpath.join(folder, audio)
            name = posixpath.relpath(path, source)
            sidecar = _sidecar(audio, there)
            if sidecar is None:
                yield Rejection(row=number, id=name, reason="no text: no .txt or .lab beside this audio file")
                continue
            text = _read_text(posixpath.join(folder, sidecar))
            yield make_row(number, name, audio=path, language=options.language, transcript=text)


def _read_text(location: str) -> str:
    with open_binary(location) as file:
        return file.read(MOST_TEXT_BYTES).removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")


def _only_table(source: str) -> str:
    names = next((names for _, names in walk(source)), [])
    tables = [name for name in names if name.lower().endswith(TABLES)]
    likely = [name for name in tables if not name.lower().startswith(("readme", "licen"))]
    if len(likely) != 1:
        found = f"several tables ({', '.join(likely)}): name one of them" if likely else f"no texts; {EXAMPLE}"
        raise InputError(f"{source}: {found}")
    return posixpath.join(source, likely[0])


def _read_table(table: str, options: ImportOptions) -> Iterator[Row | Rejection]:
    folder, used = posixpath.dirname(table), Seen()
    find = AudioFinder(folder)
    for number, record in _records(table):
        name = record["name"]
        audio = find(name) if name else None
        if audio is not None:
            used.add(audio)
        yield make_row(
            number,
            name,
            audio=audio,
            language=language_code(record.get("language")) or options.language,
            transcript=record.get("text", ""),
            speaker=record.get("speaker", ""),
        )
    for place, names in walk(folder):
        for name in filter(is_audio, names):
            path = posixpath.join(place, name)
            if path not in used:
                reason = f"no text: {posixpath.basename(table)} has no line for this audio file"
                yield Rejection(row=0, id=posixpath.relpath(path, folder), reason=reason)


def _records(table: str) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Yields number and columns (name, text and, if there, speaker and language) of each line."""
    lines = read_lines(table)
    first = next(lines, None)
    if first is None:
        raise InputError(f"{table}: is empty; {EXAMPLE}")
    delimiter = _delimiter(first[1])
    columns = _header(first[1], delimiter)
    if delimiter is None or (delimiter == "," and not columns):
        raise InputError(f"{table}: line {first[0]}: neither a tab nor | divides name and text; {EXAMPLE}")
    if columns:
        return _headed(table, delimiter, columns)
    split = ((number, line.partition(delimiter)) for number, line in itertools.chain([first], lines))
    return ((number, {"name": name.strip(), "text": text}) for number, (name, _, text) in split)


def _delimiter(line: str) -> str | None:
    """The tab or | that comes first; a comma only where there is neither, since texts hold commas."""
    found = [mark for mark in "\t|" if mark in line]
    return min(found, key=line.index) if found else "," if "," in line else None


def _header(line: str, delimiter: str | None) -> dict[str, int]:
    """Returns the place of each known column if the line names a name and a text column, else nothing."""
    cells = [cell.strip().strip('"').lower() for cell in line.split(delimiter)] if delimiter else []
    known = {"name": NAME_COLUMNS, "text": TEXT_COLUMNS, "speaker": SPEAKER_COLUMNS, "language": LANGUAGE_COLUMNS}
    found = {
        column: cells.index(next(spelling for spelling in spellings if spelling in cells))
        for column, spellings in known.items()
        if set(spellings) & set(cells)
    }
    return found if {"name", "text"} <= set(found) else {}


def _headed(table: str, delimiter: str, columns: Mapping[str, int]) -> Iterator[tuple[int, Mapping[str, str]]]:
    # Tables with commas quote their cells; in others a quote is a quote.
    style: dict[str, Any] = {} if delimiter == "," else {"quoting": csv.QUOTE_NONE}
    reader = csv.reader(
        (line + "\n" for _, line in read_lines(table, blank=True)), delimiter=delimiter, strict=True, **style
    )
    try:
        filled = (cells for cells in reader if any(cells))
        next(filled, None)  # the header
        for cells in filled:
            found = {column: cells[place] for column, place in columns.items() if place < len(cells)}
            yield reader.line_num, {"name": "", "text": "", **found}
    except csv.Error as error:
        raise InputError(
            f"{table}: line {reader.line_num}: {error}; quote each text as a table program does"
        ) from error
