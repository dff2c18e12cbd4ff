"""Tracks of pitch and energy over time: what reports plot and what attributes are measured by.

Pitch comes from swift-f0 (the `judges` extra), its range bounded to 60 to 500 Hz, since unbounded it jumps octaves.
Where the extra is missing, `yin_track` draws a curve for plots with nothing but numpy; trackers disagree on voicing, so
figures of two trackers don't compare and a track names its own. Energy needs no extra.
"""

import dataclasses
import functools
from importlib import import_module, util
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from voxinstruct_jax.config import InputError

__all__ = ["EnergyTrack", "PitchTrack", "active_level_dbfs", "energy_track", "pitch_track", "yin_track"]

LOWEST_HZ, HIGHEST_HZ = 60.0, 500.0
VOICED_CONFIDENCE = 0.5
YIN_THRESHOLD, YIN_VOICED = 0.15, 0.2
ENERGY_HOP_S, ENERGY_WINDOW_S = 0.010, 0.025
FLOOR_DBFS = -100.0
ACTIVE_RANGE_DB = 40.0
_JUDGE_RATE = 16_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class PitchTrack:
    """Pitch over time, frames equally spaced.

    Attributes:
        tracker: Which one drew it.
        times_s: Centre of each frame, s.
        f0_hz: Fundamental frequency, Hz; a guess where unvoiced.
        voiced: True where the pitch can be trusted.
    """

    tracker: str
    times_s: Float[np.ndarray, " frame"]
    f0_hz: Float[np.ndarray, " frame"]
    voiced: Bool[np.ndarray, " frame"]

    @property
    def median_hz(self) -> float | None:
        """Median of voiced frames; None if there are none."""
        return float(np.median(self.f0_hz[self.voiced])) if self.voiced.any() else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnergyTrack:
    """Level over time, 10 ms apart.

    Attributes:
        times_s: Centre of each frame, s.
        level_dbfs: Root mean square of 25 ms, dB below full scale, at least -100.
    """

    times_s: Float[np.ndarray, " frame"]
    level_dbfs: Float[np.ndarray, " frame"]


def pitch_track(samples: Float[np.ndarray, " sample"], sample_rate: int) -> PitchTrack:
    """Tracks F0 between 60 and 500 Hz.

    Args:
        samples: Mono, within [-1, 1].
        sample_rate: Hz.

    Raises:
        InputError: swift-f0 is not installed.
    """
    detector = _detector()
    mono = np.nan_to_num(np.asarray(samples, np.float32))
    if sample_rate != _JUDGE_RATE:
        mono = import_module("soxr").resample(mono, sample_rate, _JUDGE_RATE).astype(np.float32)
    if len(mono) < _JUDGE_RATE // 10:  # the network needs a few frames; what is shorter has no pitch to speak of
        empty = np.zeros(0, np.float32)
        return PitchTrack(tracker="swift-f0", times_s=empty, f0_hz=empty, voiced=np.zeros(0, bool))
    found = detector.detect(mono, _JUDGE_RATE, fmin=LOWEST_HZ, fmax=HIGHEST_HZ)
    f0_hz, confidence = np.asarray(found.pitch_hz, np.float32), np.asarray(found.confidence)
    voiced = (confidence > VOICED_CONFIDENCE) & (f0_hz >= LOWEST_HZ) & (f0_hz <= HIGHEST_HZ)
    times_s = np.asarray(found.timestamps, np.float32)
    return PitchTrack(tracker="swift-f0", times_s=times_s, f0_hz=f0_hz, voiced=voiced)


