"""What a job leaves: one `Result` a request, one Parquet part a work unit, committed whole; at the end one file of all.

Read `Result`, then `iter_results`.
"""

import dataclasses
import hashlib
import io
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from voxinstruct_jax.config import InputError, from_dict, to_dict
from voxinstruct_jax.data.store import is_remote
from voxinstruct_jax.jobs.store import LocalStore, Store, open_binary, open_store

__all__ = [
    "PARTS_FOLDER",
    "RESULTS_FILE",
    "STAND_IN",
    "PartSummary",
    "Result",
    "file_name",
    "iter_part",
    "iter_parts",
    "iter_results",
    "merge_parts",
    "part_bytes",
    "part_name",
    "read_results",
]

RESULTS_FILE = "results.parquet"
PARTS_FOLDER = "results"
MAX_NAME = 120
"""Characters of a file name before its suffix; file systems allow 255 bytes."""
STATUSES = ("done", "failed", "quarantined")
TIMINGS = ("synthesis_s", "discarded_s", "judging_s", "finished_unix_s")
MEASURES = (
    "syllables",
    "speech_s",
    "leading_s",
    "trailing_s",
    "longest_pause_s",
    "peak_dbfs",
    "level_dbfs",
    "clipped_share",
    "loudness_lufs",
    "wer",
    "similarity",
)
ROWS_A_BATCH = 1024
METADATA = "voxinstruct_jax"
FAILURES_A_PART = 3
STAND_IN = "%~"
"""In a name: the name without it was taken by other bytes of a worker that committed nothing."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of a request; the columns of `results.parquet`."""

    id: str
    status: Literal["done", "failed", "quarantined"]
    """quarantined: there is a sound, but every try had a fault that `checks` names."""
    instruction: str
    transcript: str | None = None
    language_asked: str | None = None
    language_predicted: str | None = None
    prompt: str | None = None
    audio: str | None = None
    """Relative to the job's place; in a shard `shards/UNIT.tar/NAME`."""
    audio_sha256: str | None = None
    duration_s: float | None = None
    finish_reason: str
    """stop, max_semantic, max_acoustic, max_total, or error."""
    attempts: int = 1
    """Sounds tried."""
    seed: int
    """Of the sound that was kept."""
    checks: tuple[str, ...] = ()
    """What is wrong with the sound: see `jobs.quality.FAULTS`."""
    measures: dict[str, float] = field(default_factory=dict)
    """What was measured of it: `MEASURES`."""
    timings: dict[str, float] = field(default_factory=dict)
    """`TIMINGS`; the first request of a shape includes its compilation."""
    error: str | None = None
    """Why it failed, in one line."""
    notes: tuple[str, ...] = ()
    """What the user should know: no quoted words, a prompt that was cut ..."""
    attributes: dict[str, Any] = field(default_factory=dict)
    """As in the request; JSON text in the file, since each job has its own."""


@dataclass(frozen=True, kw_only=True)
class PartSummary:
    """What a part holds, in a few numbers; they stand in its metadata."""

    sums: dict[str, float]
    """Requests, and those of each status; tries, unsound; audio_s, synthesis_s, discarded_s, judging_s."""
    failures: tuple[str, ...]
    """A line on each of the first that are not done."""


def file_name(request_id: str, *, shared: bool) -> str:
    """Returns a file name without suffix for an id; no two ids share one, not even where case does not count.

    Letters, digits, `_`, `-`, `.` and `~` stay, everything else becomes `%XX`. A name that is too long, or `shared`,
    ends in `%-` and a hash of the id, which no other name can hold.

    Args:
        request_id: The id.
        shared: Another id of the job differs from it in the case of letters alone.
    """
    quoted = quote(request_id, safe="")
    name = f"%2E{quoted[1:]}" if quoted.startswith(".") else quoted
    if len(name) <= MAX_NAME and not shared:
        return name
    return f"{name[: MAX_NAME // 2]}%-{hashlib.sha256(request_id.encode()).hexdigest()[:32]}"


def part_name(unit: str) -> str:
    """Name of a unit's part in the job's place."""
    return f"{PARTS_FOLDER}/{unit}.parquet"


def part_bytes(results: Iterable[Result]) -> bytes:
    """Returns a part: a Parquet file, which also says in a few numbers what it holds (`iter_parts`)."""
    import pyarrow
    import pyarrow.parquet

    rows = list(results)
    failures = [f"{row.status} {row.id}: {row.error or ', '.join(row.checks)}" for row in rows if row.status != "done"]
    about = PartSummary(sums=_sums(rows), failures=tuple(failures[:FAILURES_A_PART]))
    table = _table(rows).replace_schema_metadata({METADATA: json.dumps(to_dict(about))})
    target = io.BytesIO()
    pyarrow.parquet.write_table(table, target)
    return target.getvalue()


