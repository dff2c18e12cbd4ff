"""Tracks of pitch and energy over time: what reports plot and what attributes are measured by.

Pitch comes from swift-f0, its range bounded to 60 to 500 Hz, since unbounded it jumps octaves. Trackers disagree on
voicing, so figures of two trackers don't compare.
"""

import dataclasses
import functools
from importlib import import_module
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32

from voxinstruct_jax.audio.harmonics import HIGHEST_HZ, LOWEST_HZ

__all__ = ["EnergyTrack", "PitchTrack", "active_level_dbfs", "energy_track", "pitch_track", "spoken_seconds"]

VOICED_CONFIDENCE = 0.5
ENERGY_HOP_S, ENERGY_WINDOW_S = 0.010, 0.025
FLOOR_DBFS = -100.0
ACTIVE_RANGE_DB = 40.0
LONGEST_CLOSURE_S = 0.2
"""Quiet that lasts longer is a pause; plosives are shorter."""
_JUDGE_RATE = 16_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class PitchTrack:
    """Pitch over time, 16 ms apart.

    Attributes:
        times_s: Centre of each frame, s.
        f0_hz: Fundamental frequency, Hz; a guess where unvoiced.
        voiced: True where the pitch can be trusted.
    """

    times_s: Float[np.ndarray, " frame"]
    f0_hz: Float[np.ndarray, " frame"]
    voiced: Bool[np.ndarray, " frame"]

    @property
    def median_hz(self) -> float | None:
        """Median of voiced frames; None if there are none."""
        return float(np.median(self.f0_hz[self.voiced])) if self.voiced.any() else None

    def at(self, times_s: Float[np.ndarray, " time"]) -> Float32[np.ndarray, " time"]:
        """Pitch at other times, Hz: between voiced frames linear in its logarithm; 0 = unvoiced."""
        if not self.voiced.any():
            return np.zeros(len(times_s), np.float32)
        voiced = np.interp(times_s, self.times_s, self.voiced.astype(np.float64)) > 0.5
        nepers = np.interp(times_s, self.times_s[self.voiced], np.log(self.f0_hz[self.voiced]))
        return np.where(voiced, np.exp(nepers), 0.0).astype(np.float32)


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
    """
    detector = _detector()
    mono = np.nan_to_num(np.asarray(samples, np.float32))
    if sample_rate != _JUDGE_RATE:
        mono = import_module("soxr").resample(mono, sample_rate, _JUDGE_RATE).astype(np.float32)
    if len(mono) < _JUDGE_RATE // 10:  # the network needs a few frames; what is shorter has no pitch to speak of
        empty = np.zeros(0, np.float32)
        return PitchTrack(times_s=empty, f0_hz=empty, voiced=np.zeros(0, bool))
    found = detector.detect(mono, _JUDGE_RATE, fmin=LOWEST_HZ, fmax=HIGHEST_HZ)
    f0_hz, confidence = np.asarray(found.pitch_hz, np.float32), np.asarray(found.confidence)
    voiced = (confidence > VOICED_CONFIDENCE) & (f0_hz >= LOWEST_HZ) & (f0_hz <= HIGHEST_HZ)
    times_s = np.asarray(found.timestamps, np.float32)
    return PitchTrack(times_s=times_s, f0_hz=f0_hz, voiced=voiced)


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


def spoken_seconds(track: EnergyTrack) -> float:
    """Time from the first to the last frame within 40 dB of the loudest one, pauses over 0.2 s left out."""
    if not len(track.level_dbfs) or track.level_dbfs.max() <= FLOOR_DBFS:
        return 0.0
    active = np.flatnonzero(track.level_dbfs > track.level_dbfs.max() - ACTIVE_RANGE_DB)
    gaps = np.diff(active) - 1
    pauses = gaps[gaps > LONGEST_CLOSURE_S / ENERGY_HOP_S].sum()
    return float(active[-1] - active[0] + 1 - pauses) * ENERGY_HOP_S


@functools.cache
def _detector() -> Any:
    return import_module("swift_f0").SwiftF0(threads=1)
