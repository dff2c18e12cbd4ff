"""Real processes on one machine: what a pod's hosts do, with gloo in place of their network."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from voxinstruct_jax.config import to_dict

REPOSITORY = Path(__file__).parents[2]
STEPS = 14

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


def start(settings, folder, count):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    found = []
    for number in range(count):
        many = {
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(number),
        }
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", **(many if count > 1 else {})}
        command = [sys.executable, "-c", PROGRAM, str(settings), str(folder)]
        with (folder.parent / f"{folder.name}.{number}.err").open("ab") as errors:
            found.append(subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=errors))
    return found


def wait_for_step(folder, step):
    deadline = time.monotonic() + 900
    while time.monotonic() < deadline:
        if any(row["step"] >= step for row in metrics(folder)):
            return
        time.sleep(0.05)
    raise AssertionError(f"step {step} never came")


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
    assert [process.wait() for process in start(settings, folder, 2)] == [0, 0]
    return folder


def test_two_processes_are_preempted_killed_and_resumed_with_the_same_losses(settings, unbroken):
    folder = settings.parent / "broken"
    asked = start(settings, folder, 2)
    wait_for_step(folder, 2)
    asked[1].send_signal(signal.SIGTERM)
    assert [process.wait() for process in asked] == [75, 75]
    saved = metrics(folder)[-1]["step"]
    killed = start(settings, folder, 2)
    wait_for_step(folder, random.randint(saved + 1, STEPS - 1))
    killed[0].send_signal(signal.SIGKILL)
    assert killed[0].wait() == -signal.SIGKILL
    assert killed[1].wait() != 0  # one down, all down
    assert [process.wait() for process in start(settings, folder, 2)] == [0, 0]
    assert losses(folder) == losses(unbroken)


def test_one_process_goes_on_where_two_were_killed(settings, unbroken):
    folder = settings.parent / "fewer"
    killed = start(settings, folder, 2)
    wait_for_step(folder, 6)
    for process in killed:
        process.kill()
        process.wait()
    assert [process.wait() for process in start(settings, folder, 1)] == [0]
    np.testing.assert_allclose(losses(folder), losses(unbroken), rtol=1e-3)


def test_two_trainers_on_one_folder_are_refused(settings, unbroken):
    import fcntl

    with (unbroken / "run.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        [process] = start(settings, unbroken, 1)
        assert process.wait() == 1
    assert "another process trains here" in (unbroken.parent / "unbroken.0.err").read_text()
