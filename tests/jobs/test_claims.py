import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from voxinstruct_jax.jobs.claims import Claims
from voxinstruct_jax.jobs.store import LocalStore


@pytest.fixture
def store(tmp_path):
    return LocalStore(str(tmp_path))


def taken(claims, name="unit"):
    return claims.take(name, claims.generations().get(name, []))


def leave_dead_claim(store, speaking=None):
    """A claim of a process that is gone, as after a kill."""
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    with Claims(store) as claims:
        beat = json.loads(store.read(f"workers/{claims.owner}.json"))
        claim = taken(claims)
        if speaking:
            claims.blame(claim, speaking)
        content = store.read(f"claims/unit.{claim.generation}")
    process.wait()
    store.write(f"claims/unit.{claim.generation}", content)
    store.write(f"workers/{claims.owner}.json", json.dumps({**beat, "pid": process.pid, "process": "gone"}).encode())


def test_of_many_takers_one_wins(store):
    with Claims(store) as first, Claims(store) as second:
        start = threading.Barrier(2)

        def take(claims):
            start.wait()
            return [claims.take(f"unit-{number}", []) is not None for number in range(50)]

        with ThreadPoolExecutor(2) as pool:
            wins = list(pool.map(take, (first, second)))
    assert all(one != other for one, other in zip(*wins, strict=True))


def test_a_claim_that_is_given_back_is_free(store):
    with Claims(store) as first, Claims(store) as second:
        claim = taken(first)
        assert taken(second) is None
        first.release(claim)
        assert taken(second).deaths == 0
    assert store.names("claims") == store.names("workers") == []


def test_the_claim_of_a_dead_process_is_taken_at_once_and_its_death_is_counted(store):
    leave_dead_claim(store, speaking="a")
    with Claims(store) as claims, Claims(store) as late:
        seen = late.generations()["unit"]
        claim = taken(claims)
        assert (claim.deaths, claim.blamed) == (1, ("a",))
        assert taken(late) is None
        assert late.take("unit", seen) is None  # by a list from before the other one took it


def test_a_worker_of_another_machine_is_dead_when_its_beat_stands_still_on_our_clock(store, monkeypatch):
    beat = {"machine": "far away", "pid": 1, "process": "1 1", "beat": 1}
    store.write("workers/other.json", json.dumps(beat).encode())
    store.write("claims/unit.0", json.dumps({"owner": "other", "speaking": None}).encode())
    now = [1000.0]
    monkeypatch.setattr("voxinstruct_jax.jobs.claims.time.monotonic", lambda: now[0])
    with Claims(store, lease_s=30.0) as claims:
        assert taken(claims) is None
        now[0] += 29
        assert taken(claims) is None
        store.write("workers/other.json", json.dumps({**beat, "beat": 2}).encode())
        now[0] += 29
        assert taken(claims) is None
        now[0] += 31
        assert taken(claims).deaths == 1
