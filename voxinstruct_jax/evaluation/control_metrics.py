"""Metrics of control: is what was asked for heard? Classes of attributes, stressed words. Read `judged_class`.

Source:
    VoxInstruct, section 5.2 (tables 2 and 3) and section 5.4 (stress), which states no formula.
"""

import dataclasses
from collections.abc import Callable

from voxinstruct_jax.config import InputError
from voxinstruct_jax.data.manifest import ATTRIBUTES
from voxinstruct_jax.evaluation.items import Item
from voxinstruct_jax.evaluation.score import Findings, Metric, Score
from voxinstruct_jax.evaluation.stages import Evidence, attribute_stage
from voxinstruct_jax.judges.bins import CLASSES, Bins, classify, group, is_near_bound
from voxinstruct_jax.text.words import split_words

__all__ = ["control_metrics", "judged_class"]


def control_metrics(bins: Bins | None) -> list[Metric]:
    """Accuracy on attributes and on stressed words.

    Args:
        bins: Boundaries of classes; None leaves pitch, energy and speed without classes.
    """
    return [*_attributes(bins), *_stress()]


def _attributes(bins: Bins | None) -> list[Metric]:
    plain = [_accuracy(name, bins) for name in ATTRIBUTES if name != "stress"]
    return [*plain, *(_strict_accuracy(name, bins) for name in CLASSES)]


def _accuracy(attribute: str, bins: Bins | None) -> Metric:
    """Share of items whose judged class is the one that was asked for (VoxInstruct, table 2)."""

    def measure(item: Item, findings: Findings) -> Score:
        judged = judged_class(attribute, item, findings[attribute_stage(attribute)], bins)
        return Score(n=float(judged == item.attributes[attribute]))

    return Metric(
        id=attribute_stage(attribute),
        unit="accuracy",
        better="higher",
        protocol="class judged = class asked for" + (", boundaries of bins.json" if attribute in CLASSES else ""),
        stage=attribute_stage(attribute),
        measure=measure,
        applies=lambda item: isinstance(item.attributes.get(attribute), str),
        worst=0.0,
        bins=attribute in CLASSES,
    )


def _strict_accuracy(attribute: str, bins: Bins | None) -> Metric:
    """The same without clips whose class a breath would change."""
    plain = _accuracy(attribute, bins)

    def measure(item: Item, findings: Findings) -> Score:
        score, evidence = plain.measure(item, findings), findings[plain.stage]
        if bins and "label" not in evidence:
            own = _group(attribute, item)
            if is_near_bound(bins, attribute, own, evidence["value"]):
                return Score(status="void", reason="within 5 % of a boundary")
        return score

    protocol = f"{plain.protocol}; without items whose value is within 5 % of a boundary (levels: of the amplitude)"
    return dataclasses.replace(plain, id=f"{plain.id}.strict", measure=measure, protocol=protocol)


def judged_class(attribute: str, item: Item, evidence: Evidence, bins: Bins | None) -> str:
    """The class that a judge gave, or that boundaries give its value.

    Raises:
        InputError: It has neither a class nor boundaries of its group.
    """
    if "label" in evidence:
        return evidence["label"]
    own = _group(attribute, item)
    found = classify(bins, attribute, own, evidence["value"], evidence.get("error", 0.0)) if bins else None
    if found is None:
        raise InputError(f"no boundaries of {attribute} for {own}: give --bins bins.json of the training data")
    return found[0]


def _group(attribute: str, item: Item) -> str:
    gender = item.attributes.get("gender")
    return group(attribute, item.language, gender if isinstance(gender, str) else None)


def _stress() -> list[Metric]:
    """Stressed words as indices into the words of the transcript (VoxInstruct, section 5.4, states no formula)."""
    stage = attribute_stage("stress")

    def sets(item: Item, findings: Findings) -> tuple[set[int], set[int], int]:
        words = len(split_words(item.transcript))
        asked = {index for index in item.attributes["stress"] if index < words}
        return asked, {int(index) for index in findings[stage].get("label", "").split()}, words

    def ratio(name: str, protocol: str, count: Callable[[set[int], set[int], int], tuple[float, float]]) -> Metric:
        def measure(item: Item, findings: Findings) -> Score:
            n, d = count(*sets(item, findings))
            return Score(n=float(n), d=float(d))

        def lost(item: Item, findings: Findings) -> Score:
            n, d = count(sets(item, {stage: {}})[0], set(), len(split_words(item.transcript)))
            return Score(n=0.0 if name != "stress.baseline_none" else float(n), d=float(d))

        return Metric(
            id=name,
            unit="accuracy",
            better="higher" if name != "stress.baseline_none" else "",
            protocol=protocol,
            stage=stage,
            measure=measure,
            applies=lambda item: "stress" in item.attributes,
            without_sound=lost,
        )

    return [
        *_likeliest(),
        ratio("stress.word_accuracy", "words judged right / words", lambda r, p, n: (n - len(r ^ p), n)),
        ratio("stress.baseline_none", "word accuracy of judging no word stressed", lambda r, p, n: (n - len(r), n)),
        ratio("stress.word_recall", "stressed words found / stressed words", lambda r, p, n: (len(r & p), len(r))),
        ratio("stress.word_precision", "stressed words found / words found", lambda r, p, n: (len(r & p), len(p))),
        ratio("stress.word_f1", "2 hits / (stressed + found)", lambda r, p, n: (2 * len(r & p), len(r) + len(p))),
        ratio("stress.sentence", "sentences with exactly the stressed words found", lambda r, p, n: (float(r == p), 1)),
    ]


def _likeliest() -> list[Metric]:
    """Is the word that stands out most one that was to be stressed? Needs no threshold."""
    stage = attribute_stage("stress")

    def measure(item: Item, findings: Findings) -> Score:
        probabilities = findings[stage].get("probabilities")
        if not probabilities:
            raise InputError("its judge gives no probabilities")
        likeliest = {index for index, each in enumerate(probabilities) if each == max(probabilities)}
        return Score(n=float(bool(likeliest & set(item.attributes["stress"]))))

    def by_chance(item: Item, _: Findings) -> Score:
        words = len(split_words(item.transcript))
        return Score(n=float(sum(index < words for index in set(item.attributes["stress"]))), d=float(words))

    top = Metric(
        id="stress.top1",
        unit="accuracy",
        better="higher",
        protocol="the likeliest word is one to be stressed (in Mandarin a word of several characters counts as one)",
        stage=stage,
        measure=measure,
        applies=lambda item: bool(item.attributes.get("stress")),
        worst=0.0,
    )
    chance = dataclasses.replace(
        top,
        id="stress.baseline_top1",
        better="",
        protocol="chance that a word drawn at random is one to be stressed, over words",
        measure=by_chance,
        without_sound=by_chance,
    )
    return [top, chance]
