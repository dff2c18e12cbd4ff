"""Where units of work are done: in processes of this machine, or on a Ray cluster.

A unit is done by a function that leaves its result in a file, whole or not at all; so a unit may be done twice, and a
process that is killed costs the unit that it was at. Start at `open_engine`.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from importlib import import_module, util
from typing import Any, Literal, TypeVar

from voxinstruct_jax.config import InputError, VoxError
from voxinstruct_jax.data.processes import ONE_THREAD, end_with_parent, environment

__all__ = ["Engine", "EngineName", "open_engine"]

T = TypeVar("T")
Engine = Callable[[Callable[[T], int], Callable[[], Iterable[T]], Callable[[], None]], None]
"""Calls a function for each unit of an iterable, which is made anew after a broken pool and then leaves out what is
done; the function returns how many rows it did, and the third argument is called as often."""
EngineName = Literal["local", "ray"]

UNITS_AHEAD = 2
"""Units waiting for each worker; the rest stays in the manifest."""
ATTEMPTS = 3


def open_engine(name: EngineName, workers: int) -> Engine[Any]:
    """Returns an engine.

    Args:
        name: "local", or "ray": the cluster that `RAY_ADDRESS` names, else one on this machine. All its nodes must see
            the files by the same paths.
        workers: Processes, of one thread each.

    Raises:
        InputError: Ray is asked for and not installed.
    """
    if name == "local":
        return lambda function, units, tick: _run_local(function, units, tick, workers)
    if util.find_spec("ray") is None:
        raise InputError("--engine ray needs Ray: run with `uv run --extra ray`, or install voxinstruct-jax[ray]")
    return lambda function, units, tick: _run_ray(function, units, tick, workers)


def _run_local(
    function: Callable[[T], int], units: Callable[[], Iterable[T]], tick: Callable[[], None], workers: int
) -> None:
    for attempt in range(ATTEMPTS):
        try:
            with (
                environment(ONE_THREAD),
                ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=end_with_parent) as pool,
            ):
                _feed(lambda unit: pool.submit(function, unit), iter(units()), tick, workers * UNITS_AHEAD)
            return
        except BrokenProcessPool as error:
            if attempt + 1 == ATTEMPTS:
                raise InputError(
                    f"worker processes ended {ATTEMPTS} times (out of memory, or killed): what is done is kept; start "
                    "again with fewer --workers"
                ) from error


def _feed(submit: Callable[[T], "Future[int]"], units: Iterator[T], tick: Callable[[], None], most: int) -> None:
    running: set[Future[int]] = set()
    for unit in units:
        running.add(submit(unit))
        if len(running) >= most:
            running = _collect(running, tick)
    while running:
        running = _collect(running, tick)


def _collect(running: "set[Future[int]]", tick: Callable[[], None]) -> "set[Future[int]]":
    done, running = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        for _ in range(future.result()):
            tick()
    return running


def _run_ray(
    function: Callable[[T], int], units: Callable[[], Iterable[T]], tick: Callable[[], None], workers: int
) -> None:
    ray = import_module("ray")
    ours = not ray.is_initialized()
    if ours:
        _connect(ray, workers)
    try:
        # Ray runs a task again elsewhere when its worker or its machine is lost.
        options = {"num_cpus": 1, "max_retries": ATTEMPTS - 1, "runtime_env": {"env_vars": ONE_THREAD}}
        remote = ray.remote(_counted).options(**options)
        _hand_out(ray, lambda unit: remote.remote(function, unit), iter(units()), tick)
    finally:
        if ours:
            ray.shutdown()


def _connect(ray: Any, workers: int) -> None:
    try:
        # Without an address a cluster of this command's own, even where some other one runs on this machine.
        address = os.environ.get("RAY_ADDRESS")
        place = {"address": address} if address else {"address": "local", "num_cpus": workers}
        ray.init(log_to_driver=False, configure_logging=False, **place)
    except Exception as error:  # Ray raises many kinds, one of them Exception itself
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"Ray cannot be started or reached ({reason}); check RAY_ADDRESS or `ray start`") from error


def _counted(function: Callable[[T], int], unit: T) -> tuple[int, str]:
    """Does a unit; an error that trying again would not mend comes back as text."""
    try:
        return function(unit), ""
    except VoxError as error:
        return 0, str(error)


def _hand_out(ray: Any, submit: Callable[[T], Any], units: Iterator[T], tick: Callable[[], None]) -> None:
    running: list[Any] = []
    while True:
        room = UNITS_AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
        while len(running) < room and (unit := next(units, None)) is not None:
            running.append(submit(unit))
        if not running:
            return
        done, running = ray.wait(running)
        try:
            results = ray.get(done)
        except ray.exceptions.RayError as error:
            raise InputError(
                f"a Ray task ended {ATTEMPTS} times ({type(error).__name__}: out of memory, or killed); what is done "
                "is kept, start again with more memory"
            ) from error
        for count, failure in results:
            if failure:
                raise InputError(failure)
            for _ in range(count):
                tick()
