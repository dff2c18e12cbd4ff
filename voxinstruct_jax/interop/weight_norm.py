"""Weights that PyTorch stores as a direction and its norm: folded on the way in, parted again on the way out."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from voxinstruct_jax.interop.keys import Weight

__all__ = ["DIRECTION", "normed_kernel", "norm_names"]

NORM, DIRECTION = "parametrizations.weight.original0", "parametrizations.weight.original1"
"""PyTorch's present names of the two."""

Turn = Callable[[np.ndarray], np.ndarray]


def normed_kernel(theirs: str, path: str, read: Turn, write: Turn, *, axis: int = 0) -> Weight:
    """A weight whose slices along one axis each have a norm of their own; ours is the product.

    Args:
        theirs: Key of the layer.
        path: Ours.
        read: Turns the folded weight into ours.
        write: The exact inverse of `read`.
        axis: PyTorch's `dim`: 0 unless the original says otherwise; the input's for transposed convolutions.
    """

    def norms(weight: np.ndarray) -> np.ndarray:
        others = tuple(number for number in range(weight.ndim) if number != axis)
        return np.sqrt(np.sum(np.square(weight, dtype=np.float64), axis=others, keepdims=True)).astype(np.float32)

    def fold(norm: np.ndarray, direction: np.ndarray) -> np.ndarray:
        found = norms(direction)
        # Where the stored norm is that of the direction, as in our own exports, the quotient is exactly 1.
        return read(direction * (norm / np.where(found == 0, 1, found)))

    def unfold(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        weight = write(kernel)
        return norms(weight), weight

    return Weight(path, (f"{theirs}.{NORM}", f"{theirs}.{DIRECTION}"), fold, unfold)


def norm_names(tensors: Mapping[str, Any]) -> tuple[bool, Callable[[str], str]]:
    """Returns whether a table has weight norms, and the function from the present names to those in it.

    Before PyTorch 2.0 they were `weight_g` and `weight_v`.
    """
    old = any(key.endswith(".weight_g") for key in tensors)
    normed = old or any(key.endswith(NORM) for key in tensors)
    if not old:
        return normed, lambda key: key
    return True, lambda key: key.replace(NORM, "weight_g").replace(DIRECTION, "weight_v")
