"""Metrics that only a set of items has: diversity, order of controls, minimal pairs of stress, distances of sets.

Each is a function of all items and their findings that gives rows of the summary. Read `set_rows`.

Source:
    The sources of `evaluation.sets`; Salimans et al. 2016 (inception score); Spearman 1904 (rank correlation); minimal
    pairs as in de Seyssel et al. 2024, "EmphAssess".
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from voxinstruct_jax.evaluation.control_metrics import judged_class
from voxinstruct_jax.evaluation.items import Item
from voxinstruct_jax.evaluation.score import Findings
from voxinstruct_jax.evaluation.sets import (
    enough_for_frechet,
    frechet_distance,
    kernel_distance,
    mean_dissimilarity,
    vendi_score,
)
from voxinstruct_jax.evaluation.stages import SOUND, attribute_stage
from voxinstruct_jax.evaluation.statistics import interval, wilson
from voxinstruct_jax.evaluation.summary import Row, Scored
from voxinstruct_jax.judges.bins import CLASSES, Bins

__all__ = ["confusions", "set_demands", "set_rows", "set_stages"]

_SET_STAGES = {
    **{f"order.{name}": attribute_stage(name) for name in CLASSES},
    "stress.minimal_pair": attribute_stage("stress"),
    "diversity.speaker": "similarity.vox",
    "diversity.vendi": "similarity.vox",
    "diversity.f0": "pitch",
    "diversity.duration": SOUND,
    "fd.resemblyzer": "similarity.vox",
    "mmd.resemblyzer": "similarity.vox",
}
_BY_JUDGE = {"similarity": ("fd", "mmd"), "classes": ("is",)}
"""Metrics of sets that a judge given by hand makes possible, by its kind."""
SEEDS = 4
"""Fewest takes of one instruction whose spread is worth reading."""
EMBEDDING = "similarity.vox"
FEWEST_FOR_DISTANCE = 20
FEWEST_FOR_RANKS = 3
TINY = 1e-12

Everything = Sequence[tuple[Scored, Findings]]


def set_rows(everything: Everything, judges: Mapping[str, str], bins: Bins | None, seed: int) -> list[Row]:
    """All set metrics that the items allow; one that concerns no item is left out."""
    rows: list[Row] = []
    for make in (_attribute_means, _orders, _minimal_pairs, _diversity, _distances, _inception_scores):
        rows += make(everything, judges, bins, seed)
    return rows


def set_stages(given: Iterable[str]) -> dict[str, str]:
    """Metrics of sets that can be asked for by name, and the stage whose findings they need.

    Args:
        given: Stages of judges given by hand.
    """
    kinds = ((stage, *stage.partition(".")[::2]) for stage in given)
    others = {f"{metric}.{name}": stage for stage, kind, name in kinds for metric in _BY_JUDGE.get(kind, ())}
    return _SET_STAGES | others


def set_demands(items: Sequence[Item], wanted: Callable[[str], bool], given: Iterable[str] = ()) -> dict[str, set[str]]:
    """Ids of the items that a stage must hear for metrics of sets.

    Args:
        items: All items.
        wanted: Whether a metric is.
        given: Stages of judges given by hand.
    """
    takes = Counter(item.instruction for item in items)
    concerns: dict[str, Callable[[Item], bool]] = {
        "diversity": lambda item: bool(item.instruction) and takes[item.instruction] >= SEEDS,
        "fd": lambda item: item.reference_audio is not None,
        "mmd": lambda item: item.reference_audio is not None,
        "is": lambda item: True,
        "stress": lambda item: "stress" in item.attributes,
    }
    found: dict[str, set[str]] = defaultdict(set)
    for metric, stage in set_stages(given).items():
        kind, _, rest = metric.partition(".")
        concerned = concerns.get(kind, lambda item, rest=rest: rest in item.attributes)
        if wanted(metric):
            found[stage] |= {item.id for item in items if concerned(item)}
    return found


def confusions(everything: Everything, bins: Bins | None) -> dict[str, dict[str, dict[str, int]]]:
    """By attribute, counts of the class judged by the class asked for."""
    found: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for each, findings in everything:
        for attribute, asked in each.item.attributes.items():
            score = each.scores.get(attribute_stage(attribute))
            if isinstance(asked, str) and score is not None and score.status == "ok" and score.n is not None:
                judged = judged_class(attribute, each.item, findings[attribute_stage(attribute)], bins)
                found[attribute][asked][judged] += 1
    return {name: {asked: dict(counts) for asked, counts in table.items()} for name, table in found.items()}


def _attribute_means(everything: Everything, judges: Mapping[str, str], bins: Bins | None, seed: int) -> list[Row]:
    del seed
    rows, means = [], []
    for name, table in sorted(confusions(everything, bins).items()):
        stage = attribute_stage(name)
        scores = [each.scores[stage] for each, _ in everything if stage in each.scores and name in each.item.attributes]
        values = [score.value for score in scores if score.value is not None]
        means.append(float(np.mean(values)))
        recalls = [counts.get(asked, 0) / sum(counts.values()) for asked, counts in table.items()]
        judged = sum(sum(counts.values()) for counts in table.values())
        rows.append(
            _row(f"{stage}.macro_recall", float(np.mean(recalls)), judged, len(scores), "accuracy", "higher",
                 "mean over classes asked for", judges[stage])
        )  # fmt: skip
    if means:
        rows.append(
            _row("attribute.mean", float(np.mean(means)), len(means), len(means), "accuracy", "higher",
                 "unweighted mean over attributes (VoxInstruct, table 2); counted in attributes", "")
        )  # fmt: skip
    return rows


def _orders(everything: Everything, judges: Mapping[str, str], bins: Bins | None, seed: int) -> list[Row]:
    """Does "high" come out higher than "low"? Needs no boundaries."""
    del bins
    rows = []
    for attribute, classes in CLASSES.items():
        stage = attribute_stage(attribute)
        groups: dict[Any, list[tuple[int, float]]] = defaultdict(list)
        for each, findings in everything:
            value = findings.get(stage, {}).get("value")
            asked = each.item.attributes.get(attribute)
            if asked in classes and value is not None:
                groups[_takes_of(each.item)].append((classes.index(asked), value))
        right, pairs, keys, ranks = [], [], [], []
        for alike, members in groups.items():
            ordered = [
                float((one[1] - other[1]) * (one[0] - other[0]) > 0)
                for one, other in itertools.combinations(members, 2)
                if one[0] != other[0]
            ]
            if ordered and len(members) >= FEWEST_FOR_RANKS:
                ranks.append(_rank_correlation(members))
            if ordered:
                right.append(sum(ordered))
                pairs.append(float(len(ordered)))
                keys.append(alike)
        if pairs:
            ends = interval(right, pairs, keys, seed=seed)
            rows.append(
                _row(f"order.{attribute}", sum(right) / sum(pairs), int(sum(pairs)), int(sum(pairs)), "share", "higher",
                     "pairs of takes of one sentence, seed, speaker and gender (or of one `pair`), asked for in two "
                     "classes, whose values are in that order; counted in pairs", judges[stage], ends)
            )  # fmt: skip
        if ranks:
            rows.append(
                _row(f"order.{attribute}.spearman", float(np.mean(ranks)), len(ranks), len(groups), "correlation",
                     "higher", "rank correlation of class asked for and value within such takes, three or more; "
                     "counted in sentences", judges[stage], interval(ranks, [1.0] * len(ranks), range(len(ranks)),
                                                                     seed=seed))
            )  # fmt: skip
    return rows


def _rank_correlation(members: Sequence[tuple[int, float]]) -> float:
    """Spearman's, of classes and values; 0 where all values are equal."""
    ranks = [np.asarray(rankdata(side), np.float64) for side in zip(*members, strict=True)]
    away = [side - side.mean() for side in ranks]
    spread = float(np.sqrt(np.square(away[0]).sum() * np.square(away[1]).sum()))
    return float(away[0] @ away[1]) / spread if spread else 0.0


