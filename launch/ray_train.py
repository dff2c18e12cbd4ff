"""Runs a command on several hosts of a Ray cluster, one process a host, and starts it again when one is lost.

    python launch/ray_train.py --hosts 4 --resources '{"GPU": 8}' -- voxinstruct train CONFIG --out /shared/runs/NAME

Ray gives hosts and watches over them; the processes find each other through JAX's variables. This folder and `--out`
are at the same place on all hosts, and the package is installed there. One down means all down: after `--grace` seconds
the others are killed, hosts are asked for anew (waiting until there are enough), and all start again. Exit code 75
(preempted, state saved) counts for nothing; other failures are started again up to `--retries` times, ever later.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

from restarts import PREEMPTED, WRONG_USE, supervise

LOST = 1
"""Stands for the exit code of a process whose host is gone."""


def main() -> int:
    """Supervises the hosts; returns the last exit code that was not 0, or 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, required=True)
    parser.add_argument("--resources", type=json.loads, default={"CPU": 1}, help="what a process takes, as JSON")
    parser.add_argument("--address", default="auto", help="of the Ray cluster (default: the one this host belongs to)")
    parser.add_argument("--retries", type=int, default=3)
    parser.add_argument("--grace", type=float, default=60.0, help="seconds from the first failure to the kill")
    parser.add_argument("command", nargs="+", help="after --")
    options = parser.parse_args()
    try:
        import ray
    except ImportError:
        print("ray_train.py: Ray is not installed; install the extra `ray`", file=sys.stderr)
        return WRONG_USE
    try:
        ray.init(address=options.address, log_to_driver=True)
    except ConnectionError as error:
        print(f"ray_train.py: no Ray cluster at {options.address!r} ({error})", file=sys.stderr)
        return WRONG_USE
    stopping: list[int] = []
    for kind in (signal.SIGTERM, signal.SIGINT):
        signal.signal(kind, lambda number, _: stopping.append(number))
    return supervise(lambda: _run_once(options, stopping), retries=options.retries, stopping=stopping)


def _run_once(options: argparse.Namespace, stopping: list[int]) -> list[int]:
    """Takes hosts, runs the command on all and gives them back; returns the exit codes."""
    import ray
    from ray.exceptions import RayError
    from ray.util.placement_group import placement_group, remove_placement_group

    group = placement_group([options.resources] * options.hosts, strategy="STRICT_SPREAD")
    try:
        ready = group.ready()
        if not ray.wait([ready], timeout=5.0)[0]:
            print(f"waiting for {options.hosts} hosts with {options.resources}", file=sys.stderr, flush=True)
        while not ray.wait([ready], timeout=1.0)[0]:
            if stopping:
                return [PREEMPTED] * options.hosts
        hosts = [_place(group, number, options.resources) for number in range(options.hosts)]
        try:
            address = str(ray.get(hosts[0].free_address.remote()))
        except RayError:
            return [LOST] * options.hosts
        runs = [host.run.remote(options.command, _environment(address, len(hosts), number), os.getcwd())  # noqa: PTH109
                for number, host in enumerate(hosts)]  # fmt: skip
        return _wait(hosts, runs, options.grace, stopping)
    finally:
        remove_placement_group(group)  # and all that runs there with it


def _environment(address: str, count: int, number: int) -> dict[str, str]:
    return {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PROCESS_ID": str(number),
        "PYTHONUNBUFFERED": "1",
    }


def _wait(hosts: list[Any], runs: list[Any], grace: float, stopping: list[int]) -> list[int]:
    """Waits for all processes; passes a stop on, and kills those that outlive a failed one for too long."""
    import ray
    from ray.exceptions import RayError

    codes: dict[Any, int] = {}
    failed_at, passed_on = 0.0, False
    while len(codes) < len(runs):
        ready, _ = ray.wait([run for run in runs if run not in codes], timeout=0.5)
        for run in ready:
            try:
                codes[run] = ray.get(run)
            except RayError:
                codes[run] = LOST
        if stopping and not passed_on:
            passed_on = True
            for host in hosts:
                host.stop.remote()
        if not failed_at and any(code not in (0, PREEMPTED) for code in codes.values()):
            failed_at = time.monotonic()
        if failed_at and time.monotonic() - failed_at > grace:
            for host in hosts:
                ray.kill(host)
    return [codes[run] for run in runs]


class _Host:
    """One process on one host of the cluster."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def free_address(self) -> str:
        import socket

        import ray

        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"

    def run(self, command: list[str], environment: dict[str, str], folder: str) -> int:
        self.process = subprocess.Popen(command, env={**os.environ, **environment}, cwd=folder)
        return self.process.wait()

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()


def _place(group: Any, number: int, resources: dict[str, float]) -> Any:
    """Starts the actor of a host; it takes all that its bundle has."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    others = {name: amount for name, amount in resources.items() if name not in ("CPU", "GPU")}
    return (
        ray.remote(_Host)
        .options(
            num_cpus=resources.get("CPU", 0),
            num_gpus=resources.get("GPU", 0),
            resources=others,
            max_concurrency=2,  # the run, and a stop meanwhile
            max_restarts=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=number),
        )
        .remote()
    )


if __name__ == "__main__":
    sys.exit(main())
