"""Workers on a Ray cluster: as many as it has room for, more when nodes come, fewer when they go.

Ray only starts them: units are claimed as everywhere, so a lost worker or node costs what it held. All nodes must see
the job's place and the prompts by the same paths. Read `on_ray`.
"""

from typing import Any

from voxinstruct_jax.config import InputError, VoxError
from voxinstruct_jax.data.processes import ONE_CORE
from voxinstruct_jax.data.ray_cluster import connected
from voxinstruct_jax.jobs.plan import read_plan
from voxinstruct_jax.jobs.processes import MOST_DEATHS
from voxinstruct_jax.jobs.results import PARTS_FOLDER
from voxinstruct_jax.jobs.run import Engine, Job, work
from voxinstruct_jax.jobs.store import open_store

__all__ = ["on_ray"]

LOOK_S = 1.0
LEAVE_S = 5.0
"""Workers end by themselves when all is done."""


def on_ray(
    *, address: str = "auto", num_workers: int | None = None, threads: int = 1, gpus_a_worker: float = 0
) -> Engine:
    """Returns an engine of Ray tasks, each a worker.

    Args:
        address: Of the cluster, as `ray.init` takes it: auto, HOST:PORT, ray://..., or local for one of its own.
        num_workers: At most so many; None = as the cluster's cores, or GPUs, allow at the time.
        threads: CPU cores of a worker.
        gpus_a_worker: GPUs, or a share of one, of a worker; 0 = it runs on the CPU.

    Raises:
        InputError: Ray is not installed or there is no such cluster; the engine: workers die and nothing is done.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise InputError(
            "--engine ray needs Ray: run with `uv run --extra ray`, or install voxinstruct-jax[ray]"
        ) from error

    def run(job: Job) -> None:
        with connected(ray, address):
            variables = {} if gpus_a_worker else dict.fromkeys(ONE_CORE, str(threads))
            options = {"num_cpus": threads, "num_gpus": gpus_a_worker, "max_retries": 0}
            remote = ray.remote(_work).options(**options, runtime_env={"env_vars": variables})
            room = ("GPU", gpus_a_worker) if gpus_a_worker else ("CPU", float(threads))
            _keep_busy(ray, job, lambda: remote.remote(job), room, num_workers)

    return run


def _keep_busy(ray: Any, job: Job, start: Any, room: tuple[str, float], num_workers: int | None) -> None:
    store = open_store(job.place)
    num_units = len(read_plan(store).units)
    running: list[Any] = []
    deaths = committed = 0
    while (found := len(store.names(PARTS_FOLDER))) < num_units:
        deaths, committed = (0, found) if found > committed else (deaths, committed)
        resource, share = room
        most = max(1, int(ray.cluster_resources().get(resource, 0) / share))
        most = min(most, num_workers or most, num_units - found)
        running += [start() for _ in range(most - len(running))]
        ended, running = ray.wait(running, timeout=LOOK_S)
        for one in ended:
            failure, dead = _outcome(ray, one)
            if failure:
                raise InputError(failure)
            deaths += dead
        if deaths > MOST_DEATHS * most:
            raise InputError(f"{deaths} workers on Ray died and nothing was finished between; give them more memory")
    _, waiting = ray.wait(running, num_returns=len(running), timeout=LEAVE_S) if running else ([], [])
    for one in waiting:  # it has found no room
        ray.cancel(one, force=True)


def _outcome(ray: Any, ended: Any) -> tuple[str | None, bool]:
    """Why a worker could not work, and whether it died."""
    try:
        return ray.get(ended), False
    except ray.exceptions.RayError:
        return None, True


def _work(job: Job) -> str | None:
    """Is a worker; an error that another one would meet too comes back as text."""
    try:
        work(job)
    except VoxError as error:
        return str(error)
    return None
