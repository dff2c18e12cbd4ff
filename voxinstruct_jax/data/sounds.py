"""Sounds that are no speech, made on the spot with a caption: what a corpus of sounds would give, in miniature."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

__all__ = ["SOUNDS", "Sound", "make_sound"]


@dataclass(frozen=True, kw_only=True)
class Sound:
    """A sound and what it is."""

    samples: Float32[np.ndarray, " sample"]
    caption: str


Generator = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""(seconds of each sample, draws) → samples of any level."""


def _tone(seconds: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return np.sin(2 * np.pi * random.uniform(200, 2000) * seconds)


def _sweep(start: float, end: float) -> Generator:
    def make(seconds: np.ndarray, random: np.random.Generator) -> np.ndarray:
        span = max(float(seconds[-1]), 1e-3)
        low, high = start * random.uniform(0.8, 1.2), end * random.uniform(0.8, 1.2)
        return np.sin(2 * np.pi * (low * seconds + (high - low) * seconds**2 / (2 * span)))

    return make


def _hiss(seconds: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return random.standard_normal(len(seconds))


def _rumble(seconds: np.ndarray, random: np.random.Generator) -> np.ndarray:
    walk = np.cumsum(random.standard_normal(len(seconds)))
    window = max(2, len(seconds) // 50)
    return walk - np.convolve(walk, np.full(window, 1 / window), "same")


def _clicks(seconds: np.ndarray, random: np.random.Generator) -> np.ndarray:
    phase = np.mod(seconds * random.uniform(3, 8), 1.0)
    return np.exp(-80 * phase) * random.standard_normal(len(seconds))


def _beeps(seconds: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return _tone(seconds, random) * (np.mod(seconds * random.uniform(2, 4), 1.0) < 0.5)


def _hum(seconds: np.ndarray, random: np.random.Generator) -> np.ndarray:
    hertz = random.uniform(80, 140)
    return sum((np.sin(2 * np.pi * hertz * n * seconds) / n for n in range(1, 7)), np.zeros(len(seconds)))


SOUNDS: dict[str, Generator] = {
    "a steady tone": _tone,
    "a rising siren": _sweep(300.0, 1800.0),
    "a falling whistle": _sweep(2500.0, 500.0),
    "a loud hiss": _hiss,
    "a deep rumble": _rumble,
    "quick clicks": _clicks,
    "an alarm that beeps": _beeps,
    "an engine that hums": _hum,
}
"""By caption."""


def make_sound(random: np.random.Generator, num_samples: int, sample_rate: int) -> Sound:
    """Draws a kind of sound and makes it.

    Args:
        random: All that is drawn follows from it.
        num_samples: Its length.
        sample_rate: In Hz.
    """
    caption = list(SOUNDS)[int(random.integers(len(SOUNDS)))]
    samples = SOUNDS[caption](np.arange(num_samples) / sample_rate, random)
    return Sound(samples=samples.astype(np.float32), caption=caption)
