"""Mandarin tones: which each syllable should have, and which its pitch sounds like.

A recogniser writes the right character for a wrong tone, since the sentence tells it; here pitch alone is heard. Each
syllable gets cues: heights of F0 over its course, against the line along which the clip's F0 falls, and those of its
neighbours. A logistic model fitted on speech whose tones are known (`tones.json`, which says on what) turns them into
probabilities of tones 1 to 4; neutral syllables have no tone of their own and are left out. Read `tone_cues`.

Source:
    Xu 1997, "Contextual tonal variations in Mandarin", for neighbours as cues; Cox 1958 for logistic regression.
"""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module, resources
from typing import Any

import numpy as np
from jaxtyping import Float

from voxinstruct_jax.judges.pitch import PitchTrack
from voxinstruct_jax.judges.stress import above_declination

__all__ = ["NUM_CUES", "TONES", "ToneModel", "expected_tones", "load_tone_model", "tone_cues"]

TONES = (1, 2, 3, 4)
POINTS = 6
"""Places of a syllable at which its height is taken."""
_FEWEST_VOICED = 3
_MARGIN = 0.5 / POINTS
_LARGEST_CUE = 15.0
NUM_CUES = 3 * POINTS + 2
"""Heights of the syllable, of the one before and of the one after; how much is voiced, and natural log of seconds."""


@dataclass(frozen=True, kw_only=True)
class ToneModel:
    """Multinomial logistic regression over standardised cues."""

    means: Float[np.ndarray, " cue"]
    deviations: Float[np.ndarray, " cue"]
    weights: Float[np.ndarray, "tone cue"]
    biases: Float[np.ndarray, " tone"]

    def probabilities(self, cues: Float[np.ndarray, "syllable cue"]) -> Float[np.ndarray, "syllable tone"]:
        """Of `TONES`; NaN where a syllable's cues are."""
        scores = (cues - self.means) / self.deviations @ self.weights.T + self.biases
        likely = np.exp(scores - scores.max(axis=1, keepdims=True))
        return likely / likely.sum(axis=1, keepdims=True)


def expected_tones(transcript: str) -> list[int | None]:
    """Tone of each character as it is spoken (two third tones in a row, 一, 不); None for neutral ones and other signs.

    Returns:
        One a character of the transcript.
    """
    pypinyin = import_module("pypinyin")
    found = pypinyin.lazy_pinyin(
        transcript,
        style=pypinyin.Style.TONE3,
        neutral_tone_with_five=True,
        tone_sandhi=True,
        errors=lambda other: [""] * len(other),
    )
    tones = [int(syllable[-1]) if syllable and syllable[-1].isdigit() else None for syllable in found]
    return [tone if tone in TONES else None for tone in tones]


def tone_cues(pitch: PitchTrack, times_s: Sequence[tuple[float, float]]) -> Float[np.ndarray, "syllable cue"]:
    """Measures syllables that follow one another.

    Args:
        pitch: Of the clip.
        times_s: Start and end of each syllable.

    Returns:
        Rows of NaN where fewer than three frames are voiced. A neighbour that there is not, or that is not voiced, is
        as high as the near end of the syllable.
    """
    heights = above_declination(pitch)
    own = np.array([_course(pitch, heights, start, end) for start, end in times_s]).reshape(-1, POINTS)
    rows = []
    for place, (start, end) in enumerate(times_s):
        before = own[place - 1] if place and np.isfinite(own[place - 1]).all() else np.repeat(own[place, 0], POINTS)
        after = own[place + 1 : place + 2]
        following = after[0] if len(after) and np.isfinite(after).all() else np.repeat(own[place, -1], POINTS)
        inside = (pitch.times_s >= start) & (pitch.times_s < end)
        voiced = float(pitch.voiced[inside].mean()) if inside.any() else 0.0
        rows.append([*own[place], *before, *following, voiced, np.log(max(end - start, 0.02))])
    return np.clip(np.array(rows, np.float64).reshape(-1, NUM_CUES), -_LARGEST_CUE, _LARGEST_CUE)


@functools.cache
def load_tone_model() -> ToneModel:
    """The model of this package."""
    stored: dict[str, Any] = json.loads((resources.files(__package__ or "") / "tones.json").read_text("utf-8"))
    return ToneModel(**{name: np.array(stored[name]) for name in ("means", "deviations", "weights", "biases")})


def _course(
    pitch: PitchTrack, heights: Float[np.ndarray, " frame"], start_s: float, end_s: float
) -> Float[np.ndarray, " point"]:
    """Heights at evenly spaced places between start and end, from the voiced frames there."""
    inside = (pitch.times_s >= start_s) & (pitch.times_s < end_s) & pitch.voiced
    if inside.sum() < _FEWEST_VOICED:
        return np.full(POINTS, np.nan)
    places = start_s + (end_s - start_s) * np.linspace(_MARGIN, 1 - _MARGIN, POINTS)
    return np.interp(places, pitch.times_s[inside], heights[inside])
