"""A real cluster of two local nodes, one of whose workers is killed while it makes a shard."""

import pathlib
import re
import subprocess
import sys

import pytest

from voxinstruct_jax.config import InputError
from voxinstruct_jax.data.manifest import write_manifest
from voxinstruct_jax.data.ray_engine import on_ray
from voxinstruct_jax.data.shards import ShardReader

HERE = pathlib.Path(__file__).parent
RUN = """
import os, sys
sys.path.insert(0, sys.argv[1])
os.environ["RAY_raylet_start_wait_time_s"] = "300"  # a busy machine starts slowly
os.environ["PYTHONPATH"] = os.pathsep.join([sys.argv[1], *filter(None, sys.path[1:])])
import conftest, failing_encoders
from ray.cluster_utils import Cluster
from voxinstruct_jax.config import VoxError
from voxinstruct_jax.data.manifest import ManifestRows
from voxinstruct_jax.data.prepare import prepare
from voxinstruct_jax.data.ray_engine import on_ray

_, _, manifest, out, folder = sys.argv
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
rows = list(ManifestRows(manifest))
for times, target, some in (("3", out + "-bad", rows[:8]), ("1", out, rows)):
    for mark in os.listdir(folder):
        os.unlink(os.path.join(folder, mark))
    engine = on_ray(failing_encoders.dying, folder, times, "3", address=cluster.address)
    try:
        prepare(some, target, conftest.make_encoders(), engine=engine, shard_size=8, progress=False)
    except VoxError as error:
        print("failed:", error)
print("deaths:", len(os.listdir(folder)))
cluster.shutdown()
"""


@pytest.mark.slow
def test_a_killed_worker_of_a_cluster_loses_nothing_and_a_deadly_shard_is_named(tmp_path, rows, reader):
    pytest.importorskip("ray", reason="needs the ray extra")
    write_manifest(tmp_path / "m.jsonl", rows)
    (tmp_path / "marks").mkdir()
    command = [sys.executable, "-c", RUN, HERE, tmp_path / "m.jsonl", tmp_path / "out", tmp_path / "marks"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = dict(re.findall(r"^(failed|deaths): (.*)$", done.stdout, re.MULTILINE))  # Ray prints beside it
    assert "its worker died 3 times; give it more memory or take these rows out" in said["failed"]
    assert said["deaths"] == "1"
    assert ShardReader(tmp_path / "out").fingerprint == reader.fingerprint
    names = [path.name for path in reader.folder.iterdir() if path.name != "prepare.json"]
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (reader.folder / name).read_bytes()


def test_no_cluster_is_one_clear_line(tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="needs the ray extra")
    from ray._private.services import find_gcs_addresses

    if find_gcs_addresses():
        pytest.skip("a Ray cluster runs on this machine")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    engine = on_ray(dict, address="auto")
    with pytest.raises(InputError, match=r"no Ray cluster at 'auto' \(.*\); start one with `ray start --head`"):
        engine(iter(()), str(tmp_path), lambda: None)
