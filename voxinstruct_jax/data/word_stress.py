"""Finds the stressed words of a clip by its transcript: word times, what the phones lead to expect, and the judge.

`expected_prosody.json` holds what each phone adds to a word in plain speech, fitted by `fit_expected`. Read
`StressFinder`.
"""

import dataclasses
import functools
import itertools
import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module, resources
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from voxinstruct_jax.config import InputError
from voxinstruct_jax.data.word_times import WordAligner, WordTimes, open_word_aligner
from voxinstruct_jax.judges.stress import ExpectedProsody, StressFinding, stressed_words
from voxinstruct_jax.text.normalizer import HAN_CHARACTER
from voxinstruct_jax.text.words import split_words

__all__ = ["StressFinder", "expected_prosody", "fit_expected", "open_stress_finder", "stress_units"]

_BEFORE_PAUSE = "before a pause"
_OTHER = "other"
_SHORTEST_S = 0.03

Table = Mapping[str, Sequence[float]]
"""By phone label: seconds that it adds to a word; semitones and dB, of which a word gets the mean of its phones'."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StressFinder:
    """An opened aligner and all that the judge needs."""

    aligner: WordAligner

    def find(
        self,
        samples: Float[np.ndarray, " sample"],
        sample_rate: int,
        transcript: str,
        word_times_s: WordTimes | None = None,
    ) -> StressFinding | None:
        """Judges one clip.

        Args:
            samples: Mono, within [-1, 1].
            sample_rate: Hz.
            transcript: All that is said.
            word_times_s: Of `WordAligner.word_times`; None looks for them.

        Returns:
            Indices are those of `text.words.split_words(transcript)`. None where the transcript can't have been spoken
            in the clip.

        Raises:
            InputError: The transcript is Mandarin and jieba, which finds its words, is not installed.
        """
        times = word_times_s or self.aligner.word_times(samples, sample_rate, transcript)
        if times is None:
            return None
        return stressed_words(
            samples,
            sample_rate,
            times,
            expected=expected_prosody(self.aligner.word_phones(transcript), transcript),
            units=stress_units(transcript),
            language="zh" if len(HAN_CHARACTER.findall(transcript)) * 2 > len(times) else "en",
        )


def open_stress_finder(voice_folder: Path) -> StressFinder:
    """Opens it with the aligner of a voice; raises as `open_word_aligner` does."""
    return StressFinder(aligner=open_word_aligner(voice_folder))


def stress_units(transcript: str) -> tuple[tuple[int, ...], ...]:
    """Numbers of the words that are stressed as one: the characters of a Mandarin word, an English word alone.

    Raises:
        InputError: The text is Mandarin and jieba, which finds its words, is not installed.
    """
    words = split_words(transcript)
    if not HAN_CHARACTER.search(transcript):
        return tuple((place,) for place in range(len(words)))
    ends = np.cumsum([len(part) for part in _segmenter().cut(transcript)])
    owners = [int(np.searchsorted(ends, word.start, side="right")) for word in words]
    groups = itertools.groupby(range(len(words)), key=owners.__getitem__)
    return tuple(tuple(places) for _, places in groups)


def expected_prosody(
    word_phones: Sequence[Sequence[str]], transcript: str, table: Table | None = None
) -> ExpectedProsody:
    """Predicts plain speech.

    Args:
        word_phones: Of `WordAligner.word_phones(transcript)`.
        transcript: Its marks say where a pause follows.
        table: By phone; None takes that of this package.
    """
    known = _table() if table is None else table
    rows = []
    for labels in _bags(word_phones, transcript):
        values = np.array([known.get(label, known[_OTHER]) for label in labels])
        rows.append([values[:, 0].sum(), values[:, 1].mean(), values[:, 2].mean()] if len(values) else [0.0] * 3)
    found = np.array(rows).reshape(-1, 3)
    return ExpectedProsody(
        duration_s=tuple(np.maximum(found[:, 0], _SHORTEST_S).tolist()),
        semitones=tuple(found[:, 1].tolist()),
        level_db=tuple(found[:, 2].tolist()),
    )


def fit_expected(
    clips: Sequence[tuple[Sequence[Sequence[str]], str, Float[np.ndarray, "word measure"]]],
    *,
    penalty: float = 5.0,
    rounds: int = 4,
) -> dict[str, list[float]]:
    """Fits a table by ridge regression, within sentences.

    Args:
        clips: Phones of each word, transcript, and `judges.stress.word_prosody` of plain speech.
        penalty: Of the squared differences from the mean phone.
        rounds: Turns between the tempo of each clip and the durations of phones.
    """
    bags = [_bags(phones, transcript) for phones, transcript, _ in clips]
    labels = [*sorted({label for bag in bags for word in bag for label in word}), _OTHER]
    places = {label: place for place, label in enumerate(labels)}
    counts = [np.array([np.bincount([places[label] for label in word], minlength=len(labels)) for word in bag])
              for bag in bags]  # fmt: skip
    measured = [prosody for _, _, prosody in clips]
    seconds = _fit_seconds(counts, measured, penalty, rounds)
    others = [_fit_deviations(counts, [prosody[:, column] for prosody in measured], penalty) for column in (0, 1)]
    columns = np.stack([seconds, *others], axis=1)
    columns[-1] = np.median(columns[:-1], axis=0)
    return {label: np.round(row, 4).tolist() for label, row in zip(labels, columns, strict=True)}


def _fit_seconds(
    counts: Sequence[np.ndarray], measured: Sequence[np.ndarray], penalty: float, rounds: int
) -> Float[np.ndarray, " label"]:
    """Durations of words are sums over their labels, times the tempo of the clip; a priori all last alike."""
    inputs, seconds = [], []
    for count, prosody in zip(counts, measured, strict=True):
        kept = np.isfinite(prosody[:, 2]) & (count.sum(axis=1) > 0)
        inputs.append(count[kept].astype(float))
        seconds.append(np.exp(prosody[kept, 2]))
    stacked = np.concatenate(inputs)
    prior = np.full(stacked.shape[1], np.concatenate(seconds).sum() / stacked.sum())
    found = prior
    for _ in range(rounds):
        tempo = [words.sum() / max((count @ found).sum(), 1e-6) for words, count in zip(seconds, inputs, strict=True)]
        relative = [words / max(pace, 1e-6) for words, pace in zip(seconds, tempo, strict=True)]
        found = prior + _ridge(stacked, np.concatenate(relative) - stacked @ prior, penalty)
    return found


def _fit_deviations(
    counts: Sequence[np.ndarray], values: Sequence[np.ndarray], penalty: float
) -> Float[np.ndarray, " label"]:
    """Measures of words are means over their phones, up to a constant a clip."""
    inputs, targets = [], []
    for count, wanted in zip(counts, values, strict=True):
        kept = np.isfinite(wanted) & (count.sum(axis=1) > 0)
        if kept.sum() > 1:
            shares = count[kept] / count[kept].sum(axis=1, keepdims=True)
            inputs.append(shares - shares.mean(axis=0))
            targets.append(wanted[kept] - wanted[kept].mean())
    return _ridge(np.concatenate(inputs), np.concatenate(targets), penalty)


def _ridge(
    inputs: Float[np.ndarray, "word label"], targets: Float[np.ndarray, " word"], penalty: float
) -> Float[np.ndarray, " label"]:
    return np.linalg.solve(inputs.T @ inputs + penalty * np.eye(inputs.shape[1]), inputs.T @ targets)


def _bags(word_phones: Sequence[Sequence[str]], transcript: str) -> list[list[str]]:
    """Phones of each word, with a mark where a pause may follow."""
    words = split_words(transcript)
    nexts = [*(word.start for word in words[1:]), len(transcript)]
    bags = []
    for phones, word, following in zip(word_phones, words, nexts, strict=True):
        pause = following == len(transcript) or any(not c.isspace() for c in transcript[word.end : following])
        bags.append([*phones, *([_BEFORE_PAUSE] if phones and pause else [])])
    return bags


@functools.cache
def _segmenter() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it names a module that setuptools is about to drop
        try:
            jieba = import_module("jieba")
        except ImportError as error:
            raise InputError(
                "jieba is not installed, which finds Mandarin words; run with `uv run --extra prepare` in a clone, "
                "or install voxinstruct-jax[prepare]"
            ) from error
    jieba.setLogLevel(logging.WARNING)
    return jieba


@functools.cache
def _table() -> Table:
    return json.loads((resources.files(__package__ or "") / "expected_prosody.json").read_text("utf-8"))["phones"]