def _minimal_pairs(everything: Everything, judges: Mapping[str, str], bins: Bins | None, seed: int) -> list[Row]:
    """One sentence, two stressed words: both found?"""
    del bins, seed
    groups: dict[Any, list[tuple[tuple[int, ...], float | None]]] = defaultdict(list)
    for each, _ in everything:
        if each.item.attributes.get("stress") and "stress.sentence" in each.scores:
            groups[_takes_of(each.item)].append(
                (tuple(sorted(each.item.attributes["stress"])), each.scores["stress.sentence"].n)
            )
    pairs = [
        (one[1], other[1])
        for members in groups.values()
        for one, other in itertools.combinations(members, 2)
        if one[0] != other[0]
    ]
    known = [min(one, other) for one, other in pairs if one is not None and other is not None]
    if not pairs:
        return []
    value, ends = (sum(known) / len(known), wilson(sum(known), len(known))) if known else (None, None)
    return [
        _row("stress.minimal_pair", value, len(known), len(pairs), "accuracy", "higher",
             "pairs of one sentence with different stressed words, both found exactly; counted in pairs",
             judges.get(attribute_stage("stress"), ""), ends)
    ]  # fmt: skip


def _takes_of(item: Item) -> Hashable:
    """What takes that differ in one thing only have in common: `pair`, where the request names it."""
    if "pair" in item.attributes:
        return "pair", str(item.attributes["pair"])
    return item.transcript, item.seed, item.speaker, str(item.attributes.get("gender"))


