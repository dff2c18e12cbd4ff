"""Launchers that start real processes here: each goes on by itself after a preemption.

The local one does so in `tests/training/test_processes.py`, with the losses looked at.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from voxinstruct_jax.config import to_dict

REPOSITORY = Path(__file__).parents[2]
STEPS = 8

PROGRAM = """
# `voxinstruct`, slow enough to be stopped in time.
import sys, time
from voxinstruct_jax.cli import main, train
report = train._Progress.__call__
train._Progress.__call__ = lambda *values: (report(*values), time.sleep(0.2))
sys.exit(main.main(sys.argv[1:]))
"""

CONFIG = """
import json
from pathlib import Path
from voxinstruct_jax.config import from_dict
from voxinstruct_jax.training.ar import ARExperiment
experiment = from_dict(ARExperiment, json.loads(Path(__file__).with_suffix(".json").read_text()))
"""

SRUN = """#!{python}
# What srun does: a process group a task, with its variables; one bad exit code kills the others; the worst is returned.
import os, signal, subprocess, sys, time
from pathlib import Path
assert "--kill-on-bad-exit=1" in sys.argv
command = sys.argv[sys.argv.index("bash"):]
count = int(os.environ["TASKS"])
tasks = []
for number in range(count):
    own = {{"SLURM_PROCID": number, "SLURM_LOCALID": number, "SLURM_NTASKS": count, "SLURM_STEP_NUM_TASKS": count,
           "SLURM_STEP_NODELIST": "localhost"}}
    environment = {{**os.environ, **{{name: str(value) for name, value in own.items()}}}}
    tasks.append(subprocess.Popen(command, env=environment, start_new_session=True))
signal.signal(signal.SIGTERM, lambda *_: [os.killpg(task.pid, signal.SIGTERM) for task in tasks])
Path({folder!r}, "srun.pid").write_text(str(os.getpid()))
while any(task.poll() is None for task in tasks):
    if any(task.poll() for task in tasks):
        for task in tasks:
            if task.poll() is None:
                os.killpg(task.pid, signal.SIGKILL)
    time.sleep(0.02)
