"""The one training rule of all Gaussian paths: noise the data, let the network predict, weigh the squared error."""

from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from voxinstruct_jax.diffusion.path import Path

__all__ = ["Weighting", "diffusion_loss", "masked_mean", "trivial_loss"]

Weighting = Literal["uniform", "min_snr"]
"""Of noise levels: the plain error of what is predicted (for "edm" that is EDM's own weighting) · the error in x0 times
the signal-to-noise ratio, at most 5 (Hang et al. 2023)."""

MIN_SNR = 5.0


def diffusion_loss(
    path: Path,
    predict: Callable[[Float[Array, "batch time channel"], Float[Array, " batch"]], Float[Array, "batch time channel"]],
    x0: Float[Array, "batch time channel"],
    noise: Float[Array, "batch time channel"],
    t: Float[Array, " batch"],
    loss_mask: Bool[Array, "batch time"],
    *,
    weighting: Weighting = "uniform",
) -> Float[Array, " batch"]:
    """Squared error of the prediction, a mean over the counted frames and channels of each row.

    Args:
        path: Says what is predicted.
        predict: (scaled x_t, time input) → output; the conditions are in it.
        x0: Latents of unit variance.
        noise: From N(0, 1).
        t: Time of each row.
        loss_mask: True = the frame counts. A row without any costs 0.
        weighting: Of noise levels.

    Source:
        Lipman et al. 2023, equation 23 (flow matching); Salimans and Ho 2022 (v); Karras et al. 2022 (EDM).
    """
    x_t = path.add_noise(x0, noise, t)
    output = predict(path.scale_input(x_t, t), path.time_input(t))
    error = jnp.square(output.astype(jnp.float32) - path.target(x0, noise, t))
    return masked_mean(error, loss_mask) * _weight(path, t, weighting)


def trivial_loss(
    path: Path,
    x0: Float[Array, "batch time channel"],
    noise: Float[Array, "batch time channel"],
    t: Float[Array, " batch"],
    loss_mask: Bool[Array, "batch time"],
) -> Float[Array, " batch"]:
    """Cost of the predictor that has seen nothing: the mean of the target, which is 0 for latents of mean 0."""
    return masked_mean(jnp.square(path.target(x0, noise, t)), loss_mask)


def masked_mean(error: Float[Array, "batch time channel"], mask: Bool[Array, "batch time"]) -> Float[Array, " batch"]:
    """Mean over the counted frames and all channels of each row; 0 for a row without any."""
    counted = mask.astype(jnp.float32)
    return (error.mean(-1) * counted).sum(-1) / jnp.maximum(counted.sum(-1), 1)


def _weight(path: Path, t: Float[Array, " batch"], weighting: Weighting) -> Float[Array, " batch"]:
    """Turns the network's own error into the weighted one.

    An output's squared error is `gain` times that of x0.
    """
    if weighting != "min_snr":
        return jnp.ones_like(t)
    alpha, sigma = path.alpha(t), jnp.maximum(path.sigma(t), 1e-4)
    ratio = jnp.square(alpha / sigma)
    match path.config.prediction:
        case "x0":
            gain = jnp.ones_like(t)
        case "epsilon":
            gain = ratio
        case "v":
            gain = jnp.square((alpha**2 + sigma**2) / sigma)
        case "velocity" | "data_velocity":
            gain = 1 / jnp.square(sigma)
        case "edm":
            std = path.config.data_std
            gain = (sigma**2 + std**2) / jnp.square(sigma * std)
    return jnp.minimum(ratio, MIN_SNR) / jnp.maximum(gain, 1e-9)
