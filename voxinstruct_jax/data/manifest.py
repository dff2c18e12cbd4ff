"""Manifests: one row a clip, in JSON lines or Parquet. What each column means stands on `Row`.

Both are read and written row by row: a manifest of ten million rows takes 80 MB of memory (eight bytes an id, to find
ids that repeat).
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from voxinstruct_jax.config import InputError, VoxError, from_dict
from voxinstruct_jax.data.seen import Seen

__all__ = [
    "ATTRIBUTES",
    "COLUMNS",
    "Annotation",
    "ManifestRows",
    "Rejection",
    "Row",
    "iter_manifest",
    "iter_records",
    "read_manifest",
    "whole_file",
    "write_manifest",
]

Attributes = dict[str, str | list[int]]
ATTRIBUTES = ("gender", "age", "pitch", "energy", "speed", "emotion", "stress")
PARQUET_ROWS = 4096
"""Rows of a Parquet row group, which is read and written at once."""


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """How an attribute was found."""

    value: float | None
    """What was measured; None where a judge gives a class without a number."""
    unit: str
    """Of the value, such as Hz or syllables/s; empty where it has none."""
    label: str
    """The class, as in `Row.attributes`; for stress the indices, such as "2 3"."""
    confidence: float
    """From 0 to 1, as the judge has it."""
    judge: str
    """The rule or model with its version, and the boundaries it used."""


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
    """Any of gender, age, pitch, energy, speed, emotion (names) and stress (indices into `text.words.split_words`)."""
    annotations: dict[str, Annotation] = field(default_factory=dict)
    """How the attributes were found, by name; those that a person gave have none."""
    word_times_s: tuple[tuple[float, float], ...] = ()
    """Start and end of each word of the transcript in the clip (s), words as `text.words.split_words` has them."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Columns that no field above is named after; kept when the manifest is written again."""


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """A row that was set aside."""

    row: int
    """Number in the manifest, from 1; 0 where only the id is known."""
    id: str
    reason: str


def read_manifest(path: str | os.PathLike[str], *, rejected: list[Rejection] | None = None) -> list[Row]:
    """Reads a manifest whole; see `iter_manifest`."""
    return list(iter_manifest(path, rejected=rejected))


def iter_manifest(path: str | os.PathLike[str], *, rejected: list[Rejection] | None = None) -> Iterator[Row]:
    """Reads a manifest row by row.

    Args:
        path: `.parquet`, or JSON lines under any other name (`.gz` and other endings that fsspec knows are unpacked); a
            local path or an fsspec URL.
        rejected: Where given, bad rows are appended here and the rest is read.

    Raises:
        InputError: The file is missing or empty, or (without `rejected`) a row is bad or repeats an id.
    """
    location = os.fspath(path)
    folder, seen, empty = posixpath.dirname(location), Seen(), True
    for number, parse in iter_records(location):
        empty = False
        values: Mapping[str, Any] = {}
        try:
            values = parse()
            row = _row(values, folder)
            if not seen.add(row.id):
                raise InputError(f"column 'id': {row.id!r} stands in an earlier row already; make ids unique")
        except InputError as error:
            if rejected is None:
                raise InputError(f"{location}: row {number}: {error}") from error
            rejected.append(Rejection(row=number, id=str(values.get("id", "")), reason=str(error)))
            continue
        yield row
    if empty:
        raise InputError(f"{location}: holds no rows; give at least one clip")


@dataclass(frozen=True)
class ManifestRows:
    """The good rows of a manifest file, read anew by each iteration; the bad ones are listed in `rejected`."""

    path: str | os.PathLike[str]
    rejected: list[Rejection] = field(default_factory=list)
    """Of the latest iteration."""

    def __iter__(self) -> Iterator[Row]:
        self.rejected.clear()
        yield from iter_manifest(self.path, rejected=self.rejected)


def write_manifest(path: str | os.PathLike[str], rows: Iterable[Row]) -> int:
    """Writes rows so that `read_manifest` gives them back; audio in the manifest's folder is written relative to it.

    The file appears whole or not at all.

    Args:
        path: `.parquet`, or any other name for JSON lines; a local path or an fsspec URL.
        rows: In order; taken one by one.

    Returns:
        How many there were.
    """
    location = os.fspath(path)
    records = (_record(row, posixpath.dirname(location)) for row in rows)
    with whole_file(location) as file:
        if location.endswith(".parquet"):
            return _write_parquet(file, records)
        return sum(1 for record in records if file.write((json.dumps(record, ensure_ascii=False) + "\n").encode()))


def iter_records(location: str) -> Iterator[tuple[int, Callable[[], Mapping[str, Any]]]]:
    """Reads a table of JSON lines or Parquet as it stands.

    Yields:
        Each row's number and a function that parses it, so that one bad line does not end the reading.

    Raises:
        InputError: The file is missing, or is no table.
    """
    with _opened(location) as file:
        if location.endswith(".parquet"):
            for number, record in enumerate(_parquet_records(file, location), 1):
                yield number, lambda record=record: record
            return
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, functools.partial(_parse_line, line)


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
        annotations=_annotations(present),
        word_times_s=_word_times(present),
        extra={name: value for name, value in present.items() if name not in COLUMNS} | _stored_extra(present),
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


