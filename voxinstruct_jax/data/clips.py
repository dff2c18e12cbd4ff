"""The sound of one manifest row."""

import numpy as np
from jaxtyping import Float

from voxinstruct_jax.audio.waveform import read_audio
from voxinstruct_jax.config import InputError
from voxinstruct_jax.data.manifest import Row

__all__ = ["MIN_DURATION_S", "read_clip"]

MIN_DURATION_S = 0.2
MAX_OVERHANG_S = 0.1


def read_clip(row: Row, sample_rate: int) -> Float[np.ndarray, " sample"]:
    """Reads the clip of a row, mono at `sample_rate` (Hz).

    Raises:
        InputError: There is no such sound, or it is damaged or too short.
    """
    samples = read_audio(row.audio, sample_rate)
    total_s = len(samples) / sample_rate
    end_s = total_s if row.duration_s is None else row.offset_s + row.duration_s
    if end_s > total_s + MAX_OVERHANG_S or row.offset_s >= total_s:
        raise InputError(f"{row.audio}: lasts {total_s:.2f} s, the row asks for {row.offset_s:g} to {end_s:g} s")
    clip = samples[round(row.offset_s * sample_rate) : round(end_s * sample_rate)]
    if len(clip) < MIN_DURATION_S * sample_rate:
        raise InputError(f"{row.audio}: {len(clip) / sample_rate:.2f} s is too short; give at least {MIN_DURATION_S} s")
    return clip
