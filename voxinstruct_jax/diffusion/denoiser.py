"""From a network to the one thing that a solver sees: (x_t, t) to data and noise."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from voxinstruct_jax.diffusion.guidance import DenoiserGuidance, mix, unguided
from voxinstruct_jax.diffusion.path import Path, Prediction
from voxinstruct_jax.models.conditions import Conditions, stack_branches

__all__ = ["Backbone", "Denoiser", "make_denoiser", "without_prior"]

Denoiser = Callable[[Float[Array, "batch time channel"], Float[Array, " batch"]], Prediction]
"""(x_t, t) → what they say of data and noise."""


@runtime_checkable
class Backbone(Protocol):
    """A network; it knows of no path, guidance or solver."""

    def __call__(
        self,
        x: Float[Array, "batch time channel"],
        t: Float[Array, " batch"],
        conditions: Conditions,
        frame_mask: Bool[Array, "batch time"],
    ) -> Float[Array, "batch time channel"]:
        """Returns the output that `PathConfig.prediction` names.

        Args:
            x: From `Path.scale_input`.
            t: From `Path.time_input`.
            conditions: One row a row of `x`.
            frame_mask: True = a real frame.
        """
        ...


def make_denoiser(
    backbone: Backbone,
    path: Path,
    conditions: Conditions,
    frame_mask: Bool[Array, "batch time"],
    guidance: DenoiserGuidance | None = None,
) -> Denoiser:
    """Puts a network, its path, its conditions and guidance together.

    All branches of guidance are rows of one forward pass, their conditions made once.
    """
    guidance = guidance or unguided()
    count, batch = len(guidance.branches), frame_mask.shape[0]
    stacked = stack_branches(conditions, guidance.branches, batch)

    def repeated(x: Array) -> Array:
        return jnp.tile(x, (count,) + (1,) * (x.ndim - 1))

    masks = repeated(frame_mask)

    def denoise(x_t: Float[Array, "batch time channel"], t: Float[Array, " batch"]) -> Prediction:
        rows, times = repeated(path.scale_input(x_t, t)), repeated(path.time_input(t))
        outputs = backbone(rows, times, stacked, masks).reshape(count, *x_t.shape)
        return path.to_prediction(mix(outputs, guidance, t, frame_mask), x_t, t)

    return denoise


def without_prior(denoiser: Denoiser, path: Path) -> Denoiser:
    """The same denoiser, of what values differ from the path's prior by; it is one of the path without the prior."""

    def denoise(x_t: Float[Array, "batch time channel"], t: Float[Array, " batch"]) -> Prediction:
        found = denoiser(path.around(x_t), t)
        return Prediction(path.beside(found.x0), found.epsilon)

    return denoise if path.prior is not None else denoiser
