"""What all importers share: reading a corpus's files, finding its audio, and making rows of what was found.

Everything is read in streams; what must be looked up by key waits on disk (`DiskTable`).
"""

import contextlib
import dataclasses
import json
import math
import os
import posixpath
import sqlite3
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Any

from voxinstruct_jax.config import InputError
from voxinstruct_jax.data.manifest import Rejection, Row

__all__ = [
    "AudioFinder",
    "DiskTable",
    "ImportOptions",
    "gender_name",
    "is_audio",
    "is_folder",
    "language_code",
    "make_row",
    "measure",
    "open_binary",
    "read_fields",
    "read_lines",
    "read_objects",
    "walk",
]

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".aiff", ".aif", ".g722")
KNOWN_TO_SOUNDFILE = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif")
AUDIO_FOLDERS = ("", "wavs", "wav", "audio", "clips")
"""Where the audio of a text table is looked for, beside the table."""
LANGUAGES = {
    "en": ("english", "eng"),
    "zh": ("chinese", "mandarin", "mandarin chinese", "zho", "cmn", "chi", "zh_hans"),
}
GENDERS = {"female": ("f", "female", "woman"), "male": ("m", "male", "man")}


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """What a layout may leave open."""

    language: str | None = None
    """Of rows whose language the layout does not say."""
    subset: str | None = None
    """A part of the corpus by its published name; all of it if None."""


def is_folder(location: str) -> bool:
    """Whether a folder is there.

    Raises:
        InputError: Nothing is there.
    """
    filesystem, path = _filesystem(location)
    if not filesystem.exists(path):
        raise InputError(f"{location}: no such file or folder")
    return filesystem.isdir(path)


def is_audio(name: str) -> bool:
    """Whether a name ends as audio files do; the hidden copies that macOS packs ("._a.wav") are none."""
    return name.lower().endswith(AUDIO_SUFFIXES) and not posixpath.basename(name).startswith("._")


def walk(location: str) -> Iterator[tuple[str, list[str]]]:
    """Yields each folder below (and with) this one, and the names of its files, both in order."""
    local = "://" not in location
    filesystem, path = _filesystem(location)
    # fsspec would ask for the size and time of each local file.
    for folder, folders, names in os.walk(path) if local else filesystem.walk(path):
        folders.sort()  # in place: this is the order of descent
        yield folder if local else filesystem.unstrip_protocol(folder), sorted(names)


@contextlib.contextmanager
def open_binary(location: str) -> Iterator[IO[bytes]]:
    """Opens a file, unpacked where its name ends in `.gz` or the like.

    Raises:
        InputError: It is missing or cannot be read.
    """
    import fsspec

    try:
        with fsspec.open(location, "rb", compression="infer") as file:
            yield file  # pyright: ignore[reportReturnType]
    except FileNotFoundError as error:
        raise InputError(f"{location}: no such file") from error
    except (OSError, EOFError) as error:
        raise InputError(f"{location}: cannot be read ({error})") from error


def read_lines(location: str, *, blank: bool = False) -> Iterator[tuple[int, str]]:
    """Yields number and text of each line; bytes that are no UTF-8 become lone surrogates.

    Args:
        location: Of a text file.
        blank: Whether blank lines count too.
    """
    with open_binary(location) as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise InputError(f"{location}: is UTF-16; save it as UTF-8")
                line = line.removeprefix(b"\xef\xbb\xbf")
            if blank or line.strip():
                yield number, line.decode("utf-8", "surrogateescape").rstrip("\r\n")


def read_fields(location: str) -> Iterator[tuple[str, str]]:
    """Yields key and rest of each line: the form of Kaldi's files."""
    for _, line in read_lines(location):
        key, _, rest = line.strip().partition("\t" if "\t" in line.split(" ")[0] else " ")
        yield key, rest.strip()


def read_objects(location: str) -> Iterator[tuple[int, dict[str, Any] | Rejection]]:
    """Yields number and object of each line of JSON; a line that is none is a rejection."""
    for number, line in read_lines(location):
        try:
            record = json.loads(line)
        except ValueError as error:
            yield number, Rejection(row=number, id="", reason=f"no valid JSON: {error}")
            continue
        if isinstance(record, dict):
            yield number, record
        else:
            yield number, Rejection(row=number, id="", reason="no valid JSON: expected an object")