codes = [task.returncode if task.returncode >= 0 else 128 - task.returncode for task in tasks]
sys.exit(max(codes))
"""

SCONTROL = """#!/bin/bash
case "$1 $2" in
"show hostnames") echo localhost ;;
"show job") echo "JobId=$4 JobName=x JobState=$(cat {folder}/state) Reason=None" ;;
requeue*) echo "$2" >>{folder}/requeued ;;
esac
"""


@pytest.fixture(scope="module")
def config(tiny_ar_experiment, tmp_path_factory):
    """A configuration file of a few tiny steps."""
    folder = tmp_path_factory.mktemp("launch")
    experiment = to_dict(tiny_ar_experiment)
    experiment["train"] |= {"steps": STEPS, "save_every": 100}
    (folder / "tiny.json").write_text(json.dumps(experiment))
    (folder / "tiny.py").write_text(CONFIG)
    return folder / "tiny.py"


def train_command(config, out):
    return [sys.executable, "-c", PROGRAM, "train", str(config), "--out", str(out)]


def logged_steps(folder):
    path = folder / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith(b"\n")]


def wait_for_step(folder, step, launcher):
    deadline = time.monotonic() + 1200
    while time.monotonic() < deadline:
        if any(logged >= step for logged in logged_steps(folder)):
            return
        assert launcher.poll() is None, "the launcher ended too early"
        time.sleep(0.05)
    raise AssertionError(f"step {step} never came")


def starts(folder):
    """(step, devices) of each start of a run, by its events."""
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [(event["step"], event["devices"]) for event in events if event["event"] == "start"]


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Starts `launch/slurm.sh` as SLURM would, over stand-ins for `srun` and `scontrol`."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text.format(python=sys.executable, folder=str(tmp_path)))
        (tmp_path / name).chmod(0o755)
    (tmp_path / "state").write_text("RUNNING")
    with socket.socket() as probe:  # ports of a job are taken from its number
        probe.bind(("localhost", 0))
        job = probe.getsockname()[1]
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    given = {"SLURM_JOB_ID": str(job), "SLURM_JOB_NODELIST": "localhost", "SLURM_SUBMIT_DIR": str(tmp_path)}

    def start(command, *, restarts, tasks=2, **more):
        environment = {**os.environ, **given, "TASKS": str(tasks), "SLURM_RESTART_COUNT": str(restarts), **more}
        return subprocess.Popen([REPOSITORY / "launch/slurm.sh", *command], cwd=REPOSITORY, env=environment)

    start.folder, start.job = tmp_path, str(job)
    return start


def requeued(slurm):
    path = slurm.folder / "requeued"
    return path.read_text().split() if path.exists() else []


@pytest.mark.slow
def test_a_slurm_job_queues_itself_again_and_goes_on(config, slurm):
    out = config.parent / "slurm"
    with slurm(train_command(config, out), restarts=0) as launcher:
        wait_for_step(out, 2, launcher)
        # `--signal=TERM@120`: to all processes of the step
        os.kill(int((slurm.folder / "srun.pid").read_text()), signal.SIGTERM)
        assert launcher.wait() == 75
    assert requeued(slurm) == [slurm.job]
    with slurm(train_command(config, out), restarts=1) as launcher:
        assert launcher.wait() == 0
    assert requeued(slurm) == [slurm.job]
    assert logged_steps(out) == list(range(1, STEPS + 1))
    assert [devices for _, devices in starts(out)] == [2, 2]


def test_a_slurm_job_passes_on_what_its_own_shell_is_told(slurm):
    """`--signal=B:TERM` and `scancel --full` reach the batch shell."""
    program = f"trap 'exit 75' TERM; touch {slurm.folder}/up-$SLURM_PROCID; while :; do sleep 0.1; done"
    with slurm(["bash", "-c", program], restarts=0) as launcher:
        while len(list(slurm.folder.glob("up-*"))) < 2:
            time.sleep(0.05)
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait() == 75
    assert requeued(slurm) == [slurm.job]


def test_a_slurm_job_that_was_cancelled_is_not_queued_again(slurm):
    (slurm.folder / "state").write_text("CANCELLED")
    with slurm(["bash", "-c", "exit 75"], restarts=0) as launcher:
        assert launcher.wait() == 75
    assert requeued(slurm) == []


def test_failures_of_a_slurm_job_are_counted_and_preemptions_are_not(slurm):
    programs = ["exit 75", "[ $SLURM_PROCID = 1 ] || sleep 60; exit 3", "exit 75", "exit 3"]
    for restarts, program in enumerate(programs):
        with slurm(["bash", "-c", program], restarts=restarts, RETRIES="1") as launcher:
            assert launcher.wait() != 0
    assert requeued(slurm) == [slurm.job] * 3  # the fourth was one failure too many


def test_wrong_use_is_not_queued_again(slurm):
    with slurm(["bash", "-c", "exit 2"], restarts=0) as launcher:
        assert launcher.wait() == 2
    assert requeued(slurm) == []


@pytest.mark.parametrize(
    ("programs", "code", "count"),
    [
        (["exit 0"], 0, 1),
        (["exit 75", "exit 75", "exit 0"], 0, 3),
        (["exit 1", "exit 75", "exit 1"], 1, 3),
        (["exit 2"], 2, 1),
        (["[ $JAX_PROCESS_ID = 1 ] && exit 1; sleep 60", "exit 0"], 0, 2),
    ],
)
def test_the_local_launcher_counts_failures_only(programs, code, count, tmp_path):
    for number, program in enumerate(programs):
        (tmp_path / f"{number}.sh").write_text(program)
    # Each process counts its own starts.
    text = f"cd {tmp_path}; echo >>n.$JAX_PROCESS_ID; . ./$(($(wc -l <n.$JAX_PROCESS_ID) - 1)).sh"
    launcher = [sys.executable, REPOSITORY / "launch/local.py", "--retries", "1", "--grace", "0.5", "--"]
    assert subprocess.run([*launcher, "bash", "-c", text], check=False).returncode == code
    assert [len((tmp_path / f"n.{number}").read_text()) for number in range(2)] == [count, count]
