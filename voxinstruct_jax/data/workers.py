"""Shards made by several processes of this machine. A worker that dies costs its shard's time, nothing else.

Each worker computes on one core, so that a shard comes out the same bit for bit whatever their number.
"""

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

from voxinstruct_jax.config import InputError, VoxError
from voxinstruct_jax.data.prepare import Encoders, Engine, ShardTask, prepare_shard
from voxinstruct_jax.data.processes import ONE_CORE, end_with_parent, environment

__all__ = ["count_cores", "in_processes"]

MAX_ATTEMPTS = 3
"""A shard whose worker died this often is given up."""


def count_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_processes(open_encoders: Callable[[], Encoders], num_workers: int, *, say: Callable[[str], None]) -> Engine:
    """Returns an engine that makes shards in `num_workers` processes at a time.

    Args:
        open_encoders: Called once in each process; a function of a module, or a `functools.partial` of one.
        num_workers: At least 1.
        say: Called with a line when a worker died.
    """

    def run(tasks: Iterator[ShardTask], folder: str, tick: Callable[[], None]) -> None:
        crew = _Crew(open_encoders, folder, say)
        try:
            crew.run(tasks, num_workers, tick)
        finally:
            crew.dismiss()

    return run


@dataclass(eq=False)
class _Worker:
    process: Any
    connection: Any
    task: ShardTask | None = None
    ticks: int = 0
    """Rows of its shard that it has reported."""


class _Crew:
    """The workers of one run."""

    def __init__(self, open_encoders: Callable[[], Encoders], folder: str, say: Callable[[str], None]) -> None:
        self._open_encoders, self._folder, self._say = open_encoders, folder, say
        self._workers: list[_Worker] = []
        self._redo: deque[ShardTask] = deque()
        self._attempts: dict[int, int] = {}
        self._told: dict[int, int] = {}
        """Rows of each unfinished shard that were counted: a shard made again counts no row twice."""

    def run(self, tasks: Iterator[ShardTask], num_workers: int, tick: Callable[[], None]) -> None:
        """Hands out every task and returns when all are done."""
        self._hand_out(tasks, num_workers)
        while busy := {worker.connection: worker for worker in self._workers if worker.task is not None}:
            for connection in wait(list(busy)):
                self._hear(busy[connection], tick)
            self._hand_out(tasks, num_workers)

    def dismiss(self) -> None:
        """Ends all workers at once; what they are writing has no name yet."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.connection.close()
        self._workers.clear()

    def _hand_out(self, tasks: Iterator[ShardTask], num_workers: int) -> None:
        """Gives each idle worker a task, and hires as many as there is work for."""
        idle = [worker for worker in self._workers if worker.task is None]
        while idle or len(self._workers) < num_workers:
            task = self._redo.popleft() if self._redo else next(tasks, None)
            if task is None:
                return
            worker = idle.pop() if idle else self._hire()
            worker.task, worker.ticks = task, 0
            with contextlib.suppress(OSError):  # it died while idle: heard of at the next `wait`
                worker.connection.send(task)

    def _hire(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, self._open_encoders, self._folder), daemon=True)
        with environment(ONE_CORE):
            process.start()
        theirs.close()
        self._workers.append(_Worker(process, ours))
        return self._workers[-1]

    def _hear(self, worker: _Worker, tick: Callable[[], None]) -> None:
        try:
            kind, message = worker.connection.recv()
        except (EOFError, OSError):
            self._mourn(worker)
            return
        if kind == "row":
            assert worker.task is not None
            worker.ticks += 1
            if worker.ticks > self._told.get(worker.task.number, 0):
                self._told[worker.task.number] = worker.ticks
                tick()
        elif kind == "shard":
            assert worker.task is not None
            self._told.pop(worker.task.number, None)
            worker.task = None
        else:
            raise kind(message)

    def _mourn(self, worker: _Worker) -> None:
        """Puts the shard of a dead worker back."""
        worker.process.join()
        worker.connection.close()
        self._workers.remove(worker)
        task, code = worker.task, worker.process.exitcode
        assert task is not None
        attempts = self._attempts[task.number] = self._attempts.get(task.number, 0) + 1
        reason = signal.Signals(-code).name if code and code < 0 else f"exit code {code}"
        if attempts == MAX_ATTEMPTS:
            raise InputError(
                f"shard {task.number} (rows {task.rows[0].id!r} to {task.rows[-1].id!r}): its worker died {attempts} "
                f"times ({reason}); give it more memory (fewer --workers) or take these rows out"
            )
        self._say(f"the worker of shard {task.number} died ({reason}); the shard is made again")
        self._redo.append(task)


def _work(connection: Any, open_encoders: Callable[[], Encoders], folder: str) -> None:
    """A worker's life: takes tasks until the connection or its parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    end_with_parent()
    try:
        encoders = open_encoders()
        while True:
            task = connection.recv()
            prepare_shard(task.rows, folder, task.number, encoders, tick=lambda: connection.send(("row", None)))
            connection.send(("shard", None))
    except EOFError:
        return
    except (VoxError, OSError) as error:
        connection.send((InputError if isinstance(error, VoxError) else OSError, str(error)))
    except Exception:
        connection.send((RuntimeError, traceback.format_exc()))
