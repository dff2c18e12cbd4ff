"""Which words of a sentence are stressed, judged from pitch, level and duration against the rest of the sentence.

Each word gets cues: how far it stands above the other words, and above what its phones lead one to expect. A logistic
model fitted on speech whose stress is known (`stress.json`, which says on what) turns them into a probability. Read
`stressed_words` first.

Source:
    Terken and Hermes 2000, "The perception of prosodic prominence", for the cues; Cox 1958 for logistic regression.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from voxinstruct_jax.judges.pitch import EnergyTrack, PitchTrack, energy_track, pitch_track

__all__ = [
    "CUES",
    "ExpectedProsody",
    "StressFinding",
    "StressModel",
    "above_declination",
    "fit_stress_model",
    "load_stress_model",
    "stress_cues",
    "stressed_words",
    "unit_deviations",
    "word_prosody",
]

_PEAK_PERCENTILE = 90.0
_FEWEST_VOICED = 2
_SHORTEST_S = 0.02
_RANGE_DB = 40.0
_LARGEST_CUE = 12.0
"""Cues beyond this (in their own unit) say no more."""
_MEASURES = ("semitones", "level_db", "log_duration")
CUES = tuple(f"{measure}_{against}" for measure in _MEASURES for against in ("others", "highest", "neighbours"))
"""Names of the columns of `stress_cues`: each measure against the mean of the other words, against the highest of the
others, and against the words before and after."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StressFinding:
    """What was heard.

    Attributes:
        indices: Numbers of the stressed words; empty = no word stands out.
        probabilities: That each word is stressed.
        confidence: Probability of the finding's weakest part: of the least likely word that was found, or, where none
            was, that the likeliest is not stressed.
    """

    indices: tuple[int, ...]
    probabilities: tuple[float, ...]
    confidence: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpectedProsody:
    """What each word would be like in plain speech; all up to a constant a sentence.

    Attributes:
        duration_s: Only ratios matter.
        semitones: Height of F0; in Mandarin the tones say so. Zeros where nothing is known.
        level_db: Loudness; likewise.
    """

    duration_s: tuple[float, ...]
    semitones: tuple[float, ...]
    level_db: tuple[float, ...]

    @property
    def table(self) -> Float[np.ndarray, "word measure"]:
        """In the columns of `word_prosody`."""
        logs = np.log(np.maximum(np.array(self.duration_s, np.float64), _SHORTEST_S))
        return np.stack([np.array(self.semitones, np.float64), np.array(self.level_db, np.float64), logs], axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StressModel:
    """Logistic regression over `CUES`."""

    weights: Float[np.ndarray, " cue"]
    bias: float
    thresholds: Mapping[str, float]
    """By language: a word is stressed from this probability on."""

    def probabilities(self, cues: Float[np.ndarray, "word cue"]) -> Float[np.ndarray, " word"]:
        """Of each word."""
        return 1 / (1 + np.exp(-np.clip(cues @ self.weights + self.bias, -30.0, 30.0)))


def stressed_words(
    samples: Float[np.ndarray, " sample"],
    sample_rate: int,
    word_times_s: Sequence[tuple[float, float]],
    *,
    expected: ExpectedProsody,
    units: Sequence[Sequence[int]] | None = None,
    language: str = "en",
) -> StressFinding:
    """Judges one clip.

    Args:
        samples: Mono, within [-1, 1].
        sample_rate: Hz.
        word_times_s: Start and end of each word in the clip.
        expected: Of the same words in plain speech.
        units: What is stressed as one: numbers of words, each word in one unit (the characters of a Mandarin word);
            None = each word on its own.
        language: "en" or "zh": chooses the threshold.

    Returns:
        With one probability a word, that of its unit. A clip of fewer than two units has nothing to compare with: no
        stress, confidence 0.
    """
    parts = [[word] for word in range(len(word_times_s))] if units is None else [list(unit) for unit in units]
    if len(parts) < 2:
        return StressFinding(indices=(), probabilities=(0.0,) * len(word_times_s), confidence=0.0)
    measured = word_prosody(pitch_track(samples, sample_rate), energy_track(samples, sample_rate), word_times_s)
    model = load_stress_model()
    by_unit = model.probabilities(stress_cues(unit_deviations(measured, expected.table, parts)))
    found = np.zeros(len(word_times_s))
    for unit, probability in zip(parts, by_unit, strict=True):
        found[unit] = probability
    indices = tuple(np.flatnonzero(found >= model.thresholds[language]).tolist())
    confidence = float(found[list(indices)].min()) if indices else float(1 - found.max())
    return StressFinding(indices=indices, probabilities=tuple(found.tolist()), confidence=confidence)


def word_prosody(
    pitch: PitchTrack, energy: EnergyTrack, word_times_s: Sequence[tuple[float, float]]
) -> Float[np.ndarray, "word measure"]:
    """Measures each word.

    Semitones of its high F0 above the line that F0 falls along; level of its loud frames (dB); natural log of its
    duration (s). NaN in semitones where a word has no voiced frames, in all measures where it lasts no time.
    """
    above = above_declination(pitch)
    floor = float(energy.level_dbfs.max(initial=-100.0)) - _RANGE_DB
    rows = []
    for start_s, end_s in word_times_s:
        if end_s - start_s < _SHORTEST_S / 2:
            rows.append([np.nan] * len(_MEASURES))
            continue
        inside = (pitch.times_s >= start_s) & (pitch.times_s < end_s) & pitch.voiced
        level = energy.level_dbfs[(energy.times_s >= start_s) & (energy.times_s < end_s)]
        level = level[level > floor]
        rows.append(
            [
                np.percentile(above[inside], _PEAK_PERCENTILE) if inside.sum() >= _FEWEST_VOICED else np.nan,
                np.percentile(level, _PEAK_PERCENTILE) if len(level) else np.nan,
                np.log(end_s - start_s),
            ]
        )
    return np.array(rows, np.float64).reshape(-1, len(_MEASURES))


def unit_deviations(
    measured: Float[np.ndarray, "word measure"],
    expected: Float[np.ndarray, "word measure"],
    units: Sequence[Sequence[int]],
) -> Float[np.ndarray, "unit measure"]:
    """How far each unit is from what is expected: means over its words, of durations the ratio of their sums.

    Args:
        measured: Of `word_prosody`.
        expected: Likewise, of plain speech.
        units: Numbers of words.
    """
    rows = []
    for unit in (list(unit) for unit in units):
        deviations = [values[np.isfinite(values)] for values in (measured - expected)[unit, :2].T]
        lasting = [word for word in unit if np.isfinite(measured[word, 2])]
        seconds, usual = (np.exp(table[lasting, 2]).sum() for table in (measured, expected))
        longer = np.log(seconds / usual) if lasting else np.nan
        rows.append([*(values.mean() if len(values) else np.nan for values in deviations), longer])
    return np.array(rows, np.float64).reshape(-1, len(_MEASURES))


def stress_cues(prosody: Float[np.ndarray, "word measure"]) -> Float[np.ndarray, "word cue"]:
    """Compares each word (or unit) with the others; columns as in `CUES`.

    Args:
        prosody: Of `unit_deviations`; at least two rows. What is not known counts as the mean.
    """
    means = np.nanmean(np.where(np.isfinite(prosody).any(axis=0), prosody, 0.0), axis=0)
    filled = np.where(np.isfinite(prosody), prosody, means)
    count = len(filled)
    columns = []
    for values in filled.T:
        others = (values.sum() - values) / (count - 1)
        ordered = np.sort(values)
        highest = np.where(values == ordered[-1], ordered[-2], ordered[-1])
        padded = np.pad(values, 1, constant_values=np.nan)
        neighbours = np.nanmean([padded[:-2], padded[2:]], axis=0)
        columns += [values - others, values - highest, values - neighbours]
    return np.clip(np.stack(columns, axis=1), -_LARGEST_CUE, _LARGEST_CUE)


def fit_stress_model(
    cues: Float[np.ndarray, "word cue"],
    stressed: Bool[np.ndarray, " word"],
    *,
    thresholds: Mapping[str, float] | None = None,
    penalty: float = 1.0,
    rounds: int = 50,
) -> StressModel:
    """Fits weights by Newton's method (iteratively reweighted least squares).

    Args:
        cues: Of `stress_cues`, words of many clips one after the other.
        stressed: Which of them are.
        thresholds: Kept in the model; None = 0.5 for both languages.
        penalty: Of the squared weights; the bias has none.
        rounds: Newton steps.
    """
    inputs = np.concatenate([cues, np.ones((len(cues), 1))], axis=1)
    ridge = np.diag([penalty] * cues.shape[1] + [0.0])
    solution = np.zeros(inputs.shape[1])
    for _ in range(rounds):
        likely = 1 / (1 + np.exp(-np.clip(inputs @ solution, -30.0, 30.0)))
        gradient = inputs.T @ (likely - stressed) + ridge @ solution
        curvature = (inputs * (likely * (1 - likely))[:, None]).T @ inputs + ridge
        step = np.linalg.solve(curvature + 1e-9 * np.eye(len(curvature)), gradient)
        solution -= step
        if np.abs(step).max() < 1e-8:
            break
    return StressModel(weights=solution[:-1], bias=float(solution[-1]), thresholds=thresholds or {"en": 0.5, "zh": 0.5})


@functools.cache
def load_stress_model() -> StressModel:
    """The model of this package."""
    stored: dict[str, Any] = json.loads((resources.files(__package__ or "") / "stress.json").read_text("utf-8"))
    weights = np.array([stored["weights"][name] for name in CUES])
    return StressModel(weights=weights, bias=stored["bias"], thresholds=stored["thresholds"])


def above_declination(pitch: PitchTrack) -> Float[np.ndarray, " frame"]:
    """Semitones of F0 above the straight line through the voiced frames."""
    semitones = 12 * np.log2(np.maximum(pitch.f0_hz, 1.0).astype(np.float64))
    if pitch.voiced.sum() < 2 * _FEWEST_VOICED:
        return semitones - (semitones[pitch.voiced].mean() if pitch.voiced.any() else 0.0)
    slope, height = np.polyfit(pitch.times_s[pitch.voiced].astype(np.float64), semitones[pitch.voiced], 1)
    return semitones - (slope * pitch.times_s + height)
