"""Training on a Ray cluster: two nodes on this machine, of which one is lost."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray")

REPOSITORY = Path(__file__).parents[2]

# Starts the launcher on a cluster of two nodes; takes one away in the second start, and gives another in its place.
CLUSTER = """
import subprocess, sys, time
from pathlib import Path
from ray.cluster_utils import Cluster
folder, launcher = Path(sys.argv[1]), sys.argv[2:]

def patient(start):
    for _ in range(5):  # Ray gives a node 30 seconds to start, which a busy machine may not do
        try:
            return start()
        except Exception as error:
            print(error, file=sys.stderr)
    sys.exit("no Ray node starts")

cluster = Cluster()
head = {"num_cpus": 1, "include_dashboard": False}
patient(lambda: cluster.add_node(**head))
node = patient(lambda: cluster.add_node(num_cpus=1))
command = [sys.executable, *launcher[:1], "--address", cluster.address, *launcher[1:]]
with subprocess.Popen(command) as process:
    while not (folder / "lose").exists() and process.poll() is None:
        time.sleep(0.1)
    cluster.remove_node(node, allow_graceful=False)
    patient(lambda: cluster.add_node(num_cpus=1))
    code = process.wait()
cluster.shutdown()
sys.exit(code)
"""

# A process: preempted at its first start, waiting to be lost at the second, done at the third.
PROGRAM = """
cd {folder}
echo "$JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES" >>starts.$JAX_PROCESS_ID
case $(wc -l <starts.$JAX_PROCESS_ID) in
1) exit 75 ;;
2) [ -e starts.0 ] && [ "$(cat starts.* | wc -l)" -ge 4 ] && touch lose; sleep 300 ;;
esac
"""


@pytest.mark.slow
def test_a_run_is_started_again_after_a_preemption_and_a_lost_host(tmp_path):
    launcher = [REPOSITORY / "launch/ray_train.py", "--hosts", "2", "--retries", "1", "--grace", "1", "--"]
    done = subprocess.run(
        [sys.executable, "-c", CLUSTER, tmp_path, *launcher, "bash", "-c", PROGRAM.format(folder=tmp_path)],
        cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = ((tmp_path / f"starts.{number}").read_text().splitlines() for number in range(2))
    assert first == second  # all agree on where the first one listens
    assert len(set(first)) == 3
    assert all(line.endswith(" 2") for line in first)
    assert "exit codes [75, 75]" in done.stderr
    assert "exit codes [0, 0]" in done.stderr
