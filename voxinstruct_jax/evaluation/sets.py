"""What can be said of a set of clips only: distances between two sets of embeddings, and diversity within one.

Fréchet distances of small sets are biased upwards, by more than what tells systems apart: compare at equal size only,
and read `enough_for_frechet`. The unbiased kernel distance goes beside it.

Source:
    Heusel et al. 2017 (Fréchet distance of Gaussians); Bińkowski et al. 2018, "Demystifying MMD GANs" (kernel inception
    distance); Friedman and Dieng 2023, "The Vendi Score".
"""

import numpy as np
from jaxtyping import Float

__all__ = ["enough_for_frechet", "frechet_distance", "kernel_distance", "mean_dissimilarity", "vendi_score"]

ROWS_PER_DIMENSION = 10


def enough_for_frechet(rows: int, dimensions: int) -> bool:
    """Whether a set of this size has a Fréchet distance worth reading: ten rows a dimension."""
    return rows >= ROWS_PER_DIMENSION * dimensions


def frechet_distance(one: Float[np.ndarray, "a dim"], other: Float[np.ndarray, "b dim"]) -> float:
    """`|m - m'|^2 + tr(S + S' - 2 (S S')^(1/2))` of the Gaussians through two sets."""
    first, second = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second @ root), 0.0)).sum()
    apart = np.square(one.mean(axis=0) - other.mean(axis=0)).sum()
    return float(max(apart + np.trace(first) + np.trace(second) - 2 * cross, 0.0))


def kernel_distance(one: Float[np.ndarray, "a dim"], other: Float[np.ndarray, "b dim"]) -> float:
    """Unbiased squared maximum mean discrepancy under the kernel `(x . y / dim + 1)^3`; about 0, also below, if equal.

    Args:
        one: At least two rows.
        other: Likewise.
    """
    within = sum(_mean_off_diagonal(_kernel(x, x)) for x in (one, other))
    return float(within - 2 * _kernel(one, other).mean())


def mean_dissimilarity(rows: Float[np.ndarray, "row dim"]) -> float:
    """Mean of 1 - cosine over pairs of rows of length 1; at least two rows."""
    return float(1 - _mean_off_diagonal(rows @ rows.T))


def vendi_score(rows: Float[np.ndarray, "row dim"]) -> float:
    """How many unlike rows there are in effect: exp of the entropy of the eigenvalues of cosines over their number."""
    values = np.linalg.eigvalsh(rows @ rows.T / len(rows))
    shares = values[values > 1e-12]
    return float(np.exp(-np.sum(shares * np.log(shares))))


def _kernel(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one @ other.T / one.shape[1] + 1) ** 3


def _mean_off_diagonal(table: np.ndarray) -> float:
    count = len(table)
    return float((table.sum() - np.trace(table)) / (count * (count - 1)))
