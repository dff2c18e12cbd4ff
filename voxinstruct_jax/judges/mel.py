"""Mel filters as librosa's default has them, which the networks of several judges were trained on."""

import functools

import numpy as np
from jaxtyping import Float

__all__ = ["slaney_filters"]


@functools.cache
def slaney_filters(num_mels: int, window: int, sample_rate: int) -> Float[np.ndarray, "mel bin"]:
    """Triangles of equal area on Slaney's mel scale (linear to 1 kHz, then logarithmic), 0 Hz to half the sample rate.

    Args:
        num_mels: Bands.
        window: Samples of the Fourier transform.
        sample_rate: Hz.

    Source:
        Slaney 1998, Auditory Toolbox, as librosa's default has it.
    """
    step = np.log(6.4) / 27
    top = 15.0 + np.log(sample_rate / 2 / 1000.0) / step
    mels = np.linspace(0.0, top, num_mels + 2)
    edges = np.where(mels < 15.0, mels * 200.0 / 3, 1000.0 * np.exp(step * (mels - 15.0)))
    bins = np.fft.rfftfreq(window, 1 / sample_rate)
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    return np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (edges[2:] - edges[:-2]))[:, None]
