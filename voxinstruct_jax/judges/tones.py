"""Mandarin tones: which each syllable should have, and which its pitch sounds like.

A recogniser writes the right character for a wrong tone, since the sentence tells it; here pitch alone is heard. Each
syllable gets cues: heights of F0 over its course, against the line along which the clip's F0 falls, and those of its
neighbours. A small network fitted on speech whose tones are known (`tones.json`, which says on what) turns them into
probabilities of tones 1 to 4; neutral syllables have no tone of their own and are left out. Read `tone_cues`.

Source:
    Xu 1997, "Contextual tonal variations in Mandarin", for neighbours as cues; Lei et al. 2006, "Improved tone modeling
    for Mandarin broadcast news speech recognition", section 3, for a perceptron over contours of fixed length.
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

__all__ = ["NUM_CUES", "NUM_HEIGHTS", "TONES", "ToneModel", "expected_tones", "load_tone_model", "tone_cues"]

TONES = (1, 2, 3, 4)
POINTS, NEIGHBOUR_POINTS = 10, 6
"""Places of a syllable, and of its neighbours, at which their height is taken."""
_FEWEST_VOICED = 3
_LARGEST_CUE = 15.0
_FARTHEST_S = 1.0
_LEAST_SPREAD = 1.0
NUM_HEIGHTS = POINTS + 2 * NEIGHBOUR_POINTS
"""Cues that are heights: of the syllable, of the one before and of the one after; they come first."""
NUM_CUES = NUM_HEIGHTS + 2 * 2 + 5
"""Then the voiced share and the distance (s) of both neighbours, and of the syllable its natural log of seconds, its
voiced share, the spread of all heights (semitones), its place and how many follow."""


@dataclass(frozen=True, kw_only=True)
class ToneModel:
    """A perceptron over standardised cues: rectified hidden layers, then one score a tone."""

    means: Float[np.ndarray, " cue"]
    deviations: Float[np.ndarray, " cue"]
    weights: tuple[Float[np.ndarray, "_ _"], ...]
    biases: tuple[Float[np.ndarray, " _"], ...]

    def probabilities(self, cues: Float[np.ndarray, "syllable cue"]) -> Float[np.ndarray, "syllable tone"]:
        """Of `TONES`; NaN where a syllable's cues are."""
        x = (cues - self.means) / self.deviations
        for place, (weights, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = (np.maximum(x, 0.0) if place else x) @ weights + bias  # of NaN, NaN
        likely = np.exp(x - x.max(axis=1, keepdims=True))
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
        Rows of NaN where fewer than three frames of a syllable are voiced. Heights between voiced frames lie on the
        line from one to the next; a neighbour that there is not is as high as the near end of the syllable.
    """
    heights = above_declination(pitch)
    if not pitch.voiced.any():
        return np.full((len(times_s), NUM_CUES), np.nan)
    spread = max(float(heights[pitch.voiced].std()), _LEAST_SPREAD)
    rows = []
    for place, (start, end) in enumerate(times_s):
        inside = (pitch.times_s >= start) & (pitch.times_s < end) & pitch.voiced
        if inside.sum() < _FEWEST_VOICED:
            rows.append(np.full(NUM_CUES, np.nan))
            continue
        own = _course(pitch, heights, (start, end), POINTS)
        before = _neighbour(pitch, heights, times_s[place - 1] if place else None, start, own[0])
        after = _neighbour(pitch, heights, times_s[place + 1] if place + 1 < len(times_s) else None, end, own[-1])
        further = [np.log(max(end - start, 0.02)), _voiced_share(pitch, start, end), spread]
        order = [place / len(times_s), float(len(times_s) - place)]
        rows.append(np.concatenate([own, before[0], after[0], before[1], after[1], further, order]))
    return np.clip(np.array(rows, np.float64).reshape(-1, NUM_CUES), -_LARGEST_CUE, _LARGEST_CUE)


@functools.cache
def load_tone_model() -> ToneModel:
    """The model of this package."""
    stored: dict[str, Any] = json.loads((resources.files(__package__ or "") / "tones.json").read_text("utf-8"))
    layers = {name: tuple(map(np.array, stored[name])) for name in ("weights", "biases")}
    return ToneModel(means=np.array(stored["means"]), deviations=np.array(stored["deviations"]), **layers)


def _neighbour(
    pitch: PitchTrack,
    heights: Float[np.ndarray, " frame"],
    times_s: tuple[float, float] | None,
    edge_s: float,
    edge_height: float,
) -> tuple[Float[np.ndarray, " point"], list[float]]:
    """Heights of a neighbour; its voiced share, and the pause between it and the syllable's edge."""
    if times_s is None:
        return np.full(NEIGHBOUR_POINTS, edge_height), [0.0, _FARTHEST_S]
    course = _course(pitch, heights, times_s, NEIGHBOUR_POINTS)
    pause = min(abs(edge_s - times_s[0]), abs(edge_s - times_s[1]), _FARTHEST_S)
    return course, [_voiced_share(pitch, *times_s), pause]


def _course(
    pitch: PitchTrack, heights: Float[np.ndarray, " frame"], times_s: tuple[float, float], points: int
) -> Float[np.ndarray, " point"]:
    """Heights at evenly spaced places between start and end."""
    start, end = times_s
    places = start + (end - start) * (np.arange(points) + 0.5) / points
    return np.interp(places, pitch.times_s[pitch.voiced], heights[pitch.voiced])


def _voiced_share(pitch: PitchTrack, start_s: float, end_s: float) -> float:
    inside = (pitch.times_s >= start_s) & (pitch.times_s < end_s)
    return float(pitch.voiced[inside].mean()) if inside.any() else 0.0
