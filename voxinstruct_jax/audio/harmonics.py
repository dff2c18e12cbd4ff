"""A harmonic source, which voiced speech is filtered from, and pitch as classes.

A network that must make each harmonic's phase from features errs from frame to frame, which is heard as hoarseness. The
pitch alone tells these phases but for a slowly varying offset.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

__all__ = [
    "HIGHEST_HZ",
    "LOWEST_HZ",
    "NUM_PITCH_CLASSES",
    "Intonation",
    "intone",
    "likely_pitch",
    "no_intonation",
    "pitch_loss",
    "pulse_train",
]

LOWEST_HZ, HIGHEST_HZ = 60.0, 500.0
"""Of speech; a wider range would let trackers jump octaves."""
CLASSES_AN_OCTAVE = 36
NUM_PITCH_CLASSES = 2 + math.ceil(CLASSES_AN_OCTAVE * math.log2(HIGHEST_HZ / LOWEST_HZ))
"""Class 0 = unvoiced; then pitches a third of a semitone apart, from `LOWEST_HZ` on."""
NEIGHBOURS = 2
"""Classes on each side of the likeliest one that the pitch is a mean of."""
SMALLEST_SINE = 1e-4
MOST_SEMITONES = 7.0
"""That `intone` moves a clip by: farther off, another pitch sounds like another speaker with a wrong throat."""
PROMPT_SEMITONES = 1.0
"""Between the medians of a voice prompt and of what follows it: so much do sentences of a speaker differ."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Intonation:
    """How the pitch that a decoder tells is to be changed. Ranges are of the median of a clip's voiced frames, Hz."""

    lift: Float[Array | np.ndarray, "clip frame"]
    """Semitones that codec frames are raised by."""
    own: Bool[Array | np.ndarray, "clip frame"]
    """Which codec frames the median is taken of: not those of a voice prompt or of padding."""
    prompt: Bool[Array | np.ndarray, "clip frame"]
    """Codec frames of a voice prompt."""
    centres: Float[Array | np.ndarray, "clip group"]
    """Pitch that is usual in each group of speakers; the group whose is nearest to the clip's median counts."""
    lowest: Float[Array | np.ndarray, "clip group"]
    highest: Float[Array | np.ndarray, "clip group"]


def no_intonation(clips: int, frames: int) -> Intonation:
    """Nothing to be changed."""
    whole = jnp.ones((clips, 1))
    return Intonation(
        lift=jnp.zeros((clips, frames)),
        own=jnp.ones((clips, frames), bool),
        prompt=jnp.zeros((clips, frames), bool),
        centres=whole,
        lowest=LOWEST_HZ / 2 * whole,
        highest=2 * HIGHEST_HZ * whole,
    )


def pulse_train(pitch: Float[Array, "batch frame"], hop_length: int, sample_rate: int) -> Float[Array, "batch sample"]:
    """Returns the sum of all harmonics below half the sample rate, each a cosine of amplitude 1.

    Pitch is linear in time from one frame's middle to the next one's, and phase goes on through unvoiced frames, which
    have no harmonics.

    Args:
        pitch: Fundamental frequency (Hz); 0 = unvoiced.
        hop_length: Samples a frame.
        sample_rate: Hz.

    Source:
        Band-limited pulses in closed form, a Dirichlet kernel: Moorer 1976, "The Synthesis of Complex Audio Spectra by
        Means of Discrete Summation Formulae", equation 3.
    """
    voiced = pitch > 0
    frequency = _between_frames(_nearest_voiced(pitch, voiced), hop_length)
    cycles = (frequency / sample_rate).reshape(*pitch.shape, hop_length)
    # Whole cycles are dropped frame by frame: in float32 a sum over seconds of samples would lose the phase.
    totals = cycles.sum(-1) % 1.0
    before = (jnp.cumsum(totals, axis=-1) - totals) % 1.0
    phase = ((before[..., None] + jnp.cumsum(cycles, axis=-1)) % 1.0).reshape(frequency.shape)
    harmonics = jnp.floor(sample_rate / 2 / frequency)
    sine = jnp.sin(jnp.pi * phase)
    near_pulse = jnp.abs(sine) < SMALLEST_SINE
    ratio = jnp.sin((2 * harmonics + 1) * jnp.pi * phase) / (2 * jnp.where(near_pulse, 1.0, sine))
    return _between_frames(voiced.astype(pitch.dtype), hop_length) * (
        jnp.where(near_pulse, harmonics + 0.5, ratio) - 0.5
    )


