"""The commit of a unit: its sounds, then its part. With the part, and not before, the unit is done.

No file is ever replaced, so what a part names stays what it was, whoever else works at the same unit: a sound is
written where none is, or the same; one of other bytes (a worker of another kind of machine, thought dead) gets a name
of its own. Read `commit_unit`.
"""

import dataclasses
import hashlib
import json
import posixpath
from collections.abc import Sequence
from concurrent.futures import Executor

from voxinstruct_jax.config import to_dict
from voxinstruct_jax.jobs.audio_files import AUDIO_FOLDER, QUARANTINE_FOLDER, SHARDS_FOLDER, shard_bytes
from voxinstruct_jax.jobs.plan import Unit
from voxinstruct_jax.jobs.results import STAND_IN, Result, iter_part, part_bytes, part_name
from voxinstruct_jax.jobs.settings import JobSettings
from voxinstruct_jax.jobs.store import Store

__all__ = ["Made", "commit_unit"]

Made = tuple[Result, bytes | None]
"""A result whose sound has no place yet, and the sound file."""
NOT_IN_SHARDS = ("timings", "audio", "error")
"""Fields that differ from run to run, or say nothing beside a sound."""


def commit_unit(
    store: Store, settings: JobSettings, unit: Unit, names: Sequence[str], made: Sequence[Made], uploads: Executor
) -> None:
    """Writes a unit's sounds and its part; where another worker has committed it, leaves nothing.

    Args:
        store: The job's place.
        settings: Of the job.
        unit: The unit.
        names: Of the sounds, without suffix.
        made: As many results, in the order of the plan.
        uploads: Where sounds are written side by side.
    """
    places = _write_sounds(store, settings, unit, names, made, uploads)
    results = [dataclasses.replace(result, audio=places.get(index)) for index, (result, _) in enumerate(made)]
    if store.create(part_name(unit.name), part_bytes(results)):
        return
    named = {_file_of(result.audio) for result in iter_part(store, unit.name) if result.audio}
    for name in {_file_of(audio) for audio in places.values()} - named:
        store.remove(name)


def _write_sounds(
    store: Store, settings: JobSettings, unit: Unit, names: Sequence[str], made: Sequence[Made], uploads: Executor
) -> dict[int, str]:
    """Returns where the sound of each result lies."""
    single: dict[int, tuple[str, bytes]] = {}
    sharded: dict[int, str] = {}
    files: list[tuple[str, bytes]] = []
    for index, (name, (result, content)) in enumerate(zip(names, made, strict=True)):
        if content is None:
            continue
        if settings.shards and result.status == "done":
            key = name.replace(".", "%2E")  # in a WebDataset a key ends at its first dot
            sharded[index] = f"{key}.{settings.format}"
            files += [(sharded[index], content), (f"{key}.json", _described(result))]
        else:
            folder = AUDIO_FOLDER if result.status == "done" else QUARANTINE_FOLDER
            single[index] = (f"{folder}/{name}.{settings.format}", content)
    places = dict(zip(single, uploads.map(lambda one: _write(store, *one), single.values()), strict=True))
    if sharded:
        shard = _write(store, f"{SHARDS_FOLDER}/{unit.name}.tar", shard_bytes(files))
        places |= {index: f"{shard}/{member}" for index, member in sharded.items()}
    return places


def _write(store: Store, name: str, content: bytes) -> str:
    """Writes a file where none, or the same one, is; else under a name that tells its content."""
    if store.create(name, content):
        return name
    stem, suffix = posixpath.splitext(name)
    other = f"{stem}{STAND_IN}{hashlib.sha256(content).hexdigest()[:12]}{suffix}"
    store.create(other, content)
    return other


def _file_of(audio: str) -> str:
    """The file that a sound lies in: itself, or its shard."""
    shard, dot_tar, _ = audio.partition(".tar/")
    return f"{shard}.tar" if dot_tar else audio


def _described(result: Result) -> bytes:
    """What stands beside a sound in a shard; the same work gives the same bytes."""
    values = {name: value for name, value in to_dict(result).items() if name not in NOT_IN_SHARDS}
    return json.dumps(values, ensure_ascii=False).encode()
