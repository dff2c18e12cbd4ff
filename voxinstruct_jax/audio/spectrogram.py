"""Short-time Fourier analysis and synthesis, and mel spectrograms, in JAX.

Transforms keep the "same" alignment of Vocos unless told otherwise: `sample / hop_length` frames exactly, the signal
padded by `(n_fft - hop_length) / 2` on both sides.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from voxinstruct_jax.config import ConfigError

__all__ = ["MEL_MEAN", "MEL_STD", "FramePadding", "MelConfig", "htk_filters", "istft", "log_mel", "mel_filters", "stft"]

LOG_FLOOR = 1e-5
MEL_MEAN, MEL_STD = -5.0, 3.0
"""About those of log-mel cells of speech; levels are not lost."""

FramePadding = Literal["same", "center"]
"""Where frames lie: "same" = frame i covers the middle of hop i; "center" = its middle is sample `i * hop_length`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MelConfig:
    """A mel spectrogram: rate in Hz, sizes in samples, band edges in Hz."""

    sample_rate: int = 24_000
    num_mels: int = 100
    n_fft: int = 1024
    hop_length: int = 240
    f_min: float = 0.0
    f_max: float = 12_000.0

    def __post_init__(self) -> None:
        if not 0 <= self.f_min < self.f_max <= self.sample_rate / 2:
            raise ConfigError(f"f_max {self.f_max} must lie between f_min and half of sample_rate {self.sample_rate}")
        if self.hop_length > self.n_fft or (self.n_fft - self.hop_length) % 2:
            raise ConfigError(f"n_fft {self.n_fft} minus hop_length {self.hop_length} must be even and not negative")


def stft(
    samples: Float[Array, "batch sample"], n_fft: int, hop_length: int, padding: FramePadding = "same"
) -> Complex[Array, "batch frame bin"]:
    """Returns Hann-windowed spectra; `frame = sample / hop_length` (one more for "center"), `bin = n_fft / 2 + 1`."""
    margin = _margin(n_fft, hop_length, padding)
    padded = jnp.pad(samples, ((0, 0), (margin, margin)), mode="reflect")
    count = samples.shape[1] // hop_length + (padding == "center")
    return jnp.fft.rfft(_frame(padded, n_fft, hop_length, count) * _hann(n_fft))


def istft(
    spectra: Complex[Array, "batch frame bin"], n_fft: int, hop_length: int, padding: FramePadding = "same"
) -> Float[Array, "batch sample"]:
    """Inverts `stft` by windowed overlap-add; `sample = frame * hop_length`, one hop less for "center".

    Source:
        Vocos (Siuzdak 2023): the summed squared windows divide the overlap-added signal, and its ends are cut off.
    """
    window = jnp.asarray(_hann(n_fft))
    signal = _overlap_add(jnp.fft.irfft(spectra, n=n_fft) * window, hop_length)
    envelope = _overlap_add(jnp.broadcast_to(window**2, (1, spectra.shape[1], n_fft)), hop_length)
    margin = _margin(n_fft, hop_length, padding)
    keep = slice(margin, margin + (spectra.shape[1] - (padding == "center")) * hop_length)
    return signal[:, keep] / jnp.maximum(envelope[:, keep], 1e-8)


def log_mel(samples: Float[Array, "batch sample"], config: MelConfig) -> Float[Array, "batch frame mel"]:
    """Returns natural-log mel magnitudes; `frame = sample / hop_length`, floor log(1e-5)."""
    magnitude = jnp.abs(stft(samples, config.n_fft, config.hop_length))
    mel = jnp.matmul(magnitude, mel_filters(config), precision=jax.lax.Precision.HIGHEST)
    return jnp.log(jnp.maximum(mel, LOG_FLOOR))


@functools.cache
def mel_filters(config: MelConfig) -> Float[np.ndarray, "bin mel"]:
    """Triangular filters on the Slaney mel scale, each of unit area in Hz.

    Source:
        Slaney's Auditory Toolbox: linear to 1 kHz, logarithmic above.
    """
    bins = np.linspace(0, config.sample_rate / 2, config.n_fft // 2 + 1)
    lowest, highest = _hz_to_mel(np.array([config.f_min, config.f_max])).tolist()
    edges = _mel_to_hz(np.linspace(lowest, highest, config.num_mels + 2))
    return (_triangles(bins, edges) * (2 / (edges[2:] - edges[:-2]))).astype(np.float32)


@functools.cache
def htk_filters(sample_rate: int, n_fft: int, num_mels: int) -> Float[np.ndarray, "bin mel"]:
    """Triangular filters of unit height from 0 Hz to half the sample rate, on the mel scale 2595 log10(1 + f / 700).

    Source:
        The HTK book (Young et al. 2006), section 5.4; the filters of the published Vocos for mel input.
    """
    bins = np.linspace(0, sample_rate / 2, n_fft // 2 + 1)
    highest = 2595 * np.log10(1 + sample_rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, highest, num_mels + 2) / 2595) - 1)
    return _triangles(bins, edges).astype(np.float32)


def _triangles(bins: np.ndarray, edges: np.ndarray) -> np.ndarray:
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    rising = (bins[:, None] - lower) / (centre - lower)
    falling = (upper - bins[:, None]) / (upper - centre)
    return np.maximum(0, np.minimum(rising, falling))


def _margin(n_fft: int, hop_length: int, padding: FramePadding) -> int:
    return n_fft // 2 if padding == "center" else (n_fft - hop_length) // 2


def _hz_to_mel(hz: np.ndarray) -> np.ndarray:
    return np.where(hz < 1000, hz * 3 / 200, 15 + np.log(np.maximum(hz, 1e-9) / 1000) * 27 / np.log(6.4))


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))


@functools.cache
def _hann(n_fft: int) -> Float[np.ndarray, " n_fft"]:
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)).astype(np.float32)


def _frame(
    padded: Float[Array, "batch sample"], n_fft: int, hop_length: int, count: int
) -> Float[Array, "batch frame n_fft"]:
    """Cuts overlapping frames as shifted slices: the gradient of a gather would be a scatter, slow on every backend."""
    chunks = -(-n_fft // hop_length)
    padded = jnp.pad(padded, ((0, 0), (0, max(0, (count + chunks) * hop_length - padded.shape[1]))))
    hops = padded[:, : (count + chunks) * hop_length].reshape(padded.shape[0], count + chunks, hop_length)
    return jnp.concatenate([hops[:, i : i + count] for i in range(chunks)], axis=-1)[..., :n_fft]


def _overlap_add(frames: Float[Array, "batch frame n_fft"], hop_length: int) -> Float[Array, "batch sample"]:
    """Adds frames at multiples of the hop: a few shifted sums, which compile to plain adds on every backend."""
    batch, count, width = frames.shape
    chunks = -(-width // hop_length)
    frames = jnp.pad(frames, ((0, 0), (0, 0), (0, chunks * hop_length - width)))
    parts = frames.reshape(batch, count, chunks, hop_length)
    shifted = [jnp.pad(parts[:, :, i], ((0, 0), (i, chunks - 1 - i), (0, 0))) for i in range(chunks)]
    return functools.reduce(jnp.add, shifted).reshape(batch, (count + chunks - 1) * hop_length)
