"""What a metric is: a value with one function, item and evidence to `Score`.

Every score is a ratio `n / d`, so that any set of items adds up exactly. Read `Metric`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from voxinstruct_jax.config import InputError
from voxinstruct_jax.evaluation.items import Item
from voxinstruct_jax.evaluation.stages import SOUND, Evidence
from voxinstruct_jax.judges.transcripts import Unit

__all__ = ["Findings", "Metric", "Score", "plain_metric"]

Findings = Mapping[str, Evidence]
"""By stage. `sound` is always there; another stage is absent where its judge is."""
Status = Literal["ok", "failed", "void"]


@dataclass(frozen=True, kw_only=True)
class Score:
    """Of one item.

    Attributes:
        n: Numerator; None where nothing could be counted.
        d: Denominator.
        status: "ok"; "failed": the system gave no sound, which counts against it; "void": it cannot be judged.
        parts: Further counts, such as kinds of errors.
        reason: Why it is void or failed.
    """

    n: float | None = None
    d: float = 1.0
    status: Status = "ok"
    parts: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""

    @property
    def value(self) -> float | None:
        """None where there is none."""
        return None if self.n is None or not self.d else self.n / self.d


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric.

    Attributes:
        id: Such as "wer.vox"; the part behind the dot is the protocol's.
        unit: Of the value.
        better: Direction; empty where neither is.
        protocol: Formula and settings, in words.
        stage: Whose judge it rests on.
        measure: Score of an item with sound, from its findings, which the stage's judge has made.
        applies: Whether an item concerns it.
        worst: Value of an item without sound; None leaves it without a value, but not out of the total.
        without_sound: Overrides `worst` where it depends on the item.
        tie: Largest difference that means nothing.
        normaliser: Text unit whose normaliser belongs to the judge's name.
        bins: Whether class boundaries belong to it.
    """

    id: str
    unit: str
    better: Literal["higher", "lower", ""]
    protocol: str
    stage: str
    measure: Callable[[Item, Findings], Score]
    applies: Callable[[Item], bool] = lambda item: True
    worst: float | None = None
    without_sound: Callable[[Item, Findings], Score] | None = None
    tie: float = 0.0
    normaliser: Unit | None = None
    bins: bool = False

    def score(self, item: Item, findings: Findings) -> Score:
        """Score of any item; never raises on what a user's files hold."""
        if findings[SOUND]["status"] != "ok":
            lost = self.without_sound(item, findings) if self.without_sound else Score(n=self.worst)
            return dataclasses.replace(lost, status="failed", reason=findings[SOUND]["status"])
        void = findings[self.stage].get("void")
        if void:
            return Score(status="void", reason=void)
        try:
            return self.measure(item, findings)
        except InputError as problem:
            return Score(status="void", reason=str(problem))


def plain_metric(name: str, unit: str, stage: str, key: str, protocol: str, **more: Any) -> Metric:
    """A number as the stage has it."""

    def measure(item: Item, findings: Findings) -> Score:
        value = findings[stage].get(key)
        return Score(status="void", reason=more_reason) if value is None else Score(n=float(value))

    more_reason = "nothing voiced, or nothing that can be compared"
    return Metric(
        id=name, unit=unit, better=more.pop("better", ""), protocol=protocol, stage=stage, measure=measure, **more
    )
