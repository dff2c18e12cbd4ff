"""Runs a stage over items and keeps what it found: part files, so that a run that was cut off goes on there.

A finding is filed under what it depends on: the sound's checksum, the judge, and the fields of the item that the judge
was given. So another judge costs its own column only, and the same sound is never heard twice. Read `gather`.
"""

import functools
import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxinstruct_jax.config import InputError, fingerprint
from voxinstruct_jax.data.engines import Engine
from voxinstruct_jax.data.progress import progress_bar
from voxinstruct_jax.evaluation.items import Item, file_digest
from voxinstruct_jax.evaluation.stages import Evidence, Stage, open_stage, rounded

__all__ = ["StagePlace", "Timing", "gather", "in_this_process", "sound_digest"]

UNIT_ITEMS = 8
LONGEST_TITLE = 30
_SOUNDS = ("prompt", "reference_audio")
"""Fields that name files: what counts is what they hold."""


@dataclass(frozen=True, kw_only=True)
class StagePlace:
    """Which judge: what workers open it by."""

    name: str
    place: str = ""

    def open(self) -> Stage:
        """As `stages.open_stage`."""
        return open_stage(self.name, self.place)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What a stage cost, in runs of this folder so far."""

    stage: str
    items: int
    seconds: float


@dataclass(frozen=True)
class _Unit:
    stage: StagePlace
    folder: str
    work: tuple[tuple[str, Item], ...]


def gather(
    wanted: Mapping[StagePlace, Sequence[Item]], folder: Path, engine: Engine[Any], *, progress: bool
) -> dict[str, tuple[dict[str, Evidence], Timing]]:
    """Hears the items that were not heard before.

    Args:
        wanted: Items whose sound files exist, by stage.
        folder: Where findings are kept.
        engine: Where the work is done: `data.engines.open_engine`, or `in_this_process`.
        progress: Whether to draw a bar.

    Returns:
        By stage its findings by the items' ids, `{"void": reason}` where an item could not be judged; what it took.

    Raises:
        InputError: A stage's judge is not at hand, or the folder cannot be written.
    """
    stages = {place: place.open() for place in wanted}
    folders = {place: folder / stage.name / fingerprint(stage.fingerprint) for place, stage in stages.items()}
    for own in folders.values():
        _make(own)
    keys = {place: {item.id: _key(stages[place], item) for item in items} for place, items in wanted.items()}

    def waiting() -> Iterator[_Unit]:
        for place, items in wanted.items():
            known = _known(folders[place])
            new = {key: item for item in items if (key := keys[place][item.id]) not in known}
            work = iter(new.items())
            while unit := tuple(itertools.islice(work, UNIT_ITEMS)):
                yield _Unit(place, str(folders[place]), unit)

    total = sum(len(unit.work) for unit in waiting())
    if total:
        names = ", ".join(stage.name for stage in stages.values())
        with progress_bar(
            f"Judging {names if len(names) < LONGEST_TITLE else f'by {len(stages)}'}", total, visible=progress
        ) as tick:
            engine(_hear, waiting, tick)
    found = {}
    for place, stage in stages.items():
        known = _known(folders[place])
        spent = sum((record["seconds"] for record in known.values()), 0.0)
        heard = {name: known[key]["evidence"] for name, key in keys[place].items()}
        found[stage.name] = heard, Timing(stage=stage.name, items=len(known), seconds=round(spent, 3))
    return found


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); give another --out") from error


def in_this_process(
    function: Callable[[Any], int], units: Callable[[], Iterable[Any]], tick: Callable[[], None]
) -> None:
    """An engine without workers."""
    for unit in units():
        for _ in range(function(unit)):
            tick()


def sound_digest(path: str | None) -> str | None:
    """SHA-256 of a sound file, taken once for each state of it; None where there is no file."""
    try:
        state = Path(path or "").stat()
    except OSError:
        return None
    return _digest(str(path), state.st_mtime_ns, state.st_size)


@functools.cache
def _digest(path: str, modified_ns: int, size: int) -> str | None:
    del modified_ns, size  # part of the cache's key only
    return file_digest(path)


def _key(stage: Stage, item: Item) -> str:
    """Names what a finding follows from."""
    values = {name: getattr(item, name) for name in stage.depends}
    values |= {name: sound_digest(values[name]) for name in _SOUNDS if name in values}
    return fingerprint([sound_digest(item.audio), item.offset_s, item.duration_s, values])


def _hear(unit: _Unit) -> int:
    """Hears a unit's items and commits what was found in one file."""
    stage = unit.stage.open()
    lines = []
    for key, item in unit.work:
        begun = time.perf_counter()
        evidence = rounded(_judged(stage, item))
        record = {"key": key, "evidence": evidence, "seconds": round(time.perf_counter() - begun, 4)}
        lines.append(json.dumps(record, ensure_ascii=False, sort_keys=True) + "\n")
    name = hashlib.sha256("".join(key for key, _ in unit.work).encode()).hexdigest()[:16]
    partial = Path(unit.folder) / f".{name}.{os.getpid()}.partial"
    partial.write_text("".join(lines), encoding="utf-8")
    partial.replace(Path(unit.folder) / f"part-{name}.jsonl")
    return len(unit.work)


def _judged(stage: Stage, item: Item) -> Evidence:
    try:
        return stage.hears(item)
    except InputError as error:
        return {"void": str(error)}
    except Exception as error:  # a judge may be anybody's; the rest goes on
        first = next(iter(str(error).splitlines()), "")
        return {"void": f"{stage.fingerprint} failed ({type(error).__name__}: {first})"}


def _known(folder: Path) -> dict[str, Any]:
    """All findings that were committed, by key."""
    found = {}
    for path in sorted(folder.glob("part-*.jsonl")):
        for line in path.read_text("utf-8").splitlines():
            record = json.loads(line)
            found[record["key"]] = record
    return found
