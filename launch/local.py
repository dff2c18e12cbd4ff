"""Runs a command as several processes of one machine, and starts it again when a process dies or is preempted.

    python launch/local.py --processes 2 -- voxinstruct train configs/smoke_ar.py --out runs/smoke_ar

The processes find each other through JAX's variables. One down means all down: the others can't go on without it. They
end by themselves once they notice; after `--grace` seconds they are killed. Exit code 75 (preempted, state saved) is
started again at once and counts for nothing; other failures are started again up to `--retries` times, ever later.
A stop signal to this script (or Ctrl-C) saves and ends the run.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from restarts import PREEMPTED, supervise


def main() -> int:
    """Supervises the processes; returns the last exit code that was not 0, or 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--devices", type=int, default=0, help="CPU devices a process pretends to have (default: its own)"
    )
    parser.add_argument("--retries", type=int, default=3)
    parser.add_argument("--grace", type=float, default=60.0, help="seconds from the first failure to the kill")
    parser.add_argument("command", nargs="+", help="after --")
    options = parser.parse_args()
    stopping: list[int] = []
    for kind in (signal.SIGTERM, signal.SIGINT):
        signal.signal(kind, lambda number, _: stopping.append(number))
    return supervise(lambda: _run_once(options, stopping), retries=options.retries, stopping=stopping)


def _run_once(options: argparse.Namespace, stopping: list[int]) -> list[int]:
    """Starts all processes and waits for all of them; returns their exit codes."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    processes = [_start(options, port, number) for number in range(options.processes)]
    failed_at, passed_on = 0.0, False
    while any(process.poll() is None for process in processes):
        if stopping and not passed_on:
            passed_on = True
            for process in processes:
                process.terminate()  # of several processes, only this signal reaches all
        if not failed_at and any(process.poll() not in (None, 0, PREEMPTED) for process in processes):
            failed_at = time.monotonic()
        if failed_at and time.monotonic() - failed_at > options.grace:
            for process in processes:
                process.kill()
        time.sleep(0.1)
    return [process.returncode for process in processes]


def _start(options: argparse.Namespace, port: int, number: int) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": str(options.processes),
        "JAX_PROCESS_ID": str(number),
    }
    if options.devices:
        flag = f"--xla_force_host_platform_device_count={options.devices}"
        environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}"}
    command: Sequence[str] = options.command
    return subprocess.Popen(command, env=environment)


if __name__ == "__main__":
    sys.exit(main())
