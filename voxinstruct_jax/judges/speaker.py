"""Who is heard: a speaker embedding, 256 numbers that are near for clips of one voice. NumPy only.

The network and its weights are the voice encoder of Resemblyzer 0.1.4 (Apache-2.0, see `weights/`), stored in half
precision; it agrees to five digits. What it is given differs: silence is cut by level and not by WebRTC's detector, and
all speech is brought to one volume, so that volume does not count. Read `embed_speaker` first.

Source:
    Wan et al. 2018, "Generalized end-to-end loss for speaker verification", section 2.1; the sizes are Resemblyzer's.
"""

import functools
from importlib import resources

import numpy as np
from jaxtyping import Bool, Float

from voxinstruct_jax.judges.mel import slaney_filters
from voxinstruct_jax.judges.pitch import energy_track

__all__ = ["EMBEDDING_NAME", "embed_mels", "embed_speaker", "mel_power", "similarity"]

EMBEDDING_NAME = "resemblyzer-0.1.4/f16/1"
SAMPLE_RATE = 16_000
WINDOW, HOP, NUM_MELS = 400, 160, 40
PARTIAL_FRAMES = 160
PARTIAL_STEP = 77
"""Frames between partial utterances: 1.3 a second."""
LEAST_COVERAGE = 0.75
"""A last partial utterance must hold this share of speech, or it is dropped."""
LEVEL_DBFS = -30.0
LONGEST_GAP_FRAMES = 18
"""Pauses are cut down to this many 10 ms frames."""
SPEECH_RANGE_DB = 40.0
LEAST_SPEECH_S = 0.3


def embed_speaker(samples: Float[np.ndarray, " sample"], sample_rate: int) -> Float[np.ndarray, "256"] | None:
    """Embeds the voice of a clip.

    Args:
        samples: Mono, within [-1, 1].
        sample_rate: Hz.

    Returns:
        A vector of length 1 without negative components, so a cosine (`similarity`) is never negative; None where less
        than 0.3 s of the clip is loud enough to be speech.
    """
    mono = np.nan_to_num(np.asarray(samples, np.float32))
    if sample_rate != SAMPLE_RATE:
        import soxr

        mono = soxr.resample(mono, sample_rate, SAMPLE_RATE).astype(np.float32)
    speech = _levelled(_cut_pauses(mono))
    if len(speech) < LEAST_SPEECH_S * SAMPLE_RATE:
        return None
    mean = embed_mels(_partials(speech)).mean(axis=0)
    return mean / np.linalg.norm(mean)


def similarity(one: Float[np.ndarray, "256"], other: Float[np.ndarray, "256"]) -> float:
    """Cosine of two embeddings."""
    return float(one @ other)


def mel_power(samples: Float[np.ndarray, " sample"]) -> Float[np.ndarray, "frame mel"]:
    """Power in 40 mel bands every 10 ms at 16 kHz: Hann window of 25 ms around each frame, no logarithm."""
    padded = np.pad(samples, WINDOW // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    spectrum = np.fft.rfft(frames * np.hanning(WINDOW + 1)[:-1], axis=1)
    return (np.square(np.abs(spectrum)) @ slaney_filters(NUM_MELS, WINDOW, SAMPLE_RATE).T).astype(np.float32)


def embed_mels(mels: Float[np.ndarray, "partial frame mel"]) -> Float[np.ndarray, "partial 256"]:
    """Runs the network: three layers of LSTM, the last output through a linear layer, ReLU, length 1."""
    weights = _weights()
    x = np.swapaxes(mels, 0, 1)
    for layer in range(3):
        x = _lstm(x, *(weights[f"lstm.{name}_l{layer}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")))
    found = np.maximum(x[-1] @ weights["linear.weight"].T + weights["linear.bias"], 0.0)
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)


def _lstm(
    x: Float[np.ndarray, "time partial dim"],
    input_kernel: Float[np.ndarray, "gates dim"],
    recurrent_kernel: Float[np.ndarray, "gates hidden"],
    input_bias: Float[np.ndarray, " gates"],
    recurrent_bias: Float[np.ndarray, " gates"],
) -> Float[np.ndarray, "time partial hidden"]:
    """One layer from a zero state; gates in the order input, forget, cell, output."""
    given = x @ input_kernel.T + (input_bias + recurrent_bias)
    hidden = recurrent_kernel.shape[1]
    kernel = np.ascontiguousarray(recurrent_kernel.T)
    output = cell = np.zeros((x.shape[1], hidden), np.float32)
    outputs = np.empty((len(x), x.shape[1], hidden), np.float32)
    for place, step in enumerate(given):
        gates = step + output @ kernel
        candidate = np.tanh(gates[:, 2 * hidden : 3 * hidden])
        enter, forget, _, leave = np.split(0.5 * np.tanh(0.5 * gates) + 0.5, 4, axis=1)  # sigmoids that never overflow
        cell = forget * cell + enter * candidate
        output = outputs[place] = leave * np.tanh(cell)
    return outputs


def _partials(speech: Float[np.ndarray, " sample"]) -> Float[np.ndarray, "partial frame mel"]:
    """Cuts speech into partial utterances of 1.6 s that cover it; the last one is filled up with silence."""
    num_frames = -(-(len(speech) + 1) // HOP)
    starts = list(range(0, max(1, num_frames - PARTIAL_FRAMES + PARTIAL_STEP + 1), PARTIAL_STEP))
    covered = (len(speech) - starts[-1] * HOP) / (PARTIAL_FRAMES * HOP)
    if covered < LEAST_COVERAGE and len(starts) > 1:
        starts.pop()
    mels = mel_power(np.pad(speech, (0, max(0, (starts[-1] + PARTIAL_FRAMES) * HOP - len(speech)))))
    return np.stack([mels[start : start + PARTIAL_FRAMES] for start in starts])


def _cut_pauses(samples: Float[np.ndarray, " sample"]) -> Float[np.ndarray, " kept"]:
    """Leaves out what is quieter than speech, but for up to 90 ms on each side of it."""
    levels = energy_track(samples, SAMPLE_RATE).level_dbfs
    if not len(levels):
        return samples[:0]
    loud = (levels > levels.max() - SPEECH_RANGE_DB) & (levels > -80.0)
    return samples[: len(levels) * HOP][np.repeat(_widen(loud, LONGEST_GAP_FRAMES // 2), HOP)]


def _levelled(speech: Float[np.ndarray, " sample"]) -> Float[np.ndarray, " sample"]:
    """Brings speech to -30 dBFS, since the network hears volume; the original raises what is softer and no more."""
    if not len(speech):
        return speech
    level = 10 * np.log10(max(float(np.mean(np.square(speech, dtype=np.float64))), 1e-12))
    return speech * np.float32(10 ** ((LEVEL_DBFS - level) / 20))


def _widen(flags: Bool[np.ndarray, " frame"], reach: int) -> Bool[np.ndarray, " frame"]:
    counts = np.convolve(flags, np.ones(2 * reach + 1), "same") if len(flags) > 2 * reach else flags
    return np.asarray(counts) > 0.5


@functools.cache
def _weights() -> dict[str, np.ndarray]:
    from safetensors.numpy import load

    stored = (resources.files("voxinstruct_jax.judges") / "weights" / "speaker.safetensors").read_bytes()
    return {name: array.astype(np.float32) for name, array in load(stored).items()}
