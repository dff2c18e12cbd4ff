"""Encoders that die, or are slow, as the tests of `prepare` ask for; importable by worker processes."""

import dataclasses
import os
import signal
import time
from pathlib import Path

import conftest


def dying(folder: str, times: str, call: str = "12"):
    """At clip number `call` of a process the process is killed, so often in all."""
    encoders, seen = conftest.make_encoders(), []

    def acoustic(samples):
        seen.append(1)
        if len(seen) == int(call):
            for attempt in range(int(times)):
                try:
                    (Path(folder) / f"died-{attempt}").touch(exist_ok=False)
                except FileExistsError:
                    continue
                os.kill(os.getpid(), signal.SIGKILL)
        return encoders.acoustic(samples)

    return dataclasses.replace(encoders, acoustic=acoustic)


def slow(folder: str, seconds: str = "0.03"):
    """Each clip takes this long; a file in the folder tells the process id of each worker."""
    encoders = conftest.make_encoders()
    (Path(folder) / f"worker-{os.getpid()}").touch()

    def acoustic(samples):
        time.sleep(float(seconds))
        return encoders.acoustic(samples)

    return dataclasses.replace(encoders, acoustic=acoustic)
