"""Request files of a synthesis job: one row a sentence to speak, in JSON lines or Parquet.

A bad row never stops a job: it is set aside with its number and the reason. Read `Request`, then `read_requests`.
"""

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from voxinstruct_jax.config import InputError, VoxError, from_dict
from voxinstruct_jax.guidance import Guidance
from voxinstruct_jax.voice import check_instruction

__all__ = ["RejectedRequest", "Request", "derive_seed", "parse_request", "read_requests"]

NUM_SEEDS = 2**32
STRENGTHS = tuple(item.name for item in dataclasses.fields(Guidance))


@dataclass(frozen=True, kw_only=True)
class Request:
    """One sentence to speak, and how."""

    id: str
    """Unique in the job."""
    instruction: str
    transcript: str | None = None
    """The words to be spoken, where the instruction does not quote them."""
    language: str | None = None
    """Name of the language; None = the model predicts it."""
    prompt: str | None = None
    """Audio file whose voice is continued; in a file relative to the file's folder, here joined to it."""
    prompt_transcript: str | None = None
    seed: int | None = None
    """None = derived from the job's seed and the id."""
    guidance: Guidance | None = None
    """In a file an object with all three strengths, or `[gamma, alpha, beta]`; None = the voice's own."""
    max_duration_s: float | None = None
    """Upper limit (s)."""
    attributes: dict[str, Any] = field(default_factory=dict)
    """Passed through to the results."""


@dataclass(frozen=True, kw_only=True)
class RejectedRequest:
    """A row that was set aside."""

    row: int
    """Number in the file, from 1."""
    id: str
    """As far as it could be read."""
    reason: str


def derive_seed(job_seed: int, request_id: str) -> int:
    """Returns the seed of a request that names none: from the job's seed and the id alone, on every machine."""
    digest = hashlib.sha256(f"{job_seed} {request_id}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def read_requests(path: Path) -> tuple[list[Request], list[RejectedRequest]]:
    """Reads a request file.

    Args:
        path: `.parquet`, or JSON lines under any other name.

    Returns:
        The requests in order, and the rows set aside. Of two rows with one id the first is taken.

    Raises:
        InputError: The file is missing, unreadable or without rows.
    """
    requests: list[Request] = []
    rejected: list[RejectedRequest] = []
    first_seen: dict[str, int] = {}
    for number, parse in _records(path):
        values: Mapping[str, Any] = {}
        try:
            values = parse()
            request = parse_request(values, path.parent)
            if request.id in first_seen:
                raise InputError(f"id {request.id!r} stands in row {first_seen[request.id]} already, which was taken")
        except VoxError as error:
            rejected.append(RejectedRequest(row=number, id=str(values.get("id", "")), reason=str(error)))
            continue
        first_seen[request.id] = number
        requests.append(request)
    if not requests and not rejected:
        raise InputError(f"{path}: holds no requests; write one a line")
    return requests, rejected


def parse_request(values: Mapping[str, Any], folder: Path) -> Request:
    """Checks one row.

    Args:
        values: Columns by name; None counts as absent.
        folder: What a relative `prompt` is relative to.

    Raises:
        VoxError: A column is unknown (the nearest known one is named), missing, of the wrong type or out of range, or
            the prompt file does not exist.
    """
    present = {name: value for name, value in values.items() if value is not None}
    for name in present:
        if name not in _PARSERS:
            near = difflib.get_close_matches(name, _PARSERS, n=1)
            raise InputError(f"unknown column {name!r}; " + (f"did you mean {near[0]!r}?" if near else _known()))
    for name in ("id", "instruction"):
        if name not in present:
            raise InputError(f"{name}: missing")
    parsed = {name: _PARSERS[name](name, value) for name, value in present.items()}
    if "prompt" in parsed:
        parsed["prompt"] = _existing(folder / parsed["prompt"])
    elif "prompt_transcript" in parsed:
        raise InputError("prompt_transcript: given without a prompt; give the audio file too")
    return Request(**parsed)


def _known() -> str:
    return f"known: {', '.join(_PARSERS)}"


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InputError(f"{name}: expected text, got {value!r}")
    if not value.strip():
        raise InputError(f"{name}: empty; write some words")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise InputError(f"{name}: holds half a character (a lone surrogate); write it again in UTF-8")
    return value


def _seed(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < NUM_SEEDS:
        raise InputError(f"{name}: expected a whole number from 0 to {NUM_SEEDS - 1}, got {value!r}")
    return value


def _seconds(name: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise InputError(f"{name}: expected seconds above 0, got {value!r}")
    return float(value)


def _guidance(name: str, value: Any) -> Guidance:
    if isinstance(value, list):
        if len(value) != len(STRENGTHS):
            raise InputError(f"{name}: expected [{', '.join(STRENGTHS)}], got {value!r}")
        value = dict(zip(STRENGTHS, value, strict=True))
    if not isinstance(value, Mapping):
        raise InputError(f"{name}: expected an object or three numbers, got {value!r}")
    guidance = from_dict(Guidance, value, path=name)
    missing = [strength for strength in STRENGTHS if strength not in value]
    if missing:
        raise InputError(f"{name}: {missing[0]!r} is missing; name all three strengths or none")
    return guidance


def _attributes(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f'{name}: expected an object such as {{"gender": "female"}}, got {value!r}')
    return {str(key): item for key, item in value.items() if item is not None}


_PARSERS: dict[str, Callable[[str, Any], Any]] = {
    "id": _text,
    "instruction": lambda name, value: check_instruction(_text(name, value)),
    "transcript": _text,
    "language": _text,
    "prompt": _text,
    "prompt_transcript": _text,
    "seed": _seed,
    "guidance": _guidance,
    "max_duration_s": _seconds,
    "attributes": _attributes,
}


def _existing(path: Path) -> str:
    if not path.is_file():
        raise InputError(f"prompt: no such audio file: {path}")
    return str(path)


def _records(path: Path) -> Iterator[tuple[int, Callable[[], Mapping[str, Any]]]]:
    """Yields each row's number and a function that parses it, so that one bad line does not end the reading."""
    if not path.is_file():
        raise InputError(f"{path}: no such request file; give JSON lines or Parquet")
    if path.suffix == ".parquet":
        for number, record in enumerate(_parquet_records(path), 1):
            yield number, lambda record=record: record
        return
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if line.strip():
            yield number, lambda line=line: _parse_line(line)


def _parse_line(line: bytes) -> Mapping[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"no valid JSON ({error}); write one object a line, in UTF-8") from error
    if not isinstance(record, dict):
        raise InputError(f"expected an object with named columns, got {record!r}")
    return record


def _parquet_records(path: Path) -> list[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: no valid Parquet ({reason}); write it again, or as JSON lines") from error