def iter_parts(store: Store, names: Iterable[str]) -> Iterator[tuple[str, PartSummary]]:
    """Yields the names of parts and what each holds.

    Raises:
        InputError: One is damaged.
    """
    import pyarrow
    import pyarrow.parquet

    for name in names:
        content = store.read(f"{PARTS_FOLDER}/{name}")
        if content is None:
            continue
        try:
            metadata = pyarrow.parquet.read_schema(pyarrow.BufferReader(content)).metadata or {}
            yield name, from_dict(PartSummary, json.loads(metadata[METADATA.encode()]))
        except (pyarrow.ArrowException, KeyError, ValueError) as error:
            raise InputError(f"{store.place}: {PARTS_FOLDER}/{name} is damaged; remove it and start again") from error


def iter_part(store: Store, unit: str) -> Iterator[Result]:
    """Yields the results of one unit; none if it is not committed."""
    import pyarrow
    import pyarrow.parquet

    content = store.read(part_name(unit))
    if content is not None:
        yield from (_from_row(row) for row in pyarrow.parquet.read_table(pyarrow.BufferReader(content)).to_pylist())


def merge_parts(store: Store) -> list[str]:
    """Writes `results.parquet` from all parts, a part at a time.

    Returns:
        Sounds that stand in for others (`STAND_IN`).
    """
    import pyarrow.parquet

    stand_ins: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        merged = Path(folder) / RESULTS_FILE
        with pyarrow.parquet.ParquetWriter(merged, _schema()) as writer:
            for table in _part_tables(store):
                stand_ins += [name for name in table["audio"].to_pylist() if name and STAND_IN in name]
                writer.write_table(table.replace_schema_metadata(None))
        store.write_file(RESULTS_FILE, merged)
    return stand_ins


def read_results(path: Path) -> list[Result]:
    """As `iter_results`, all at once."""
    return list(iter_results(str(path)))


def iter_results(place: str) -> Iterator[Result]:
    """Reads a `results.parquet`, or all of a job's place: that file, or else its parts.

    Args:
        place: File, folder or URL.

    Raises:
        InputError: There is none, or it is of another form.
    """
    import pyarrow
    import pyarrow.parquet

    if not place.endswith(".parquet"):
        store = open_store(place) if is_remote(place) else _Folder(place)
        merged = store.exists(RESULTS_FILE)
        if not merged and store.names(PARTS_FOLDER):
            for table in _part_tables(store):
                yield from (_from_row(row) for row in table.to_pylist())
            return
        place = f"{place.rstrip('/')}/{RESULTS_FILE}"
    if not is_remote(place) and not Path(place).is_file():
        raise InputError(f"{place}: no results here")
    try:
        with open_binary(place) as file:
            for batch in pyarrow.parquet.ParquetFile(file).iter_batches(ROWS_A_BATCH):
                yield from (_from_row(row) for row in batch.to_pylist())
    except (pyarrow.ArrowException, KeyError, ValueError) as error:
        raise InputError(f"{place}: no results of a job ({str(error).splitlines()[0]})") from error


class _Folder(LocalStore):
    """A local folder that is only read."""

    def __init__(self, place: str) -> None:
        self.place, self.root = place, Path(place)


def _part_tables(store: Store) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    for name in store.names(PARTS_FOLDER):
        content = store.read(f"{PARTS_FOLDER}/{name}")
        if content is not None:
            yield pyarrow.parquet.read_table(pyarrow.BufferReader(content))


def _sums(results: Sequence[Result]) -> dict[str, float]:
    counts = {
        "requests": len(results),
        **{status: sum(result.status == status for result in results) for status in STATUSES},
        "tries": sum(result.attempts for result in results),
        "unsound": sum(bool(result.checks) for result in results),
        "audio_s": sum(result.duration_s or 0.0 for result in results),
        **{name: sum(result.timings.get(name, 0.0) for result in results) for name in TIMINGS[:3]},
    }
    return {name: float(value) for name, value in counts.items()}


def _table(results: Iterable[Result]) -> Any:
    import pyarrow

    rows = [{**to_dict(result), "attributes": json.dumps(result.attributes)} for result in results]
    return pyarrow.Table.from_pylist(rows, _schema())


def _schema() -> Any:
    import pyarrow

    text, texts = pyarrow.string(), pyarrow.list_(pyarrow.string())
    other = {
        "duration_s": pyarrow.float64(),
        "attempts": pyarrow.int32(),
        "seed": pyarrow.int64(),
        "checks": texts,
        "notes": texts,
        "measures": pyarrow.struct(dict.fromkeys(MEASURES, pyarrow.float64())),
        "timings": pyarrow.struct(dict.fromkeys(TIMINGS, pyarrow.float64())),
    }
    return pyarrow.schema([(item.name, other.get(item.name, text)) for item in dataclasses.fields(Result)])


def _from_row(row: dict[str, Any]) -> Result:
    values = {name: value for name, value in row.items() if value is not None}
    numbers = {
        group: {name: value for name, value in (row[group] or {}).items() if value is not None}
        for group in ("measures", "timings")
    }
    return from_dict(Result, {**values, **numbers, "attributes": json.loads(row["attributes"])})
