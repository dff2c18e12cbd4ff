"""What listeners answered: scores a system with intervals, listeners who cannot be trusted, and who beats whom.

Read `read_ratings`, then `analyse`. Everything is told twice: of all listeners, and without those who failed a check.

Source: ITU-R BS.1534-3, section 4.1.2 (a MUSHRA listener who rates the hidden reference below 90 in more than 15 % of
the pages is left out); Bradley and Terry 1952, by the minorisation of Hunter 2004, on Elo's scale.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from voxinstruct_jax.config import InputError
from voxinstruct_jax.evaluation.listening import REFERENCE
from voxinstruct_jax.evaluation.webmushra import REFERENCE_NAME, read_webmushra

__all__ = ["Rating", "analyse", "bradley_terry", "read_ratings"]

RESAMPLES = 2000
INTERVAL = (0.025, 0.975)
REFERENCE_SCORE, REFERENCE_SHARE = 90, 0.15
REPEAT_DIFFERENCE = 1.0
"""Mean difference between the two answers to one MOS page above which a listener fails."""
ELO_A_FACTOR_OF_TEN = 400
_ROUNDS = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rating:
    """One score that a listener gave."""

    rater: int
    item: str
    system: str
    score: float
    """Of a CMOS test: how much better than the other system, on the test's scale."""
    again: bool = False
    """The second answer to a page that came twice."""


def read_ratings(key: Path, answers: Sequence[Path]) -> tuple[dict[str, Any], list[Rating]]:
    """Reads the key of a test and what its listeners saved.

    Args:
        key: Of the test.
        answers: Files that listeners saved, or webMUSHRA's `mushra.csv`.

    Returns:
        The key, and the ratings; of two files of one listener the longer one counts. Sessions of webMUSHRA get the
        numbers after the listeners'.

    Raises:
        InputError: A file is unreadable, or belongs to another test.
    """
    test = _load(key, ("test", "kind", "samples"))
    by_rater: dict[int, list[dict[str, Any]]] = {}
    for path in (path for path in answers if path.suffix != ".csv"):
        found = _load(path, ("test", "rater", "answers"))
        if found["test"] != test["test"]:
            raise InputError(f"{path}: answers of test {found['test']}, the key is of {test['test']}")
        known = by_rater.setdefault(int(found["rater"]), [])
        if len(found["answers"]) > len(known):
            by_rater[int(found["rater"])] = found["answers"]
    sessions = [pages for path in answers if path.suffix == ".csv" for pages in _sessions(path, test)]
    by_rater |= dict(enumerate(sessions, max(by_rater, default=0) + 1))
    ratings = [rating for rater, pages in sorted(by_rater.items()) for rating in _ratings(test, rater, pages)]
    return test, ratings


def analyse(kind: str, ratings: Sequence[Rating], *, seed: int = 0) -> dict[str, Any]:
    """Summarises a test.

    Args:
        kind: mos, cmos or mushra.
        ratings: Of `read_ratings`.
        seed: Of the bootstrap.

    Returns:
        `failed` (listeners and why), and under `all` and `trusted` the number of listeners, `systems` (mean and 95 %
        intervals: over listeners and items drawn anew together, over either alone) and `elo` (0 on average).

    Raises:
        InputError: There are no ratings.
    """
    if not ratings:
        raise InputError("no answers to analyse; give the files that listeners saved")
    failed = _failed(kind, ratings)
    first = [rating for rating in ratings if not rating.again]
    trusted = [rating for rating in first if rating.rater not in failed]
    return {
        "kind": kind,
        "failed": {str(rater): reason for rater, reason in failed.items()},
        "all": _summary(first, seed),
        "trusted": _summary(trusted, seed) if trusted else None,
    }


def bradley_terry(wins: Float[np.ndarray, "system system"]) -> Float[np.ndarray, " system"]:
    """Returns ratings on Elo's scale, 0 on average: 400 more means ten wins to one.

    Args:
        wins: How often the row's system beat the column's; a tie counts half for each.
    """
    strengths, games = np.ones(len(wins)), wins + wins.T
    for _ in range(_ROUNDS):
        pairs = games / (strengths[:, None] + strengths)
        # A system that never won has no finite rating: half a win keeps it on the scale.
        strengths = np.maximum(wins.sum(axis=1), 0.5) / np.maximum(pairs.sum(axis=1), 1e-12)
        strengths /= np.exp(np.log(strengths).mean())
    return ELO_A_FACTOR_OF_TEN * np.log10(strengths)


def _load(path: Path, names: Sequence[str]) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {**found, **{name: found[name] for name in names}}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a file of a listening test ({error})") from error


