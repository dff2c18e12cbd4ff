"""Few-step students of a denoiser: by consistency along its flow, by matching its distribution, by straighter pairs.

A student is a denoiser on its teacher's path, and starts as a copy of it. What it says of the data is its one-step
sample: on every path and for every prediction but "x0" that is x itself at t = 0, so the boundary condition of
consistency models holds by construction. Guidance is the teacher's, baked in.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from voxinstruct_jax.diffusion.denoiser import Denoiser
from voxinstruct_jax.diffusion.objective import masked_mean
from voxinstruct_jax.diffusion.path import Path
from voxinstruct_jax.diffusion.solvers import SamplerConfig, sample
from voxinstruct_jax.diffusion.times import Grid

__all__ = ["consistency_loss", "flow_step", "matching_loss", "reflow_pairs"]


def flow_step(
    denoiser: Denoiser,
    path: Path,
    x: Float[Array, "batch time channel"],
    t: Float[Array, " batch"],
    u: Float[Array, " batch"],
) -> Float[Array, "batch time channel"]:
    """Heun's step along the probability flow, each row between times of its own; Euler's where it ends at 0.

    Args:
        denoiser: Of the path.
        path: Its arithmetic.
        x: At t.
        t: Where the rows begin.
        u: Where they end, below t.
    """
    ending = u <= 0
    safe = jnp.where(ending, t, u)

    def rows(value: Array) -> Array:
        return value[:, None, None]

    first = denoiser(x, t)
    guess = rows(path.alpha(u)) * first.x0 + rows(path.sigma(u)) * first.epsilon
    second = denoiser(guess, safe)
    (alpha_t, sigma_t), (alpha_u, sigma_u) = path.rates(t), path.rates(safe)
    slope = rows(alpha_t) * first.x0 + rows(sigma_t) * first.epsilon
    slope += rows(alpha_u) * second.x0 + rows(sigma_u) * second.epsilon
    return jnp.where(rows(ending), guess, x + 0.5 * rows(path.clock(u) - path.clock(t)) * slope)


def consistency_loss(
    path: Path,
    student: Denoiser,
    target: Denoiser,
    teacher: Denoiser,
    pair: tuple[Float[Array, "batch time channel"], Float[Array, " batch"], Float[Array, " batch"]],
    loss_mask: Bool[Array, "batch time"],
) -> Float[Array, " batch"]:
    """Squared distance of what the student says at t from what its slow copy says a step of the teacher further on.

    Args:
        path: Of all three.
        student: Trained.
        target: The mean of the student's weights over steps; no gradient goes there.
        teacher: Frozen, under its guidance.
        pair: Noisy data at t, t, and the neighbouring time u below it.
        loss_mask: True = the frame counts.

    Source:
        Song et al. 2023 (Consistency models, arXiv 2303.01469), algorithm 2; with guidance in the teacher's step
        ConsistencyTTA (Bai et al. 2023, arXiv 2309.10740).
    """
    x_t, t, u = pair
    x_u = flow_step(teacher, path, x_t, t, u)
    wanted = jax.lax.stop_gradient(target(x_u, u).x0)
    return masked_mean(jnp.square(student(x_t, t).x0 - wanted), loss_mask)


def matching_loss(
    path: Path,
    made: Float[Array, "batch time channel"],
    real: Denoiser,
    fake: Denoiser,
    noise: Float[Array, "batch time channel"],
    t: Float[Array, " batch"],
    loss_mask: Bool[Array, "batch time"],
) -> Float[Array, " batch"]:
    """A loss whose gradient by the samples is that of the divergence between their distribution and the teacher's.

    Both are seen through noise, where two denoisers tell their scores apart. Its value tells nothing but the length of
    that gradient; where both denoisers agree it is 0.

    Args:
        path: Of both denoisers.
        made: Samples of the student, with gradient.
        real: The teacher.
        fake: Trained on the student's samples.
        noise: Standard noise.
        t: Times to compare at.
        loss_mask: True = the frame counts.

    Source:
        Yin et al. 2024 (DMD, arXiv 2311.18828), equations 7 and 8.
    """
    noisy = path.add_noise(jax.lax.stop_gradient(made), noise, t)
    of_real, of_fake = real(noisy, t).x0, fake(noisy, t).x0
    scale = masked_mean(jnp.abs(made - of_real), loss_mask)[:, None, None]
    gradient = (of_fake - of_real) / jnp.maximum(scale, 1e-6)
    wanted = jax.lax.stop_gradient(made - gradient)
    return 0.5 * masked_mean(jnp.square(made - wanted), loss_mask)


def reflow_pairs(
    denoiser: Denoiser, path: Path, noise: Float[Array, "batch time channel"], grid: Grid
) -> Float[Array, "batch time channel"]:
    """Data that the flow leads each noise to: trained on these pairs, a flow is straighter.

    Source:
        Liu et al. 2022 (Rectified flow, arXiv 2209.03003), section 2.2.
    """
    return jax.lax.stop_gradient(sample(denoiser, path, noise, SamplerConfig(solver="heun", grid=grid)))
