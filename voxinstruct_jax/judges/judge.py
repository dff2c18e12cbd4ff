"""What every judge of an attribute is given and gives: `Clip`, `Measurement`, `Judge`.

A judge measures one attribute. It returns a number, which boundaries turn into a class (`judges.bins`: pitch, energy,
speed), or the class itself (gender, age, emotion). A judge of your own is any class with the members of `Judge` and a
constructor without arguments; `judges.registry` finds it.
"""

import dataclasses
import functools
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from voxinstruct_jax.judges.pitch import EnergyTrack, PitchTrack, energy_track, pitch_track

__all__ = ["Clip", "Judge", "Measurement"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """One clip of speech.

    Attributes:
        samples: Mono, within [-1, 1].
        sample_rate: Hz.
        language: Such as "en".
        transcript: What is said.
        syllables: How many syllables that is; counted by the caller, who knows the language's spelling.
    """

    samples: Float[np.ndarray, " sample"]
    sample_rate: int
    language: str
    transcript: str
    syllables: float

    @functools.cached_property
    def pitch(self) -> PitchTrack:
        """Pitch over time; tracked once for all judges."""
        return pitch_track(self.samples, self.sample_rate)

    @functools.cached_property
    def energy(self) -> EnergyTrack:
        """Level over time."""
        return energy_track(self.samples, self.sample_rate)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a judge found; a value without a label is classed by boundaries.

    Attributes:
        value: In the judge's unit; None where there is a class only.
        error: Standard deviation of `value` about the truth, same unit.
        label: The class; None where boundaries name it. For stress the indices of the stressed words, such as "2 3".
        confidence: Of the label, from 0 to 1; without a label it is not read.
        probabilities: Of stress: that each word of the transcript is stressed, from a judge that knows.
        word_times_s: Start and end of each word of the transcript (s), from a judge that had to find them.
    """

    value: float | None = None
    error: float = 0.0
    label: str | None = None
    confidence: float = 1.0
    probabilities: tuple[float, ...] = ()
    word_times_s: tuple[tuple[float, float], ...] = ()


@runtime_checkable
class Judge(Protocol):
    """Measures one attribute of a clip."""

    @property
    def attribute(self) -> str:
        """What is judged, such as "pitch"."""
        ...

    @property
    def name(self) -> str:
        """The rule or model with its version, such as "swift-f0-0.3.0/median/1"; a new one wherever results differ."""
        ...

    @property
    def unit(self) -> str:
        """Of the value, such as Hz; empty where there is none."""
        ...

    def measure(self, clip: Clip) -> Measurement | None:
        """Judges a clip by itself; None where it cannot be judged (silence, too short)."""
        ...