def yin_track(samples: Float[np.ndarray, " sample"], sample_rate: int) -> PitchTrack:
    """Tracks F0 between 60 and 500 Hz every 10 ms without any extra; good enough to look at.

    Args:
        samples: Mono, within [-1, 1].
        sample_rate: Hz.

    Source:
        de Cheveigné and Kawahara 2002 (YIN), steps 1 to 5: difference function, cumulative mean normalisation, the
        first dip below .15, parabolic interpolation. A frame is voiced if the dip is below .2 and the level within
        40 dB of the loudest.
    """
    hop, longest, shortest = (round(sample_rate / rate) for rate in (1 / ENERGY_HOP_S, LOWEST_HZ, HIGHEST_HZ))
    count = max(0, (len(samples) - 2 * longest) // hop + 1)
    frames = np.asarray(samples, np.float64)[np.arange(count)[:, None] * hop + np.arange(2 * longest)]
    dips = _normalised_difference(frames, longest)
    lags = np.array([_first_dip(row, shortest, longest) for row in dips], np.float64).reshape(count, 2)
    power = np.square(frames).mean(axis=1)
    loud = power > max(power.max(initial=0.0) * 10 ** (-ACTIVE_RANGE_DB / 10), 1e-9)
    return PitchTrack(
        tracker="yin",
        times_s=((np.arange(count) * hop + longest) / sample_rate).astype(np.float32),
        f0_hz=(sample_rate / np.maximum(lags[:, 0], 1)).astype(np.float32),
        voiced=loud & (lags[:, 1] < YIN_VOICED),
    )


def _normalised_difference(frames: Float[np.ndarray, "frame window"], longest: int) -> Float[np.ndarray, "frame lag"]:
    """YIN, equations 6 and 8: squared difference by lag 0..longest, over its mean of shorter lags."""
    size = 1 << (frames.shape[1] * 2 - 1).bit_length()
    head = np.fft.rfft(frames[:, :longest], size)
    correlation = np.fft.irfft(np.conj(head) * np.fft.rfft(frames, size), size)[:, : longest + 1]
    summed = np.cumsum(np.pad(np.square(frames), ((0, 0), (1, 0))), axis=1)
    lags = np.arange(longest + 1)
    energy = summed[:, lags + longest] - summed[:, lags]
    difference = np.maximum(energy[:, :1] + energy - 2 * correlation, 0.0)
    running = np.cumsum(difference[:, 1:], axis=1) / lags[1:]
    return np.concatenate([np.ones((len(frames), 1)), difference[:, 1:] / np.maximum(running, 1e-12)], axis=1)


def _first_dip(normalised: Float[np.ndarray, " lag"], shortest: int, longest: int) -> tuple[float, float]:
    """Returns the lag of the first deep dip (else of the deepest), between samples, and its depth."""
    below = np.flatnonzero(normalised[shortest:longest] < YIN_THRESHOLD)
    lag = shortest + (int(below[0]) if len(below) else int(np.argmin(normalised[shortest:longest])))
    while lag + 1 < longest and normalised[lag + 1] < normalised[lag]:
        lag += 1
    left, middle, right = normalised[lag - 1 : lag + 2]
    curvature = left - 2 * middle + right
    return lag + (0.5 * (left - right) / curvature if curvature > 0 else 0.0), float(middle)


def energy_track(samples: Float[np.ndarray, " sample"], sample_rate: int) -> EnergyTrack:
    """Measures the level every 10 ms; `frame = sample / (sample_rate / 100)`, rounded down."""
    hop, window = round(sample_rate * ENERGY_HOP_S), round(sample_rate * ENERGY_WINDOW_S)
    count = len(samples) // hop
    padded = np.pad(np.asarray(samples, np.float64), (window // 2, window))
    summed = np.concatenate([[0.0], np.cumsum(np.square(padded))])
    starts = np.arange(count) * hop + hop // 2
    power = np.maximum((summed[starts + window] - summed[starts]) / window, 10 ** (FLOOR_DBFS / 10))
    return EnergyTrack(
        times_s=(starts / sample_rate).astype(np.float32), level_dbfs=(10 * np.log10(power)).astype(np.float32)
    )


def active_level_dbfs(track: EnergyTrack) -> float:
    """Mean level of the frames within 40 dB of the loudest one; pauses and padding don't move it."""
    if not len(track.level_dbfs):
        return FLOOR_DBFS
    return float(track.level_dbfs[track.level_dbfs > track.level_dbfs.max() - ACTIVE_RANGE_DB].mean())


@functools.cache
def _detector() -> Any:
    if util.find_spec("swift_f0") is None:
        raise InputError("the pitch judge needs swift-f0: pip install 'voxinstruct-jax[judges]'")
    return import_module("swift_f0").SwiftF0(threads=1)
