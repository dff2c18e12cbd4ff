"""How sure a figure is: intervals, differences of two systems, corrections for many tests.

All figures are ratios of sums, `sum n / sum d` (a mean has d = 1), so that a rate such as WER resamples errors and
words together. What is resampled is a cluster: items that share a sentence or a speaker stand or fall together. All
is seeded. Read `interval`, then `paired`.

Source:
    Efron 1987, "Better bootstrap confidence intervals" (BCa); Bisani and Ney 2004 (bootstrap of WER differences);
    McNemar 1947; Wilson 1927; Holm 1979.
"""

import dataclasses
import math
from collections.abc import Hashable, Iterator, Sequence
from statistics import NormalDist

import numpy as np
from jaxtyping import Float

__all__ = ["Difference", "holm", "interval", "mcnemar", "paired", "wilson", "win_tie_loss"]

RESAMPLES = 10_000
CHUNK = 2_000_000
"""Draws held at once."""
LEVEL = 0.95
_NORMAL = NormalDist()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """Of two systems on the same items: second minus first."""

    value: float
    ci_low: float
    ci_high: float
    p: float
    """That the systems are alike: two-sided, by exchanging them cluster by cluster."""


def interval(
    numerators: Sequence[float],
    denominators: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[float, float] | None:
    """95 % interval of `sum n / sum d` (BCa bootstrap over clusters).

    Returns:
        None for fewer than two clusters, and where all are alike: of items without an error resampling learns nothing.
    """
    n, d = _by_cluster(clusters, numerators, denominators)
    if len(n) < 2 or not d.sum():
        return None
    observed = n.sum() / d.sum()
    draws = _ratios(n, d, seed, resamples)
    if draws.min() == draws.max():
        return None
    return _accelerated(draws, observed, _divide(n.sum() - n, d.sum() - d))


def paired(
    first: Sequence[tuple[float, float]],
    second: Sequence[tuple[float, float]],
    clusters: Sequence[Hashable],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Difference | None:
    """Compares two systems item by item.

    The interval is BCa; p is drawn by exchanging the systems cluster by cluster. Of right-or-wrong scores, one a
    cluster, that test can be counted instead of drawn: it is McNemar's, exact.

    Args:
        first: Numerator and denominator of each item.
        second: Of the same items.
        clusters: Of each item.
        seed: Of all draws.
        resamples: Of the bootstrap, and of the exchange.

    Returns:
        None for fewer than two clusters.
    """
    one, other = np.array(first, np.float64).reshape(-1, 2), np.array(second, np.float64).reshape(-1, 2)
    columns = _by_cluster(clusters, one[:, 0], one[:, 1], other[:, 0], other[:, 1])
    n, d, other_n, other_d = columns
    if len(n) < 2 or not d.sum() or not other_d.sum():
        return None
    observed = float(other_n.sum() / other_d.sum() - n.sum() / d.sum())
    sums = np.concatenate([chunk.sum(axis=1) for chunk in _draws(np.stack(columns, axis=1), seed, resamples)])
    differences = _divide(sums[:, 2], sums[:, 3]) - _divide(sums[:, 0], sums[:, 1])
    without = _divide(other_n.sum() - other_n, other_d.sum() - other_d) - _divide(n.sum() - n, d.sum() - d)
    low, high = _accelerated(differences, observed, without)
    single = len(n) == len(one) and all(np.isin(side, (0, 1)).all() for side in (n, other_n))
    if single and (d == 1).all() and (other_d == 1).all():
        p = mcnemar(int(np.sum(n > other_n)), int(np.sum(n < other_n)))
    else:
        p = _exchange_p(columns, observed, seed, resamples)
    return Difference(value=observed, ci_low=low, ci_high=high, p=p)


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p that two systems are right equally often, from the items on which they disagree.

    Args:
        only_first: Items that the first alone has right.
        only_second: Items that the second alone has right.
    """
    count = only_first + only_second
    tail = sum(math.comb(count, right) for right in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**count)


def wilson(successes: float, total: int) -> tuple[float, float]:
    """95 % interval of a share of `total` > 0 items."""
    z = _NORMAL.inv_cdf((1 + LEVEL) / 2)
    share, spread = successes / total, 1 + z * z / total
    middle = (share + z * z / (2 * total)) / spread
    half = z / spread * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, middle - half), min(1.0, middle + half)


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p values corrected for their number, in the same order."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    corrected, largest = [1.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def win_tie_loss(first: Sequence[float], second: Sequence[float], *, better: str, tie: float) -> tuple[int, int, int]:
    """On how many items the second is better, within `tie` of the first, or worse.

    Args:
        first: A value each item.
        second: Of the same items.
        better: "higher" or "lower".
        tie: Largest difference that counts as none.
    """
    gains = (np.asarray(second) - np.asarray(first)) * (1 if better == "higher" else -1)
    wins, losses = int(np.sum(gains > tie)), int(np.sum(gains < -tie))
    return wins, len(gains) - wins - losses, losses


def _accelerated(
    draws: Float[np.ndarray, " resample"], observed: float, leaving_out: Float[np.ndarray, " cluster"]
) -> tuple[float, float]:
    """Bias-corrected and accelerated ends of an interval.

    Args:
        draws: The figure of each resample.
        observed: The figure.
        leaving_out: The figure without each cluster in turn.
    """
    away = leaving_out.mean() - leaving_out
    skew = np.sum(away**3) / (6 * np.sum(away**2) ** 1.5 + 1e-300)
    below, least = (np.mean(draws < observed) + np.mean(draws <= observed)) / 2, 0.5 / len(draws)
    centre = _NORMAL.inv_cdf(min(max(float(below), least), 1 - least))
    shifted = [centre + _NORMAL.inv_cdf(tail) for tail in ((1 - LEVEL) / 2, (1 + LEVEL) / 2)]
    low, high = np.quantile(draws, [_NORMAL.cdf(centre + each / (1 - skew * each)) for each in shifted])
    return float(low), float(high)


def _by_cluster(clusters: Sequence[Hashable], *columns: Sequence[float] | np.ndarray) -> list[np.ndarray]:
    """Sums of each column within each cluster, clusters in the order in which they occur."""
    places: dict[Hashable, int] = {}
    index = np.array([places.setdefault(cluster, len(places)) for cluster in clusters], int)
    return [np.bincount(index, np.asarray(column, np.float64), len(places)) for column in columns]


def _draws(columns: Float[np.ndarray, "cluster column"], seed: int, resamples: int) -> Iterator[np.ndarray]:
    """Clusters drawn with replacement: `[resample, cluster, column]`, some resamples at a time."""
    random, count = np.random.default_rng(seed), len(columns)
    for start in range(0, resamples, max(1, CHUNK // count)):
        size = min(max(1, CHUNK // count), resamples - start)
        yield columns[random.integers(0, count, (size, count))]


def _ratios(n: np.ndarray, d: np.ndarray, seed: int, resamples: int) -> Float[np.ndarray, " resample"]:
    sums = np.concatenate([chunk.sum(axis=1) for chunk in _draws(np.stack([n, d], axis=1), seed, resamples)])
    return _divide(sums[:, 0], sums[:, 1])


def _exchange_p(columns: Sequence[np.ndarray], observed: float, seed: int, resamples: int) -> float:
    n, d, other_n, other_d = columns
    random, count, as_far = np.random.default_rng(seed + 1), len(n), 0
    for start in range(0, resamples, max(1, CHUNK // count)):
        size = min(max(1, CHUNK // count), resamples - start)
        swap = random.random((size, count)) < 0.5
        moved_n, moved_d = swap @ (other_n - n), swap @ (other_d - d)
        found = _divide(other_n.sum() - moved_n, other_d.sum() - moved_d) - _divide(
            n.sum() + moved_n, d.sum() + moved_d
        )
        as_far += int(np.sum(np.abs(found) >= abs(observed) - 1e-12))
    return (1 + as_far) / (1 + resamples)


def _divide(n: np.ndarray, d: np.ndarray) -> np.ndarray:
    return n / np.where(d == 0, 1.0, d)
