"""What a finished job shows of itself: counts, throughput over time, its slowest and its failed requests.

One pass over the parts; what is kept of a request are two numbers. Read `gather`.
"""

import heapq
import itertools
from array import array
from collections import Counter
from dataclasses import dataclass

import numpy as np

from voxinstruct_jax.jobs.plan import Plan
from voxinstruct_jax.jobs.results import Result, iter_part
from voxinstruct_jax.jobs.store import Store

__all__ = ["JobReport", "gather"]

SHOWN = 12
"""Requests of each kind."""
BINS = 60


@dataclass(frozen=True, kw_only=True)
class JobReport:
    """A job, to be shown."""

    finish_reasons: dict[str, int]
    faults: dict[str, int]
    languages: dict[str, int]
    edges_s: tuple[float, ...]
    """Times since the first result (s)."""
    audio_s_per_s: tuple[float, ...]
    """Seconds of sound a second, between two times each; one fewer."""
    slowest: tuple[Result, ...]
    failed: tuple[Result, ...]
    quarantined: tuple[Result, ...]


def gather(store: Store, plan: Plan) -> JobReport:
    """Reads all parts of a job."""
    counts: dict[str, Counter[str]] = {"reasons": Counter(), "faults": Counter(), "languages": Counter()}
    times, durations = array("d"), array("d")
    slowest: list[tuple[float, int, Result]] = []
    shown: dict[str, list[Result]] = {"failed": [], "quarantined": []}
    order = itertools.count()
    for result in itertools.chain.from_iterable(iter_part(store, unit.name) for unit in plan.units):
        counts["reasons"][result.finish_reason] += 1
        counts["faults"].update(result.checks)
        counts["languages"][result.language_predicted or "unknown"] += 1
        times.append(result.timings.get("finished_unix_s", 0.0))
        durations.append(result.duration_s or 0.0)
        heapq.heappush(slowest, (result.timings.get("synthesis_s", 0.0), -next(order), result))
        if len(slowest) > SHOWN:
            heapq.heappop(slowest)
        if len(shown.get(result.status, ())) < SHOWN and result.status in shown:
            shown[result.status].append(result)
    edges, rates = _throughput(np.asarray(times), np.asarray(durations))
    return JobReport(
        finish_reasons=dict(counts["reasons"].most_common()),
        faults=dict(counts["faults"].most_common()),
        languages=dict(counts["languages"].most_common()),
        edges_s=edges,
        audio_s_per_s=rates,
        slowest=tuple(result for *_, result in sorted(slowest, key=lambda one: one[:2], reverse=True)),
        failed=tuple(shown["failed"]),
        quarantined=tuple(shown["quarantined"]),
    )


def _throughput(times: np.ndarray, durations: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if not len(times):
        return (), ()
    since = times - times.min()
    edges = np.linspace(0.0, max(float(since.max()), 1.0), min(BINS, len(times)) + 1)
    spoken, _ = np.histogram(since, edges, weights=durations)
    return tuple(edges.tolist()), tuple((spoken / np.diff(edges)).tolist())
