"""Solvers: from noise to data in a fixed number of steps on the device, all behind `sample`.

All numbers of a step follow from the path and the grid, so they are worked out beforehand in float64; the device scans
over them. A row's result depends on its own key and conditions only. Read `SamplerConfig`, then `sample`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from voxinstruct_jax.config import ConfigError, InputError
from voxinstruct_jax.diffusion.denoiser import Denoiser, without_prior
from voxinstruct_jax.diffusion.path import Path, Prediction
from voxinstruct_jax.diffusion.times import Grid, time_grid

__all__ = ["SOLVERS", "SamplerConfig", "SolverName", "draw_noise", "evaluations", "sample", "solve"]

SolverName = Literal["euler", "heun", "midpoint", "dpmpp_2m", "ancestral", "churn", "consistency"]

Coefficients = dict[str, Any]
"""Numbers of the steps by name, float64; the scan hands each step its own."""

BeforeStep = Callable[[Array, Array, Array], Array]
AfterX0 = Callable[[Array, Array], Array]

MAX_CHURN = 2**0.5 - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """A solver and its grid.

    Raises:
        ConfigError: A number is out of range.
    """

    solver: SolverName = "euler"
    """`euler`: first order (DDIM) · `heun`, `midpoint`: second order, two evaluations a step · `dpmpp_2m`: second order
    from the step before · `ancestral`: draws from the posterior, the reverse SDE · `churn`: Heun with noise added and
    taken away again (EDM) · `consistency`: to data at once, then noised anew; for distilled students alone."""
    grid: Grid = Grid()
    eta: float = 1.0
    """Of `ancestral`: share of the posterior's standard deviation; 0 = Euler."""
    churn: float = 40.0
    """Of `churn`: in all, over the steps (S_churn)."""
    churn_range: tuple[float, float] = (0.05, 50.0)
    """Of `churn`: noise-to-signal ratios between which noise is added (S_tmin, S_tmax)."""
    churn_noise: float = 1.003
    """Of `churn`: standard deviation of what is added (S_noise)."""
    temperature: float = 1.0
    """The noise to start from is divided by its square root (Grad-TTS: 1.5)."""
    limit: float = 0.0
    """What is predicted of the data is kept within plus and minus this in each step; 0 = it is taken as it comes. For
    networks that predict noise: near t = 1 their errors count a hundredfold in the data, and samples of one that has
    not been trained for long come out larger than noise."""

    def __post_init__(self) -> None:
        in_range = 0 <= self.eta <= 1 and min(self.churn, self.limit) >= 0
        if not in_range or not min(self.churn_noise, self.temperature) > 0:
            raise ConfigError(
                f"sampler: eta {self.eta} must lie in [0, 1], churn {self.churn} and limit {self.limit} be at least 0, "
                f"churn_noise and temperature {self.temperature} above 0"
            )


@dataclasses.dataclass(frozen=True)
class Solver:
    """One way to take a step."""

    prepare: Callable[[Path, np.ndarray, SamplerConfig], Coefficients]
    """(path, times, settings) → further numbers of the steps."""
    step: Callable[["_Step"], tuple[Array, Array]]
    """→ the next x, and the x0 that the step after it may read."""
    stochastic: bool
    evaluations: int
    """Of the denoiser in a step; the last step takes one."""


@dataclasses.dataclass(frozen=True)
class _Step:
    """What a solver may read in a step."""

    x: Float[Array, "batch time channel"]
    earlier_x0: Float[Array, "batch time channel"]
    c: Coefficients
    denoise: Callable[[Array, Any], Prediction]
    draw: Callable[[], Array]

    def land(self, prediction: Prediction) -> Array:
        """Where the step ends if the prediction holds: DDIM's rule, Euler's on a linear path."""
        return self.c["alpha_u"] * prediction.x0 + self.c["sigma_u"] * prediction.epsilon


def draw_noise(keys: Array, num_frames: int, num_channels: int) -> Float[Array, "batch time channel"]:
    """Standard noise, one key a row; of the same key a longer row begins as a shorter one."""
    return jax.vmap(lambda key: jax.random.normal(key, (num_frames, num_channels)))(keys)


def evaluations(config: SamplerConfig) -> int:
    """How often the denoiser runs in all, guidance branches not counted."""
    return (config.grid.steps - 1) * SOLVERS[config.solver].evaluations + 1


