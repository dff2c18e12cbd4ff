"""How many masked places are known after each pass: what decoding of codes and of latents share."""

import functools

import numpy as np
from jaxtyping import Int32

__all__ = ["reveal_totals"]


@functools.cache
def reveal_totals(num_steps: int, max_targets: int) -> Int32[np.ndarray, "step target"]:
    """Tokens known after each step, for every number of hidden tokens from 0 to `max_targets`.

    Source:
        The cosine schedule of MaskGIT (Chang et al. 2022, section 3.3), as VoxInstruct's release uses it:
        ceil(N (1 - cos(pi (k + 1) / 2K))) after step k of K. In float64 on the host: float32 misses exact integers.
    """
    shares = 1 - np.cos(np.pi * np.arange(1, num_steps + 1) / (2 * num_steps))
    totals = np.ceil(shares[:, None] * np.arange(max_targets + 1)).astype(np.int32)
    totals[-1] = np.arange(max_targets + 1)
    return totals
