"""How long words take to speak: one line for all systems that must be told the length beforehand."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.text.normalizer import HAN_CHARACTER
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer

__all__ = ["LengthLine", "fit_length_line", "main_language", "syllables"]

USUAL_S_PER_SYLLABLE = 0.2
"""Five a second: ordinary speech in English and Mandarin. Taken where the clips do not tell."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LengthLine:
    """Seconds of speech with `n` syllables: `start_s + n * s_per_syllable`.

    Raises:
        ConfigError: The line does not rise.
    """

    start_s: float = 0.3
    """Of no syllables: quiet at both ends."""
    s_per_syllable: float = USUAL_S_PER_SYLLABLE

    def __post_init__(self) -> None:
        if self.start_s < 0 or not self.s_per_syllable > 0:
            raise ConfigError(f"length: start_s {self.start_s} must be at least 0, s_per_syllable above 0")

    def seconds(self, words: str) -> float:
        """Returns how long the words take."""
        return self.start_s + self.s_per_syllable * syllables(words)


def syllables(words: str) -> float:
    """Returns the syllables of spoken words, pauses included as the tokenizer counts them; at least 1."""
    inside = words.replace('"', " ")
    return max(_tokenizer().text_length_units(f'"{inside}"'), 1.0)


def main_language(words: str) -> str:
    """The language of most of the syllables: "zh" or "en"."""
    return "zh" if 2 * len(HAN_CHARACTER.findall(words)) > syllables(words) else "en"


@functools.cache
def _tokenizer() -> PronunciationTokenizer:
    return PronunciationTokenizer()


def fit_length_line(counts: Sequence[float], seconds: Sequence[float]) -> LengthLine:
    """Fits the line by least squares.

    Args:
        counts: Syllables of each clip; one or more clips.
        seconds: How long it lasts.
    """
    slope, x, y = USUAL_S_PER_SYLLABLE, np.asarray(counts), np.asarray(seconds)
    if len(set(counts)) > 1:
        fitted = float(np.polyfit(x, y, 1)[0])
        slope = fitted if fitted > 0 else slope
    start = float(np.mean(y - slope * x))
    if start < 0:  # then through the origin
        return LengthLine(start_s=0.0, s_per_syllable=round(float(y.sum() / x.sum()), 4))
    return LengthLine(start_s=round(start, 3), s_per_syllable=round(slope, 4))
