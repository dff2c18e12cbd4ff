"""Who does what: claims that worker processes lay on units of work.

A claim saves work, it protects nothing: what protects is that a unit is committed by `Store.create`, once. So a claim
may be taken from a worker that was thought dead and is not, at the cost of speaking a unit twice.

A worker writes a beat into a file of its own. It counts as dead when its process is gone (on the same machine, at
once), or when its beat has not changed for `lease_s` on the *reader's* clock: clocks of machines are never compared. A
claim is `claims/NAME.G`; who takes it from a dead worker creates generation G + 1, so that of many takers one wins, and
the number of generations tells how many workers a unit has cost. Read `Claims`.
"""

import functools
import hashlib
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxinstruct_jax.config import InputError
from voxinstruct_jax.jobs.store import Store

__all__ = ["CLAIMS_FOLDER", "LEASE_S", "WORKERS_FOLDER", "Claim", "Claims"]

CLAIMS_FOLDER, WORKERS_FOLDER = "claims", "workers"
LEASE_S = 60.0
BEATS_A_LEASE = 6


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A unit that this worker may do."""

    name: str
    generation: int
    blamed: tuple[str, ...] = ()
    """Ids that earlier workers were speaking, alone, when they died."""

    @property
    def deaths(self) -> int:
        """Workers that died with this unit."""
        return self.generation


class Claims:
    """The claims of one worker; a context manager, which ends the beat and gives everything back."""

    def __init__(self, store: Store, *, lease_s: float = LEASE_S) -> None:
        self.owner = uuid.uuid4().hex[:16]
        self._store, self._lease_s = store, lease_s
        self._held: dict[str, Claim] = {}
        self._beats: dict[str, tuple[bytes | None, float]] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Claims":
        self._write_beat(0)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        for claim in list(self._held.values()):
            self.release(claim)
        self._store.remove(f"{WORKERS_FOLDER}/{self.owner}.json")

    def generations(self) -> dict[str, list[int]]:
        """Returns the claims there are: for each unit its generations, in order."""
        found: dict[str, list[int]] = {}
        for entry in self._store.names(CLAIMS_FOLDER):
            name, _, generation = entry.rpartition(".")
            found.setdefault(name, []).append(int(generation))
        return {name: sorted(numbers) for name, numbers in found.items()}

    def take(self, name: str, generations: list[int]) -> Claim | None:
        """Lays a claim on a unit.

        Args:
            name: Of the unit.
            generations: Its claims, as `generations` listed them.

        Returns:
            The claim; None if another worker has it, or was quicker.
        """
        blamed: list[str] = []
        if generations:
            holder = self._content(name, generations[-1])
            if holder is not None and self._is_alive(holder["owner"]):
                return None
            earlier = [self._content(name, generation) for generation in generations]
            blamed = [content["speaking"] for content in earlier if content and content["speaking"]]
        claim = Claim(name=name, generation=generations[-1] + 1 if generations else 0, blamed=tuple(blamed))
        if not self._store.create(_file(claim), self._claimed(None)):
            return None
        self._held[name] = claim
        return claim

    def blame(self, claim: Claim, request_id: str) -> None:
        """Writes down what is being spoken alone, in case it ends this process."""
        self._store.write(_file(claim), self._claimed(request_id))

    def release(self, claim: Claim) -> None:
        """Gives a unit back: done, or not to be done."""
        self._held.pop(claim.name, None)
        self._store.remove(_file(claim))

    def _claimed(self, speaking: str | None) -> bytes:
        # Unlike any other, since `Store.create` takes a file of the same content for its own.
        return json.dumps({"owner": self.owner, "speaking": speaking, "mark": uuid.uuid4().hex}).encode()

    def _content(self, name: str, generation: int) -> Mapping[str, Any] | None:
        found = self._store.read(f"{CLAIMS_FOLDER}/{name}.{generation}")
        return None if found is None else json.loads(found)

    def _is_alive(self, owner: str) -> bool:
        beat = self._store.read(f"{WORKERS_FOLDER}/{owner}.json")
        if beat is None:  # it is written before the first claim and removed after the last one
            return False
        about = json.loads(beat)
        if about["machine"] == machine_id() and about["process"] != process_id(about["pid"]):
            return False
        before, since = self._beats.get(owner, (None, 0.0))
        if before != beat:
            self._beats[owner] = (beat, time.monotonic())
            return True
        return time.monotonic() - since < self._lease_s

    def _write_beat(self, number: int) -> None:
        pid = os.getpid()
        about = {"machine": machine_id(), "pid": pid, "process": process_id(pid), "beat": number}
        self._store.write(f"{WORKERS_FOLDER}/{self.owner}.json", json.dumps(about).encode())

    def _beat(self) -> None:
        number = 0
        while not self._end.wait(self._lease_s / BEATS_A_LEASE):
            number += 1
            try:
                self._write_beat(number)
            except InputError:  # the work meets the same fault, and tells it
                return


@functools.cache
def machine_id() -> str:
    """Names this machine, or container: where a process id means the same process."""
    parts = [platform.node(), str(uuid.getnode())]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            parts.append(Path(path).readlink().name if path.endswith("pid") else Path(path).read_text().strip())
        except OSError:
            parts.append("")
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]


def process_id(pid: int) -> str | None:
    """Names a process of this machine for good, since ids are used again; None if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None if Path("/proc/self/stat").exists() or not _is_there(pid) else str(pid)
    dead = fields[0] in "ZX"
    return None if dead else f"{pid} {fields[19]}"


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _file(claim: Claim) -> str:
    return f"{CLAIMS_FOLDER}/{claim.name}.{claim.generation}"
