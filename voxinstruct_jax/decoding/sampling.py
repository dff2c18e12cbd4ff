"""From logits to one token a row: which ids a stage allows, the filters, the draw.

All functions are pure, work on the device and treat each row alone. Read `sample_tokens` first; guidance is mixed in
before (`voxinstruct_jax.guidance`), stages and lengths are the loop's (`decoding.autoregressive`).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32, Key

from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.decoding.rules import FIXED, DecodingRules
from voxinstruct_jax.vocabulary import Vocabulary

__all__ = [
    "SamplingConfig",
    "acoustic_mask",
    "filter_logits",
    "fold_keys",
    "language_mask",
    "mask_logits",
    "repetition_share",
    "sample_tokens",
    "semantic_mask",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How tokens are drawn from guided logits.

    Raises:
        ConfigError: A value is out of its range.

    Source:
        Top-k, top-p and temperature: the released VoxInstruct inference script. Repetition: VALL-E 2 (Chen et al.,
        2024), repetition aware sampling, with its window and ratio.
    """

    semantic_top_k: int = 5
    """Semantic tokens to draw from; at least 1."""
    acoustic_top_k: int = 50
    """Acoustic tokens to draw from; at least 1."""
    top_p: float = 0.95
    """Probability mass to draw from, in (0, 1]; 1 keeps all."""
    temperature: float = 0.8
    """Divides the filtered logits; 0 takes the most likely token."""
    repetition_window: int = 10
    """Preceding tokens among which repetitions are counted; at least 1."""
    repetition_ratio: float = 0.1
    """Share of the window above which a token is drawn anew, unfiltered, in [0, 1]; 1 never does."""

    def __post_init__(self) -> None:
        for name in ("semantic_top_k", "acoustic_top_k", "repetition_window"):
            if getattr(self, name) < 1:
                raise ConfigError(f"sampling.{name}: {getattr(self, name)} must be at least 1")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"sampling.top_p: {self.top_p} must be above 0 and at most 1; 1 keeps every token")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError(f"sampling.temperature: {self.temperature} must be a number from 0 up; 0 is greedy")
        if not 0 <= self.repetition_ratio <= 1:
            raise ConfigError(f"sampling.repetition_ratio: {self.repetition_ratio} must be in 0 to 1; 1 is off")

    @classmethod
    def release(cls) -> "SamplingConfig":
        """As the released inference script: no token is drawn again."""
        return cls(repetition_ratio=1.0)


def language_mask(vocabulary: Vocabulary) -> Bool[np.ndarray, " vocab"]:
    """Allows the language ids alone."""
    ids = np.arange(vocabulary.size)
    return (ids >= vocabulary.language_offset) & (ids < vocabulary.semantic_offset)


def semantic_mask(vocabulary: Vocabulary, rules: DecodingRules = FIXED) -> Bool[np.ndarray, " vocab"]:
    """Allows semantic tokens and EOS1, exactly; the release is off by two and draws padding and languages too."""
    ids = np.arange(vocabulary.size)
    units = ids <= vocabulary.num_semantic if rules.shifted_semantic_ids else np.asarray(vocabulary.is_semantic(ids))
    return units | (ids == vocabulary.eos1)


def acoustic_mask(vocabulary: Vocabulary, rules: DecodingRules = FIXED) -> Bool[np.ndarray, " vocab"]:
    """Allows acoustic tokens and EOS2, exactly; the release is off by two and draws two semantic tokens too."""
    ids = np.arange(vocabulary.size)
    first = vocabulary.num_semantic + 1 if rules.shifted_acoustic_ids else vocabulary.acoustic_offset
    return ((ids >= first) & (ids < vocabulary.bos)) | (ids == vocabulary.eos2)


def mask_logits(
    logits: Float[Array, "*batch vocab"], allowed: Bool[Array | np.ndarray, "*#batch vocab"]
) -> Float[Array, "*batch vocab"]:
    """Sets what is not allowed to -inf."""
    return jnp.where(allowed, logits, -jnp.inf)


