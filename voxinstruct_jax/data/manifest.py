"""Manifests: one row a clip, in JSON lines or Parquet. What each column means stands on `Row`."""

import dataclasses
import json
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from voxinstruct_jax.config import InputError

__all__ = ["Rejection", "Row", "read_manifest", "write_manifest"]

Attributes = dict[str, str | list[int]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One clip of speech with what is said and how."""

    id: str
    """Unique in the manifest."""
    audio: str
    """Path or URL; in the file relative to the manifest's folder, here joined to it."""
    language: str
    """A name the vocabulary knows, such as en."""
    transcript: str
    """The words that are spoken."""
    offset_s: float = 0.0
    """Start of the clip in the audio file (s)."""
    duration_s: float | None = None
    """Length of the clip (s); to the end of the file if absent."""
    speaker: str = ""
    instructions: tuple[str, ...] = ()
    """Ways to ask for this clip, each holding the words; in the file `instructions` (list) or `instruction` (one)."""
    attributes: Attributes = field(default_factory=dict)
    """Any of gender, age, pitch, energy, speed, emotion (names) and stress (word indices)."""


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """A row that was set aside."""

    row: int
    """Number in the manifest, from 1; 0 where only the id is known."""
    id: str
    reason: str


def read_manifest(path: str | os.PathLike[str], *, rejected: list[Rejection] | None = None) -> list[Row]:
    """Reads a manifest; columns that `Row` does not have are ignored.

    Args:
        path: `.parquet`, or JSON lines under any other name; a local path or an fsspec URL.
        rejected: Where given, bad rows are appended here and the rest is read.

    Raises:
        InputError: The file is missing or empty, or (without `rejected`) a row is bad or repeats an id.
    """
    location = os.fspath(path)
    folder, rows, first_seen = posixpath.dirname(location), [], {}
    for number, parse in _records(location):
        values: Mapping[str, Any] = {}
        try:
            values = parse()
            row = _row(values, folder)
            if row.id in first_seen:
                raise InputError(f"column 'id': {row.id!r} stands in row {first_seen[row.id]} already; make ids unique")
        except InputError as error:
            if rejected is None:
                raise InputError(f"{location}: row {number}: {error}") from error
            rejected.append(Rejection(row=number, id=str(values.get("id", "")), reason=str(error)))
            continue
        first_seen[row.id] = number
        rows.append(row)
    if not rows and not rejected:
        raise InputError(f"{location}: holds no rows; give at least one clip")
    return rows


def write_manifest(path: str | os.PathLike[str], rows: Iterable[Row]) -> None:
    """Writes rows so that `read_manifest` gives them back; audio in the manifest's folder is written relative to it.

    Args:
        path: `.parquet`, or any other name for JSON lines; a local path or an fsspec URL.
        rows: In order.
    """
    location = os.fspath(path)
    records = [_record(row, posixpath.dirname(location)) for row in rows]
    if location.endswith(".parquet"):
        content = _parquet_bytes(records)
    else:
        content = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    _write_whole(location, content)


def _records(location: str) -> Iterator[tuple[int, Callable[[], Mapping[str, Any]]]]:
    """Yields each row's number and a function that parses it, so that one bad line does not end the reading."""
    content = _read_whole(location)
    if location.endswith(".parquet"):
        for number, record in enumerate(_parquet_records(content, location), 1):
            yield number, lambda record=record: record
        return
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            yield number, lambda line=line: _parse_line(line)


def _parse_line(line: bytes) -> Mapping[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise InputError(f"no valid JSON ({error}); write one object a line, in UTF-8") from error
    if not isinstance(record, dict):
        raise InputError(f"expected an object with named columns, got {record!r}")
    return record


def _row(values: Mapping[str, Any], folder: str) -> Row:
    present = {name: value for name, value in values.items() if value is not None}
    texts = {name: _text(present, name) for name in ("id", "audio", "language", "transcript")}
    texts["audio"] = _join(folder, texts["audio"])
    speaker = _typed(present, "speaker", (str,), "") if "speaker" in present else ""
    duration_s = _seconds(present, "duration_s") if "duration_s" in present else None
    if duration_s == 0:
        raise InputError("column 'duration_s': 0 s; leave it out to read to the end of the file")
    return Row(
        **texts,
        offset_s=_seconds(present, "offset_s") if "offset_s" in present else 0.0,
        duration_s=duration_s,
        speaker=speaker,
        instructions=_instructions(present),
        attributes=_attributes(present),
    )


def _typed(values: Mapping[str, Any], name: str, kinds: tuple[type, ...], mend: str) -> Any:
    if name not in values:
        raise InputError(f"column {name!r}: missing{mend}")
    value = values[name]
    if not isinstance(value, kinds) or isinstance(value, bool):
        wanted = {str: "text", dict: "an object", list: "a list", int: "a number"}[kinds[0]]
        raise InputError(f"column {name!r}: expected {wanted}, got {value!r}{mend}")
    return value


def _text(values: Mapping[str, Any], name: str) -> str:
    value = _typed(values, name, (str,), "; every row needs it as text")
    if not value.strip():
        raise InputError(f"column {name!r}: empty; fill it or remove the row")
    return value


def _seconds(values: Mapping[str, Any], name: str) -> float:
    value = _typed(values, name, (int, float), "; give seconds")
    if not 0 <= value < float("inf"):
        raise InputError(f"column {name!r}: {value!r} is no time; give seconds from 0 up")
    return float(value)


def _instructions(values: Mapping[str, Any]) -> tuple[str, ...]:
    if "instructions" not in values:
        return (_text(values, "instruction"),) if "instruction" in values else ()
    if "instruction" in values:
        raise InputError("columns 'instruction' and 'instructions': both given; keep the list")
    found = _typed(values, "instructions", (list,), "; one text goes into 'instruction'")
    for text in found:
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"column 'instructions': {text!r} is no text; remove it from the list")
    return tuple(found)


def _attributes(values: Mapping[str, Any]) -> Attributes:
    if "attributes" not in values:
        return {}
    found = _typed(values, "attributes", (dict,), '; such as {"gender": "female"}')
    attributes = {str(name): value for name, value in found.items() if value is not None}
    for name, value in attributes.items():
        if name == "stress":
            if not isinstance(value, list) or any(type(index) is not int or index < 0 for index in value):
                raise InputError(f"column 'attributes.stress': expected a list of word indices, got {value!r}")
        elif not isinstance(value, str):
            raise InputError(f"column 'attributes.{name}': expected text, got {value!r}")
    return attributes


def _record(row: Row, folder: str) -> dict[str, Any]:
    record = dataclasses.asdict(row)
    record["instructions"] = list(row.instructions)
    prefix = folder + "/" if folder else ""
    if prefix and row.audio.startswith(prefix):
        record["audio"] = row.audio[len(prefix) :]
    return {name: value for name, value in record.items() if value not in (None, "", [], {})}


def _join(folder: str, audio: str) -> str:
    return audio if "://" in audio else posixpath.join(folder, audio)


def _parquet_records(content: bytes, location: str) -> list[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(pyarrow.BufferReader(content)).to_pylist()
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise InputError(f"{location}: no valid Parquet ({error}); write it again, or as JSON lines") from error


def _parquet_bytes(records: list[dict[str, Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    sink = pyarrow.BufferOutputStream()
    columns = {name: None for record in records for name in record}
    table = pyarrow.Table.from_pylist([{**columns, **record} for record in records])
    pyarrow.parquet.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def _read_whole(location: str) -> bytes:
    import fsspec

    try:
        with fsspec.open(location, "rb") as file:
            return file.read()  # pyright: ignore[reportAttributeAccessIssue]
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError(f"{location}: no such manifest; give a JSON lines or Parquet file") from error


def _write_whole(location: str, content: bytes) -> None:
    import fsspec

    filesystem, target = fsspec.core.url_to_fs(location)
    partial = target + ".partial"
    with filesystem.open(partial, "wb") as file:
        file.write(content)
    filesystem.mv(partial, target)
