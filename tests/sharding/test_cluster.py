import jax
import pytest

from voxinstruct_jax.config import ConfigError, InputError
from voxinstruct_jax.sharding.cluster import join_cluster

NAMES = (
    "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "JOB_COMPLETION_INDEX", "VOXINSTRUCT_CLUSTER",
    "TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES", "MEGASCALE_NUM_SLICES", "SLURM_STEP_NUM_TASKS",
)  # fmt: skip


@pytest.fixture
def join(monkeypatch):
    """Joins in an environment of these variables; gives what JAX is told, None if it is not called."""

    def call(error=None, **environment):
        told = []

        def initialize(**settings):
            told.append({name: value for name, value in settings.items() if not name.endswith(("timeout", "seconds"))})
            if error is not None:
                raise error

        monkeypatch.setattr(jax.distributed, "initialize", initialize)
        monkeypatch.setattr(jax.config, "update", lambda *_: None)
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        join_cluster()
        return told[0] if told else None

    return call


def test_one_process_joins_nothing(join):
    assert join() is None
    assert join(SLURM_STEP_NUM_TASKS="1", TPU_WORKER_HOSTNAMES="localhost", JOB_COMPLETION_INDEX="0") is None


def test_an_address_settles_all_and_leaves_every_device_to_the_process(join):
    address = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4", "SLURM_STEP_NUM_TASKS": "4"}
    wanted = {
        "coordinator_address": "a:1",
        "num_processes": 4,
        "process_id": 3,
        "cluster_detection_method": "deactivate",
    }
    assert join(**address, JAX_PROCESS_ID="3", JOB_COMPLETION_INDEX="1") == wanted
    assert join(**address, JOB_COMPLETION_INDEX="3") == wanted


def test_a_named_way_is_handed_to_jax(join):
    assert join(VOXINSTRUCT_CLUSTER="gcetpu") == {"cluster_detection_method": "gcetpu"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TPU_WORKER_HOSTNAMES", "a,b"),
        ("TPU_PROCESS_ADDRESSES", "a:1,b:1"),
        ("MEGASCALE_NUM_SLICES", "2"),
        ("SLURM_STEP_NUM_TASKS", "2"),
    ],
)
def test_hosts_that_jax_finds_itself_are_joined(join, name, value):
    assert join(**{name: value}) == {}


def test_an_address_alone_is_wrong_use(join):
    with pytest.raises(ConfigError, match="JAX_NUM_PROCESSES and JAX_PROCESS_ID"):
        join(JAX_COORDINATOR_ADDRESS="a:1", JAX_NUM_PROCESSES="2")


def test_others_that_do_not_answer_are_a_failure_that_may_pass(join):
    with pytest.raises(InputError, match="cannot be joined: DEADLINE"):
        join(RuntimeError("DEADLINE_EXCEEDED\nmore"), VOXINSTRUCT_CLUSTER="gcetpu")