def _diversity(everything: Everything, judges: Mapping[str, str], bins: Bins | None, seed: int) -> list[Row]:
    """Takes of one instruction, and all instructions together; read it beside the error rate: noise is diverse."""
    del bins
    takes: dict[str, list[tuple[Item, Findings]]] = defaultdict(list)
    for each, findings in everything:
        if each.item.instruction:
            takes[each.item.instruction].append((each.item, findings))
    takes = {instruction: members for instruction, members in takes.items() if len(members) >= SEEDS}
    measures: dict[str, tuple[str, str, Callable[[list[Findings]], float | None], str]] = {
        "diversity.speaker": ("1 - cosine", "mean over pairs of takes of 1 - cosine", _speaker_spread, EMBEDDING),
        "diversity.vendi": ("takes", "Vendi score of takes under cosine", _vendi, EMBEDDING),
        "diversity.f0": ("st", "SD of median F0 over takes", _pitch_spread, "pitch"),
        "diversity.duration": ("ln", "SD of ln duration over takes", _length_spread, SOUND),
    }
    rows = []
    for name, (unit, protocol, measure, stage) in measures.items() if takes else ():
        if stage not in judges:
            continue
        values = [measure([findings for _, findings in members]) for members in takes.values()]
        known = [value for value in values if value is not None]
        ends = interval(known, [1.0] * len(known), range(len(known)), seed=seed) if known else None
        value = float(np.mean(known)) if known else None
        said = f"{protocol}; at least {SEEDS} takes of one instruction; counted in instructions"
        rows.append(_row(name, value, len(known), len(takes), unit, "", said, judges[stage], ends))
    return rows


def _distances(everything: Everything, judges: Mapping[str, str], bins: Bins | None, seed: int) -> list[Row]:
    """Generated against reference embeddings as two sets, by every judge that embeds."""
    del bins
    stages = [stage for stage in judges if stage.startswith("similarity.")]
    return [row for stage in stages for row in _distances_by(stage, everything, judges[stage], seed)]


