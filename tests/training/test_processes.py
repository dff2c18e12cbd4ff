"""Real processes on one machine: what a pod's hosts do, with gloo in place of their network."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from voxinstruct_jax.config import InputError, from_dict, to_dict
from voxinstruct_jax.training.ar import ARExperiment, ar_task
from voxinstruct_jax.training.events import read_events
from voxinstruct_jax.training.loop import train

REPOSITORY = Path(__file__).parents[2]
STEPS = 14

pytestmark = pytest.mark.slow

PROGRAM = """
import json, sys
from pathlib import Path
from voxinstruct_jax.sharding.cluster import join_cluster
join_cluster()
import dataclasses
from voxinstruct_jax.config import from_dict
from voxinstruct_jax.training.ar import ARExperiment, ar_task
from voxinstruct_jax.training.loop import train
import time

experiment = from_dict(ARExperiment, json.loads(Path(sys.argv[1]).read_text()))
result = train(ar_task(experiment), experiment, Path(sys.argv[2]), report=lambda *_: time.sleep(0.15))
sys.exit(75 if result.stopped else 0)
"""


def start(settings, folder):
    """Starts the two processes of a run as `launch/local.py` does, which starts them again if they end too early."""
    launcher = [sys.executable, str(REPOSITORY / "launch/local.py"), "--processes", "2", "--"]
    command = [*launcher, sys.executable, "-c", PROGRAM, str(settings), str(folder)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    with (folder.parent / f"{folder.name}.err").open("ab") as errors:
        return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=errors)


def children(launcher):
    return [int(word) for word in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()]


def starts(folder):
    """(step, devices) of each start of a run, by its events."""
    return [(event["step"], event["devices"]) for event in read_events(folder) if event["event"] == "start"]


def wait_until(condition, launcher):
    deadline = time.monotonic() + 900
    while time.monotonic() < deadline:
        if condition():
            return
        assert launcher.poll() is None, "the launcher ended too early"
        time.sleep(0.05)
    raise AssertionError("it never came")


def metrics(folder):
    path = folder / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def losses(folder):
    rows = metrics(folder)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    return [[row[name] for name in ("loss", "grad_norm", "loss_semantic", "loss_acoustic")] for row in rows]


@pytest.fixture(scope="module")
def settings(tiny_ar_experiment, tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    experiment = to_dict(tiny_ar_experiment)
    experiment["train"] |= {"steps": STEPS, "save_every": 4}
    (folder / "experiment.json").write_text(json.dumps(experiment))
    return folder / "experiment.json"


@pytest.fixture(scope="module")
def unbroken(settings):
    """A run of two processes that nothing happened to."""
    folder = settings.parent / "unbroken"
    assert start(settings, folder).wait() == 0
    return folder


def test_two_processes_are_preempted_killed_and_started_again_with_the_same_losses(settings, unbroken):
    folder = settings.parent / "broken"
    with start(settings, folder) as launcher:
        wait_until(lambda: any(row["step"] >= 2 for row in metrics(folder)), launcher)
        os.kill(children(launcher)[1], signal.SIGTERM)
        wait_until(lambda: len(starts(folder)) == 2, launcher)
        saved = starts(folder)[1][0]
        last = random.randint(saved + 1, STEPS - 1)
        wait_until(lambda: metrics(folder)[-1]["step"] >= last, launcher)
        os.kill(children(launcher)[0], signal.SIGKILL)
        assert launcher.wait() == 0  # one down, all down, and all again
    (first, devices), (second, _), (third, _) = starts(folder)
    assert (first, devices) == (0, 2)
    assert 2 <= second <= third < STEPS
    assert losses(folder) == losses(unbroken)


def test_one_process_goes_on_where_two_ended(settings, unbroken):
    folder = shutil.copytree(unbroken, settings.parent / "fewer")
    shutil.rmtree(folder / "states" / str(STEPS))
    experiment = from_dict(ARExperiment, json.loads(settings.read_text()))
    assert train(ar_task(experiment), experiment, folder, report=lambda *_: None).step == STEPS
    assert starts(folder) == [(0, 2), (12, 1)]
    np.testing.assert_allclose(losses(folder), losses(unbroken), rtol=1e-3)


def test_two_trainers_on_one_folder_are_refused(settings, unbroken):
    import fcntl

    experiment = from_dict(ARExperiment, json.loads(settings.read_text()))
    with (unbroken / "run.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process trains here"):
            train(ar_task(experiment), experiment, unbroken, report=lambda *_: None)
