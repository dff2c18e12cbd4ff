"""Makes speech whose stress is known: raises, lengthens and loudens chosen words of a clip (WORLD).

What stands next to them is lowered a little, as speakers do, Mandarin ones above all (Xu 1999).

Only the stretch around the words is analysed and spoken anew; it joins the untouched rest where the clip is quiet, by
cross-fades. Needs the `corpus` extra. Read `stress_words`.

Source:
    Morise, Yokomori and Ozawa 2016, "WORLD: a vocoder-based high-quality speech synthesis system".
"""

import dataclasses
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
from jaxtyping import Float

from voxinstruct_jax.config import InputError

__all__ = ["Emphasis", "StressedClip", "stress_words"]

FRAME_S = 0.005
RAMP_S = 0.05
"""Over which pitch and gain rise before the words and fall after them."""
REDUCTION, REDUCED_S, REDUCED_RAMP_S = 0.3, 0.25, 0.12
"""Neighbours are lowered by this share of what the words gain, over this time on either side."""
CONTEXT_S = 0.35
"""Spoken anew on either side of the words, at most; the quietest place in its outer part makes the join."""
FADE_S = 0.01
LOWEST_HZ, HIGHEST_HZ = 60.0, 600.0
PEAK = 0.98

WordTimes = tuple[tuple[float, float], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Emphasis:
    """How much stressed words gain."""

    semitones: float = 4.0
    """Added to F0."""
    gain_db: float = 4.0
    stretch: float = 1.3
    """New duration over old."""

    def __post_init__(self) -> None:
        if not (self.stretch >= 1.0 and 0.0 <= self.semitones <= 12.0 and 0.0 <= self.gain_db <= 12.0):
            raise InputError(f"{self}: stretch must be at least 1, semitones and gain_db from 0 to 12")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StressedClip:
    """An edited clip."""

    samples: Float[np.ndarray, " sample"]
    word_times_s: WordTimes


def stress_words(
    samples: Float[np.ndarray, " sample"],
    sample_rate: int,
    word_times_s: Sequence[tuple[float, float]],
    chosen: Sequence[int],
    emphasis: Emphasis,
) -> StressedClip:
    """Stresses one word, or words side by side (the characters of a Mandarin word).

    Args:
        samples: Mono, within [-1, 1].
        sample_rate: Hz.
        word_times_s: Start and end of each word.
        chosen: Numbers of the words to stress, without gaps.
        emphasis: How much.

    Returns:
        The edited clip and where its words are now. What is further away than 0.36 s is unchanged sample by sample,
        unless peaks left [-1, 1]: then the whole clip is turned down.

    Raises:
        InputError: The words are not side by side, or have no duration.
    """
    if not chosen or list(chosen) != list(range(chosen[0], chosen[0] + len(chosen))) or chosen[0] < 0:
        raise InputError(f"words {list(chosen)} can't be stressed together; choose words side by side")
    if chosen[-1] >= len(word_times_s):
        raise InputError(f"word {chosen[-1]} can't be stressed; the clip has {len(word_times_s)} words")
    start_s, end_s = word_times_s[chosen[0]][0], word_times_s[chosen[-1]][1]
    if end_s - start_s < 2 * FRAME_S:
        raise InputError(f"word {chosen[0]} lasts {end_s - start_s:.3f} s; its time in the clip is not known")
    original = np.asarray(samples, np.float64)
    first = _quiet_place(original, sample_rate, start_s - CONTEXT_S, start_s - REDUCED_S)
    last = _quiet_place(original, sample_rate, end_s + REDUCED_S, end_s + CONTEXT_S)
    fade = round(FADE_S * sample_rate)
    begin, stop = max(0, first - fade), min(len(original), last + fade)
    local = (start_s - begin / sample_rate, end_s - begin / sample_rate)
    spoken = _respeak(original[begin:stop], sample_rate, local, emphasis)
    joined = _cross_fade(_cross_fade(original[: begin + fade], spoken, fade), original[stop - fade :], fade)
    joined *= PEAK / max(float(np.abs(joined).max()), PEAK)
    return StressedClip(
        samples=joined.astype(np.float32),
        word_times_s=tuple(
            (_moved(a, start_s, end_s, emphasis.stretch), _moved(b, start_s, end_s, emphasis.stretch))
            for a, b in word_times_s
        ),
    )


def _respeak(
    samples: Float[np.ndarray, " sample"], sample_rate: int, span_s: tuple[float, float], emphasis: Emphasis
) -> Float[np.ndarray, " longer"]:
    """Speaks a stretch anew with the span stressed; outside of the span it keeps its timing."""
    world: Any = import_module("pyworld")
    coarse, times = world.dio(samples, sample_rate, f0_floor=LOWEST_HZ, f0_ceil=HIGHEST_HZ, frame_period=FRAME_S * 1e3)
    f0 = world.stonemask(samples, coarse, times, sample_rate)
    envelope = world.cheaptrick(samples, f0, times, sample_rate)
    aperiodicity = world.d4c(samples, f0, times, sample_rate)
    length_s = len(samples) / sample_rate + (span_s[1] - span_s[0]) * (emphasis.stretch - 1)
    source_s = _source_times(np.arange(0.0, length_s, FRAME_S), span_s, emphasis.stretch)
    places = np.clip(np.round(source_s / FRAME_S).astype(int), 0, len(f0) - 1)
    raised = _prominence(source_s, span_s)
    f0 = _between(f0, source_s / FRAME_S) * 2 ** (emphasis.semitones * raised / 12)
    spoken = world.synthesize(f0, envelope[places], aperiodicity[places], sample_rate, frame_period=FRAME_S * 1e3)
    wanted = round(length_s * sample_rate)
    spoken = np.pad(spoken, (0, max(0, wanted - len(spoken))))[:wanted]
    at_s = _source_times(np.arange(wanted) / sample_rate, span_s, emphasis.stretch)
    return spoken * 10 ** (emphasis.gain_db * _prominence(at_s, span_s) / 20)


def _source_times(
    times_s: Float[np.ndarray, " frame"], span_s: tuple[float, float], stretch: float
) -> Float[np.ndarray, " frame"]:
    """Where in the original each moment of the stretched speech comes from."""
    start_s, end_s = span_s
    new_end_s = start_s + (end_s - start_s) * stretch
    return np.where(
        times_s < start_s,
        times_s,
        np.where(times_s < new_end_s, start_s + (times_s - start_s) / stretch, times_s - new_end_s + end_s),
    )


def _moved(time_s: float, start_s: float, end_s: float, stretch: float) -> float:
    """Where a moment of the original is in the stretched speech."""
    return time_s + (stretch - 1) * min(max(time_s - start_s, 0.0), end_s - start_s)


def _prominence(times_s: Float[np.ndarray, " frame"], span_s: tuple[float, float]) -> Float[np.ndarray, " frame"]:
    """1 within the span, below 0 next to it, 0 further away."""
    stressed = _bump(times_s, span_s, RAMP_S, RAMP_S)
    return (1 + REDUCTION) * stressed - REDUCTION * _bump(times_s, span_s, REDUCED_S, REDUCED_RAMP_S)


def _bump(
    times_s: Float[np.ndarray, " frame"], span_s: tuple[float, float], wider_s: float, ramp_s: float
) -> Float[np.ndarray, " frame"]:
    """1 within the span and 0 from `wider_s` on around it; raised-cosine ramps at the outer ends."""
    inside = np.minimum(times_s - span_s[0], span_s[1] - times_s) + wider_s
    return 0.5 - 0.5 * np.cos(np.pi * np.clip(inside / ramp_s, 0.0, 1.0))


def _between(f0: Float[np.ndarray, " frame"], places: Float[np.ndarray, " new"]) -> Float[np.ndarray, " new"]:
    """F0 between frames; 0 (unvoiced) wherever the nearest frame is."""
    voiced = f0 > 0
    if not voiced.any():
        return np.zeros(len(places))
    filled = np.interp(np.arange(len(f0)), np.flatnonzero(voiced), f0[voiced])
    nearest = np.clip(np.round(places).astype(int), 0, len(f0) - 1)
    return np.interp(places, np.arange(len(f0)), filled) * voiced[nearest]


def _quiet_place(samples: Float[np.ndarray, " sample"], sample_rate: int, from_s: float, to_s: float) -> int:
    """The sample in a range around which the clip is quietest."""
    hop = round(FADE_S * sample_rate)
    first, last = (min(max(round(time_s * sample_rate), 0), len(samples)) for time_s in (from_s, to_s))
    starts = np.arange(first, max(last - hop, first) + 1, hop)
    power = [np.square(samples[start : start + hop]).sum() for start in starts]
    return min(int(starts[int(np.argmin(power))]) + hop // 2, len(samples))


def _cross_fade(
    before: Float[np.ndarray, " left"], after: Float[np.ndarray, " right"], overlap: int
) -> Float[np.ndarray, " joined"]:
    """Joins two stretches that share their last and first samples."""
    overlap = min(overlap, len(before), len(after))
    rising = (np.arange(overlap) + 0.5) / max(overlap, 1)
    shared = before[len(before) - overlap :] * (1 - rising) + after[:overlap] * rising
    return np.concatenate([before[: len(before) - overlap], shared, after[overlap:]])
