"""Shards made by a Ray cluster: one task a shard, written to a store, or a folder that all nodes see.

A task whose worker or node is lost is run again by Ray; what the first one wrote has no name yet, or the same bytes.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

from voxinstruct_jax.config import InputError, VoxError
from voxinstruct_jax.data.prepare import Encoders, Engine, ShardTask, prepare_shard
from voxinstruct_jax.data.processes import ONE_CORE
from voxinstruct_jax.data.ray_cluster import connected
from voxinstruct_jax.data.workers import MAX_ATTEMPTS

__all__ = ["on_ray"]

TASKS_A_CORE = 2
"""Handed out at a time, so that no worker waits for the manifest to be read."""


def on_ray(
    open_encoders: Callable[..., Encoders], *arguments: str, address: str = "auto", gpus_per_task: float = 0.0
) -> Engine:
    """Returns an engine that makes each shard in a task of a Ray cluster.

    Args:
        open_encoders: A function of a module that every node has.
        *arguments: What it is called with, once in each of Ray's worker processes.
        address: Of the cluster, as `ray.init` takes it: auto, HOST:PORT, ray://..., or local for one of its own.
        gpus_per_task: Share of a GPU that each task holds; 0 = one CPU core.

    Raises:
        InputError: Ray is not installed or there is no such cluster; the engine: a shard's task failed for good.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise InputError(
            "Ray is missing; run with `uv run --extra ray` in a clone, or install voxinstruct-jax[ray]"
        ) from error

    def run(tasks: Iterator[ShardTask], folder: str, tick: Callable[[], None]) -> None:
        with connected(ray, address):
            options = {"num_gpus": gpus_per_task} if gpus_per_task else {"num_cpus": 1}
            environment = {} if gpus_per_task else {"env_vars": ONE_CORE}
            remote = ray.remote(_prepare_remotely).options(
                max_retries=MAX_ATTEMPTS - 1, runtime_env=environment, **options
            )
            _hand_out(ray, tasks, lambda task: remote.remote(task, folder, open_encoders, arguments), tick)

    return run


def _hand_out(
    ray: Any, tasks: Iterator[ShardTask], submit: Callable[[ShardTask], Any], tick: Callable[[], None]
) -> None:
    pending: dict[Any, ShardTask] = {}
    while True:
        room = TASKS_A_CORE * max(1, int(ray.cluster_resources().get("CPU", 1)))
        while len(pending) < room and (task := next(tasks, None)) is not None:
            pending[submit(task)] = task
        if not pending:
            return
        (ready,), _ = ray.wait(list(pending), num_returns=1)
        task = pending.pop(ready)
        name = f"shard {task.number} (rows {task.rows[0].id!r} to {task.rows[-1].id!r})"
        try:
            failure = ray.get(ready)
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
            raise InputError(
                f"{name}: its worker died {MAX_ATTEMPTS} times; give it more memory or take these rows out"
            ) from error
        if failure is not None:
            raise InputError(f"{name}: {failure}")
        for _ in task.rows:
            tick()


def _prepare_remotely(
    task: ShardTask, folder: str, open_encoders: Callable[..., Encoders], arguments: tuple[str, ...]
) -> str | None:
    """Makes a shard; returns why it cannot be made, which Ray would not better by trying again."""
    try:
        prepare_shard(task.rows, folder, task.number, _opened(open_encoders, arguments))
    except (VoxError, OSError) as error:
        return str(error)
    return None


@functools.lru_cache(maxsize=1)
def _opened(open_encoders: Callable[..., Encoders], arguments: tuple[str, ...]) -> Encoders:
    """The encoders of this process, kept from task to task."""
    return open_encoders(*arguments)
