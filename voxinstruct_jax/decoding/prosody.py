"""Keeps to what an instruction asks of speed, pitch and level, and lifts the words that it stresses.

What a voice says tends towards what is asked, not always far enough. It is then moved, by as little as it takes, into
the class that the style reader is sure of: durations before anything is spoken, pitch in the decoder's harmonic source,
level in the samples. Classes have the boundaries of the voice's training speech (`judges.bins`). Read `Prosody`.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float32, Int, Num

from voxinstruct_jax.attributes import STYLE_CLASSES
from voxinstruct_jax.audio.harmonics import HIGHEST_HZ, LOWEST_HZ
from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.decoding.requests import FREE_TEMPO
from voxinstruct_jax.judges.bins import Bins, Bounds, group
from voxinstruct_jax.judges.pitch import FLOOR_DBFS, active_level_dbfs, energy_track
from voxinstruct_jax.models.style import SURE, class_places
from voxinstruct_jax.text.tokenizer import CONCEPT_CHANNEL, INSIDE_QUOTES, QUOTE_CHANNEL, stress_concept, tokens_in_time

__all__ = ["Prosody", "StressLift", "asked_class", "limit_peaks", "stressed_frames"]

MARGIN = 0.05
"""Share that pitch and speed are kept from a boundary: judges err by 3 and 6 %."""
MARGIN_DB = 1.5
HIGHEST_PEAK = 0.99
KNEE = 0.8
"""Share of the highest peak from which on peaks are bent."""
RAMP_S = 0.02
"""That a stressed word takes to become louder."""
Range = tuple[float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StressLift:
    """What a stressed word gets beside what the models give it.

    Raises:
        ConfigError: A number is below 0.
    """

    semitones: float = 0.0
    gain_db: float = 0.0
    stretch: float = 1.0

    def __post_init__(self) -> None:
        if self.semitones < 0 or self.gain_db < 0 or self.stretch < 1:
            raise ConfigError(
                f"semitones {self.semitones} and gain_db {self.gain_db} must be at least 0, "
                f"stretch {self.stretch} at least 1"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prosody:
    """What a voice keeps to; by default nothing."""

    bins: Bins | None = None
    """Boundaries of the classes; None = whatever the models make of a class is taken."""
    stress: StressLift = StressLift()

    def tempo(self, syllables: float, language: str, frame_rate: float) -> Sequence[Range]:
        """Least and most half frames that words may last in each class of speed.

        Args:
            syllables: Of the words.
            language: "en" or "zh".
            frame_rate: Of the codec, Hz.
        """
        bounds = self._bounds("speed", language)
        if bounds is None:
            return FREE_TEMPO
        rates = (_class_range(bounds, number, _by_share) for number in range(len(STYLE_CLASSES["speed"])))
        half_frames = 2 * frame_rate * syllables
        return [(half_frames / most, half_frames / least if least > 0 else math.inf) for least, most in rates]

    def stretches(self, text_tokens: Int[np.ndarray, "text channel"]) -> Float32[np.ndarray, " text"]:
        """Factors of the durations of text tokens."""
        return np.where(_stressed_tokens(text_tokens), self.stress.stretch, 1.0).astype(np.float32)

    def pitch_ranges(
        self, classes: Float32[np.ndarray, " class"], language: str
    ) -> tuple[Float32[np.ndarray, " gender"], Float32[np.ndarray, " gender"], Float32[np.ndarray, " gender"]]:
        """Usual, lowest and highest median pitch (Hz) by gender; where one gender is asked for, all are that one.

        Args:
            classes: As `ARResult.classes`.
            language: "en" or "zh".
        """
        pitch, gender = asked_class(classes, "pitch"), asked_class(classes, "gender")
        genders = STYLE_CLASSES["gender"] if gender is None else (gender,) * len(STYLE_CLASSES["gender"])
        found = [self._bounds("pitch", language, name) for name in genders]
        rows = [(math.sqrt(LOWEST_HZ * HIGHEST_HZ), 0.0, math.inf)] * len(found)
        if pitch is not None:
            number = STYLE_CLASSES["pitch"].index(pitch)
            rows = [
                (math.sqrt(own.lower * own.upper), *_class_range(own, number, _by_share)) if own else row
                for own, row in zip(found, rows, strict=True)
            ]
        centres, lowest, highest = np.clip(np.array(rows, np.float32), LOWEST_HZ / 2, HIGHEST_HZ * 2).T
        return centres, lowest, highest

    def set_level(
        self,
        samples: Float32[np.ndarray, " sample"],
        sample_rate: int,
        classes: Float32[np.ndarray, " class"],
        language: str,
    ) -> Float32[np.ndarray, " sample"]:
        """Makes a clip as loud or soft as it is asked for, so far as its peaks allow.

        Args:
            samples: Of the clip, without a voice prompt.
            sample_rate: Hz.
            classes: As `ARResult.classes`.
            language: "en" or "zh".
        """
        asked, bounds = asked_class(classes, "energy"), self._bounds("energy", language)
        level = active_level_dbfs(energy_track(samples, sample_rate))
        if asked is None or bounds is None or level <= FLOOR_DBFS:
            return samples
        lowest, highest = _class_range(bounds, STYLE_CLASSES["energy"].index(asked), _by_db)
        gain = 10 ** ((min(max(level, lowest), highest) - level) / 20)
        return (samples * min(gain, max(1.0, HIGHEST_PEAK / np.abs(samples).max()))).astype(np.float32)

    def raise_words(
        self, samples: Float32[np.ndarray, " sample"], sample_rate: int, stressed: Bool[np.ndarray, " frame"]
    ) -> Float32[np.ndarray, " sample"]:
        """Makes stressed words louder, so far as the peaks allow.

        Args:
            samples: Of the clip, without a voice prompt.
            sample_rate: Hz.
            stressed: Frames of the words, evenly over the clip.
        """
        if not self.stress.gain_db or not stressed.any():
            return samples
        inside = np.repeat(stressed, -(-len(samples) // len(stressed)))[: len(samples)].astype(np.float32)
        ramp = max(round(RAMP_S * sample_rate), 1)
        inside = np.convolve(inside, np.full(ramp, 1 / ramp), "same")
        raised = samples * 10 ** (self.stress.gain_db * inside / 20)
        return (raised * min(1.0, HIGHEST_PEAK / max(np.abs(raised).max(), 1e-6))).astype(np.float32)

    def _bounds(self, attribute: str, language: str, gender: str | None = None) -> Bounds | None:
        if self.bins is None or attribute not in self.bins.attributes:
            return None
        return self.bins.attributes[attribute].groups.get(group(attribute, language, gender))


def limit_peaks(samples: Float32[np.ndarray, " sample"]) -> Float32[np.ndarray, " sample"]:
    """Bends the peaks of a clip that goes beyond full scale, so that a file holds it; other clips stay as they are.

    A decoder leaves a spike now and then; to turn down the whole clip for it would make it softer than is asked.
    """
    size = np.abs(samples)
    if size.max(initial=0.0) <= HIGHEST_PEAK:
        return samples
    knee = KNEE * HIGHEST_PEAK
    room = HIGHEST_PEAK - knee
    bent = knee + room * np.tanh((size - knee) / room)
    return np.where(size > knee, np.copysign(bent, samples), samples).astype(np.float32)


def asked_class(classes: Float32[np.ndarray, " class"], attribute: str) -> str | None:
    """The class of an attribute that an instruction surely asks for; None = none.

    Args:
        classes: As `ARResult.classes`.
        attribute: One of `STYLE_CLASSES`.
    """
    own = classes[class_places(attribute)]
    return STYLE_CLASSES[attribute][int(own.argmax())] if own.max() > SURE[attribute] else None


def stressed_frames(
    text_tokens: Int[np.ndarray, "text channel"], durations: Num[np.ndarray, " text"], frames: int
) -> Bool[np.ndarray, " frame"]:
    """Which frames of a clip are of words that are to be stressed.

    Args:
        text_tokens: Of the request, by the tokenizer of this package; of another one nothing is known.
        durations: Half frames of each of them; all 0 = not known.
        frames: Of the clip.
    """
    spoken = tokens_in_time(durations, 2 * frames)[::2]
    return _stressed_tokens(text_tokens)[spoken] & (spoken >= 0)


def _stressed_tokens(text_tokens: Int[np.ndarray, "text channel"]) -> Bool[np.ndarray, " text"]:
    if text_tokens.shape[1] <= QUOTE_CHANNEL:
        return np.zeros(len(text_tokens), bool)
    in_content = text_tokens[:, QUOTE_CHANNEL] == INSIDE_QUOTES
    return in_content & (text_tokens[:, CONCEPT_CHANNEL] == stress_concept())


def _by_share(value: float, direction: int) -> float:
    return value * (1 + direction * MARGIN)


def _by_db(value: float, direction: int) -> float:
    return value + direction * MARGIN_DB


def _class_range(bounds: Bounds, number: int, step: Callable[[float, int], float]) -> Range:
    """Lowest and highest value of a class; `step` moves a boundary up (1) or down (-1) by the margin."""
    lowest = (-math.inf, step(bounds.lower, 1), step(bounds.upper, 1))[number]
    highest = (step(bounds.lower, -1), step(bounds.upper, -1), math.inf)[number]
    if lowest > highest:  # a class narrower than its margins
        lowest = highest = (bounds.lower + bounds.upper) / 2
    return lowest, highest
