"""Request files of a synthesis job: one row a sentence to speak, in JSON lines or Parquet.

A bad row never stops a job: it is set aside with its number and the reason; one with an id of its own has a result.
A file is read row by row, from a folder or from behind a URL. Read `Request`, then `iter_requests`.
"""

import contextlib
import dataclasses
import difflib
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from voxinstruct_jax.config import InputError, VoxError, from_dict
from voxinstruct_jax.data.store import is_remote
from voxinstruct_jax.guidance import Guidance
from voxinstruct_jax.jobs.store import open_binary
from voxinstruct_jax.utterance import check_instruction

__all__ = [
    "RejectedRequest",
    "Request",
    "derive_seed",
    "duplicate",
    "iter_requests",
    "parse_request",
    "read_requests",
]

NUM_SEEDS = 2**32
MAX_LINE_BYTES = 2**25
"""A longer line is set aside unread."""
MAX_ID = 500
"""Characters of an id."""
MAX_REASON = 300
"""Characters of a reason, which may quote the row."""
ROWS_A_BATCH = 1024
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
    request: Request | None = None
    """Id and instruction (its beginning), where the id is as it should be: such a row can have a result."""


def derive_seed(job_seed: int, request_id: str) -> int:
    """Returns the seed of a request that names none: from the job's seed and the id alone, on every machine."""
    digest = hashlib.sha256(f"{job_seed} {request_id}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def read_requests(path: Path) -> tuple[list[Request], list[RejectedRequest]]:
    """Reads a request file that is small enough to hold.

    Args:
        path: `.parquet`, or JSON lines under any other name.

    Returns:
        The requests in order, and the rows set aside. Of two rows with one id the first is taken.

    Raises:
        InputError: The file is missing, unreadable or without rows.
    """
    requests: dict[str, Request] = {}
    rejected: list[RejectedRequest] = []
    first_seen: dict[str, int] = {}
    for row, request in iter_requests(str(path)):
        if isinstance(request, RejectedRequest):
            rejected.append(request)
        elif request.id in first_seen:
            rejected.append(duplicate(row, request, first_seen[request.id]))
        else:
            first_seen[request.id] = row
            requests[request.id] = request
    return list(requests.values()), rejected


def iter_requests(place: str) -> Iterator[tuple[int, Request | RejectedRequest]]:
    """Yields the number of each row, from 1, and its request, or why it is set aside. Ids may come twice.

    Args:
        place: As `path` of `read_requests`, or an fsspec URL.

    Raises:
        InputError: The file is missing, unreadable or without rows.
    """
    folder, number = place.rpartition("/")[0] if is_remote(place) else str(Path(place).parent), 0
    for number, parse in _records(place):
        values: Mapping[str, Any] = {}
        try:
            values = parse()
            yield number, parse_request(values, folder)
        except VoxError as error:
            yield number, _rejection(number, values.get("id", ""), str(error), values.get("instruction"))
    if not number:
        raise InputError(f"{place}: holds no requests; write one a line")


def duplicate(row: int, request: Request, first_row: int) -> RejectedRequest:
    """Sets aside a row whose id was taken before."""
    reason = f"id {request.id!r} stands in row {first_row} already, which was taken"
    return RejectedRequest(row=row, id=request.id, reason=_shortened(reason, MAX_REASON))


def _rejection(row: int, request_id: Any, reason: str, instruction: Any = None) -> RejectedRequest:
    """Sets a row aside; nothing of it is kept whole."""
    named = request_id if isinstance(request_id, str) else repr(request_id)
    request = None
    with contextlib.suppress(InputError):
        said = _shortened(instruction, MAX_REASON) if isinstance(instruction, str) else ""
        request = Request(id=_id("id", request_id), instruction=said.encode("utf-8", "replace").decode())
    return RejectedRequest(
        row=row, id=_shortened(named, MAX_ID), reason=_shortened(reason, MAX_REASON), request=request
    )


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


def parse_request(values: Mapping[str, Any], folder: str) -> Request:
    """Checks one row.

    Args:
        values: Columns by name; None counts as absent.
        folder: What a relative `prompt` is relative to; a local one, or a URL.

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
        parsed["prompt"] = _existing(_joined(folder, parsed["prompt"]))
    elif "prompt_transcript" in parsed:
        raise InputError("prompt_transcript: given without a prompt; give the audio file too")
    return Request(**parsed)


def _shown(value: Any) -> str:
    """The value, as far as fits into a message."""
    return _shortened(repr(value), MAX_REASON // 2)


def _known() -> str:
    return f"known: {', '.join(_PARSERS)}"


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InputError(f"{name}: expected text, got {_shown(value)}")
    if not value.strip():
        raise InputError(f"{name}: empty; write some words")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise InputError(f"{name}: holds half a character (a lone surrogate); write it again in UTF-8")
    return value


def _seed(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < NUM_SEEDS:
        raise InputError(f"{name}: expected a whole number from 0 to {NUM_SEEDS - 1}, got {_shown(value)}")
    return value


def _seconds(name: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise InputError(f"{name}: expected seconds above 0, got {_shown(value)}")
    return float(value)


def _guidance(name: str, value: Any) -> Guidance:
    if isinstance(value, list):
        if len(value) != len(STRENGTHS):
            raise InputError(f"{name}: expected [{', '.join(STRENGTHS)}], got {_shown(value)}")
        value = dict(zip(STRENGTHS, value, strict=True))
    if not isinstance(value, Mapping):
        raise InputError(f"{name}: expected an object or three numbers, got {_shown(value)}")
    guidance = from_dict(Guidance, value, path=name)
    missing = [strength for strength in STRENGTHS if strength not in value]
    if missing:
        raise InputError(f"{name}: {missing[0]!r} is missing; name all three strengths or none")
    return guidance


def _attributes(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f'{name}: expected an object such as {{"gender": "female"}}, got {_shown(value)}')
    return {str(key): item for key, item in value.items() if item is not None}


def _id(name: str, value: Any) -> str:
    if len(_text(name, value)) > MAX_ID:
        raise InputError(f"{name}: {len(value)} characters, at most {MAX_ID}")
    return value


_PARSERS: dict[str, Callable[[str, Any], Any]] = {
    "id": _id,
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


def _joined(folder: str, path: str) -> str:
    if is_remote(path):
        return path
    return f"{folder}/{path}" if is_remote(folder) else str(Path(folder) / path)


@functools.lru_cache(maxsize=4096)
def _existing(place: str) -> str:
    """Many requests share a prompt: each file is looked for once. One behind a URL is taken to be there."""
    if not is_remote(place) and not Path(place).is_file():
        raise InputError(f"prompt: no such audio file: {place}")
    return place


def _records(place: str) -> Iterator[tuple[int, Callable[[], Mapping[str, Any]]]]:
    """Yields each row's number and a function that parses it, so that one bad line does not end the reading."""
    if not is_remote(place) and not Path(place).is_file():
        raise InputError(f"{place}: no such request file; give JSON lines or Parquet")
    if place.endswith(".parquet"):
        for number, record in enumerate(_parquet_records(place), 1):
            yield number, functools.partial(dict, record)
        return
    with open_binary(place) as file:
        for number, line in enumerate(_lines(file), 1):
            if line.strip():
                yield number, functools.partial(_parse_line, line)


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Yields lines; of one that is too long no more than `MAX_LINE_BYTES` + 1 bytes, which are not kept together."""
    first = True
    while line := file.readline(MAX_LINE_BYTES + 1):
        rest = line
        while len(rest) > MAX_LINE_BYTES and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE_BYTES + 1)
        yield line.removeprefix(b"\xef\xbb\xbf") if first else line
        first = False


def _parse_line(line: bytes) -> Mapping[str, Any]:
    if len(line.rstrip(b"\r\n")) > MAX_LINE_BYTES:
        raise InputError(f"longer than {MAX_LINE_BYTES // 2**20} MiB; write one request a line")
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"no valid JSON ({error}); write one object a line, in UTF-8") from error
    if not isinstance(record, dict):
        raise InputError(f"expected an object with named columns, got {record!r}")
    return record


def _parquet_records(place: str) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with open_binary(place) as file:
            for batch in pyarrow.parquet.ParquetFile(file).iter_batches(ROWS_A_BATCH):
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{place}: no valid Parquet ({reason}); write it again, or as JSON lines") from error
