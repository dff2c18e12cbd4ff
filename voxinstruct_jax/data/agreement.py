"""Whether two devices, or two batch sizes, give the same codes and units."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import numpy as np
from jaxtyping import Float

from voxinstruct_jax.data.prepare import Encoders

__all__ = ["compare_codes"]


def compare_codes(
    clips: Sequence[Float[np.ndarray, " _"]],
    here: Encoders,
    there: Encoders,
    *,
    other_device: Callable[[], AbstractContextManager],
) -> dict[str, float | int | str]:
    """Encodes clips twice and returns the shares of equal `codes` and `units`, and how many `frames` there were.

    Args:
        clips: At the encoders' sample rate.
        here: Encodes on the default device, in batches of its own size.
        there: Encodes under `other_device`.
        other_device: Makes a context such as `jax.default_device(cpu)`.
    """
    equal, total, frames = np.zeros(2), np.zeros(2), 0
    with other_device():
        wanted = [(there.acoustic(clip), there.semantic(clip)) for clip in clips]
    for batch in _by_bucket(clips, here):
        if here.encode_ahead is not None:
            here.encode_ahead([clips[place] for place in batch], here.batch_size(here.bucket(len(clips[batch[0]]))))
        for place in batch:
            codes, units = here.acoustic(clips[place]), here.semantic(clips[place])
            equal += (np.sum(codes == wanted[place][0]), np.sum(units == wanted[place][1]))
            total += (codes.size, len(units))
            frames += codes.shape[1]
    shares = equal / np.maximum(total, 1)
    return {"clips": len(clips), "frames": frames, "codes": float(shares[0]), "units": float(shares[1])}


def _by_bucket(clips: Sequence[np.ndarray], encoders: Encoders) -> Iterator[list[int]]:
    buckets: dict[int, list[int]] = {}
    for place, clip in enumerate(clips):
        buckets.setdefault(encoders.bucket(len(clip)), []).append(place)
    for bucket, places in buckets.items():
        size = encoders.batch_size(bucket)
        for at in range(0, len(places), size):
            yield places[at : at + size]
