"""Editing and infilling with a denoiser that was trained for neither: by inversion, and by what is known of the result.

On any denoiser: `infill`, `invert`, `edit`. On a trained `LatentDiffusion`: `infill_latents`, `edit_latents`; its
`latents.encode` and `decode` lead there from sound and back to a log-mel spectrogram. UNISON's own way, a source beside
the noisy latents, needs no function: it is a condition.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.diffusion.denoiser import Denoiser, make_denoiser, without_prior
from voxinstruct_jax.diffusion.path import Path, Prediction
from voxinstruct_jax.diffusion.solvers import SamplerConfig, draw_noise, sample, solve
from voxinstruct_jax.diffusion.systems import DiffusionConfig
from voxinstruct_jax.diffusion.times import time_grid
from voxinstruct_jax.models.conditions import Conditions
from voxinstruct_jax.models.latent_diffusion import LatentDiffusion

__all__ = [
    "EditConfig",
    "InfillConfig",
    "edit",
    "edit_latents",
    "infill",
    "infill_latents",
    "invert",
    "posterior_denoiser",
]

FIRST_NOISE = 0.999
"""Time at which solving begins where the known frames are to tell: at t = 1 nothing follows from the noisy value."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class InfillConfig:
    """How known frames make themselves felt.

    Raises:
        ConfigError: A number is out of range.
    """

    method: Literal["replace", "posterior"] = "replace"
    """`replace`: noised anew, they take their places before each step. However many steps there are, the rest follows
    them too little; resampling helps. `posterior`: data is estimated given them too, by the covariance that the
    denoiser's derivative tells. Exact for Gaussians; it needs a derivative that can be trusted, and several times the
    memory."""
    resample: int = 5
    """Of `replace`: passes over each step, all but the last one taken back by noise; 1 = none is."""
    iterations: int = 12
    """Of `posterior`: of conjugate gradients, each a derivative of the denoiser."""

    def __post_init__(self) -> None:
        if min(self.resample, self.iterations) < 1:
            raise ConfigError(f"infill: resample {self.resample} and iterations {self.iterations} must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EditConfig:
    """How far an edit goes back, and how exactly.

    Raises:
        ConfigError: A number is out of range.
    """

    start: float = 0.6
    """Time up to which is inverted: 1 keeps what the noise carries, less keeps more of the latents."""
    passes: int = 2
    """As of `invert`."""

    def __post_init__(self) -> None:
        if not 0 < self.start <= 1 or self.passes < 0:
            raise ConfigError(f"edit: start {self.start} must lie above 0 and up to 1, passes {self.passes} from 0 up")


def infill(
    denoiser: Denoiser,
    path: Path,
    known: Float[Array, "batch time channel"],
    keep: Bool[Array, "batch time"],
    keys: Array,
    sampler: SamplerConfig,
    config: InfillConfig = InfillConfig(),
) -> Float[Array, "batch time channel"]:
    """Fills in the frames that are not kept; the others come back as they were.

    Args:
        denoiser: Of all frames.
        path: That of the denoiser.
        known: Values; those of frames that are not kept are not read.
        keep: True = the frame is known.
        keys: One a row.
        sampler: Solver and grid.
        config: How.

    Source:
        Lugmayr et al. 2022 (RePaint, arXiv 2201.09865), algorithm 1, for `replace`; for `posterior` see
        `posterior_denoiser`.
    """
    if path.prior is not None:
        plain = infill(
            without_prior(denoiser, path), Path(path.config), path.beside(known), keep, keys, sampler, config
        )
        return jnp.where(keep[..., None], known, path.around(plain))
    noise = draw_noise(keys, *known.shape[1:])
    solving = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
    times = time_grid(sampler.grid, path)
    if config.method == "replace":
        before = _replacing(denoiser, path, known, keep, times, config.resample)
        found = sample(denoiser, path, noise, sampler, keys=solving, before_step=before)
    else:
        times[0] = max(FIRST_NOISE, (1 + times[1]) / 2)
        informed = posterior_denoiser(denoiser, path, known, keep, iterations=config.iterations)
        found = solve(informed, path, float(path.sigma(times[0])) * noise, times, sampler, keys=solving)
    return jnp.where(keep[..., None], known, found)


def posterior_denoiser(
    denoiser: Denoiser,
    path: Path,
    known: Float[Array, "batch time channel"],
    keep: Bool[Array, "batch time"],
    *,
    iterations: int,
) -> Denoiser:
    """A denoiser of the data given that some of its frames are known.

    The covariance of the data given x_t is V = sigma² / alpha times the derivative of the estimate by x_t; with it the
    estimate moves by V_ak V_kk⁻¹ (known - estimate), a = all frames, k = known ones, as for a Gaussian.

    Args:
        denoiser: Of all frames.
        path: That of the denoiser.
        known: Values of the kept frames.
        keep: True = the frame is known.
        iterations: Of conjugate gradients.

    Source:
        Rozet et al. 2024 (Learning diffusion priors from observations, arXiv 2405.13712), moment matching posterior
        sampling; here the observation has no noise.
    """
    kept = keep[..., None]

    def denoise(x_t: Float[Array, "batch time channel"], t: Float[Array, " batch"]) -> Prediction:
        x0, pull = jax.vjp(lambda x: denoiser(x, t).x0, x_t)
        # the factor sigma² / alpha of V and of its inverse cancel
        solved = _conjugate_gradients(
            lambda u: jnp.where(kept, pull(u)[0], 0), jnp.where(kept, known - x0, 0), iterations
        )
        x0 = x0 + pull(solved)[0]
        alpha, sigma = (f(t)[:, None, None] for f in (path.alpha, path.sigma))
        return Prediction(x0, (path.beside(x_t) - alpha * path.beside(x0)) / jnp.maximum(sigma, 1e-5))

    return denoise


def invert(
    denoiser: Denoiser,
    path: Path,
    latents: Float[Array, "batch time channel"],
    times: Float[np.ndarray, " steps_and_end"],
    *,
    passes: int = 0,
) -> Float[Array, "batch time channel"]:
    """Walks the probability flow backwards: what Euler's steps over `times` would lead to these latents.

    Each step is undone by x ← x + (where it must land - where it lands), from where it must land. Guidance leaves the
    shell on which noise lies: invert with the plain conditional.

    Args:
        denoiser: From `make_denoiser`, or exact.
        path: That of the denoiser.
        latents: At t = 0.
        times: Falling, the last one 0, as for `solve`.
        passes: Further corrections of each step, each an evaluation; they converge to the exact inverse where steps are
            short.

    Returns:
        Noisy values at `times[0]`.

    Source:
        Song et al. 2021 (DDIM, arXiv 2010.02502), section 4.3; for the passes Pan et al. 2023 (AIDI, arXiv 2309.04907).
    """
    if path.prior is not None:
        plain = without_prior(denoiser, path), Path(path.config), path.beside(latents)
        return path.around(invert(*plain, times, passes=passes))
    starts, ends = times[:-1][::-1], times[1:][::-1]
    numbers = np.stack([starts, path.alpha(ends), path.sigma(ends)], -1).astype(np.float32)

    def undo(x: Array, step: Array) -> tuple[Array, None]:
        t, alpha, sigma = step
        rows = jnp.full(x.shape[0], t)

        def correct(_: Any, guess: Array) -> Array:
            found = denoiser(guess, rows)
            return guess + x - (alpha * found.x0 + sigma * found.epsilon)

        return jax.lax.fori_loop(0, 1 + passes, correct, x), None

    return jax.lax.scan(undo, latents, jnp.asarray(numbers))[0]


def edit(
    source: Denoiser,
    target: Denoiser,
    path: Path,
    latents: Float[Array, "batch time channel"],
    sampler: SamplerConfig,
    config: EditConfig = EditConfig(),
    *,
    keys: Array | None = None,
) -> Float[Array, "batch time channel"]:
    """Inverts under what the latents are, and solves back under what they shall be.

    Args:
        source: Denoiser under the conditions of the latents, without guidance.
        target: Denoiser under the new conditions.
        path: That of both.
        latents: To edit.
        sampler: Solver of the way back, and grid of both ways, drawn together to begin at `config.start`.
        config: How far, how exactly.
        keys: One a row, for a stochastic solver.

    Raises:
        InputError: A stochastic solver has no keys.
    """
    if path.prior is not None:
        denoisers = without_prior(source, path), without_prior(target, path)
        plain = Path(path.config), path.beside(latents)
        return path.around(edit(*denoisers, *plain, sampler, config, keys=keys))
    times = config.start * time_grid(sampler.grid, path)
    noisy = invert(source, path, latents, times, passes=config.passes)
    return solve(target, path, noisy, times, sampler, keys=keys)


def infill_latents(  # noqa: PLR0913 - a user's one call
    model: LatentDiffusion,
    diffusion: DiffusionConfig,
    conditions: Conditions,
    latents: Float[Array, "batch time channel"],
    keep: Bool[Array, "batch time"],
    frame_mask: Bool[Array, "batch time"],
    keys: Array,
    config: InfillConfig = InfillConfig(),
) -> Float[Array, "batch time channel"]:
    """`infill` with a trained model, under its guidance and by its solver.

    Args:
        model: Trained.
        diffusion: Its settings.
        conditions: Of the whole row: text and phones name what is in the gap too.
        latents: From `model.latents.encode`.
        keep: True = the frame is known.
        frame_mask: True = a real frame.
        keys: One a row.
        config: How.
    """
    path = Path(diffusion.path)
    denoiser = make_denoiser(model.network, path, conditions, frame_mask, diffusion.guidance)
    return infill(denoiser, path, latents, keep, keys, diffusion.sampler, config)


def edit_latents(  # noqa: PLR0913 - a user's one call
    model: LatentDiffusion,
    diffusion: DiffusionConfig,
    source: Conditions,
    target: Conditions,
    latents: Float[Array, "batch time channel"],
    frame_mask: Bool[Array, "batch time"],
    config: EditConfig = EditConfig(),
    *,
    keys: Array | None = None,
) -> Float[Array, "batch time channel"]:
    """`edit` with a trained model; its guidance works on the way back alone.

    Args:
        model: Trained.
        diffusion: Its settings.
        source: Conditions that fit the latents.
        target: Conditions that the result shall fit.
        latents: From `model.latents.encode`.
        frame_mask: True = a real frame.
        config: How far, how exactly.
        keys: One a row, for a stochastic solver.
    """
    path = Path(diffusion.path)
    plain = make_denoiser(model.network, path, source, frame_mask)
    guided = make_denoiser(model.network, path, target, frame_mask, diffusion.guidance)
    return edit(plain, guided, path, latents, diffusion.sampler, config, keys=keys)


def _replacing(
    denoiser: Denoiser,
    path: Path,
    known: Float[Array, "batch time channel"],
    keep: Bool[Array, "batch time"],
    times: Float[np.ndarray, " steps_and_end"],
    resample: int,
) -> Callable[[Array, Array, Array], Array]:
    """A `before_step` that puts noised known frames in their places, and goes over the coming step several times."""
    rising = times[::-1].astype(np.float32)

    def fresh(keys: Array, purpose: Any) -> Array:
        return draw_noise(jax.vmap(lambda key: jax.random.fold_in(key, purpose))(keys), *known.shape[1:])

    def before(x: Array, t: Array, keys: Array) -> Array:
        u = jnp.interp(t, rising[1:], rising[:-1])  # the grid's time after t
        rows = jnp.full(x.shape[0], t)
        scale = path.alpha(t) / path.alpha(u)
        added = jnp.sqrt(jnp.maximum(path.sigma(t) ** 2 - (scale * path.sigma(u)) ** 2, 0))

        def with_known(x: Array, number: Any) -> Array:
            return jnp.where(keep[..., None], path.add_noise(known, fresh(keys, 2 * number), rows), x)

        def again(number: Any, x: Array) -> Array:
            found = denoiser(x, rows)
            landed = path.alpha(u) * found.x0 + path.sigma(u) * found.epsilon
            return with_known(scale * landed + added * fresh(keys, 2 * number + 1), number)

        return jax.lax.fori_loop(1, resample, again, with_known(x, 0))

    return before


def _conjugate_gradients(
    apply: Callable[[Array], Array], wanted: Float[Array, "batch time channel"], iterations: int
) -> Float[Array, "batch time channel"]:
    """Solves apply(u) = wanted for a positive definite map of each row by itself; a row that is done stands still."""

    def dot(a: Array, b: Array) -> Array:
        return jnp.einsum("btc,btc->b", a, b, precision="highest")[:, None, None]

    first = dot(wanted, wanted)

    def turn(_: Any, carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        solved, left, direction, size = carry
        pushed = apply(direction)
        curvature = dot(direction, pushed)
        going = (curvature > 0) & (size > 1e-12 * first)
        step = jnp.where(going, size / jnp.where(going, curvature, 1), 0)
        solved, left = solved + step * direction, left - step * pushed
        smaller = dot(left, left)
        direction = left + jnp.where(going, smaller / jnp.where(going, size, 1), 0) * direction
        return solved, left, direction, jnp.where(going, smaller, size)

    start = (jnp.zeros_like(wanted), wanted, wanted, first)
    return jax.lax.fori_loop(0, iterations, turn, start)[0]
