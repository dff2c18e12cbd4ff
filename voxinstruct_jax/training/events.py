"""What a run spent its time on: `events.jsonl`, one row an event, and the goodput that follows from it.

Goodput is the share of wall time, from the first start to the last event, that went into steps whose result was kept.
The rest is told by reason: starting, compiling, waiting for data, saving, steps that were done again, and time when
nothing ran.

Source:
    The definition in Google Cloud's ML goodput measurement: productive step time over total job time.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["EventLog", "goodput", "read_events"]

REASONS = ("starting", "compiling", "data", "saving", "sampling", "rolled_back")


class EventLog:
    """Appends events; several runs of one folder follow one another in the file."""

    def __init__(self, folder: Path, *, active: bool = True) -> None:
        """Opens the log.

        Args:
            folder: Of the run.
            active: False on all processes but the first: they keep quiet.
        """
        self.path, self._active = folder / "events.jsonl", active

    def write(self, event: str, step: int, **values: Any) -> None:
        """Writes one event, with the time."""
        if self._active:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"event": event, "step": step, "time": time.time(), **values}) + "\n")

    @contextmanager
    def timed(self, event: str, step: int) -> Iterator[None]:
        """Writes an event with the seconds that the block took."""
        since = time.monotonic()
        yield
        self.write(event, step, seconds=time.monotonic() - since)


def read_events(folder: Path) -> list[dict[str, Any]]:
    """Reads a run's events; a last line torn by a kill is left out."""
    path = folder / "events.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def goodput(events: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Returns the shares of wall time by use; they add up to 1.

    Args:
        events: From `read_events`. An event `steps` says that the steps up to `step` took `seconds`, of which
            `data_seconds` went into waiting for batches, `saving_seconds` into saves, `sampling_seconds` into samples
            and `compiling_seconds` into compilation.
    """
    if len(events) < 2:
        return {}
    # A start is told when it is over.
    wall = events[-1]["time"] - events[0]["time"] + events[0].get("seconds", 0.0)
    spent = dict.fromkeys(REASONS, 0.0)
    kept: list[tuple[int, int, float]] = []  # first step, last step, seconds a step
    last = 0
    for event in events:
        seconds = float(event.get("seconds", 0.0))
        if event["event"] == "start":
            spent["starting"] += seconds
            last = event["step"]
            kept, again = _keep_until(kept, last)
            spent["rolled_back"] += again
        elif event["event"] == "rollback":
            kept, again = _keep_until(kept, event["restored_step"])
            spent["rolled_back"] += again
        elif event["event"] == "steps":
            for reason in ("compiling", "data", "saving", "sampling"):
                spent[reason] += event.get(f"{reason}_seconds", 0.0)
                seconds -= event.get(f"{reason}_seconds", 0.0)
            if event["step"] > last:
                kept.append((last, event["step"], max(seconds, 0.0) / (event["step"] - last)))
            last = event["step"]
    productive = sum((stop - start) * each for start, stop, each in kept)
    shares = {"productive": productive, **spent}
    shares["not_running"] = max(wall - sum(shares.values()), 0.0)
    total = max(sum(shares.values()), 1e-9)
    return {name: seconds / total for name, seconds in shares.items()}


def _keep_until(kept: list[tuple[int, int, float]], step: int) -> tuple[list[tuple[int, int, float]], float]:
    """Cuts stretches off at a step that a run went back to; returns the seconds that were lost too."""
    lost = sum(((stop - max(start, step)) * each for start, stop, each in kept if stop > step), 0.0)
    return [(start, min(stop, step), each) for start, stop, each in kept if start < step], lost
