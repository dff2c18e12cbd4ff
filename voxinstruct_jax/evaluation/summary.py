"""Scores of items to figures of a set: one row a metric and slice, with interval and with evaluated / total.

Read `Row`, then `summarise`. A mean is `sum n / sum d`; error rates get further rows beside their headline.
"""

import csv
import io
import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from voxinstruct_jax.evaluation.items import Item
from voxinstruct_jax.evaluation.score import Metric, Score
from voxinstruct_jax.evaluation.statistics import RESAMPLES, interval, wilson
from voxinstruct_jax.judges.transcripts import tokens
from voxinstruct_jax.text.content import spoken_content

__all__ = ["Judged", "Row", "Scored", "as_csv", "as_table", "cluster_key", "slices_of", "summarise"]

SLICE_RESAMPLES = 1_000
SLICED = ("wer.vox", "cer.vox", "pinyin.vox", "mer.vox", "tone.", "attribute.", "stress.", "mos.dnsmos.ovrl",
          "similarity.vox.", "runaway", "truncated", "rate.net")  # fmt: skip
UNSLICED = ("pair", "id", "speaker")
"""Attributes that name single things, not kinds."""
LARGE_ERROR = 0.5
ALL = "all"
PROPORTIONS = ("share", "accuracy")
"""Units of right-or-wrong scores: an interval of a share (Wilson) holds where all items agree, resampling does not."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure."""

    slice: str = ALL
    """Such as "language=en"; "all" is everything."""
    metric: str
    value: float | None
    ci_low: float | None = None
    ci_high: float | None = None
    """95 % interval; None where it cannot be had (fewer than two clusters)."""
    evaluated: int
    """Items with a value, failed ones that count against the system included."""
    total: int
    """Items that the metric concerns."""
    failed: int = 0
    """Items without sound."""
    void: int = 0
    """Items that could not be judged."""
    skipped: int = 0
    """Items that were not judged because the judge is not at hand."""
    unit: str
    better: str
    protocol: str
    judge: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """An item with its scores, by metric, and what went wrong with it as a whole (`word_metrics.finish_flags`)."""

    item: Item
    scores: Mapping[str, Score]
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A metric with the judge that it rested on; `missing` says why there was none."""

    metric: Metric
    judge: str
    missing: str = ""


def summarise(judged: Sequence[Judged], scored: Sequence[Scored], *, cluster: str, seed: int) -> list[Row]:
    """Every metric over everything and over slices; metrics that concern no item are left out.

    Args:
        judged: Metrics in the order of the report.
        scored: All items.
        cluster: "sentence" or "speaker": items of one stand or fall together.
        seed: Of the bootstrap.
    """
    keys = [cluster_key(each.item, cluster) for each in scored]
    groups: dict[str, list[int]] = {ALL: list(range(len(scored)))}
    for place, each in enumerate(scored):
        for name in slices_of(each.item):
            groups.setdefault(name, []).append(place)
    rows = []
    for one in judged:
        concerned = [place for place in groups[ALL] if one.metric.applies(scored[place].item)]
        if not concerned:
            continue
        inside = set(concerned)
        for name, places in groups.items():
            chosen = [place for place in places if place in inside]
            if name != ALL and (not one.metric.id.startswith(SLICED) or len(chosen) in (0, len(concerned))):
                continue
            rows += _rows(one, name, [scored[place] for place in chosen], [keys[place] for place in chosen], seed)
    return rows


def slices_of(item: Item) -> list[str]:
    """Names of the slices that an item belongs to."""
    names = [f"language={item.language}"]
    names += [
        f"{name}={value}"
        for name, value in sorted(item.attributes.items())
        if isinstance(value, str) and name not in UNSLICED
    ]
    if item.instruction:
        names.append(f"content={_place_of_content(item)}")
        names.append(f"prompt={'yes' if item.prompt else 'no'}")
    if item.transcript:
        length = len(tokens(item.transcript, "mixed"))
        names.append("length=" + ("to 5" if length <= 5 else "6 to 15" if length <= 15 else "over 15"))
    return names


def cluster_key(item: Item, cluster: str) -> Hashable:
    """What an item shares with others of its cluster; one that has no such thing is a cluster of its own."""
    shared = item.speaker if cluster == "speaker" else "".join(tokens(item.transcript, "mixed"))
    return shared or ("alone", item.id)


def as_csv(kind: type, rows: Iterable[Any]) -> str:
    """A table of dataclasses of one kind, with a header."""
    file = io.StringIO()
    writer = csv.DictWriter(file, [field.name for field in fields(kind)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return file.getvalue()


def as_table(rows: Iterable[Row]) -> list[str]:
    """Lines for a terminal: the figures over everything."""
    lines = [f"{'metric':<32}{'value':>10}  {'95 % interval':<22}{'evaluated':>12}  unit"]
    for row in rows:
        if row.slice != ALL:
            continue
        value = "-" if row.value is None else f"{row.value:.4g}"
        ends = "" if row.ci_low is None or row.ci_high is None else f"[{row.ci_low:.4g}, {row.ci_high:.4g}]"
        counts = f"{row.evaluated}/{row.total}"
        said = f"  {row.note}" if row.note else ""
        lines.append(f"{row.metric:<32}{value:>10}  {ends:<22}{counts:>12}  {row.unit}{said}")
    return lines


def _rows(one: Judged, name: str, scored: Sequence[Scored], keys: Sequence[Hashable], seed: int) -> list[Row]:
    metric = one.metric
    shared: dict[str, Any] = {
        "slice": name,
        "total": len(scored),
        "unit": metric.unit,
        "better": metric.better,
        "protocol": metric.protocol,
        "judge": one.judge,
    }
    if one.missing:
        return [Row(metric=metric.id, value=None, evaluated=0, skipped=len(scored), note=one.missing, **shared)]
    scores = [each.scores[metric.id] for each in scored]
    shared |= {status: sum(score.status == status for score in scores) for status in ("failed", "void")}
    row = _figure(scores, keys, metric.unit, seed, RESAMPLES if name == ALL else SLICE_RESAMPLES)
    reasons = [score.reason for score in scores if score.status == "void"]
    note = f"not judged: {reasons[0]}" if reasons and not row["evaluated"] else ""
    found = [Row(metric=metric.id, note=note, **row, **shared)]
    if metric.normaliser and name == ALL and row["evaluated"]:
        found += _error_block(metric.id, scored, scores, keys, seed, shared)
    return found


def _figure(scores: Sequence[Score], keys: Sequence[Hashable], unit: str, seed: int, resamples: int) -> dict[str, Any]:
    counted = [(score, key) for score, key in zip(scores, keys, strict=True) if score.n is not None]
    if not counted:
        return {"value": None, "evaluated": 0}
    n, d = [score.n or 0.0 for score, _ in counted], [score.d for score, _ in counted]
    own = [key for _, key in counted]
    if not sum(d):
        return {"value": None, "evaluated": len(counted)}
    if unit in PROPORTIONS and len(set(own)) == len(own) and all(one == 1 for one in d):
        ends = wilson(sum(n), len(n))
    else:
        ends = interval(n, d, own, seed=seed, resamples=resamples)
    low, high = ends or (None, None)
    return {"value": sum(n) / sum(d), "ci_low": low, "ci_high": high, "evaluated": len(counted)}


def _error_block(
    name: str, scored: Sequence[Scored], scores: Sequence[Score], keys: Sequence[Hashable], seed: int, shared: Any
) -> list[Row]:
    """Other ways to put one error rate; the headline is the corpus rate."""
    rates = [score.value for score in scores if score.value is not None]
    kept: dict[str, tuple[str, Callable[[int], bool]]] = {
        "no_runaways": ("corpus without runaways", lambda place: "runaway" not in scored[place].flags),
        "le50": ("corpus over items of at most 50 %", lambda place: (scores[place].value or 0.0) <= LARGE_ERROR),
        "present": ("corpus over items with sound", lambda place: scores[place].status != "failed"),
    }
    rows = []
    for suffix, (protocol, keep) in kept.items():
        places = [place for place, score in enumerate(scores) if score.n is not None and keep(place)]
        figure = _figure(
            [scores[place] for place in places], [keys[place] for place in places], "", seed, SLICE_RESAMPLES
        )
        rows.append(Row(metric=f"{name}.{suffix}", **figure, **{**shared, "protocol": protocol}))
    single = {
        "mean": ("mean of items", [Score(n=rate) for rate in rates]),
        "capped": ("mean of items, each at most 1", [Score(n=min(rate, 1.0)) for rate in rates]),
    }
    own = [key for key, score in zip(keys, scores, strict=True) if score.value is not None]
    for suffix, (protocol, values) in single.items():
        figure = _figure(values, own, "", seed, SLICE_RESAMPLES)
        rows.append(Row(metric=f"{name}.{suffix}", **figure, **{**shared, "protocol": protocol}))
    length = sum(score.d for score in scores if score.n is not None)
    plain = {
        kind: (f"{kind} / tokens", sum(score.parts.get(kind, 0.0) for score in scores) / length)
        for kind in ("substitutions", "deletions", "insertions")
    }
    plain |= {
        "median": ("of items", float(np.median(rates))),
        "p95": ("of items", float(np.quantile(rates, 0.95))),
        "max": ("of items", max(rates)),
        "over50": ("share of items over 50 %", float(np.mean(np.array(rates) > LARGE_ERROR))),
    }
    return rows + [
        Row(metric=f"{name}.{suffix}", value=value, evaluated=len(rates), **{**shared, "protocol": protocol})
        for suffix, (protocol, value) in plain.items()
    ]


def _place_of_content(item: Item) -> str:
    """Where in the instruction the words to be spoken stand."""
    content = spoken_content(item.instruction)
    start = item.instruction.find(item.transcript) if content.text is None else content.start
    if start < 0:
        return "elsewhere"
    end = start + len(content.text or item.transcript)
    before, after = len(item.instruction[:start].strip()) > 1, len(item.instruction[end:].strip()) > 2
    return {(False, False): "all", (False, True): "start", (True, False): "end", (True, True): "middle"}[before, after]


def dump(value: Any) -> str:
    """JSON on one line, keys sorted: equal values give equal bytes."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
