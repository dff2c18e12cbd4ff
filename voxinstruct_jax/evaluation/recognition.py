"""Intelligibility: what an ASR judge hears against what should have been said, item by item and over a set.

Read `judge_items` first. Missing or unreadable audio counts as all deletions, never as left out.

Source: VoxInstruct, section 5.1 (WER); the protocol here is the project's own: corpus rates over counts.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from voxinstruct_jax.audio.waveform import read_audio
from voxinstruct_jax.config import InputError, to_dict
from voxinstruct_jax.judges.asr import ErrorCounts, Unit, error_counts

__all__ = ["Judged", "Listener", "Spoken", "Summary", "judge_items", "summarise", "write_judged"]

LISTENING_RATE = 16_000
LONGEST_S = 60.0  # a runaway is judged by its first minute, and flagged
_UNITS: dict[str, tuple[Unit, ...]] = {"en": ("word",), "zh": ("character", "pinyin")}
_RATE_NAMES: dict[Unit, str] = {"word": "wer", "character": "cer", "pinyin": "pinyin_error_rate", "mixed": "mer"}


@runtime_checkable
class Listener(Protocol):
    """What can hear: `judges.asr.Asr`, or a stand-in."""

    def transcribe(self, samples: Float[np.ndarray, " sample"], sample_rate: int, language: str | None = None) -> str:
        """Returns the words that are heard."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spoken:
    """An utterance to be judged.

    Attributes:
        id: Names it in the results.
        audio: Its sound file.
        transcript: What should have been said.
        language: "en" or "zh".
    """

    id: str
    audio: Path
    transcript: str
    language: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judged:
    """What became of an utterance.

    Attributes:
        id: As in `Spoken`.
        language: As in `Spoken`.
        transcript: As in `Spoken`.
        heard: What the judge heard.
        counts: Errors, one entry a unit; empty where it could not be judged.
        missing: The audio is missing or unreadable; all its words count as deleted.
        problem: What was wrong with the audio, or why the item was not judged; "" otherwise.
    """

    id: str
    language: str
    transcript: str
    heard: str
    counts: tuple[ErrorCounts, ...]
    missing: bool = False
    problem: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """A rate over a set of items.

    Attributes:
        name: wer, cer, pinyin_error_rate or mer.
        language: Of the items.
        value: Errors a reference token, over the whole set; None if nothing was judged.
        errors: Sum of errors.
        length: Sum of reference tokens.
        evaluated: Items judged, missing audio included.
        total: Items of this language.
        missing: Items whose audio was missing or unreadable.
        perfect: Items without an error.
    """

    name: str
    language: str
    value: float | None
    errors: int
    length: int
    evaluated: int
    total: int
    missing: int
    perfect: int


def judge_items(
    items: Iterable[Spoken], listener: Listener, *, advance: Callable[[], None] = lambda: None
) -> list[Judged]:
    """Listens to each item and counts the errors.

    Args:
        items: What was asked for.
        listener: The ASR judge.
        advance: Called after each item, for a progress bar.
    """
    judged = []
    for item in items:
        judged.append(_judge(item, listener))
        advance()
    return judged


def summarise(judged: Sequence[Judged]) -> list[Summary]:
    """Adds the counts up: a row a language and unit, in the order in which they occur."""
    summaries = []
    for language in dict.fromkeys(item.language for item in judged):
        own = [item for item in judged if item.language == language]
        for place, unit in enumerate(_UNITS.get(language, ("mixed",))):
            counted = [item.counts[place] for item in own if item.counts]
            errors, length = sum(count.errors for count in counted), sum(count.length for count in counted)
            summaries.append(
                Summary(
                    name=_RATE_NAMES[unit],
                    language=language,
                    value=errors / length if length else None,
                    errors=errors,
                    length=length,
                    evaluated=len(counted),
                    total=len(own),
                    missing=sum(item.missing for item in own),
                    perfect=sum(count.errors == 0 for count in counted),
                )
            )
    return summaries


def write_judged(path: str | os.PathLike[str], judged: Sequence[Judged]) -> None:
    """Writes a JSON line an item, sorted by id, so that equal results give equal bytes; whole or not at all."""
    place = Path(path)
    lines = [json.dumps(to_dict(item), ensure_ascii=False, sort_keys=True) for item in sorted(judged, key=_id)]
    partial = place.with_name(f".{place.name}.part")
    try:
        partial.write_text("".join(line + "\n" for line in lines), "utf-8")
        partial.replace(place)
    except OSError as error:
        raise InputError(f"{place}: cannot be written ({error}); choose another folder") from error


def _judge(item: Spoken, listener: Listener) -> Judged:
    heard, problem, missing = "", "", False
    try:
        samples = read_audio(item.audio, LISTENING_RATE)
    except InputError as error:
        problem, missing = str(error), True
    else:
        limit = int(LONGEST_S * LISTENING_RATE)
        if len(samples) > limit:
            problem = f"{len(samples) / LISTENING_RATE:.0f} s long: judged by its first {LONGEST_S:.0f} s"
        heard = listener.transcribe(samples[:limit], LISTENING_RATE, item.language)
    try:
        units = _UNITS.get(item.language, ("mixed",))
        counts = tuple(error_counts(item.transcript, heard, item.language, unit) for unit in units)
    except InputError as error:
        counts, problem = (), str(error)
    return Judged(
        id=item.id,
        language=item.language,
        transcript=item.transcript,
        heard=heard,
        counts=counts,
        missing=missing,
        problem=problem,
    )


def _id(item: Judged) -> str:
    return item.id
