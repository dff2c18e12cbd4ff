"""The plan of a job: its requests checked once and cut into units of work of like length, longest first.

A unit's requests stand in a file of their own (`plan/unit-00000.jsonl`); `plan/index.json` is written last, so a plan
is there whole or not at all. Nothing holds all requests: they pass through files by length, and what is kept of each is
a digest of its id (some 200 bytes). The plan follows from the request file and the settings alone, so whoever makes it
makes the same. Start at `open_plan`.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from voxinstruct_jax.config import InputError, from_dict, to_dict
from voxinstruct_jax.data.store import is_remote
from voxinstruct_jax.jobs.claims import Claims
from voxinstruct_jax.jobs.requests import RejectedRequest, Request, duplicate, iter_requests
from voxinstruct_jax.jobs.results import file_name
from voxinstruct_jax.jobs.settings import JobSettings
from voxinstruct_jax.jobs.store import Store, open_binary
from voxinstruct_jax.text.fields import quoted_words
from voxinstruct_jax.text.normalizer import HAN, HAN_CHARACTER

__all__ = [
    "PLAN_INDEX",
    "REJECTED_FILE",
    "VOICE_FILE",
    "Plan",
    "PlannedRequest",
    "Unit",
    "check_voice",
    "estimate_syllables",
    "open_plan",
    "read_plan",
    "read_unit",
]

PLAN_FOLDER, PLAN_INDEX = "plan", "plan/index.json"
VOICE_FILE = "plan/voice.json"
REJECTED_FILE = "rejected.jsonl"
FORM = 1
"""Of the plan's files."""
UNITS = 1000
"""Of a large job: a unit lost costs a thousandth of it."""
UNIT_SIZES = {False: (1, 1024), True: (16, 1024)}
"""Fewest and most requests of a unit, by whether the job lies in an object store, where each commit takes a while."""
BUCKETS_AN_OCTAVE = 3
SYLLABLES_A_SECOND = 5.0
POLL_S = 0.2

_WORD = re.compile(rf"[^\W\d_{HAN}]+")
_VOWELS = re.compile(r"[aeiouyäöüáéíóúàèìòùâêîôû]+", re.IGNORECASE)
_DIGIT = re.compile(r"\d")


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Requests that are done, and committed, together."""

    name: str
    requests: int
    syllables: float
    """Of all its requests, roughly."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be done; `plan/index.json`."""

    form: int = FORM
    requests_sha256: str
    """Of the request file."""
    settings: JobSettings
    units: tuple[Unit, ...]
    rejected: int
    """Rows without an id of their own."""

    @property
    def num_requests(self) -> int:
        """Of all units."""
        return sum(unit.requests for unit in self.units)


@dataclass(frozen=True, kw_only=True)
class PlannedRequest:
    """A request of a unit."""

    name: str = ""
    """Of its sound file, without suffix."""
    request: Request
    error: str = ""
    """Why it cannot be spoken: it ends as failed."""


def estimate_syllables(request: Request) -> float:
    """Returns roughly how many syllables are to be spoken: by letters alone, so that a million take seconds."""
    content = request.transcript or quoted_words(request.instruction) or request.instruction
    words = sum(max(1, len(_VOWELS.findall(word))) for word in _WORD.findall(content))
    syllables = max(1.0, words + len(HAN_CHARACTER.findall(content)) + 1.5 * len(_DIGIT.findall(content)))
    most = math.inf if request.max_duration_s is None else SYLLABLES_A_SECOND * request.max_duration_s
    return min(syllables, max(1.0, most))


