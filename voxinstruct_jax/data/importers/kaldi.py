"""Kaldi data folders: `wav.scp`, `text`, and `segments`, `utt2spk`, `spk2gender`, `utt2lang` where there are any."""

import posixpath
import re
from collections.abc import Iterator

from voxinstruct_jax.config import InputError
from voxinstruct_jax.data.importers.source import (
    AudioFinder,
    DiskTable,
    ImportOptions,
    gender_name,
    is_folder,
    language_code,
    make_row,
    read_fields,
    read_lines,
)
from voxinstruct_jax.data.manifest import Rejection, Row
from voxinstruct_jax.data.store import absolute

__all__ = ["read_kaldi"]

ARCHIVE = re.compile(r"\.ark(:\d+)?$")


def read_kaldi(source: str, options: ImportOptions) -> Iterator[Row | Rejection]:
    """Reads a data folder; paths in `wav.scp` are relative to the working folder, as in Kaldi, or to the data folder.

    Raises:
        InputError: `wav.scp` or `text` is missing, or `wav.scp` holds commands or archives: commands are never run.

    Source:
        Kaldi, "Data preparation" (kaldi-asr.org/doc/data_prep.html).
    """
    if not is_folder(source):
        raise InputError(f"{source}: give the data folder that holds wav.scp and text")
    wavs = DiskTable(_recordings(posixpath.join(source, "wav.scp")))
    segments = _optional(source, "segments")
    speakers, genders, languages = (_optional(source, name) for name in ("utt2spk", "spk2gender", "utt2lang"))
    find = AudioFinder(source)
    for number, (name, text) in enumerate(read_fields(posixpath.join(source, "text")), 1):
        recording, span = name, {}
        if segments:
            found = _span(segments.get(name))
            if found is None:
                yield Rejection(row=number, id=name, reason="no segment: segments has no valid line for it")
                continue
            recording, span = found
        speaker = speakers.get(name) or ""
        gender = gender_name(genders.get(speaker))
        yield make_row(
            number,
            name,
            audio=_audio(wavs.get(recording), find),
            language=language_code(languages.get(name)) or options.language,
            transcript=text,
            speaker=speaker,
            attributes={"gender": gender} if gender else {},
            **span,
        )


def _recordings(location: str) -> Iterator[tuple[str, str]]:
    for number, (name, path) in enumerate(read_fields(location), 1):
        if path.endswith("|") or path == "-":
            raise InputError(
                f"{location}: line {number}: {name!r} is a command, which is never run; "
                "write the audio out (wav-copy scp:wav.scp ...) and list the files"
            )
        if ARCHIVE.search(path):
            raise InputError(f"{location}: line {number}: {name!r} lies in an archive (.ark); write it out as files")
        yield name, path


def _optional(source: str, name: str) -> DiskTable:
    location = posixpath.join(source, name)
    try:
        next(read_lines(location), None)
    except InputError:  # not there
        return DiskTable([])
    return DiskTable(read_fields(location))


def _span(line: str | None) -> tuple[str, dict[str, float]] | None:
    """Recording, and start and duration of a line of `segments`; an end of -1 means that of the recording."""
    try:
        recording, start, end = (line or "").split()[:3]
        offset_s, end_s = float(start), float(end)
    except ValueError:
        return None
    if end_s == -1:
        return recording, {"offset_s": offset_s}
    return (recording, {"offset_s": offset_s, "duration_s": end_s - offset_s}) if 0 <= offset_s < end_s else None


def _audio(path: str | None, find: AudioFinder) -> str | None:
    return None if path is None else find(absolute(path)) or find(path)