def filter_logits(
    logits: Float[Array, "*batch vocab"],
    *,
    top_k: int | Int[Array, "*#batch"],
    top_p: float,
    temperature: float,
    most: int | None = None,
) -> Float[Array, "*batch vocab"]:
    """Keeps the likely tokens and divides by the temperature.

    Top-k, then top-p on what is left at temperature 1, then the temperature. Tokens that tie with the last kept one
    are kept, so the result doesn't hang on the order of ids.

    Args:
        logits: Masked and guided logits.
        top_k: Tokens to keep; one number or one a row.
        top_p: Entries whose more likely ones already hold more than this mass are dropped; the first one never is.
        temperature: Above 0.
        most: Static; no `top_k` is higher. It spares sorting the others; None = the size of the vocabulary.

    Returns:
        Unnormalised logits, -inf where dropped.

    Source:
        VoxInstruct's released inference script, its order of steps.
    """
    ordered = jax.lax.top_k(logits, min(most or logits.shape[-1], logits.shape[-1]))[0]
    last = jnp.clip(jnp.asarray(top_k), 1, ordered.shape[-1]) - 1
    last = jnp.broadcast_to(last, logits.shape[:-1])[..., None]
    lowest = jnp.take_along_axis(ordered, last, axis=-1)
    # Tied tokens count in the mass, those that are not among `ordered` too.
    mass = jnp.sum(jnp.where(logits >= lowest, jnp.exp(logits - ordered[..., :1]), 0), axis=-1, keepdims=True)
    ordered = jnp.where(ordered >= lowest, ordered, -jnp.inf)
    probabilities = jnp.exp(ordered - ordered[..., :1]) / mass
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    kept = (before <= top_p).at[..., 0].set(True)
    threshold = jnp.min(jnp.where(kept & jnp.isfinite(ordered), ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits >= threshold, logits, -jnp.inf) / temperature


def fold_keys(keys: Key[Array, "*batch"], *numbers: int | Int[Array, "*#batch"]) -> Key[Array, "*batch"]:
    """Folds numbers (a stage, a position) into each row's key, in their order."""
    for number in numbers:
        folds = jnp.broadcast_to(jnp.asarray(number, jnp.int32), keys.shape)
        keys = jax.vmap(jax.random.fold_in)(keys.reshape(-1), folds.reshape(-1)).reshape(keys.shape)
    return keys


def repetition_share(tokens: Int[Array, " batch"], recent: Int[Array, "batch window"]) -> Float[Array, " batch"]:
    """Returns the share of the preceding tokens that equal the drawn one; empty places of the window hold 0."""
    return jnp.mean(tokens[:, None] == recent, axis=-1)


def sample_tokens(
    keys: Key[Array, " batch"],
    logits: Float[Array, "batch vocab"],
    recent: Int[Array, "batch window"],
    top_k: Int[Array, " batch"],
    config: SamplingConfig,
) -> Int32[Array, " batch"]:
    """Draws one token a row; its share among the recent ones decides whether it is drawn anew without filters.

    Args:
        keys: One a row, used for this token alone.
        logits: Guided and masked: at least one finite entry a row.
        recent: The last tokens of each row, 0 where there are none yet.
        top_k: Tokens to draw from; depends on a row's stage.
        config: Static; temperature 0 takes the most likely token (the lowest id of several), repeated or not.

    Source:
        VALL-E 2, repetition aware sampling: nucleus sampling, and a draw from the original distribution where the
        token's share in the window exceeds the ratio.
    """
    if config.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    draw = jax.vmap(jax.random.categorical)
    most = max(config.semantic_top_k, config.acoustic_top_k)
    filtered = filter_logits(logits, top_k=top_k, top_p=config.top_p, temperature=config.temperature, most=most)
    tokens = draw(fold_keys(keys, 0), filtered)
    if config.repetition_ratio < 1:
        repeated = repetition_share(tokens, recent) > config.repetition_ratio
        tokens = jnp.where(repeated, draw(fold_keys(keys, 1), logits), tokens)
    return tokens.astype(jnp.int32)