def open_plan(
    store: Store,
    requests: str,
    settings: JobSettings,
    claims: Claims,
    *,
    unit_size: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Returns the plan of a job: the one that is there, or a new one. Of several callers one makes it, the rest wait.

    Args:
        store: The job's place.
        requests: Request file, local or behind a URL.
        settings: Of the job.
        claims: Of the caller.
        unit_size: Requests of a unit; None = a thousandth of the job, within limits.
        say: Called with a line when there is something to wait for.

    Raises:
        InputError: The request file cannot be read, or the place holds another job.
    """
    sha256 = _digest(requests)
    told = False
    while (found := store.read(PLAN_INDEX)) is None:
        claim = claims.take(PLAN_FOLDER, claims.generations().get(PLAN_FOLDER, []))
        if claim is not None:
            try:
                if not store.exists(PLAN_INDEX):
                    _write_plan(store, requests, sha256, settings, unit_size)
            finally:
                claims.release(claim)
        else:
            if not told:
                say("another process plans the job; waiting for it")
                told = True
            time.sleep(POLL_S)
    plan = from_dict(Plan, json.loads(found))
    _check_same(store.place, plan, sha256, settings)
    return plan


def read_plan(store: Store) -> Plan:
    """Returns the plan that is there.

    Raises:
        InputError: There is none.
    """
    found = store.read(PLAN_INDEX)
    if found is None:
        raise InputError(f"{store.place}: holds no job; it has no {PLAN_INDEX}")
    return from_dict(Plan, json.loads(found))


def check_voice(store: Store, name: str) -> None:
    """Writes down which voice speaks, or compares it with the one that began.

    Raises:
        InputError: It is another one.
    """
    if not store.create(VOICE_FILE, json.dumps({"voice": name}).encode()):
        raise _other_job(store.place, ["voice"])


def read_unit(store: Store, unit: Unit) -> list[PlannedRequest]:
    """Returns the requests of a unit.

    Raises:
        InputError: The plan is damaged.
    """
    content = store.read(_unit_file(unit.name)) or b""
    rows = [from_dict(PlannedRequest, json.loads(line)) for line in content.splitlines()]
    if len(rows) != unit.requests:
        raise InputError(f"{store.place}: {_unit_file(unit.name)} is damaged; give another --out")
    return rows


def _check_same(place: str, plan: Plan, sha256: str, settings: JobSettings) -> None:
    ours, theirs = to_dict(settings), to_dict(plan.settings)
    changed = [name for name in ours if ours[name] != theirs[name]]
    if plan.requests_sha256 != sha256:
        changed.insert(0, "request file")
    if changed:
        raise _other_job(place, changed)


def _other_job(place: str, changed: list[str]) -> InputError:
    return InputError(f"{place}: holds another job (its {', '.join(changed)} differs); give another --out")


def _digest(place: str) -> str:
    if not is_remote(place) and not Path(place).is_file():
        raise InputError(f"{place}: no such request file; give JSON lines or Parquet")
    digest = hashlib.sha256()
    with open_binary(place) as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _write_plan(store: Store, requests: str, sha256: str, settings: JobSettings, unit_size: int | None) -> None:
    with tempfile.TemporaryDirectory() as spill:
        sorted_requests = _Sorted(Path(spill))
        with (Path(spill) / REJECTED_FILE).open("w", encoding="utf-8") as aside:
            rejected = sorted_requests.take_in(requests, aside)
        store.write_file(REJECTED_FILE, Path(spill) / REJECTED_FILE)
        fewest, most = UNIT_SIZES[is_remote(store.place)]
        size = unit_size or min(max(fewest, -(-sorted_requests.count // UNITS)), most)
        units = tuple(_write_units(store, sorted_requests, size))
    plan = Plan(requests_sha256=sha256, settings=settings, units=units, rejected=rejected)
    store.write(PLAN_INDEX, json.dumps(to_dict(plan), indent=1).encode())


def _write_units(store: Store, requests: "_Sorted", size: int) -> Iterator[Unit]:
    lines: list[str] = []
    syllables = 0.0
    number = 0

    def written() -> Unit:
        unit = Unit(name=f"unit-{number:05d}", requests=len(lines), syllables=round(syllables, 1))
        store.write(_unit_file(unit.name), "".join(lines).encode())
        return unit

    for planned in requests:
        request_id = planned.request.id
        named = dataclasses.replace(planned, name=file_name(request_id, shared=requests.shares_name(request_id)))
        lines.append(_line(named))
        syllables += _work(planned)
        if len(lines) == size:
            yield written()
            lines, syllables, number = [], 0.0, number + 1
    if lines:
        yield written()


class _Sorted:
    """Requests by length, longest first, kept in files of like length."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._first_rows: dict[bytes, int] = {}
        """Row of each id, by its digest."""
        self._folded: Counter[bytes] = Counter()
        """Ids that hold capital letters, without them: how many there are of each."""
        self._buckets: set[int] = set()

    @property
    def count(self) -> int:
        return len(self._first_rows)

    def take_in(self, place: str, aside: IO[str]) -> int:
        """Sorts a request file; writes the rows set aside as JSON lines and returns their number."""
        rejected = 0
        with contextlib.ExitStack() as stack:
            files: dict[int, IO[str]] = {}
            for row, found in iter_requests(place):
                planned = self._planned(row, found)
                if isinstance(planned, RejectedRequest):
                    line = {"row": planned.row, "id": planned.id, "reason": planned.reason}
                    aside.write(json.dumps(line, ensure_ascii=False) + "\n")
                    rejected += 1
                    continue
                bucket = int(BUCKETS_AN_OCTAVE * math.log2(1 + _work(planned)))
                if bucket not in files:
                    files[bucket] = stack.enter_context(self._file(bucket).open("w", encoding="utf-8"))
                files[bucket].write(_line(planned))
            self._buckets = set(files)
        return rejected

    def __iter__(self) -> Iterator[PlannedRequest]:
        for bucket in sorted(self._buckets, reverse=True):
            with self._file(bucket).open(encoding="utf-8") as lines:
                for line in lines:
                    yield from_dict(PlannedRequest, json.loads(line))

    def shares_name(self, request_id: str) -> bool:
        """Whether another id differs from this one in the case of letters alone."""
        folded = _digest_of(_fold(request_id))
        return self._folded[folded] + (folded in self._first_rows) > 1

    def _planned(self, row: int, found: Request | RejectedRequest) -> PlannedRequest | RejectedRequest:
        """A row with an id of its own is planned, even one that cannot be spoken: every id has a result."""
        if isinstance(found, Request):
            found = self._new(row, found)
            return found if isinstance(found, RejectedRequest) else PlannedRequest(request=_with_whole_path(found))
        if found.request is None:
            return found
        taken = self._new(row, found.request)
        if isinstance(taken, RejectedRequest):
            return found
        return PlannedRequest(request=taken, error=f"row {row}: {found.reason}")

    def _new(self, row: int, request: Request) -> Request | RejectedRequest:
        digest = _digest_of(request.id)
        first = self._first_rows.setdefault(digest, row)
        if first != row:
            return duplicate(row, request, first)
        if (folded := _fold(request.id)) != request.id:
            self._folded[_digest_of(folded)] += 1
        return request

    def _file(self, bucket: int) -> Path:
        return self._folder / f"{bucket:03d}.jsonl"


def _line(planned: PlannedRequest) -> str:
    return json.dumps(to_dict(planned), ensure_ascii=False) + "\n"


def _work(planned: PlannedRequest) -> float:
    """Syllables to be spoken."""
    return 0.0 if planned.error else estimate_syllables(planned.request)


def _fold(text: str) -> str:
    """Without capital letters; others than A to Z are written as %XX in names, so they never collide."""
    return "".join(letter.lower() if letter.isascii() else letter for letter in text)


def _digest_of(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _with_whole_path(request: Request) -> Request:
    """Workers may run in another folder."""
    if request.prompt is None or is_remote(request.prompt):
        return request
    return dataclasses.replace(request, prompt=os.path.abspath(request.prompt))  # noqa: PTH100 - links stay


def _unit_file(name: str) -> str:
    return f"{PLAN_FOLDER}/{name}.jsonl"