class DiskTable:
    """Texts by key in a temporary file, so that memory does not grow with the corpus."""

    def __init__(self, items: Iterable[tuple[str, str]]) -> None:
        self._database = sqlite3.connect("")  # no name: a file that goes when it is closed
        self._database.execute("CREATE TABLE texts (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")
        coded = ((_bytes(key), _bytes(value)) for key, value in items)
        self._database.executemany("INSERT OR REPLACE INTO texts VALUES (?, ?)", coded)

    def get(self, key: str) -> str | None:
        """Returns the text of a key, None where there is none."""
        found = self._database.execute("SELECT value FROM texts WHERE key = ?", (_bytes(key),)).fetchone()
        return None if found is None else found[0].decode("utf-8", "surrogateescape")

    def __bool__(self) -> bool:
        return self._database.execute("SELECT 1 FROM texts LIMIT 1").fetchone() is not None


class AudioFinder:
    """Finds the audio file that a name means: with or without suffix, in the folder or one named `wavs` or the like."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._last = ("", AUDIO_SUFFIXES[0])

    def __call__(self, name: str) -> str | None:
        """Returns the path of an audio file, None if there is none.

        Names are tried as they are and in both Unicode forms: macOS writes é as two letters.
        """
        if "://" in name or posixpath.isabs(name):
            return name if _exists(name) else None
        suffixes = ("",) if is_audio(name) else tuple(form for end in AUDIO_SUFFIXES for form in (end, end.upper()))
        likely = [self._last] if self._last[1] in suffixes else []
        for folder, suffix in [*likely, *((folder, suffix) for folder in AUDIO_FOLDERS for suffix in suffixes)]:
            for form in dict.fromkeys((name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name))):
                path = posixpath.join(self._root, folder, form + suffix)
                if _exists(path):
                    self._last = (folder, suffix)
                    return path
        return None


def make_row(number: int, name: str, **fields: Any) -> Row | Rejection:
    """Makes a row, or says why there can be none.

    Args:
        number: Of the line or segment in the source, from 1.
        name: The id.
        fields: As `Row` has them; `audio` and `language` may be None, `transcript` empty.
    """
    transcript, language, audio = fields["transcript"], fields["language"], fields["audio"]
    reason = None
    if not transcript.strip():
        reason = "no text: the transcript is empty"
    elif not language:
        reason = "no language: give --language"
    elif audio is None:
        reason = f"no audio file: none found for {name!r}"
    elif not _is_utf8(name, audio, transcript):
        reason = "not UTF-8: save the text (or rename the file) as UTF-8"
    elif not _exists(audio):
        reason = f"no audio file: {audio}"
    if reason is not None:
        return Rejection(row=number, id=name, reason=reason)
    return Row(id=name, **fields | {"transcript": transcript.strip()})


def measure(item: Row | Rejection) -> Row | Rejection:
    """Fills in the duration of a row that is a whole local file, from its header; a file without sound is rejected."""
    if isinstance(item, Rejection) or item.duration_s is not None or "://" in item.audio:
        return item
    import soundfile

    if not _exists(item.audio):
        return Rejection(row=0, id=item.id, reason=f"no audio file: {item.audio}")
    if not os.path.getsize(item.audio):  # noqa: PTH202 - a million calls
        return Rejection(row=0, id=item.id, reason=f"empty audio file: {item.audio}")
    try:
        info = soundfile.info(item.audio)
    except (RuntimeError, OSError) as error:
        if not item.audio.lower().endswith(KNOWN_TO_SOUNDFILE):
            return item
        detail = str(error).rpartition(": ")[2].strip()
        return Rejection(row=0, id=item.id, reason=f"unreadable audio: {item.audio} ({detail})")
    duration_s = math.floor((info.duration - item.offset_s) * 1000) / 1000  # not beyond the end
    if duration_s <= 0:
        return Rejection(row=0, id=item.id, reason=f"empty audio file: {item.audio} holds no samples")
    return dataclasses.replace(item, duration_s=duration_s)


def language_code(name: str | None) -> str | None:
    """Returns "en" for English, eng, en-US and the like, "zh" likewise; other names in lower case."""
    if not name:
        return None
    lowered = name.strip().lower()
    known = (code for code, names in LANGUAGES.items() if lowered in names)
    return next(known, lowered.replace("_", "-").partition("-")[0])


def gender_name(value: Any) -> str | None:
    """Returns female or male for the usual spellings, None for anything else."""
    lowered = str(value).strip().lower()
    return next((name for name, spellings in GENDERS.items() if lowered in spellings), None)


def _filesystem(location: str) -> tuple[Any, str]:
    import fsspec

    return fsspec.core.url_to_fs(location)


def _exists(location: str) -> bool:
    """Whether a local file is there; those behind a URL are taken to be."""
    return "://" in location or os.path.isfile(location)  # noqa: PTH113 - a million calls


def _is_utf8(*texts: str) -> bool:
    try:
        return all(text.encode() is not None for text in texts)
    except UnicodeEncodeError:
        return False


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
