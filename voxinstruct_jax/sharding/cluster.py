"""Joining the other processes of a run, as the launcher's environment says."""

import os

import jax

from voxinstruct_jax.config import ConfigError

__all__ = ["PREEMPTED", "join_cluster"]

PREEMPTED = 75
"""Exit code of a run that was asked to make room and has saved its state (EX_TEMPFAIL): start it again."""

HEARTBEAT_S = 30
"""A process that is silent for this long counts as dead, and all the others end: JAX's own 100 s waste a pod's time."""


def join_cluster() -> None:
    """Joins the run's other processes; does nothing where the environment names none.

    Read are `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` (any launcher), else SLURM's variables
    of a step with several tasks, a TPU pod's, or a Kubernetes job's, which JAX knows itself.

    Raises:
        ConfigError: The environment is incomplete, or the others cannot be reached.
    """
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if not address and not _launched_with_others():
        return
    explicit = {}
    if address:
        try:
            explicit = {
                "coordinator_address": address,
                "num_processes": int(os.environ["JAX_NUM_PROCESSES"]),
                "process_id": int(os.environ["JAX_PROCESS_ID"]),
            }
        except (KeyError, ValueError) as error:
            raise ConfigError(
                f"JAX_COORDINATOR_ADDRESS is set and {error} is not a number: set JAX_NUM_PROCESSES and JAX_PROCESS_ID"
            ) from error
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            **explicit, initialization_timeout=300, heartbeat_timeout_seconds=HEARTBEAT_S, shutdown_timeout_seconds=60
        )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"the run's other processes cannot be joined: {str(error).splitlines()[0]}") from error


def _launched_with_others() -> bool:
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return True
    if "," in os.environ.get("TPU_WORKER_HOSTNAMES", "") or int(os.environ.get("MEGASCALE_NUM_SLICES", "1")) > 1:
        return True
    return int(os.environ.get("JOB_COMPLETION_COUNT", "1")) > 1
