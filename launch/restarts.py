"""When a run of several processes is started again: the rule that the launchers of this folder share."""

import sys
import time
from collections.abc import Callable, Sequence

PREEMPTED = 75
"""The run was asked to make room and has saved its state."""
WRONG_USE = 2
LONGEST_PAUSE_S = 60.0


def verdict(codes: Sequence[int]) -> int:
    """One exit code for all processes: wrong use first, then failure, preemption, success."""
    if WRONG_USE in codes:  # the others were killed for it
        return WRONG_USE
    return next((code for code in codes if code not in (0, PREEMPTED)), PREEMPTED if PREEMPTED in codes else 0)


def supervise(run_once: Callable[[], list[int]], *, retries: int, stopping: Sequence[int]) -> int:
    """Starts all processes again and again, until they are done or it is no use.

    Args:
        run_once: Starts all processes and waits for all; returns their exit codes.
        retries: Failures that are started again, ever later. Preemptions are free, wrong use is never started again.
        stopping: Not empty once the launcher itself was asked to stop.

    Returns:
        The verdict of the last start.
    """
    failures = 0
    while True:
        codes = run_once()
        code = verdict(codes)
        print(f"exit codes {codes}", file=sys.stderr, flush=True)
        if code in (0, WRONG_USE) or stopping:
            return code
        if code != PREEMPTED:
            failures += 1
            if failures > retries:
                return 1
            time.sleep(min(2.0**failures, LONGEST_PAUSE_S))