def sample(
    denoiser: Denoiser,
    path: Path,
    noise: Float[Array, "batch time channel"],
    config: SamplerConfig,
    *,
    keys: Array | None = None,
    before_step: BeforeStep | None = None,
    after_x0: AfterX0 | None = None,
) -> Float[Array, "batch time channel"]:
    """Solves from t = 1 to t = 0.

    Around a prior every solver works on what values differ from it by, where the path is a plain one: `ancestral` is
    then the SDE of a bridge, `euler` its ODE, whose first step draws what the end point has lost.

    Args:
        denoiser: From `make_denoiser`, or exact.
        path: That of the denoiser, with the same prior.
        noise: Standard noise.
        config: Solver and grid.
        keys: One a row; stochastic solvers and `before_step` draw from them.
        before_step: (x, t, keys of the step) → x.
        after_x0: (x0, t) → x0, such as a projection; the noise estimate follows it.

    Raises:
        InputError: A stochastic solver has no keys.

    Source:
        Of the limit: Saharia et al. 2022 (Imagen), section 2.3, static thresholding.
    """
    if config.limit:
        after_x0, config = _limited(config.limit, after_x0), dataclasses.replace(config, limit=0.0)
    if path.prior is not None:
        denoiser, before_step, after_x0 = _beside(path, denoiser, before_step, after_x0)
        hooks = {"before_step": before_step, "after_x0": after_x0}
        return path.around(sample(denoiser, Path(path.config), noise, config, keys=keys, **hooks))
    times = np.minimum(time_grid(config.grid, path), path.latest)
    start = float(path.sigma(times[0])) * config.temperature**-0.5 * noise
    projected = denoiser if after_x0 is None else _after_x0(denoiser, path, after_x0)
    return solve(projected, path, start, times, config, keys=keys, before_step=before_step)


def solve(
    denoiser: Denoiser,
    path: Path,
    x: Float[Array, "batch time channel"],
    times: Float[np.ndarray, " steps_and_end"],
    config: SamplerConfig,
    *,
    keys: Array | None = None,
    before_step: BeforeStep | None = None,
) -> Float[Array, "batch time channel"]:
    """Solves from any time to data.

    Args:
        denoiser: As in `sample`.
        path: That of the denoiser, without a prior.
        x: Noisy values of the first time.
        times: Falling, the last one 0; in place of the grid of `config`.
        config: The solver.
        keys: As in `sample`.
        before_step: As in `sample`.

    Raises:
        InputError: A stochastic solver has no keys.
    """
    solver = SOLVERS[config.solver]
    if keys is None and (solver.stochastic or before_step is not None):
        raise InputError(f"solver {config.solver!r} draws random numbers; give one key a row")
    coefficients = _coefficients(path, times) | solver.prepare(path, times, config)
    coefficients = {name: np.asarray(values, np.float32) for name, values in coefficients.items()}
    coefficients |= {"index": np.arange(len(times) - 1)}

    def denoise(x: Array, t: Array) -> Prediction:
        return denoiser(x, jnp.full(x.shape[0], t))

    def turn(carry: tuple[Array, Array], c: Coefficients) -> tuple[tuple[Array, Array], None]:
        x, earlier = carry
        own = None if keys is None else jax.vmap(lambda key: jax.random.fold_in(key, c["index"]))(keys)
        if before_step is not None and own is not None:
            x = before_step(x, c["t"], own)

        def draw() -> Array:
            assert own is not None  # checked above
            return draw_noise(own, *x.shape[1:])

        return solver.step(_Step(x, earlier, c, denoise, draw)), None

    (x, _), _ = jax.lax.scan(turn, (x, jnp.zeros_like(x)), coefficients)
    return x


def _beside(
    path: Path, denoiser: Denoiser, before_step: BeforeStep | None, after_x0: AfterX0 | None
) -> tuple[Denoiser, BeforeStep | None, AfterX0 | None]:
    """The same functions, of what values differ from the path's prior by."""
    before = before_step and (lambda x, t, keys: path.beside(before_step(path.around(x), t, keys)))
    after = after_x0 and (lambda x0, t: path.beside(after_x0(path.around(x0), t)))
    return without_prior(denoiser, path), before, after


def _limited(limit: float, after_x0: AfterX0 | None) -> AfterX0:
    """Keeps values, not what they differ from a prior by, within the limit."""

    def change(x0: Float[Array, "batch time channel"], t: Float[Array, ""]) -> Array:
        x0 = jnp.clip(x0, -limit, limit)
        return x0 if after_x0 is None else after_x0(x0, t)

    return change


