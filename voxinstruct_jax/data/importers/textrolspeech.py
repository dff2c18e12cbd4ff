"""TextrolSpeech: a caption table with five style factors and a style prompt for each clip of several corpora."""

import csv
import posixpath
from collections.abc import Iterator, Mapping

from voxinstruct_jax.config import InputError
from voxinstruct_jax.data.importers.source import (
    AudioFinder,
    ImportOptions,
    gender_name,
    is_folder,
    make_row,
    open_binary,
    read_lines,
    walk,
)
from voxinstruct_jax.data.manifest import Rejection, Row
from voxinstruct_jax.text.content import spoken_content

__all__ = ["read_textrolspeech"]

CAPTIONS = "caption"
AUDIO_COLUMNS = ("wav_fp", "wav_path", "wav", "audio", "path", "item_name")
TEXT_COLUMNS = ("content_prompt", "text", "txt", "content", "transcript")
STYLE_COLUMNS = ("style_prompt", "caption")
SPEEDS = {"low": "slow", "normal": "normal", "high": "fast"}
LEVELS = ("low", "normal", "high")


def read_textrolspeech(source: str, options: ImportOptions) -> Iterator[Row | Rejection]:
    """Reads a caption table; audio paths are relative to the folder above `caption/`, or to the table's own.

    Columns: item_name, gender (F, M), pitch, tempo, energy (low, normal, high), emotion, style_prompt, and the audio
    path and transcript under one of several names. A style prompt becomes an instruction with the transcript in quotes.
    Where the table has no transcript (its LibriTTS and VCTK part), the text file beside the audio is read.

    Raises:
        InputError: There is no table, or several, or a column is missing.

    Source:
        Ji et al., "TextrolSpeech", 2024; columns as public scripts that read the table name them.
    """
    table = _only_table(source) if is_folder(source) else source
    folder = posixpath.dirname(table)
    roots = [posixpath.dirname(folder)] if posixpath.basename(folder) == CAPTIONS else []
    finders = [AudioFinder(root) for root in (*roots, folder)]
    for number, record in _records(table):
        name = _first(record, ("item_name",)) or _first(record, AUDIO_COLUMNS)
        listed = _first(record, AUDIO_COLUMNS)
        audio = next((path for find in finders if (path := find(listed))), None)
        transcript = _first(record, TEXT_COLUMNS) or (_text_beside(audio) if audio else "")
        style = _first(record, STYLE_COLUMNS)
        yield make_row(
            number,
            posixpath.splitext(name)[0],
            audio=audio,
            language=options.language,
            transcript=transcript,
            attributes=_attributes(record),
            instructions=_instructions(style, transcript.strip()),
            extra={"style_prompt": style} if style else {},
        )


def _only_table(source: str) -> str:
    folder = posixpath.join(source, CAPTIONS)
    try:
        is_folder(folder)
    except InputError:
        folder = source
    tables = [name for name in next((names for _, names in walk(folder)), []) if name.endswith(".csv")]
    if len(tables) != 1:
        raise InputError(f"{folder}: name one caption table (.csv); there are {', '.join(tables) or 'none'}")
    return posixpath.join(folder, tables[0])


def _records(table: str) -> Iterator[tuple[int, Mapping[str, str]]]:
    lines = (line + "\n" for _, line in read_lines(table, blank=True))
    reader = csv.DictReader(lines)
    names = set(reader.fieldnames or ())
    wanted = {"audio": set(AUDIO_COLUMNS), "gender": {"gender"}, "style": set(STYLE_COLUMNS)}
    missing = [f"{what} ({' or '.join(sorted(columns))})" for what, columns in wanted.items() if not columns & names]
    if missing:
        raise InputError(f"{table}: lacks columns: {'; '.join(missing)}; it has {', '.join(sorted(names)) or 'none'}")
    try:
        for record in reader:
            yield reader.line_num, record
    except csv.Error as error:
        raise InputError(f"{table}: line {reader.line_num}: {error}") from error


def _first(record: Mapping[str, str], columns: tuple[str, ...]) -> str:
    return next((value.strip() for column in columns if (value := record.get(column))), "")


def _attributes(record: Mapping[str, str]) -> dict[str, str | list[int]]:
    levels = {name: _first(record, (name,)).lower() for name in ("pitch", "energy", "tempo", "emotion")}
    found = {
        "gender": gender_name(record.get("gender")),
        "pitch": levels["pitch"] if levels["pitch"] in LEVELS else None,
        "energy": levels["energy"] if levels["energy"] in LEVELS else None,
        "speed": SPEEDS.get(levels["tempo"]),
        "emotion": levels["emotion"],
    }
    return {name: value for name, value in found.items() if value}


def _instructions(style: str, transcript: str) -> tuple[str, ...]:
    """The style prompt followed by the words, where these are then what would be spoken."""
    instruction = f'{style} "{transcript}"'
    return (instruction,) if style and transcript and spoken_content(instruction).text == transcript else ()


def _text_beside(audio: str) -> str:
    stem = posixpath.splitext(audio)[0]
    for suffix in (".normalized.txt", ".txt", ".lab"):
        try:
            with open_binary(stem + suffix) as file:
                return file.read().decode("utf-8", "surrogateescape")
        except InputError:  # not there
            continue
    return ""
