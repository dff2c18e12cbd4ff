"""Jobs, and the voices of their workers; importable by worker processes."""

import contextlib
import dataclasses
import functools
import json
import os
import signal
import time
from pathlib import Path

import fake_voice

from voxinstruct_jax.jobs.claims import Claims
from voxinstruct_jax.jobs.plan import open_plan
from voxinstruct_jax.jobs.results import iter_results
from voxinstruct_jax.jobs.run import Job, run_job, work
from voxinstruct_jax.jobs.settings import JobSettings
from voxinstruct_jax.jobs.store import open_store


def write_requests(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def rows_named(*ids):
    return [{"id": each, "instruction": f'Say "{each}"'} for each in ids]


def run(requests, out, open_voice, *, engine=work, unit_size=None, lease_s=5.0, report=lambda _: None, **settings):
    """Does a whole job and returns its results, sorted by id."""
    store = open_store(str(out))
    with Claims(store, lease_s=lease_s) as claims:
        open_plan(store, requests, JobSettings(**settings), claims, unit_size=unit_size)
    run_job(Job(place=str(out), open_voice=open_voice, lease_s=lease_s), engine, store, report=report)
    return sorted(iter_results(str(out)), key=lambda result: result.id)


def lasting(results):
    """What does not differ from run to run."""
    return [dataclasses.replace(result, timings={}) for result in results]


def files(out):
    """All files of a job by name."""
    return sorted(str(path.relative_to(out)) for path in Path(out).rglob("*") if path.is_file())


def slow_voice(seconds=0.01):
    """Takes its time; draws three utterances at once."""
    return _Slow(seconds)


class _Slow(fake_voice.FakeVoice):
    def __init__(self, seconds):
        super().__init__(ahead=3)
        self.seconds = seconds

    def synthesize(self, instruction, **options):
        time.sleep(self.seconds)
        return super().synthesize(instruction, **options)


def deadly_voice(folder, instruction, times):
    """Ends its process, so often in all, when it is to speak this."""
    return _Deadly(folder, instruction, times)


class _Deadly(fake_voice.FakeVoice):
    def __init__(self, folder, instruction, times):
        super().__init__(ahead=2)
        self.folder, self.instruction, self.times = folder, instruction, times

    def synthesize(self, instruction, **options):
        if instruction == self.instruction:
            for death in range(self.times):
                with contextlib.suppress(FileExistsError):
                    (Path(self.folder) / f"death-{death}").touch(exist_ok=False)
                    os.kill(os.getpid(), signal.SIGKILL)
        return super().synthesize(instruction, **options)


def main(requests, out, unit_size="3"):
    """A job as a process of its own: to be killed."""
    run(requests, out, functools.partial(slow_voice, 0.05), unit_size=int(unit_size))


if __name__ == "__main__":
    import sys

    main(*sys.argv[1:])
