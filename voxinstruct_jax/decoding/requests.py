"""What the autoregressive loop takes and gives: one request on the host, a batch of them on the device, the result.

Requests are stacked to static widths (`batch_requests`); the loop itself is `decoding.autoregressive`.
"""

import dataclasses
import enum
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32, Key

from voxinstruct_jax.attributes import STYLE_CLASSES
from voxinstruct_jax.config import InputError
from voxinstruct_jax.guidance import Branch, Guidance, acoustic_weights, semantic_weights
from voxinstruct_jax.vocabulary import Prompt

__all__ = ["ARBatch", "ARRequest", "ARResult", "Capacity", "FinishReason", "Limits", "batch_requests"]


class FinishReason(enum.IntEnum):
    """Why a request ended; `name.lower()` is what results say. The last limit that cut something wins."""

    STOP = 0
    """The model ended both stages."""
    MAX_SEMANTIC = 1
    """EOS1 was forced; the acoustic tokens ended by themselves."""
    MAX_ACOUSTIC = 2
    """EOS2 was forced."""
    MAX_TOTAL = 3
    """The whole sequence is full."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Lengths that a request must keep, voice prompt not counted except in `max_total`; one number a request."""

    min_semantic: Int32[Array, "*batch"] | int
    """Semantic tokens before EOS1 is allowed."""
    max_semantic: Int32[Array, "*batch"] | int
    """Semantic tokens after which EOS1 is forced."""
    min_acoustic: Int32[Array, "*batch"] | int
    """Frames before EOS2 is allowed; the first frame is never EOS2."""
    max_acoustic: Int32[Array, "*batch"] | int
    """Frames after which EOS2 is forced; at least one frame comes. 0 = the request ends with its semantic tokens."""
    max_total: Int32[Array, "*batch"] | int
    """Tokens from BOS to EOS2, both and the voice prompt counted."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Capacity:
    """Static room of a program; a request's limits are cut to it."""

    semantic: int
    """Semantic tokens."""
    acoustic: int
    """Frames."""


FREE_TEMPO = ((0.0, float("inf")),) * len(STYLE_CLASSES["speed"])
"""Where nothing is known of speeds."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ARRequest:
    """One request on the host."""

    text_tokens: Int32[np.ndarray, "text channel"]
    """Instruction as ids of the text tokenizer."""
    prompt: Prompt
    """Language, or none to predict it, and the voice prompt (`vocabulary.build_prompt`)."""
    guidance: Guidance
    limits: Limits
    seed: int
    """All randomness of the request follows from it."""
    tempo: Sequence[tuple[float, float]] = FREE_TEMPO
    """Least and most half frames that the words last in each class of speed; kept where that class is asked for."""
    stretch: Float32[np.ndarray, " text"] | None = None
    """Factors of the durations that an aligned model gives text tokens; None = 1."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class ARBatch:
    """Requests as arrays of static widths; what the widths leave over never changes a result."""

    text_tokens: Int32[Array, "batch text channel"]
    """0 = padding."""
    text_lengths: Int32[Array, " batch"]
    """Text slots that are attended and counted in positions; those that hold padding have empty rows."""
    prefix: Int32[Array, "batch prefix"]
    """BOS LANG ST.. (ids); LANG 0 = to be predicted."""
    prefix_lengths: Int32[Array, " batch"]
    """At least 2."""
    acoustic_prefix: Int32[Array, "batch frame"]
    """First-codebook ids of the voice prompt."""
    acoustic_prefix_lengths: Int32[Array, " batch"]
    semantic_weights: Float32[Array, "batch branch"]
    """Guidance in the semantic stage."""
    acoustic_weights: Float32[Array, "batch branch"]
    """Guidance in the acoustic stage."""
    limits: Limits
    keys: Key[Array, " batch"]
    tempo: Float32[Array, "batch speed 2"]
    stretch: Float32[Array, "batch text"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class ARResult:
    """What was generated, voice prompt left out; 0 beyond the lengths. NumPy arrays once it is brought to the host."""

    language: Int32[Array | np.ndarray, " batch"]
    """Token id, predicted or as asked."""
    semantic_tokens: Int32[Array | np.ndarray, "batch semantic"]
    """Units from 0."""
    semantic_lengths: Int32[Array | np.ndarray, " batch"]
    codes: Int32[Array | np.ndarray, "batch frame"]
    """First codebook, from 0."""
    code_lengths: Int32[Array | np.ndarray, " batch"]
    finish_reasons: Int32[Array | np.ndarray, " batch"]
    """`FinishReason`."""
    durations: Float32[Array | np.ndarray, "batch text"]
    """Half frames that each text token was given; 0 in models that are not aligned."""
    classes: Float32[Array | np.ndarray, "batch class"]
    """Probabilities of the attributes' classes, as they were read off the instruction; 0 where none are read."""


def batch_requests(
    requests: Sequence[ARRequest],
    branches: tuple[Branch, ...],
    *,
    text_width: int,
    prefix_width: int = 2,
    acoustic_prefix_width: int = 0,
) -> ARBatch:
    """Stacks requests into arrays of the given widths.

    Args:
        requests: All with as many text channels.
        branches: Those that the batch runs (`guidance.needed_branches`).
        text_width: Text slots, at least each request's text tokens.
        prefix_width: Slots for BOS, LANG and the prompt's semantic tokens.
        acoustic_prefix_width: Slots for the prompt's frames.

    Raises:
        InputError: A text or a prompt is longer than its width.
    """
    columns = {
        "text_tokens": ([request.text_tokens for request in requests], text_width),
        "prefix": ([request.prompt.semantic_prefix for request in requests], prefix_width),
        "acoustic_prefix": ([request.prompt.acoustic_prefix[0] for request in requests], acoustic_prefix_width),
    }
    weights = {
        rule.__name__: jnp.asarray(np.stack([rule(request.guidance)[list(branches)] for request in requests]))
        for rule in (semantic_weights, acoustic_weights)
    }
    return ARBatch(
        **{name: _stack(rows, width, name) for name, (rows, width) in columns.items()},
        text_lengths=_lengths(columns["text_tokens"][0]),
        prefix_lengths=_lengths(columns["prefix"][0]),
        acoustic_prefix_lengths=_lengths(columns["acoustic_prefix"][0]),
        **weights,
        limits=jax.tree.map(lambda *values: jnp.asarray(values, jnp.int32), *(request.limits for request in requests)),
        keys=jnp.stack([jax.random.key(request.seed) for request in requests]),
        tempo=jnp.asarray([request.tempo for request in requests], jnp.float32),
        stretch=jnp.asarray(np.stack([_stretch(request, text_width) for request in requests])),
    )


def _stretch(request: ARRequest, width: int) -> Float32[np.ndarray, " text"]:
    factors = np.ones(width, np.float32)
    if request.stretch is not None:
        factors[: len(request.stretch)] = request.stretch
    return factors


def _lengths(rows: Sequence[np.ndarray]) -> Int32[Array, " batch"]:
    return jnp.asarray([len(row) for row in rows], jnp.int32)


def _stack(rows: Sequence[np.ndarray], width: int, name: str) -> Int32[Array, "batch width ..."]:
    longest = max(len(row) for row in rows)
    if longest > width:
        raise InputError(f"{name}: {longest} tokens do not fit {width} slots; shorten it or choose a wider bucket")
    padded = [np.pad(row, [(0, width - len(row))] + [(0, 0)] * (row.ndim - 1)) for row in rows]
    return jnp.asarray(np.stack(padded), jnp.int32)
