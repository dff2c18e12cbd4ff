"""Workers as processes of this machine; one that dies is replaced, what it had taken is taken by another.

Read `in_processes`.
"""

import contextlib
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

from voxinstruct_jax.config import InputError, VoxError
from voxinstruct_jax.data.processes import ONE_CORE, end_with_parent, environment
from voxinstruct_jax.jobs.results import PARTS_FOLDER
from voxinstruct_jax.jobs.run import Engine, Job, work
from voxinstruct_jax.jobs.store import open_store

__all__ = ["in_processes"]

MOST_DEATHS = 8
"""Workers that may die one after the other, for each process, without a unit being committed between."""
LEAVE_S = 30.0
"""Time that workers have to give back what they hold when the job is stopped (s)."""


def in_processes(num_workers: int, threads: int, *, say: Callable[[str], None]) -> Engine:
    """Returns an engine of `num_workers` processes.

    Args:
        num_workers: At least 1.
        threads: CPU threads of each. Sums may round differently with another number, so it is part of the profile
            under which tokens are equal bit for bit.
        say: Called with a line when a worker died.
    """

    def run(job: Job) -> None:
        crew = _Crew(job, threads, say)
        try:
            crew.run(num_workers)
        finally:
            crew.dismiss()

    return run


@dataclass(eq=False)
class _Member:
    process: Any
    connection: Any


class _Crew:
    """The workers of one run."""

    def __init__(self, job: Job, threads: int, say: Callable[[str], None]) -> None:
        self._job, self._threads, self._say = job, threads, say
        self._members: list[_Member] = []
        self._store = open_store(job.place)
        self._committed, self._deaths = 0, 0

    def run(self, num_workers: int) -> None:
        """Keeps so many workers until they have done all."""
        for _ in range(num_workers):
            self._hire()
        while self._members:
            ended = wait([member.process.sentinel for member in self._members])
            for member in [member for member in self._members if member.process.sentinel in ended]:
                self._see_off(member, num_workers)

    def dismiss(self) -> None:
        """Tells all workers to give back what they hold and to leave."""
        for member in self._members:
            member.process.terminate()
        until = time.monotonic() + LEAVE_S
        for member in self._members:
            member.process.join(max(0.1, until - time.monotonic()))
            member.process.kill()
            member.process.join()
        self._members.clear()

    def _hire(self) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(theirs, self._job), daemon=True)
        with environment(dict.fromkeys(ONE_CORE, str(self._threads))):
            process.start()
        theirs.close()
        self._members.append(_Member(process, ours))

    def _see_off(self, member: _Member, num_workers: int) -> None:
        member.process.join()
        self._members.remove(member)
        code, message = member.process.exitcode, ""
        with contextlib.suppress(EOFError, OSError):
            message = member.connection.recv() if member.connection.poll() else ""
        member.connection.close()
        if message:
            raise InputError(message)
        if code == 0:
            return
        committed = len(self._store.names(PARTS_FOLDER))
        self._deaths = 1 if committed > self._committed else self._deaths + 1
        self._committed = committed
        reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        if self._deaths > MOST_DEATHS * num_workers:
            raise InputError(
                f"{self._deaths} workers died ({reason}) and nothing was finished between; give them more memory, or "
                "fewer --workers, and start the same command again"
            )
        self._say(f"a worker died ({reason}); what it held is done by another")
        self._hire()


def _work(connection: Any, job: Job) -> None:
    """A worker's life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    signal.signal(signal.SIGTERM, _leave)
    end_with_parent()
    try:
        work(job)
    except VoxError as error:
        connection.send(str(error))
    except KeyboardInterrupt:
        os._exit(1)
    except Exception:
        connection.send(f"a worker failed by a fault of the program:\n{traceback.format_exc()}")


def _leave(*_: object) -> None:
    raise KeyboardInterrupt
