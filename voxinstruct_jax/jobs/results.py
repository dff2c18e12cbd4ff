"""What a job leaves: one `Result` a request, each committed alone while the job runs, all in one Parquet at its end."""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
from jaxtyping import Float32

from voxinstruct_jax.config import InputError, from_dict, to_dict

__all__ = [
    "DONE_FOLDER",
    "RESULTS_FILE",
    "Result",
    "check_sound",
    "file_names",
    "read_done",
    "read_results",
    "write_done",
    "write_json",
    "write_results",
]

RESULTS_FILE = "results.parquet"
DONE_FOLDER = "done"
MAX_NAME = 120
"""Characters of a file name before its suffix; file systems allow 255 bytes."""
SILENT_PEAK = 1e-3
CLIPPED_SHARE = 1e-3
"""Share of samples at full scale from which a sound counts as clipped; single ones are not heard."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of a request; the columns of `results.parquet`."""

    id: str
    status: Literal["done", "failed"]
    instruction: str
    transcript: str | None = None
    language_asked: str | None = None
    language_predicted: str | None = None
    prompt: str | None = None
    audio: str | None = None
    """Relative to the job's folder."""
    audio_sha256: str | None = None
    duration_s: float | None = None
    finish_reason: str
    """stop, max_semantic, max_acoustic, max_total, or error."""
    attempts: int = 1
    seed: int
    checks: tuple[str, ...] = ()
    """What is wrong with the sound: silent, clipped."""
    timings: dict[str, float] = field(default_factory=dict)
    """`synthesis_s`; the first request of a shape includes its compilation."""
    error: str | None = None
    """Why it failed, in one line."""
    notes: tuple[str, ...] = ()
    """What the user should know: no quoted words, a prompt that was cut ..."""
    attributes: dict[str, Any] = field(default_factory=dict)
    """As in the request; JSON text in the file, since each job has its own."""


def check_sound(samples: Float32[np.ndarray, " sample"]) -> tuple[str, ...]:
    """Names what is plainly wrong with a sound: "silent" (peak below .001) or "clipped" (.1 % at full scale)."""
    level = np.abs(samples)
    if level.max(initial=0.0) < SILENT_PEAK:
        return ("silent",)
    return ("clipped",) if np.mean(level >= 1.0) > CLIPPED_SHARE else ()


def file_names(ids: Collection[str]) -> dict[str, str]:
    """Returns a file name without suffix for every id; no two share one, not even where case does not count.

    Letters, digits, `_`, `-`, `.` and `~` stay, everything else becomes `%XX`. A name that is too long, or differs
    from another in case alone, ends in `%-` and a hash of the id, which no other name can hold.
    """
    plain = {each: _quote(each) for each in ids}
    folded: dict[str, int] = {}
    for name in plain.values():
        folded[name.lower()] = folded.get(name.lower(), 0) + 1
    return {
        each: name
        if len(name) <= MAX_NAME and folded[name.lower()] == 1
        else f"{name[: MAX_NAME // 2]}%-{hashlib.sha256(each.encode()).hexdigest()[:32]}"
        for each, name in plain.items()
    }


def write_done(out: Path, result: Result, request_fingerprint: str) -> None:
    """Commits one result; it appears whole or not at all."""
    write_json(_done_path(out, result.id), {"request": request_fingerprint, "result": to_dict(result)})


def read_done(out: Path, request_id: str, request_fingerprint: str) -> Result | None:
    """Returns the result of a finished request; None if it is not finished, or its sound is gone.

    Raises:
        InputError: The folder holds this id with another instruction, prompt or setting.
    """
    path = _done_path(out, request_id)
    if not path.is_file():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    if record["request"] != request_fingerprint:
        raise InputError(f"{out}: holds another request with id {request_id!r}; give another --out or another id")
    result = from_dict(Result, record["result"])
    return result if result.audio is None or (out / result.audio).is_file() else None


def write_results(out: Path, results: Sequence[Result]) -> None:
    """Writes `results.parquet`; it appears whole or not at all."""
    import pyarrow
    import pyarrow.parquet

    text, texts = pyarrow.string(), pyarrow.list_(pyarrow.string())
    other = {
        "duration_s": pyarrow.float64(),
        "attempts": pyarrow.int32(),
        "seed": pyarrow.int64(),
        "checks": texts,
        "notes": texts,
        "timings": pyarrow.struct({"synthesis_s": pyarrow.float64()}),
    }
    schema = pyarrow.schema([(item.name, other.get(item.name, text)) for item in dataclasses.fields(Result)])
    rows = [{**to_dict(result), "attributes": json.dumps(result.attributes)} for result in results]
    partial = out / f".{RESULTS_FILE}.partial"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema), partial)
    partial.replace(out / RESULTS_FILE)


def read_results(path: Path) -> list[Result]:
    """Reads a `results.parquet`, or the one in a job's folder.

    Raises:
        InputError: There is none, or it is of another form.
    """
    import pyarrow
    import pyarrow.parquet

    path = path / RESULTS_FILE if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"{path}: no results here")
    try:
        return [_from_row(row) for row in pyarrow.parquet.read_table(path).to_pylist()]
    except (pyarrow.ArrowException, KeyError, ValueError, OSError) as error:
        raise InputError(f"{path}: no results of a job ({str(error).splitlines()[0]})") from error


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file that appears whole or not at all.

    Raises:
        InputError: The folder cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); mend it and start the job again") from error


def _from_row(row: dict[str, Any]) -> Result:
    values = {name: value for name, value in row.items() if value is not None}
    timings = {name: value for name, value in (row["timings"] or {}).items() if value is not None}
    return from_dict(Result, {**values, "timings": timings, "attributes": json.loads(row["attributes"])})


def _quote(text: str) -> str:
    quoted = quote(text, safe="")
    return f"%2E{quoted[1:]}" if quoted.startswith(".") else quoted


def _done_path(out: Path, request_id: str) -> Path:
    return out / DONE_FOLDER / f"{hashlib.sha256(request_id.encode()).hexdigest()[:32]}.json"