def _sessions(path: Path, test: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    """Pages of each session of webMUSHRA, its hidden reference under the name that the key has for it."""
    samples = test["samples"]
    hidden = {sample["item"]: name for name, sample in samples.items() if sample["system"] == REFERENCE}
    found = []
    for pages in read_webmushra(path, test["test"]).values():
        for page in pages:
            known = [name for name in page["samples"] if name in samples]
            if len(known) != len(page["samples"]) - page["samples"].count(REFERENCE_NAME) or not known:
                raise InputError(f"{path}: page {page['page']} rates samples that the key does not know")
            own = {REFERENCE_NAME: hidden[samples[known[0]]["item"]]}
            page["scores"] = [(own.get(name, name), score) for name, score in page["scores"]]
            page["samples"] = [name for name, _ in page["scores"]]
        found.append(pages)
    return found


def _ratings(test: Mapping[str, Any], rater: int, pages: Sequence[Mapping[str, Any]]) -> list[Rating]:
    found, seen = [], set()
    for page in pages:
        samples = [test["samples"][name] for name in page["samples"]]
        again = page["page"] in seen
        seen.add(page["page"])
        if test["kind"] == "cmos":  # a positive score says that the second sound, as it was played, is better
            score = float(page["scores"][0][1])
            scored = list(zip(samples, (-score, score), strict=True))
        else:
            scored = [(test["samples"][name], float(score)) for name, score in page["scores"]]
        found += [
            Rating(rater=rater, item=sample["item"], system=sample["system"], score=score, again=again)
            for sample, score in scored
        ]
    return found


def _failed(kind: str, ratings: Sequence[Rating]) -> dict[int, str]:
    failed = {}
    for rater in sorted({rating.rater for rating in ratings}):
        own = [rating for rating in ratings if rating.rater == rater]
        if kind == "mushra":
            scores = [rating.score for rating in own if rating.system == REFERENCE]
            low = np.mean([score < REFERENCE_SCORE for score in scores]) if scores else 0
            if low > REFERENCE_SHARE:
                failed[rater] = f"hidden reference below {REFERENCE_SCORE} in {low:.0%} of the pages"
        first = {(rating.item, rating.system): rating.score for rating in own if not rating.again}
        moved = [abs(rating.score - first[rating.item, rating.system]) for rating in own if rating.again]
        if moved and np.mean(moved) > REPEAT_DIFFERENCE:
            failed[rater] = f"answers to repeated pages differ by {np.mean(moved):.1f}"
    return failed


def _summary(ratings: Sequence[Rating], seed: int) -> dict[str, Any]:
    systems = sorted({rating.system for rating in ratings})
    return {
        "raters": len({rating.rater for rating in ratings}),
        "systems": {system: _score([r for r in ratings if r.system == system], seed) for system in systems},
        "elo": dict(zip(systems, bradley_terry(_wins(ratings, systems)).round(1).tolist(), strict=True)),
    }


def _score(ratings: Sequence[Rating], seed: int) -> dict[str, Any]:
    """Mean with intervals; drawing both listeners and items anew makes the widest, and the one to print."""
    scores = np.array([rating.score for rating in ratings])
    raters, items = _numbers([r.rater for r in ratings]), _numbers([r.item for r in ratings])
    generator = np.random.default_rng(seed)

    def interval(weigh: Callable[[], Float[np.ndarray, " rating"]]) -> list[float]:
        means = []
        for _ in range(RESAMPLES):
            weights = weigh()
            if weights.sum():
                means.append(np.average(scores, weights=weights))
        return [round(float(edge), 4) for edge in np.quantile(means, INTERVAL)]

    def drawn(groups: Int[np.ndarray, " rating"]) -> Float[np.ndarray, " rating"]:
        count = groups.max() + 1
        return np.bincount(generator.integers(count, size=count), minlength=count)[groups].astype(float)

    return {
        "mean": round(float(scores.mean()), 4),
        "ratings": len(scores),
        "interval": interval(lambda: drawn(raters) * drawn(items)),
        "interval_by_rater": interval(lambda: drawn(raters)),
        "interval_by_item": interval(lambda: drawn(items)),
    }


def _numbers(names: Sequence[Any]) -> Int[np.ndarray, " rating"]:
    return np.unique(np.array(names), return_inverse=True)[1]


def _wins(ratings: Sequence[Rating], systems: Sequence[str]) -> Float[np.ndarray, "system system"]:
    """Compares systems within an item and, where a listener heard several, within the listener; else across them."""
    groups: dict[Any, dict[str, list[float]]] = {}
    heard = {(rating.rater, rating.item) for rating in ratings}
    within = len(heard) < len(ratings)
    for rating in ratings:
        group = (rating.rater, rating.item) if within else rating.item
        groups.setdefault(group, {}).setdefault(rating.system, []).append(rating.score)
    wins = np.zeros((len(systems), len(systems)))
    for scores in groups.values():
        for one, other in ((a, b) for a in scores for b in scores if a < b):
            difference = np.mean(scores[one]) - np.mean(scores[other])
            a, b = systems.index(one), systems.index(other)
            wins[a, b] += 0.5 + 0.5 * np.sign(difference)
            wins[b, a] += 0.5 - 0.5 * np.sign(difference)
    return wins