def _after_x0(denoiser: Denoiser, path: Path, change: AfterX0) -> Denoiser:
    def denoise(x: Float[Array, "batch time channel"], t: Float[Array, " batch"]) -> Prediction:
        x0 = change(denoiser(x, t).x0, t[0])
        return Prediction(x0, (x - path.alpha(t[0]) * x0) / jnp.maximum(path.sigma(t[0]), 1e-5))

    return denoise


def _coefficients(path: Path, times: Float[np.ndarray, " steps_and_end"]) -> Coefficients:
    """What every solver may read: where a step begins (t) and ends (u)."""
    t, u = times[:-1], times[1:]
    return {
        "t": t,
        "u": u,
        "alpha_t": path.alpha(t),
        "sigma_t": path.sigma(t),
        "alpha_u": path.alpha(u),
        "sigma_u": path.sigma(u),
        "last": u == 0,
    }


def _nothing(path: Path, times: np.ndarray, config: SamplerConfig) -> Coefficients:
    return {}


def _euler(s: _Step) -> tuple[Array, Array]:
    prediction = s.denoise(s.x, s.c["t"])
    return s.land(prediction), prediction.x0


def _prepare_slopes(path: Path, starts: np.ndarray, ends: np.ndarray) -> Coefficients:
    with np.errstate(divide="ignore", invalid="ignore"):  # at u = 0, where no slope is asked for
        (alpha_t, sigma_t), (alpha_u, sigma_u) = path.rates(starts), path.rates(ends)
    return {
        "span": path.clock(ends) - path.clock(starts),
        "d_alpha_t": alpha_t,
        "d_sigma_t": sigma_t,
        "d_alpha_u": np.where(ends > 0, alpha_u, 0),
        "d_sigma_u": np.where(ends > 0, sigma_u, 0),
    }


def _prepare_heun(path: Path, times: np.ndarray, config: SamplerConfig) -> Coefficients:
    return _prepare_slopes(path, times[:-1], times[1:])


def _heun(s: _Step) -> tuple[Array, Array]:
    """Heun's rule over the clock; the last step is Euler's.

    Source:
        Karras et al. 2022, algorithm 1.
    """
    c, first = s.c, s.denoise(s.x, s.c["t"])
    guess = s.land(first)

    def correct() -> Array:
        second = s.denoise(guess, c["u"])
        slope = c["d_alpha_t"] * first.x0 + c["d_sigma_t"] * first.epsilon
        slope += c["d_alpha_u"] * second.x0 + c["d_sigma_u"] * second.epsilon
        return s.x + 0.5 * c["span"] * slope

    return jax.lax.cond(c["last"] > 0, lambda: guess, correct), first.x0


def _prepare_midpoint(path: Path, times: np.ndarray, config: SamplerConfig) -> Coefficients:
    t, u = times[:-1], times[1:]
    middle = (t + u) / 2
    if path.config.schedule == "edm":
        middle = path.time_of((path.sigma(t) + path.sigma(u)) / 2)
    d_alpha, d_sigma = path.rates(middle)
    return {
        "middle": middle,
        "alpha_middle": path.alpha(middle),
        "sigma_middle": path.sigma(middle),
        "span": path.clock(u) - path.clock(t),
        "d_alpha": d_alpha,
        "d_sigma": d_sigma,
    }


def _midpoint(s: _Step) -> tuple[Array, Array]:
    """The midpoint rule over the clock; the last step is Euler's, so that all solvers count alike."""
    c, first = s.c, s.denoise(s.x, s.c["t"])

    def correct() -> Array:
        half = c["alpha_middle"] * first.x0 + c["sigma_middle"] * first.epsilon
        second = s.denoise(half, c["middle"])
        return s.x + c["span"] * (c["d_alpha"] * second.x0 + c["d_sigma"] * second.epsilon)

    return jax.lax.cond(c["last"] > 0, lambda: s.land(first), correct), first.x0


