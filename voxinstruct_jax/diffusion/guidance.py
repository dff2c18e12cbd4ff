"""Guidance of a denoiser: branches of conditions as rows of one forward pass, and how their outputs are mixed.

A rule is a tuple of branches (which slots each goes without) and weights that sum to 1; `guidance.mix_logits` is the
one linear map. Outputs of any kind may be mixed: each is an affine function of x0.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.guidance import mix_logits
from voxinstruct_jax.models.conditions import check_slots

__all__ = ["DenoiserGuidance", "double", "dual", "mix", "nested", "rescale", "single", "unguided"]

Branch = tuple[str, ...]
"""Slots of the conditions that a branch goes without."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenoiserGuidance:
    """Branches, their weights, and what is done with the mix.

    Raises:
        ConfigError: The first branch drops something, a slot is unknown, weights do not sum to 1, or a number is out
            of range.
    """

    branches: tuple[Branch, ...] = ((),)
    """The first one is the plain conditional."""
    weights: tuple[float, ...] = (1.0,)
    rescale: float = 0.0
    """Share, 0 to 1, by which the mix gets the standard deviation of the conditional back."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Times at which guidance works; elsewhere the conditional stands alone."""

    def __post_init__(self) -> None:
        if not self.branches or self.branches[0]:
            raise ConfigError("guidance.branches: the first branch must drop nothing")
        for slots in self.branches:
            check_slots("guidance.branches", slots)
        if len(self.branches) != len(self.weights) or not math.isclose(sum(self.weights), 1, abs_tol=1e-6):
            raise ConfigError(f"guidance.weights: {self.weights} must be one a branch and sum to 1")
        low, high = self.interval
        if not 0 <= self.rescale <= 1 or not 0 <= low <= high <= 1:
            raise ConfigError(f"guidance: rescale {self.rescale} and interval {self.interval} must lie in [0, 1]")


def unguided() -> DenoiserGuidance:
    """The conditional alone: one branch."""
    return DenoiserGuidance()


def single(scale: float, slots: Branch = ("text", "content")) -> DenoiserGuidance:
    """Gives null + scale (cond - null), null going without `slots`; 1 is no guidance.

    Source:
        Ho and Salimans 2021. F5-TTS writes cond + s (cond - null): its s is scale - 1.
    """
    return DenoiserGuidance(branches=((), slots), weights=(scale, 1 - scale))


def nested(alpha: float, beta: float, inner: Branch = ("text",), outer: Branch = ("content",)) -> DenoiserGuidance:
    """Guidance by `inner` first, its result guided by `outer`: VoxInstruct's order of multi-CFG.

    Source:
        VoxInstruct, equations 5 and 6, the first put into the second; the weights are those of
        `guidance.acoustic_weights`.
    """
    return DenoiserGuidance(branches=((), inner, outer), weights=(alpha * beta, beta * (1 - alpha), 1 - beta))


def double(alpha: float, beta: float, kept: Branch = ("content",), dropped: Branch = ("text",)) -> DenoiserGuidance:
    """Gives null + alpha (kept + beta (cond - kept) - null), where `kept` alone stays in the middle branch.

    Source:
        MusicGen-Style (Rouard et al. 2024), double classifier-free guidance.
    """
    weights = (alpha * beta, alpha * (1 - beta), 1 - alpha)
    return DenoiserGuidance(branches=((), dropped, kept + dropped), weights=weights)


def dual(
    first_scale: float, second_scale: float, first: Branch = ("text",), second: Branch = ("content",)
) -> DenoiserGuidance:
    """Gives cond + first_scale (first alone - null) + second_scale (second alone - null).

    Source:
        VoiceLDM (Lee et al. 2024), equation 4: description and content, each against the empty condition.
    """
    weights = (1.0, first_scale, second_scale, -(first_scale + second_scale))
    return DenoiserGuidance(branches=((), second, first, first + second), weights=weights)


def mix(
    outputs: Float[Array, "branch batch time channel"],
    guidance: DenoiserGuidance,
    t: Float[Array, " batch"],
    frame_mask: Bool[Array, "batch time"],
) -> Float[Array, "batch time channel"]:
    """Mixes the branches' outputs.

    Args:
        outputs: In the order of the branches.
        guidance: Weights, interval and rescaling.
        t: Time of each row.
        frame_mask: True = a real frame; what is padding leaves no trace in the rescaling.
    """
    if len(guidance.branches) == 1:
        return outputs[0]
    guided, alone = np.zeros((2, len(guidance.weights)), np.float32)
    guided[:], alone[0] = guidance.weights, 1
    low, high = guidance.interval
    inside = ((t >= low) & (t <= high))[:, None]
    weights = jnp.where(inside, guided, alone)[:, None]
    mixed = mix_logits(jnp.moveaxis(outputs, 0, 2).astype(jnp.float32), weights)
    return rescale(mixed, outputs[0], frame_mask, guidance.rescale) if guidance.rescale else mixed


def rescale(
    mixed: Float[Array, "batch time channel"],
    conditional: Float[Array, "batch time channel"],
    frame_mask: Bool[Array, "batch time"],
    share: float,
) -> Float[Array, "batch time channel"]:
    """Brings the standard deviation of each row part of the way back to that of the conditional.

    Source:
        Lin et al. 2023 (Common diffusion noise schedules and sample steps are flawed), equations 15 and 16.
    """
    ratio = _std(conditional, frame_mask) / jnp.maximum(_std(mixed, frame_mask), 1e-9)
    return mixed * (share * ratio + 1 - share)


def _std(x: Float[Array, "batch time channel"], frame_mask: Bool[Array, "batch time"]) -> Float[Array, "batch 1 1"]:
    mask = frame_mask[..., None].astype(jnp.float32)
    count = jnp.maximum(mask.sum((1, 2), keepdims=True) * x.shape[2], 1)
    mean = (x * mask).sum((1, 2), keepdims=True) / count
    return jnp.sqrt((jnp.square(x - mean) * mask).sum((1, 2), keepdims=True) / count)