def _distances_by(stage: str, everything: Everything, judge: str, seed: int) -> list[Row]:
    name = "resemblyzer" if stage == EMBEDDING else stage.partition(".")[2]
    findings = [found.get(stage, {}) for _, found in everything]
    found = np.array([one["clip"] for one in findings if "reference" in one])
    true = np.array([one["reference"] for one in findings if "reference" in one])
    total = sum(each.item.reference_audio is not None for each, _ in everything)
    if len(found) < FEWEST_FOR_DISTANCE:
        return []
    half = np.random.default_rng(seed).permutation(len(true))
    one, other = true[half[: len(true) // 2]], true[half[len(true) // 2 :]]
    enough = enough_for_frechet(len(found), found.shape[1])
    note = "" if enough else f"insufficient_n: {len(found)} items, {10 * found.shape[1]} are needed; read mmd.{name}"
    same = "between two halves of the reference: what no difference looks like at half this size"
    measures = (
        (f"fd.{name}", "Frechet distance of embeddings, clips against references", frechet_distance, (found, true)),
        (f"fd.{name}.real_half", same, frechet_distance, (one, other)),
        (f"mmd.{name}", "unbiased kernel distance of embeddings", kernel_distance, (found, true)),
        (f"mmd.{name}.real_half", same, kernel_distance, (one, other)),
    )
    return [
        _row(metric, measure(*sets) if enough or metric.startswith("mmd") else None, len(found), total, "distance",
             "lower", protocol, judge, note=note if metric.startswith("fd") else "")
        for metric, protocol, measure, sets in measures
    ]  # fmt: skip


def _inception_scores(everything: Everything, judges: Mapping[str, str], bins: Bins | None, seed: int) -> list[Row]:
    """Sure of each clip's class, and of many classes over all clips: exp of the mean KL(p(y|x) || p(y))."""
    del bins, seed
    rows = []
    for stage in (stage for stage in judges if stage.startswith("classes.")):
        found = np.array([found[stage]["clip"] for _, found in everything if "clip" in found.get(stage, {})])
        if len(found) > 1:
            logs = np.log(np.maximum(found, TINY)) - np.log(np.maximum(found.mean(axis=0), TINY))
            value = float(np.exp(np.mean(np.sum(found * logs, axis=1))))
            protocol = "inception score over all clips at once; grows with their number, so compare at equal size only"
            rows.append(
                _row(f"is.{stage.partition('.')[2]}", value, len(found), len(everything), "classes", "higher",
                     protocol, judges[stage])
            )  # fmt: skip
    return rows


def _embeddings(takes: list[Findings]) -> np.ndarray:
    return np.array([found[EMBEDDING]["clip"] for found in takes if "clip" in found.get(EMBEDDING, {})])


def _speaker_spread(takes: list[Findings]) -> float | None:
    rows = _embeddings(takes)
    return mean_dissimilarity(rows) if len(rows) >= SEEDS else None


def _vendi(takes: list[Findings]) -> float | None:
    rows = _embeddings(takes)
    return vendi_score(rows) if len(rows) >= SEEDS else None


def _pitch_spread(takes: list[Findings]) -> float | None:
    medians = [found["pitch"]["median_hz"] for found in takes if "median_hz" in found.get("pitch", {})]
    return float(np.std(12 * np.log2(medians), ddof=1)) if len(medians) >= SEEDS else None


def _length_spread(takes: list[Findings]) -> float | None:
    lengths = [found[SOUND]["whole_s"] for found in takes if found[SOUND]["status"] == "ok"]
    return float(np.std(np.log(lengths), ddof=1)) if len(lengths) >= SEEDS else None


def _row(  # noqa: PLR0913 - a row of a table
    metric: str,
    value: float | None,
    evaluated: int,
    total: int,
    unit: str,
    better: str,
    protocol: str,
    judge: str,
    ends: tuple[float, float] | None = None,
    note: str = "",
) -> Row:
    low, high = ends or (None, None)
    return Row(
        metric=metric,
        value=value,
        ci_low=low,
        ci_high=high,
        evaluated=evaluated,
        total=total,
        unit=unit,
        better=better,
        protocol=protocol,
        judge=judge,
        note=note,
    )