def _prepare_multistep(path: Path, times: np.ndarray, config: SamplerConfig) -> Coefficients:
    t, u = times[:-1], times[1:]
    with np.errstate(divide="ignore", invalid="ignore"):  # all noise and all data lie at infinity
        log_ratio = np.log(path.alpha(times)) - np.log(path.sigma(times))
        spans = np.diff(log_ratio)
        share = np.append(0.0, 0.5 * spans[1:] / spans[:-1])
    share = np.where(np.isfinite(share) & (u > 0), share, 0.0)
    ratio = path.sigma(u) / path.sigma(t)
    return {"keep": ratio, "gain": path.alpha(u) - ratio * path.alpha(t), "share": share}


def _multistep(s: _Step) -> tuple[Array, Array]:
    """DPM-Solver++(2M); first order at the first and the last step.

    Source:
        Lu et al. 2022 (DPM-Solver++), algorithm 2.
    """
    x0 = s.denoise(s.x, s.c["t"]).x0
    extrapolated = x0 + s.c["share"] * (x0 - s.earlier_x0)
    return s.c["keep"] * s.x + s.c["gain"] * extrapolated, x0


def _prepare_ancestral(path: Path, times: np.ndarray, config: SamplerConfig) -> Coefficients:
    t, u = times[:-1], times[1:]
    # (noise-to-signal at u / that at t)², written so that no signal at t is no division by zero
    shrink = np.square(path.sigma(u) * path.alpha(t) / (path.alpha(u) * path.sigma(t)))
    up = config.eta * path.sigma(u) * np.sqrt(np.maximum(1 - shrink, 0))
    return {"up": up, "down": np.sqrt(np.maximum(path.sigma(u) ** 2 - up**2, 0))}


def _ancestral(s: _Step) -> tuple[Array, Array]:
    """Draws x_u from the posterior given x_t and x0; on paths that keep the variance it is DDPM's (and DDIM's) draw.

    Source:
        Ho et al. 2020, equation 7; Song et al. 2021 (DDIM), equation 16.
    """
    prediction = s.denoise(s.x, s.c["t"])
    mean = s.c["alpha_u"] * prediction.x0 + s.c["down"] * prediction.epsilon
    return mean + s.c["up"] * s.draw(), prediction.x0


def _prepare_churn(path: Path, times: np.ndarray, config: SamplerConfig) -> Coefficients:
    t, u = times[:-1], times[1:]
    with np.errstate(divide="ignore"):
        level = path.sigma(t) / path.alpha(t)
    low, high = config.churn_range
    inside = (level >= low) & (level <= high) & np.isfinite(level)
    share = np.where(inside, min(config.churn / len(t), MAX_CHURN), 0.0)
    raised = np.where(share > 0, path.time_of(np.where(inside, level, 1.0) * (1 + share)), t)
    scale = np.where(share > 0, path.alpha(raised) / np.maximum(path.alpha(t), 1e-12), 1.0)
    added = np.sqrt(np.maximum(path.sigma(raised) ** 2 - np.square(scale * path.sigma(t)), 0))
    return {"raised": raised, "scale": scale, "added": config.churn_noise * added} | _prepare_slopes(path, raised, u)


def _churn(s: _Step) -> tuple[Array, Array]:
    """Adds noise, then takes Heun's step from there.

    Source:
        Karras et al. 2022, algorithm 2.
    """
    noisier = s.c["scale"] * s.x + s.c["added"] * s.draw()
    return _heun(dataclasses.replace(s, x=noisier, c=s.c | {"t": s.c["raised"]}))


def _consistency(s: _Step) -> tuple[Array, Array]:
    """Takes the data that is predicted, and noises it anew.

    Source:
        Song et al. 2023 (Consistency models), algorithm 1.
    """
    x0 = s.denoise(s.x, s.c["t"]).x0
    return s.c["alpha_u"] * x0 + s.c["sigma_u"] * s.draw(), x0


SOLVERS: dict[str, Solver] = {
    "euler": Solver(_nothing, _euler, stochastic=False, evaluations=1),
    "heun": Solver(_prepare_heun, _heun, stochastic=False, evaluations=2),
    "midpoint": Solver(_prepare_midpoint, _midpoint, stochastic=False, evaluations=2),
    "dpmpp_2m": Solver(_prepare_multistep, _multistep, stochastic=False, evaluations=1),
    "ancestral": Solver(_prepare_ancestral, _ancestral, stochastic=True, evaluations=1),
    "churn": Solver(_prepare_churn, _churn, stochastic=True, evaluations=2),
    "consistency": Solver(_nothing, _consistency, stochastic=True, evaluations=1),
}
"""By name."""