def likely_pitch(logits: Float[Array, "*batch pitch_class"]) -> Float[Array, "*batch"]:
    """Returns the pitch (Hz) that classes tell: a mean about the likeliest one; 0 where likelier unvoiced than not."""
    probabilities = jax.nn.softmax(logits, axis=-1)
    pitches = probabilities[..., 1:]
    places = jnp.arange(NUM_PITCH_CLASSES - 1)
    near = jnp.abs(places - jnp.argmax(pitches, axis=-1)[..., None]) <= NEIGHBOURS
    weights = jnp.where(near, pitches, 0.0)
    place = (weights * places).sum(-1) / jnp.maximum(weights.sum(-1), 1e-9)
    return jnp.where(probabilities[..., 0] < 0.5, LOWEST_HZ * 2 ** (place / CLASSES_AN_OCTAVE), 0.0)


def intone(pitch: Float[Array, "clip mel_frame"], intonation: Intonation) -> Float[Array, "clip mel_frame"]:
    """Lifts frames, then moves the clip as a whole until its median is in range, by at most `MOST_SEMITONES`.

    Behind a voice prompt the range is narrowed to `PROMPT_SEMITONES` about the prompt's median, unless it lies beyond.

    Args:
        pitch: Hz; 0 = unvoiced. Some whole number of mel frames is a codec frame.
        intonation: Of the codec frames.
    """
    ratio = pitch.shape[1] // intonation.lift.shape[1]
    semitones = _between_frames(jnp.asarray(intonation.lift), ratio)
    lifted = jnp.log2(jnp.maximum(pitch, LOWEST_HZ)) + semitones / 12

    def median_of(frames: Bool[Array | np.ndarray, "clip frame"]) -> Float[Array, "clip 1"]:
        counted = (pitch > 0) & jnp.repeat(jnp.asarray(frames), ratio, axis=1)
        return jnp.nanmedian(jnp.where(counted, lifted, jnp.nan), axis=1, keepdims=True)

    median, prompt = median_of(intonation.own), median_of(intonation.prompt)
    centres, lowest, highest = map(jnp.log2, (intonation.centres, intonation.lowest, intonation.highest))
    group = jnp.argmin(jnp.abs(centres - median), axis=1)[:, None]
    low, high = (jnp.take_along_axis(bound, group, axis=1) for bound in (lowest, highest))
    about = jnp.clip(prompt, low, high)  # NaN where there is no prompt
    low, high = (
        jnp.where(jnp.isnan(about), bound, jnp.clip(about + side * PROMPT_SEMITONES / 12, low, high))
        for bound, side in ((low, -1), (high, 1))
    )
    most = MOST_SEMITONES / 12
    move = jnp.clip(jnp.clip(median, low, high) - median, -most, most)
    moved = lifted + jnp.where(jnp.isnan(move), 0.0, move)
    return jnp.where(pitch > 0, 2**moved, 0.0)


def pitch_loss(logits: Float[Array, "*batch pitch_class"], pitch: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Cross-entropy of classes; a pitch between two of them is shared out to both.

    Args:
        logits: Of the classes.
        pitch: Hz; 0 = unvoiced.
    """
    place = CLASSES_AN_OCTAVE * jnp.log2(jnp.clip(pitch, LOWEST_HZ, HIGHEST_HZ) / LOWEST_HZ)
    lower = jnp.where(pitch > 0, 1 + jnp.floor(place), 0).astype(jnp.int32)
    upper = jnp.where(pitch > 0, lower + 1, 0)
    share = jnp.where(pitch > 0, place - jnp.floor(place), 0.0)

    def loss(target: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.minimum(target, NUM_PITCH_CLASSES - 1))

    return (1 - share) * loss(lower) + share * loss(upper)


def _nearest_voiced(
    pitch: Float[Array, "batch frame"], voiced: Bool[Array, "batch frame"]
) -> Float[Array, "batch frame"]:
    """Pitch of the last voiced frame; before the first one, of that."""
    places = jnp.arange(pitch.shape[1])
    last = jax.lax.cummax(jnp.where(voiced, places, -1), axis=1)
    source = jnp.where(last < 0, jnp.argmax(voiced, axis=1)[:, None], last)
    found = jnp.take_along_axis(pitch, source, axis=1)
    return jnp.where(found > 0, found, LOWEST_HZ)


def _between_frames(values: Float[Array, "batch frame"], hop_length: int) -> Float[Array, "batch sample"]:
    """Linear from one frame's middle to the next one's, constant before the first and after the last."""
    padded = jnp.pad(values, ((0, 0), (1, 1)), mode="edge")
    share = jnp.arange(hop_length) / hop_length
    joined = padded[:, :-1, None] * (1 - share) + padded[:, 1:, None] * share
    batch, frames = values.shape
    start = hop_length // 2
    return joined.reshape(batch, -1)[:, start : start + frames * hop_length]
