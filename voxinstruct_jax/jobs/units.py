"""A worker: takes units of work, speaks their requests as one stream, inspects, tries again, commits.

The voice draws utterances as it has room for them (`Voice.synthesize_many`), so what it draws from decides what is
spoken next: tries of requests whose sound had a fault, then the rest of the units that are held, then a new unit.
Inspecting and committing run in threads beside it. What the voice cannot speak fails alone; what ends the whole process
is found by speaking the unit's requests one by one, once it has cost two workers. Start at `Worker.run`.
"""

import contextlib
import hashlib
import tempfile
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from voxinstruct_jax.config import InputError, VoxError
from voxinstruct_jax.data.store import is_remote
from voxinstruct_jax.jobs.audio_files import set_loudness, sound_bytes
from voxinstruct_jax.jobs.claims import Claim, Claims
from voxinstruct_jax.jobs.commits import Made, commit_unit
from voxinstruct_jax.jobs.plan import Plan, PlannedRequest, Unit, read_unit
from voxinstruct_jax.jobs.quality import Inspector, Verdict
from voxinstruct_jax.jobs.requests import Request, derive_seed
from voxinstruct_jax.jobs.results import PARTS_FOLDER, Result, part_name
from voxinstruct_jax.jobs.store import Store, open_store
from voxinstruct_jax.utterance import Audio, Utterance

__all__ = ["Speaker", "Worker", "one_line", "try_seed"]

T = TypeVar("T")

ALONE_AFTER = 2
"""Workers that a unit may cost before its requests are spoken one by one."""
MOST_DEATHS = 2
"""Workers that a request may cost while it is spoken alone; then it fails."""
JUDGED_AHEAD = 64
"""Sounds that may wait to be inspected."""
COMMITS_AHEAD = 4
UPLOADS = 8
LOOK_AGAIN_S = 0.5
FIRST_LOOKED_AT = 32
"""Workers choose among so many of the first free units, each its own, or all would try for the same one."""


@runtime_checkable
class Speaker(Protocol):
    """What a job needs of a voice."""

    @property
    def name(self) -> str: ...

    def synthesize_many(self, utterances: Iterable[Utterance]) -> Iterator[tuple[int, Audio | VoxError]]: ...


def try_seed(seed: int, number: int) -> int:
    """Returns the seed of a request's try: its own for the first one, numbered from 0."""
    return seed if number == 0 else derive_seed(seed, f"try {number}")


def one_line(error: Exception) -> str:
    """What stands in a result about an error."""
    first = next(iter(str(error).splitlines()), "")
    return first if isinstance(error, VoxError) else f"{type(error).__name__}: {first}"


def _generator(outcomes: Iterator[T]) -> Generator[T, None, None]:
    """The same, to be closed when no more is wanted."""
    yield from outcomes


@dataclass(eq=False)
class _Work:
    """A unit that is held."""

    unit: Unit
    claim: Claim
    names: list[str]
    finished: list[Future[Made] | None]


@dataclass(eq=False)
class _Task:
    """A request of a unit that is held."""

    work: _Work
    place: int
    planned: PlannedRequest
    seed: int
    wanted: int
    """Tries to be made, as far as is known."""
    given: int = 0
    """Tries handed to the voice."""
    heard: int = 0
    """Tries that came back."""
    kept: "_Kept | None" = None
    error: str = ""
    synthesis_s: float = 0.0
    judging_s: float = 0.0


@dataclass(frozen=True)
class _Kept:
    """The best try so far."""

    number: int
    spoken: Audio
    verdict: Verdict
    synthesis_s: float

    @property
    def rank(self) -> tuple[Any, ...]:
        return (*self.verdict.rank, self.number)


