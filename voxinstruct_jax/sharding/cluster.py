"""Joining the other processes of a run, as the launcher's environment says."""

import os
from collections.abc import Mapping
from typing import Any

import jax

from voxinstruct_jax.config import ConfigError, InputError

__all__ = ["PREEMPTED", "join_cluster"]

PREEMPTED = 75
"""Exit code of a run that was asked to make room and has saved its state (EX_TEMPFAIL): start it again."""

HEARTBEAT_S = 30
"""A process that is silent for this long counts as dead, and all the others end: JAX's own 100 s waste a pod's time."""


def join_cluster() -> None:
    """Joins the run's other processes; does nothing where the environment names none.

    Read are, the first that is set:

    - `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` (any launcher; an indexed Kubernetes job may
      leave the last one to its `JOB_COMPLETION_INDEX`). A process takes all devices that it sees.
    - `VOXINSTRUCT_CLUSTER`: one of JAX's own ways to find the others, by its name ("gcetpu", "mpi4py", ...).
    - What GKE sets on the hosts of a TPU slice, and SLURM in a step of several tasks (there JAX takes one GPU a task).

    Raises:
        ConfigError: The environment is incomplete.
        InputError: The others cannot be reached.
    """
    settings = _settings(os.environ)
    if settings is None:
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            **settings, initialization_timeout=300, heartbeat_timeout_seconds=HEARTBEAT_S, shutdown_timeout_seconds=60
        )
    except ValueError as error:
        raise ConfigError(f"the run's other processes are not known: {str(error).splitlines()[0]}") from error
    except RuntimeError as error:
        # Not wrong use: a host may be down for a while, so launchers start again.
        raise InputError(f"the run's other processes cannot be joined: {str(error).splitlines()[0]}") from error


def _settings(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """What `jax.distributed.initialize` is to be told; None where there are no others."""
    address = environment.get("JAX_COORDINATOR_ADDRESS")
    if address:
        number = "JAX_PROCESS_ID" if "JAX_PROCESS_ID" in environment else "JOB_COMPLETION_INDEX"
        try:
            return {
                "coordinator_address": address,
                "num_processes": int(environment["JAX_NUM_PROCESSES"]),
                "process_id": int(environment[number]),
                # JAX would still ask SLURM or MPI which GPU is this task's, and leave the others idle.
                "cluster_detection_method": "deactivate",
            }
        except (KeyError, ValueError) as error:
            raise ConfigError(
                "JAX_COORDINATOR_ADDRESS is set: set JAX_NUM_PROCESSES and JAX_PROCESS_ID to numbers as well"
            ) from error
    method = environment.get("VOXINSTRUCT_CLUSTER")
    if method:
        return {"cluster_detection_method": method}
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES") or ""
    several = (
        "," in hosts
        or int(environment.get("MEGASCALE_NUM_SLICES", "1")) > 1
        or int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1
    )
    return {} if several else None
