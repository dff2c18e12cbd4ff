"""Real processes that are killed: whatever happens, the shards are those of an uninterrupted run, bit for bit."""

import pathlib
import signal
import subprocess
import sys
import time

import pytest

from voxinstruct_jax.data.manifest import write_manifest
from voxinstruct_jax.data.shards import ShardReader

HERE = pathlib.Path(__file__).parent
RUN = """
import functools, signal, sys
sys.path.insert(0, sys.argv[1])
import conftest, failing_encoders
from voxinstruct_jax.config import VoxError
from voxinstruct_jax.data.manifest import ManifestRows
from voxinstruct_jax.data.prepare import prepare
from voxinstruct_jax.data.workers import in_processes

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are started without
    _, _, manifest, out, workers, factory, *arguments = sys.argv
    opened = functools.partial(getattr(failing_encoders, factory), *arguments)
    engine = in_processes(opened, int(workers), say=lambda line: print(line, flush=True))
    try:
        prepare(ManifestRows(manifest), out, conftest.make_encoders(), engine=engine, shard_size=8, progress=False)
    except VoxError as error:
        print(error)
        sys.exit(1)
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "run.py"
    path.write_text(RUN)
    return path


@pytest.fixture
def command(tmp_path, rows, script):
    """Makes the command line of a run into `tmp_path / "out"`."""
    write_manifest(tmp_path / "m.jsonl", rows)

    def build(workers, *factory):
        return [sys.executable, script, HERE, tmp_path / "m.jsonl", tmp_path / "out", str(workers), *map(str, factory)]

    return build


def same_files(folder, reader) -> bool:
    names = [path.name for path in reader.folder.iterdir() if path.name != "prepare.json"]
    assert sorted(names) == sorted(path.name for path in folder.iterdir() if path.name != "prepare.json")
    return all((folder / name).read_bytes() == (reader.folder / name).read_bytes() for name in names)


def wait_until(condition, seconds=600):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def alive(process: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_two_workers_make_the_shards_of_one_process_and_a_dead_one_costs_nothing(tmp_path, command, reader):
    done = subprocess.run(command(2, "dying", tmp_path, 1), capture_output=True, text=True, check=True)
    assert "died (SIGKILL); the shard is made again" in done.stdout
    assert same_files(tmp_path / "out", reader)
    assert ShardReader(tmp_path / "out").fingerprint == reader.fingerprint


def test_a_shard_that_kills_its_worker_every_time_is_named(tmp_path, command):
    done = subprocess.run(command(1, "dying", tmp_path, 3, 3), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stdout.splitlines()[-1]
    assert last.startswith(
        "shard 0 (rows 'clip-0' to 'clip-7'): its worker died 3 times (SIGKILL); give it more memory"
    )


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_parent_leaves_no_worker_and_the_next_run_finishes(tmp_path, command, reader, stop):
    with subprocess.Popen(command(2, "slow", tmp_path, 0.2), stderr=subprocess.DEVNULL) as parent:
        wait_until(lambda: list((tmp_path / "out" / "parts").glob("*.json")))
        parent.send_signal(stop)
    assert parent.returncode != 0
    workers = [int(path.name.removeprefix("worker-")) for path in tmp_path.glob("worker-*")]
    assert workers
    wait_until(lambda: not any(alive(worker) for worker in workers))
    with pytest.raises(Exception, match="holds no index"):
        ShardReader(tmp_path / "out")
    subprocess.run(command(2, "dying", tmp_path, 0), check=True)
    assert same_files(tmp_path / "out", reader)


def test_a_full_disk_is_one_clear_line_and_leaves_nothing_half_written(tmp_path, command):
    # A limit on the size of files stands in for the end of the disk: the same write fails, with another number.
    limited = ["bash", "-c", 'ulimit -f 1; exec "$@"', "bash", *command(1, "dying", tmp_path, 0)]
    done = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    [line] = done.stdout.splitlines()
    assert "cannot be written" in line or "File too large" in line
    assert "finished shards are kept: mend it and run the same command again" in line
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"prepare.json", "prepare.lock"}


def test_a_fault_of_the_program_is_shown_as_it_is(tmp_path, command):
    done = subprocess.run(command(1, "slow", tmp_path / "nowhere"), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "nowhere" in done.stdout + done.stderr
    assert not (tmp_path / "out" / "index.json").exists()