class Worker:
    """Does units of a job until all are committed, by itself or by others."""

    def __init__(
        self, store: Store, plan: Plan, voice: Speaker, inspector: Inspector, claims: Claims, *, stop: threading.Event
    ) -> None:
        """Sets a worker up.

        Args:
            store: The job's place.
            plan: Of the job.
            voice: What speaks.
            inspector: What judges.
            claims: Of this worker.
            stop: When it is set nothing more is begun; what is not committed is given back.
        """
        self._store, self._plan, self._voice, self._inspector, self._claims = store, plan, voice, inspector, claims
        self._stop = stop
        self._settings = plan.settings
        self._units = {unit.name: unit for unit in plan.units}
        self._free: deque[tuple[str, list[int]]] = deque()
        self._queue: deque[_Task] = deque()
        self._alone: deque[_Task] = deque()
        self._in_flight: dict[int, tuple[_Task, int]] = {}
        self._judging: deque[tuple[Future[tuple[Verdict, float]], _Task, int, Audio, float]] = deque()
        self._commits: deque[Future[None]] = deque()
        self._fault: Exception | None = None
        self._prompts: dict[str, str] = {}

    def run(self) -> None:
        """Works until there is nothing left, or it is told to stop.

        Raises:
            InputError: The job's place cannot be written: a fault of the place, not of a request.
        """
        with (
            tempfile.TemporaryDirectory() as self._folder,
            ThreadPoolExecutor(1) as self._judge,
            ThreadPoolExecutor(1) as self._committer,
            ThreadPoolExecutor(UPLOADS) as self._uploader,
        ):
            try:
                while not self._stop.is_set():
                    self._speak_stream()
                    self._speak_alone()
                    self._collect(everything=True)
                    if not (self._queue or self._alone) and self._wait_for_others():
                        return
            finally:
                for pool in (self._judge, self._committer, self._uploader):
                    pool.shutdown(cancel_futures=True)

    def _wait_for_others(self) -> bool:
        """Whether all units are committed; else looks for one that is free by now, and waits a little if none is."""
        if len(self._store.names(PARTS_FOLDER)) >= len(self._units):
            return True
        self._claim_unit()
        if not (self._queue or self._alone):
            self._stop.wait(LOOK_AGAIN_S)
        return False

    # --- what is spoken next ---------------------------------------------------------------------------------------

    def _utterances(self) -> Iterator[Utterance]:
        """What the voice draws from; an error here is kept, since it passes through the voice's hands otherwise."""
        place = 0
        while not self._stop.is_set():
            try:
                task = self._next_task()
                if task is None:
                    return
                utterance = self._utterance(task, task.given)
            except Exception as error:
                self._fault = error
                return
            if utterance is None:
                continue
            self._in_flight[place] = (task, task.given)
            task.given += 1
            place += 1
            yield utterance

    def _next_task(self) -> _Task | None:
        self._collect()
        if not self._queue:
            self._claim_unit()
        return self._queue.popleft() if self._queue else None

    def _utterance(self, task: _Task, number: int) -> Utterance | None:
        """A try of a request; None where its prompt is gone, which fails it."""
        request = task.planned.request
        try:
            prompt = self._local_prompt(request.prompt)
        except InputError as error:
            task.given += 1
            self._take_error(task, error)
            return None
        return Utterance(
            instruction=request.instruction,
            prompt=prompt,
            prompt_transcript=request.prompt_transcript,
            transcript=request.transcript,
            language=request.language,
            guidance=request.guidance,
            seed=try_seed(task.seed, number),
            max_duration_s=request.max_duration_s,
        )

    def _local_prompt(self, place: str | None) -> str | None:
        if place is None or not is_remote(place):
            return place
        if place not in self._prompts:
            folder, _, name = place.rpartition("/")
            content = open_store(folder).read(name)
            if content is None:
                raise InputError(f"prompt: no such audio file: {place}")
            path = Path(self._folder) / f"prompt-{len(self._prompts)}{Path(name).suffix}"
            path.write_bytes(content)
            self._prompts[place] = str(path)
        return self._prompts[place]

    def _claim_unit(self) -> None:
        """Takes a unit that nobody has, if there is one, and puts its requests into the queue."""
        if not self._free:
            self._look_for_units()
        while self._free:
            name, generations = self._free.popleft()
            claim = self._claims.take(name, generations)
            if claim is None:
                continue
            if self._store.exists(part_name(name)):
                self._claims.release(claim)
                continue
            self._take_in(self._units[name], claim)
            return

    def _look_for_units(self) -> None:
        committed = {name.removesuffix(".parquet") for name in self._store.names(PARTS_FOLDER)}
        generations = self._claims.generations() if len(committed) < len(self._units) else {}
        free = [name for name in self._units if name not in committed]
        # Those without a claim first; a claimed one is free if its worker is dead, which asking tells.
        free.sort(key=lambda name: name in generations)
        turn = int(self._claims.owner, 16) % max(1, min(FIRST_LOOKED_AT, sum(name not in generations for name in free)))
        self._free.extend((name, generations.get(name, [])) for name in [*free[turn:], *free[:turn]])

    def _take_in(self, unit: Unit, claim: Claim) -> None:
        planned = read_unit(self._store, unit)
        work = _Work(unit, claim, [one.name for one in planned], [None] * len(planned))
        alone = claim.deaths >= ALONE_AFTER
        for place, one in enumerate(planned):
            request = one.request
            seed = derive_seed(self._settings.job_seed, request.id) if request.seed is None else request.seed
            task = _Task(work, place, one, seed, wanted=self._settings.candidates)
            deaths = claim.blamed.count(request.id)
            if deaths >= MOST_DEATHS:
                task.error = f"{deaths} worker processes ended while it was spoken (out of memory?)"
            else:
                task.error = one.error
            if task.error:
                self._finish(task)
            elif alone:
                self._alone.append(task)
            else:
                self._queue.extend([task] * task.wanted)

    # --- speaking --------------------------------------------------------------------------------------------------

    def _speak_stream(self) -> None:
        """Speaks until nothing can be claimed at the moment."""
        with contextlib.closing(_generator(self._voice.synthesize_many(self._utterances()))) as spoken:
            mark = time.perf_counter()
            while not self._stop.is_set():
                try:
                    item = next(spoken, None)
                except Exception as error:  # one bad request must not end the job
                    self._recover(error)
                    return
                if self._fault is not None:
                    raise self._fault
                if item is None:
                    return
                now = time.perf_counter()
                task, number = self._in_flight.pop(item[0])
                self._take(task, number, item[1], now - mark)
                mark = now

    def _recover(self, error: Exception) -> None:
        """The voice itself failed: by whose fault is found by speaking alone what it was speaking."""
        suspects = list(self._in_flight.values())
        self._in_flight.clear()
        if not suspects:
            raise error
        if len(suspects) == 1:
            self._take_error(suspects[0][0], error)
            return
        for task, number in suspects:
            self._take(task, number, *self._speak_one(task, number))

    def _speak_alone(self) -> None:
        """Speaks the requests of units that have cost workers, each with its id written down before."""
        while self._alone and not self._stop.is_set():
            task = self._alone.popleft()
            self._claims.blame(task.work.claim, task.planned.request.id)
            while task.work.finished[task.place] is None:
                number, task.given = task.given, task.given + 1
                self._take(task, number, *self._speak_one(task, number))
                self._collect(everything=True)
                self._queue = deque(waiting for waiting in self._queue if waiting is not task)
            self._claims.blame(task.work.claim, "")

    def _speak_one(self, task: _Task, number: int) -> tuple[Audio | Exception, float]:
        began = time.perf_counter()
        try:
            utterance = self._utterance(task, number)
            if utterance is None:
                return InputError(task.error), 0.0
            _, outcome = next(iter(self._voice.synthesize_many([utterance])))
        except Exception as error:
            return error, time.perf_counter() - began
        return outcome, time.perf_counter() - began

    # --- what came of it -------------------------------------------------------------------------------------------

    def _take(self, task: _Task, number: int, outcome: Audio | Exception, seconds: float) -> None:
        task.synthesis_s += seconds
        if isinstance(outcome, Audio) and not np.isfinite(outcome.samples).all():
            outcome = InputError("the voice made samples that are not numbers; its weights are damaged")
        if isinstance(outcome, Exception):
            self._take_error(task, outcome)
            return
        judged = self._judge.submit(self._inspect, task.planned.request, outcome)
        self._judging.append((judged, task, number, outcome, seconds))

    def _take_error(self, task: _Task, error: Exception) -> None:
        task.error = task.error or one_line(error)
        task.heard += 1
        self._decide(task)

    def _inspect(self, request: Request, spoken: Audio) -> tuple[Verdict, float]:
        began = time.perf_counter()
        try:
            prompt = None if request.prompt is None else self._prompts.get(request.prompt, request.prompt)
            verdict = self._inspector.inspect(spoken, request, prompt)
        except Exception as error:  # a judge that fails must not end the job
            verdict = Verdict(notes=(f"it could not be judged: {one_line(error)}",))
        return verdict, time.perf_counter() - began

    def _collect(self, *, everything: bool = False) -> None:
        """Takes in what the threads have done by now, or all that they have to do."""
        while self._judging and (everything or len(self._judging) > JUDGED_AHEAD or self._judging[0][0].done()):
            judged, task, number, spoken, seconds = self._judging.popleft()
            verdict, judging_s = judged.result()
            kept = _Kept(number, spoken, verdict, seconds)
            if task.kept is None or kept.rank < task.kept.rank:
                task.kept = kept
            task.judging_s += judging_s
            task.heard += 1
            self._decide(task)
        while self._commits and (everything or len(self._commits) > COMMITS_AHEAD or self._commits[0].done()):
            self._commits.popleft().result()

    def _decide(self, task: _Task) -> None:
        """Ends a request, or asks for another try."""
        if task.heard < task.wanted:
            return
        faulty = task.kept is not None and task.kept.verdict.faults
        if faulty and not task.error and task.wanted < self._settings.tries:
            task.wanted += 1
            self._queue.appendleft(task)
        else:
            self._finish(task)

    def _finish(self, task: _Task) -> None:
        work = task.work
        work.finished[task.place] = self._judge.submit(self._made, task)
        if None not in work.finished:
            self._commits.append(self._committer.submit(self._commit, work))

    def _commit(self, work: _Work) -> None:
        made = [one.result() for one in work.finished if one is not None]
        commit_unit(self._store, self._settings, work.unit, work.names, made, self._uploader)
        self._claims.release(work.claim)

    def _made(self, task: _Task) -> Made:
        """The result of a request that has ended, and its sound file."""
        request, kept = task.planned.request, task.kept
        timings = {
            "synthesis_s": task.synthesis_s,
            "discarded_s": task.synthesis_s - (kept.synthesis_s if kept else 0.0),
            "judging_s": task.judging_s,
            "finished_unix_s": time.time(),
        }
        asked = {
            "id": request.id,
            "instruction": request.instruction,
            "transcript": request.transcript,
            "language_asked": request.language,
            "prompt": request.prompt,
            "attributes": request.attributes,
            "attempts": max(1, task.heard),
            "timings": timings,
        }
        if kept is None:
            return Result(status="failed", finish_reason="error", error=task.error, seed=task.seed, **asked), None
        spoken, verdict, measures = kept.spoken, kept.verdict, dict(kept.verdict.measures)
        notes = (*spoken.notes, *verdict.notes)
        if self._settings.loudness_lufs is not None:
            spoken, loudness = set_loudness(spoken, self._settings.loudness_lufs)
            measures |= {} if loudness is None else {"loudness_lufs": round(loudness, 2)}
        content = sound_bytes(spoken, self._settings.format)
        result = Result(
            status="quarantined" if verdict.faults else "done",
            language_predicted=spoken.language,
            audio_sha256=hashlib.sha256(content).hexdigest(),
            duration_s=spoken.duration_s,
            finish_reason=spoken.finish_reason,
            seed=spoken.seed,
            checks=verdict.faults,
            measures=measures,
            notes=notes,
            **asked,
        )
        return result, content
