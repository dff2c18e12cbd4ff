"""A real cluster of two local nodes, one of whose workers is killed while it speaks."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from fake_voice import FakeVoice
from jobs_for_tests import files, lasting, rows_named, run, write_requests

from voxinstruct_jax.jobs.results import read_results

HERE = pathlib.Path(__file__).parent
RUN = """
import functools, os, sys
sys.path.insert(0, sys.argv[1])
os.environ["RAY_raylet_start_wait_time_s"] = "300"  # a busy machine starts slowly
os.environ["PYTHONPATH"] = os.pathsep.join([sys.argv[1], *filter(None, sys.path[1:])])
import jobs_for_tests
from ray.cluster_utils import Cluster
from voxinstruct_jax.jobs.ray_engine import on_ray

_, _, requests, out, deaths = sys.argv
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
voice = functools.partial(jobs_for_tests.deadly_voice, deaths, 'Say "r3"', 1)
results = jobs_for_tests.run(requests, out, voice, engine=on_ray(address=cluster.address), unit_size=2)
print("results:", len(results))
cluster.shutdown()
"""


@pytest.mark.slow
def test_a_killed_worker_of_a_cluster_loses_nothing(tmp_path):
    pytest.importorskip("ray", reason="needs the ray extra")
    requests = write_requests(tmp_path / "r.jsonl", rows_named(*[f"r{number}" for number in range(12)]))
    (tmp_path / "deaths").mkdir()
    command = [sys.executable, "-c", RUN, HERE, requests, tmp_path / "out", tmp_path / "deaths"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert re.search(r"^results: 12$", done.stdout, re.MULTILINE)
    assert os.listdir(tmp_path / "deaths") == ["death-0"]  # noqa: PTH208
    found = sorted(read_results(tmp_path / "out"), key=lambda result: result.id)
    assert lasting(found) == lasting(run(requests, tmp_path / "here", FakeVoice))
    assert not [name for name in files(tmp_path / "out") if name.split("/")[0] in ("claims", "workers", "partial")]