def _annotations(values: Mapping[str, Any]) -> dict[str, Annotation]:
    if "annotations" not in values:
        return {}
    found = _typed(values, "annotations", (dict,), "; leave it out or run `annotate`")
    annotations = {}
    for name, fields in found.items():
        if fields is None:  # Parquet fills what a row lacks
            continue
        try:
            annotations[str(name)] = from_dict(Annotation, fields)
        except (TypeError, VoxError) as error:
            raise InputError(f"column 'annotations.{name}': {error}; leave it out or run `annotate`") from error
    return annotations


def _word_times(values: Mapping[str, Any]) -> tuple[tuple[float, float], ...]:
    if "word_times_s" not in values:
        return ()
    found = _typed(values, "word_times_s", (list,), "; such as [[0.1, 0.4], [0.4, 0.9]]")
    for pair in found:
        numbers = isinstance(pair, list) and all(isinstance(value, int | float) for value in pair)
        if not numbers or len(pair) != 2 or not 0 <= pair[0] <= pair[1]:
            raise InputError(f"column 'word_times_s': {pair!r} is no start and end in seconds")
    return tuple((float(start), float(end)) for start, end in found)


def _stored_extra(values: Mapping[str, Any]) -> dict[str, Any]:
    """Extra columns as Parquet keeps them: one JSON text."""
    if "extra" not in values:
        return {}
    if isinstance(values["extra"], str):
        with contextlib.suppress(ValueError):
            if isinstance(stored := json.loads(values["extra"]), dict):
                return stored
    return {"extra": values["extra"]}


COLUMNS = frozenset(item.name for item in dataclasses.fields(Row)) | {"instruction"}
"""Names that `Row.extra` cannot hold."""


def _record(row: Row, folder: str) -> dict[str, Any]:
    record = dataclasses.asdict(row)
    record["instructions"] = list(row.instructions)
    record["word_times_s"] = [list(pair) for pair in row.word_times_s]
    prefix = folder + "/" if folder else ""
    if prefix and row.audio.startswith(prefix):
        record["audio"] = row.audio[len(prefix) :]
    extra = record.pop("extra")
    return {name: value for name, value in record.items() if value not in (None, "", [], {})} | extra


def _join(folder: str, audio: str) -> str:
    return audio if "://" in audio else posixpath.join(folder, audio)


def _parquet_records(file: IO[bytes], location: str) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(PARQUET_ROWS):
            for record in batch.to_pylist():
                if isinstance(record.get("annotations"), list):  # a map column
                    record["annotations"] = dict(record["annotations"])
                yield record
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise InputError(f"{location}: no valid Parquet ({error}); write it again, or as JSON lines") from error


def _parquet_schema() -> Any:
    import pyarrow as pa

    annotation = pa.struct(
        [("value", pa.float64()), ("unit", pa.string()), ("label", pa.string()), ("confidence", pa.float64()),
         ("judge", pa.string())]
    )  # fmt: skip
    attributes = pa.struct([(name, pa.list_(pa.int32()) if name == "stress" else pa.string()) for name in ATTRIBUTES])
    return pa.schema(
        [
            *((name, pa.string()) for name in ("id", "audio", "language", "transcript", "speaker")),
            ("offset_s", pa.float64()),
            ("duration_s", pa.float64()),
            ("instructions", pa.list_(pa.string())),
            ("attributes", attributes),
            ("annotations", pa.map_(pa.string(), annotation)),
            ("word_times_s", pa.list_(pa.list_(pa.float64()))),
            ("extra", pa.string()),
        ]
    )


def _write_parquet(file: IO[bytes], records: Iterator[dict[str, Any]]) -> int:
    import pyarrow
    import pyarrow.parquet

    schema, count = _parquet_schema(), 0
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        while rows := [_columns(record, schema.names) for record in itertools.islice(records, PARQUET_ROWS)]:
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))
            count += len(rows)
    return count


def _columns(record: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """What has no column of its own goes into `extra`: Parquet wants the same columns in every row."""
    extra = {name: value for name, value in record.items() if name not in names}
    attributes = record.get("attributes", {})
    others = {name: value for name, value in attributes.items() if name not in ATTRIBUTES}
    if others:
        raise InputError(f"row {record['id']!r}: attributes {', '.join(others)} have no Parquet column; use JSON lines")
    return record | ({"extra": json.dumps(extra, ensure_ascii=False)} if extra else {})


@contextlib.contextmanager
def _opened(location: str) -> Iterator[IO[bytes]]:
    import fsspec

    try:
        with fsspec.open(location, "rb", compression="infer") as file:
            yield file  # pyright: ignore[reportReturnType]
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError(f"{location}: no such manifest; give a JSON lines or Parquet file") from error


@contextlib.contextmanager
def whole_file(location: str) -> Iterator[IO[bytes]]:
    """A file for writing that appears when the block ends well.

    Args:
        location: A local path or an fsspec URL; packed if it ends in `.gz`.
    """
    import fsspec

    filesystem, target = fsspec.core.url_to_fs(location)
    partial = target + ".partial"
    try:
        with filesystem.open(partial, "wb", compression="gzip" if target.endswith(".gz") else None) as file:
            yield file
    except BaseException:
        with contextlib.suppress(OSError):
            filesystem.rm(partial)
        raise
    filesystem.mv(partial, target)
