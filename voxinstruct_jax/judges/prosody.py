"""Judges of pitch, energy and speed: numbers, which `judges.bins` turns into classes.

Their errors were measured on speech made with known settings, see `benchmarks/annotation.py`.
"""

from dataclasses import dataclass
from importlib import metadata

from voxinstruct_jax.judges.judge import Clip, Measurement
from voxinstruct_jax.judges.pitch import FLOOR_DBFS, active_level_dbfs, spoken_seconds

__all__ = ["EnergyJudge", "PitchJudge", "SpeedJudge"]

PITCH_ERROR = 0.03
"""Of the value."""
ENERGY_ERROR_DB = 1.0
SPEED_ERROR = 0.06
"""Of the value."""
FEWEST_VOICED_FRAMES = 6
FEWEST_SYLLABLES = 4
"""Below, a rate means nothing."""
SHORTEST_SPEECH_S = 0.3
SILENCE_DBFS = -70.0


@dataclass(frozen=True)
class PitchJudge:
    """Median F0 of voiced frames."""

    attribute: str = "pitch"
    unit: str = "Hz"

    @property
    def name(self) -> str:
        """Tracker, its version and range."""
        return f"swift-f0-{metadata.version('swift-f0')}/60-500Hz/median/1"

    def measure(self, clip: Clip) -> Measurement | None:
        """None where fewer than 6 frames (0.1 s) are voiced."""
        median_hz = clip.pitch.median_hz
        if median_hz is None or clip.pitch.voiced.sum() < FEWEST_VOICED_FRAMES:
            return None
        return Measurement(value=round(median_hz, 1), error=PITCH_ERROR * median_hz)


@dataclass(frozen=True)
class EnergyJudge:
    """Mean level of the frames within 40 dB of the loudest; it tells loud from soft only where levels were kept."""

    attribute: str = "energy"
    unit: str = "dBFS"
    name: str = "active-level/25ms/40dB/1"

    def measure(self, clip: Clip) -> Measurement | None:
        """None where the clip is silent."""
        level = active_level_dbfs(clip.energy)
        if level <= SILENCE_DBFS:
            return None
        return Measurement(value=round(max(level, FLOOR_DBFS), 2), error=ENERGY_ERROR_DB)


@dataclass(frozen=True)
class SpeedJudge:
    """Syllables a second of speech, pauses over 0.2 s left out; the transcript says how many syllables."""

    attribute: str = "speed"
    unit: str = "syllables/s"
    name: str = "syllables/spoken-time/40dB/200ms/1"

    def measure(self, clip: Clip) -> Measurement | None:
        """None for fewer than 4 syllables, and where less than 0.3 s is loud enough to be speech."""
        spoken_s = spoken_seconds(clip.energy)
        if clip.syllables < FEWEST_SYLLABLES or spoken_s < SHORTEST_SPEECH_S:
            return None
        rate = clip.syllables / spoken_s
        return Measurement(value=round(rate, 2), error=SPEED_ERROR * rate)
