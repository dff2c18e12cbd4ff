"""How far a job is, from what is committed: the same for one process, many machines, and a job that was resumed."""

import math
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from voxinstruct_jax.jobs.plan import Plan
from voxinstruct_jax.jobs.results import PARTS_FOLDER, iter_parts
from voxinstruct_jax.jobs.store import Store

__all__ = ["Progress"]

MOST_FAILURES = 5
"""Failures that are kept to be shown."""
SECONDS_AN_HOUR = 3600


@dataclass(eq=False)
class Progress:
    """What is committed by now."""

    store: Store
    plan: Plan
    sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Of all parts: see `results.PartSummary`."""
    failures: list[str] = field(default_factory=list)
    """Lines on the first requests that are not done."""

    def __post_init__(self) -> None:
        self._seen: set[str] = set()
        self._syllables = {f"{unit.name}.parquet": unit.syllables for unit in self.plan.units}
        self._spoken = 0.0
        self.update()
        self._began, self._before = time.monotonic(), (self._spoken, self.sums["audio_s"])

    @property
    def complete(self) -> bool:
        """Whether every unit is committed."""
        return len(self._seen) == len(self.plan.units)

    def update(self) -> None:
        """Reads the parts that are new."""
        new = [name for name in self.store.names(PARTS_FOLDER) if name not in self._seen and name in self._syllables]
        for name, part in iter_parts(self.store, new):
            self._seen.add(name)
            self._spoken += self._syllables[name]
            for sum_, value in part.sums.items():
                self.sums[sum_] += value
            self.failures += part.failures[: MOST_FAILURES - len(self.failures)]

    def figures(self) -> dict[str, Any]:
        """The progress in numbers; speed and time to the end by what was done since this process looks."""
        seconds = max(time.monotonic() - self._began, 1e-3)
        audio_s = self.sums["audio_s"] - self._before[1]
        rate = (self._spoken - self._before[0]) / seconds
        left = sum(self._syllables.values()) - self._spoken
        return {
            "requests": self.plan.num_requests,
            "finished": int(self.sums["requests"]),
            **{status: int(self.sums[status]) for status in ("done", "failed", "quarantined")},
            "rejected": self.plan.rejected,
            "units": len(self.plan.units),
            "units_finished": len(self._seen),
            "retries": int(self.sums["tries"] - self.sums["requests"]),
            "audio_hours": round(self.sums["audio_s"] / SECONDS_AN_HOUR, 6),
            "audio_s_per_s": round(audio_s / seconds, 3),
            "synthesis_s": round(self.sums["synthesis_s"], 3),
            "discarded_s": round(self.sums["discarded_s"], 3),
            "judging_s": round(self.sums["judging_s"], 3),
            "left_s": math.ceil(left / rate) if rate else (0 if self.complete else None),
        }
