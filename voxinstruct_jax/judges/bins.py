"""Classes of measured values: boundaries relative to language and gender, fitted on a corpus and kept in `bins.json`.

What is high for a man may be low for a woman, so "low, normal, high" says nothing without the group it was taken in.
Boundaries are the terciles of a training corpus, by language, for pitch by gender too; annotation and evaluation must
read the same file. Read `fit_bins`, then `classify`.

Source:
    Terciles of a corpus: PromptTTS (Guo et al. 2023), section 3; by gender: ControlSpeech (Ji et al. 2024).
"""

import json
import math
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from voxinstruct_jax.attributes import STYLE_CLASSES
from voxinstruct_jax.config import ConfigError, InputError, fingerprint, from_dict, to_dict

__all__ = [
    "CLASSES",
    "AttributeBins",
    "Bins",
    "Bounds",
    "Value",
    "classify",
    "fit_bins",
    "group",
    "is_near_bound",
    "load_bins",
    "save_bins",
    "carry_bins",
]

FORMAT_VERSION = 1
CLASSES = {name: STYLE_CLASSES[name] for name in ("pitch", "energy", "speed")}
"""Attributes that have boundaries, and their classes from the lowest value up."""
UNKNOWN = "unknown"
NEAR_SHARE = 0.05
FEWEST_VALUES = 3
TERCILE_ERROR = 1.5
"""Standard error of a tercile of n normal values is 1.5 (upper - lower) / sqrt(n)."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Of one group: values below `lower` are of the first class, above `upper` of the third."""

    lower: float
    upper: float
    count: int
    """Values they were fitted on; 0 = set by hand, taken as exact."""


@dataclass(frozen=True, kw_only=True)
class AttributeBins:
    """Boundaries of one attribute."""

    judge: str
    """Whose values these are; others don't compare."""
    unit: str
    groups: dict[str, Bounds]
    """By `group`, such as "en" or "en/female"."""


@dataclass(frozen=True, kw_only=True)
class Bins:
    """All boundaries of a corpus."""

    format_version: int = FORMAT_VERSION
    corpus: str
    """Where they were fitted."""
    attributes: dict[str, AttributeBins] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Names these boundaries."""
        return fingerprint(self.attributes)


@dataclass(frozen=True, kw_only=True)
class Value:
    """One measured value on its way into boundaries."""

    attribute: str
    group: str
    value: float


def group(attribute: str, language: str, gender: str | None) -> str:
    """Names the group that a value is compared within: the language, for pitch with the gender."""
    return f"{language}/{gender or UNKNOWN}" if attribute == "pitch" else language


def fit_bins(values: Iterable[Value], judges: dict[str, tuple[str, str]], corpus: str) -> Bins:
    """Takes terciles.

    Values are rounded to four digits and counted, so memory does not grow with the corpus.

    Args:
        values: Of attributes in `CLASSES`.
        judges: Name and unit of the judge of each attribute.
        corpus: A name for the corpus.
    """
    counts: dict[tuple[str, str], Counter[float]] = {}
    for found in values:
        counts.setdefault((found.attribute, found.group), Counter())[float(f"{found.value:.4g}")] += 1
    attributes = {}
    for attribute, (judge, unit) in sorted(judges.items()):
        groups = {
            name: Bounds(lower=_cut(counted, 1 / 3), upper=_cut(counted, 2 / 3), count=counted.total())
            for (found, name), counted in sorted(counts.items())
            if found == attribute and counted.total() >= FEWEST_VALUES
        }
        attributes[attribute] = AttributeBins(judge=judge, unit=unit, groups=groups)
    return Bins(corpus=corpus, attributes=attributes)


def classify(bins: Bins, attribute: str, group_name: str, value: float, error: float) -> tuple[str, float] | None:
    """Finds the class of a value and how sure it is.

    Args:
        bins: Boundaries of the corpus.
        attribute: One of `CLASSES`.
        group_name: Of `group`.
        value: As measured.
        error: Its standard deviation about the truth.

    Returns:
        The class and its probability: that the true value, normal about `value`, lies between the boundaries of the
        class; boundaries fitted on few values are uncertain too. None where the group has no boundaries.
    """
    if attribute not in bins.attributes or group_name not in bins.attributes[attribute].groups:
        return None
    bounds = bins.attributes[attribute].groups[group_name]
    place = int(value >= bounds.lower) + int(value > bounds.upper)
    own = TERCILE_ERROR * (bounds.upper - bounds.lower) / math.sqrt(bounds.count) if bounds.count else 0.0
    deviation = max(math.hypot(error, own), 1e-9)
    below = [0.0, *(_normal((bound - value) / deviation) for bound in (bounds.lower, bounds.upper)), 1.0]
    return CLASSES[attribute][place], below[place + 1] - below[place]


def is_near_bound(bins: Bins, attribute: str, group_name: str, value: float) -> bool:
    """Whether a value lies within 5 % of a boundary of its group; of levels in dB, within 5 % of the amplitude."""
    found = bins.attributes[attribute]
    bounds = found.groups[group_name]
    if found.unit.startswith("dB"):
        return min(abs(value - bound) for bound in (bounds.lower, bounds.upper)) < 20 * math.log10(1 + NEAR_SHARE)
    return any(abs(value - bound) < NEAR_SHARE * abs(bound) for bound in (bounds.lower, bounds.upper))


def save_bins(path: str | os.PathLike[str], bins: Bins) -> None:
    """Writes `bins.json`; it appears whole or not at all."""
    target = Path(path)
    partial = target.with_name(target.name + ".partial")
    partial.write_text(json.dumps(to_dict(bins), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(target)


def carry_bins(source: Path, target: Path) -> None:
    """Copies a folder's `bins.json`, if it has one, into another folder: boundaries go where what they made goes.

    Raises:
        InputError: The file is damaged.
    """
    if (source / "bins.json").is_file():
        save_bins(target / "bins.json", load_bins(source / "bins.json"))


def load_bins(path: str | os.PathLike[str]) -> Bins:
    """Reads `bins.json`.

    Raises:
        InputError: It is missing or does not hold boundaries of this format.
    """
    try:
        bins = from_dict(Bins, json.loads(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(f"{path}: no readable boundaries ({error}); give the bins.json of a corpus") from error
    except (ValueError, ConfigError) as error:
        raise InputError(f"{path}: no valid boundaries ({error}); fit them again with `annotate`") from error
    if bins.format_version != FORMAT_VERSION:
        raise InputError(f"{path}: format {bins.format_version}, this program reads {FORMAT_VERSION}; fit them again")
    for name, found in bins.attributes.items():
        for group_name, bounds in found.groups.items():
            if name not in CLASSES or bounds.lower > bounds.upper:
                raise InputError(
                    f"{path}: {name}, {group_name}: lower {bounds.lower} above upper {bounds.upper}, or "
                    f"no attribute with boundaries ({', '.join(CLASSES)})"
                )
    return bins


def _cut(counted: Counter[float], share: float) -> float:
    """The value that this share lies below; between two values the middle."""
    ordered = sorted(counted)
    target, seen = share * counted.total(), 0
    for place, value in enumerate(ordered):
        seen += counted[value]
        if seen > target + 1e-9:
            return value
        if seen >= target - 1e-9 and place + 1 < len(ordered):
            return round((value + ordered[place + 1]) / 2, 6)
    return ordered[-1]


def _normal(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))
