"""Masked generation of frames: which are hidden in training, and in which order they are drawn.

Frames come in rounds, in random order, ever more of them; each is drawn from all that are known by then. Confidence has
no part in it: keeping what is surest makes samples alike, even with a perfect model.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.diffusion.denoiser import Denoiser
from voxinstruct_jax.diffusion.guidance import mix
from voxinstruct_jax.diffusion.path import Path, Prediction
from voxinstruct_jax.diffusion.solvers import draw_noise, sample
from voxinstruct_jax.diffusion.systems import DiffusionConfig
from voxinstruct_jax.models.conditions import Conditions, stack_branches
from voxinstruct_jax.models.masked_latents import MaskedLatents, TokenHead
from voxinstruct_jax.models.unmasking import reveal_totals

__all__ = ["MaskingConfig", "Propose", "draw_masks", "draw_shares", "fill_frames", "frame_denoiser", "sample_masked"]

Propose = Callable[[Array, Array, Array, Array], Array]
"""(latents, hidden frames, keys of the round, share of frames that are known after it) → a value for every frame."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """How frames are hidden and found.

    Raises:
        ConfigError: A number is out of range.
    """

    share: Literal["truncated_normal", "cosine"] = "truncated_normal"
    """Of frames hidden in training: N(1, .25²) within [.7, 1] (MAR) · cos(πu/2), u uniform (MaskGIT)."""
    draws: int = 4
    """Noises a hidden frame is trained on in a step."""
    rounds: int = 64
    """Of generation, each a pass of the transformer."""

    def __post_init__(self) -> None:
        if min(self.draws, self.rounds) < 1:
            raise ConfigError(f"masking: draws {self.draws} and rounds {self.rounds} must be at least 1")


def draw_shares(keys: Array, kind: Literal["truncated_normal", "cosine"]) -> Float[Array, " batch"]:
    """Draws the share of hidden frames of each row, in (0, 1].

    Args:
        keys: One a row.
        kind: As in `MaskingConfig.share`.

    Source:
        Li et al. 2024 (MAR, arXiv 2406.11838) and its public code; Chang et al. 2022 (MaskGIT, arXiv 2202.04200),
        section 3.3.
    """
    if kind == "cosine":
        return jnp.cos(0.5 * jnp.pi * jax.vmap(jax.random.uniform)(keys))
    return 1 + 0.25 * jax.vmap(lambda key: jax.random.truncated_normal(key, -1.2, 0.0))(keys)


def draw_masks(
    keys: Array, shares: Float[Array, " batch"], candidates: Bool[Array, "batch time"]
) -> Bool[Array, "batch time"]:
    """Hides this share of the candidates of each row, rounded up, any set of them as likely as another.

    Args:
        keys: One a row.
        shares: In (0, 1].
        candidates: True = may be hidden.
    """
    count = jnp.ceil(shares * candidates.sum(1))
    return candidates & (_random_ranks(keys, candidates) < count[:, None])


def fill_frames(
    propose: Propose,
    known: Float[Array, "batch time channel"],
    hidden: Bool[Array, "batch time"],
    keys: Array,
    rounds: int,
) -> Float[Array, "batch time channel"]:
    """Finds the hidden frames in rounds, in random order; the others stay as they are.

    Args:
        propose: Draws frames; a proposal of a frame that is not due is not read.
        known: Values; those of hidden frames are not read.
        hidden: True = to be found.
        keys: One a row.
        rounds: After round k of S, floor(n cos(πk / 2S)) of n frames are still hidden.

    Source:
        Li et al. 2024 (MAR, arXiv 2406.11838); the schedule is MaskGIT's, `reveal_totals`.
    """
    totals = jnp.asarray(reveal_totals(rounds, hidden.shape[1]))
    ranks, count = _random_ranks(_folded(keys, 0), hidden), hidden.sum(1)

    def turn(carry: tuple[Array, Array], now: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        latents, before = carry
        number, table = now
        after = table[count]
        due = hidden & (ranks >= before[:, None]) & (ranks < after[:, None])
        drawn = propose(
            latents, hidden & (ranks >= before[:, None]), _folded(keys, 1 + number), after / jnp.maximum(count, 1)
        )
        return (jnp.where(due[..., None], drawn, latents), after), None

    start = (jnp.where(hidden[..., None], 0, known), jnp.zeros_like(count))
    return jax.lax.scan(turn, start, (jnp.arange(rounds), totals))[0][0]


def frame_denoiser(
    head: TokenHead,
    config: DiffusionConfig,
    path: Path,
    told: Float[Array, "branch row told_dim"],
    strength: Float[Array, " row"],
) -> Denoiser:
    """The head as a denoiser of rows of one frame.

    Args:
        head: The network.
        config: Its guidance.
        path: Its path.
        told: What the transformer says of each frame under each branch of guidance.
        strength: Share of the guidance: 0 = the plain conditional.
    """

    def denoise(x_t: Float[Array, "row 1 channel"], t: Float[Array, " row"]) -> Prediction:
        scaled, time = path.scale_input(x_t, t), path.time_input(t)
        outputs = jnp.stack([head(scaled, time, branch) for branch in told])
        mixed = mix(outputs, config.guidance, t, jnp.ones((len(x_t), 1), bool))
        return path.to_prediction(outputs[0] + strength[:, None, None] * (mixed - outputs[0]), x_t, t)

    return denoise


def sample_masked(  # noqa: PLR0913 - a user's one call
    model: MaskedLatents,
    config: DiffusionConfig,
    rounds: int,
    conditions: Conditions,
    known: Float[Array, "batch time channel"],
    hidden: Bool[Array, "batch time"],
    frame_mask: Bool[Array, "batch time"],
    keys: Array,
) -> Float[Array, "batch time channel"]:
    """Generates the hidden frames; a prompt, or what surrounds a gap, is what is not hidden.

    Guidance grows from none to all of it with the share of frames that are known.

    Args:
        model: Trained.
        config: Path, guidance and sampler of its head.
        rounds: Passes of the transformer.
        conditions: Of the whole row.
        known: Values of the frames that are not hidden.
        hidden: True = to be generated.
        frame_mask: True = a real frame.
        keys: One a row.

    Source:
        MAR's public code for the growing guidance; IMPACT (arXiv 2506.00736) for audio.
    """
    path, branches = Path(config.path), config.guidance.branches
    count, (batch, frames, channels) = len(branches), known.shape
    stacked = stack_branches(conditions, branches, batch)

    def propose(latents: Array, still: Array, own: Array, share: Array) -> Array:
        seen, masked = jnp.tile(latents, (count, 1, 1)), jnp.tile(still, (count, 1))
        told = model.describe(seen, masked, stacked, jnp.tile(frame_mask, (count, 1)))
        told = told.reshape(count, batch * frames, -1)
        strength = jnp.repeat(share, frames)
        each = jax.vmap(lambda key: jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(frames)))(own).reshape(-1)
        denoiser = frame_denoiser(model.head, config, path, told, strength)
        start = draw_noise(_folded(each, 0), 1, channels)
        return sample(denoiser, path, start, config.sampler, keys=_folded(each, 1)).reshape(known.shape)

    return fill_frames(propose, known, hidden & frame_mask, keys, rounds)


def _random_ranks(keys: Array, candidates: Bool[Array, "batch time"]) -> Float[Array, "batch time"]:
    """Place of each candidate in a random order of its row; all others come after them."""
    draws = jax.vmap(lambda key: jax.random.uniform(key, candidates.shape[1:]))(keys)
    order = jnp.argsort(jnp.where(candidates, draws, 2.0), axis=1)
    return jnp.argsort(order, axis=1).astype(jnp.float32)


def _folded(keys: Array, number: Any) -> Array:
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
