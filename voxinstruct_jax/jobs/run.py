"""A synthesis job from its plan to its end: workers do its units, then all is put together.

Its place holds `plan/`, `claims/` and `workers/` (while it runs), `results/` (a part a unit), `audio/`, `quarantine/`
or `shards/`, `job.json`, `rejected.jsonl`, and at the end `results.parquet`. Any number of processes on any machines
may run the same job: they share nothing but that place. Read `run_job`.
"""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from voxinstruct_jax.config import InputError, VoxError, to_dict
from voxinstruct_jax.data.store import is_remote
from voxinstruct_jax.jobs.claims import CLAIMS_FOLDER, LEASE_S, WORKERS_FOLDER, Claims
from voxinstruct_jax.jobs.plan import VOICE_FILE, check_voice, read_plan
from voxinstruct_jax.jobs.progress import Progress
from voxinstruct_jax.jobs.quality import open_inspector
from voxinstruct_jax.jobs.results import RESULTS_FILE, STAND_IN, merge_parts
from voxinstruct_jax.jobs.store import PARTIAL_FOLDER, Store, open_store
from voxinstruct_jax.jobs.units import Speaker, Worker

__all__ = ["JOB_FILE", "Engine", "Job", "in_this_process", "run_job", "work"]

JOB_FILE = "job.json"
FINISH = "finish"
"""Name of the claim on putting the job together."""
WATCH_S = {False: 0.5, True: 5.0}
"""Between looks at what is committed, by whether the job lies in an object store."""
RECORD_S = 5.0
"""Between writes of `job.json`."""
POLL_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker is told; the rest stands in the job's place."""

    place: str
    open_voice: Callable[[], Speaker]
    """A function of a module, or a `functools.partial` of one, since it may be called in other processes."""
    threads: int = 0
    """CPU threads of the judges; 0 = as many as there are cores."""
    lease_s: float = LEASE_S


Engine = Callable[[Job], None]
"""Runs workers until all units are committed."""


def work(job: Job) -> None:
    """Is one worker, in this process, until all units are committed.

    Raises:
        InputError: The voice is not the job's, a judge is not installed, or the place cannot be written.
    """
    store = open_store(job.place)
    plan = read_plan(store)
    with Claims(store, lease_s=job.lease_s) as claims:
        inspector = open_inspector(plan.settings, threads=job.threads)
        voice = job.open_voice()
        check_voice(store, voice.name)
        Worker(store, plan, voice, inspector, claims, stop=threading.Event()).run()


in_this_process: Engine = work


def run_job(
    job: Job,
    engine: Engine,
    store: Store,
    *,
    report: Callable[[Progress], None] = lambda _: None,
    finish: Callable[[Progress], None] = lambda _: None,
) -> Progress:
    """Does what is left of a job whose plan is there.

    Args:
        job: The job.
        engine: Where its units are done.
        store: The job's place.
        report: Called with the progress, now and then, from another thread.
        finish: Called once, when all units are committed and before `results.parquet` appears.

    Returns:
        The progress at the end.

    Raises:
        InputError: The place cannot be written; or as `work` and the engine.
    """
    plan = read_plan(store)
    progress = Progress(store, plan)
    if progress.complete:
        check_voice(store, job.open_voice().name)
    else:
        with _watched(store, progress, report):
            engine(job)
        progress.update()
    if not progress.complete:
        raise InputError(f"{store.place}: some units were not done; start the same command again")
    with Claims(store, lease_s=job.lease_s) as claims:
        while not store.exists(RESULTS_FILE):
            claim = claims.take(FINISH, claims.generations().get(FINISH, []))
            if claim is None:
                time.sleep(POLL_S)
            elif not store.exists(RESULTS_FILE):
                _put_together(store, progress, finish)
    store.tidy()
    return progress


def _put_together(store: Store, progress: Progress, finish: Callable[[Progress], None]) -> None:
    store.write(JOB_FILE, _record(store, progress, "finished"))
    finish(progress)
    for name in merge_parts(store):
        before, _, after = name.rpartition(STAND_IN)
        store.remove(f"{before}.{after.partition('.')[2]}")  # of a worker that committed nothing
    for folder in (CLAIMS_FOLDER, WORKERS_FOLDER, PARTIAL_FOLDER):
        store.remove(folder)


@contextlib.contextmanager
def _watched(store: Store, progress: Progress, report: Callable[[Progress], None]) -> Iterator[None]:
    """Watches what is committed; `job.json` says it to others."""
    end = threading.Event()

    def look(state: str, *, record: bool) -> None:
        with contextlib.suppress(VoxError):  # the workers meet the same fault, and tell it
            progress.update()
            report(progress)
            if record and _is_leader():
                store.write(JOB_FILE, _record(store, progress, state))

    def watch() -> None:
        recorded = 0.0
        while not end.wait(WATCH_S[is_remote(store.place)]):
            due = time.monotonic() - recorded > RECORD_S
            look("running", record=due)
            recorded = time.monotonic() if due else recorded

    thread = threading.Thread(target=watch, daemon=True)
    look("running", record=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
        look("stopped", record=True)


def _is_leader() -> bool:
    """Of processes that a launcher has numbered, the first keeps `job.json`."""
    number = os.environ.get("JAX_PROCESS_ID") or os.environ.get("JOB_COMPLETION_INDEX") or "0"
    return number == "0"


def _record(store: Store, progress: Progress, state: str) -> bytes:
    voice = json.loads(store.read(VOICE_FILE) or b"{}")
    record: dict[str, Any] = {
        **voice,
        "state": state,
        **progress.figures(),
        "settings": to_dict(progress.plan.settings),
        "requests_sha256": progress.plan.requests_sha256,
        "updated_unix_s": round(time.time(), 1),
    }
    return (json.dumps(record, ensure_ascii=False, indent=1) + "\n").encode()
