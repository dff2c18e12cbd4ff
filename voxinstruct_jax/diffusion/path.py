"""Gaussian paths between data and noise, and what a network may predict on them.

One convention for the whole project: t = 0 is data, t = 1 is noise, `x_t = alpha(t) x0 + sigma(t) noise`. Systems that
run time the other way, or predict data minus noise, say so in their `PathConfig`; nothing else has to know. A path may
be drawn around a prior that is known beforehand: all of this then holds for what data and noisy values have beyond it.
Read `PathConfig`, then `Path`.
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from voxinstruct_jax.config import ConfigError

__all__ = ["Path", "PathConfig", "Prediction", "PredictionKind", "Schedule"]

Schedule = Literal["linear", "cosine", "vp_linear", "edm", "bridge"]
"""alpha, sigma: 1 - t, t · cos(πt/2), sin(πt/2) · variance preserving with a rising beta · 1, sigma_max t^rho ·
1 - q/Q, sqrt(q (1 - q/Q)) with q the integral of a rising beta from 0 to t and Q that to 1: a bridge, without noise at
either end."""

PredictionKind = Literal["x0", "epsilon", "v", "velocity", "data_velocity", "edm"]
"""What comes out of a network: data · noise · alpha noise - sigma x0 · noise - data · data - noise · EDM's F."""

Times = Any
"""NumPy or JAX array of times, or a number."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PathConfig:
    """A path and the sign and time conventions of the network on it.

    Raises:
        ConfigError: A number is out of range, or the prediction does not fit the schedule.
    """

    schedule: Schedule = "linear"
    prediction: PredictionKind = "velocity"
    data_at_one: bool = False
    """Whether the network is told 1 - t: InstructAudio and F5-TTS count time from noise to data, UNISON from data to
    noise."""
    time_scale: float = 1000.0
    """Times are multiplied by this before the network's sinusoids, which are made for 0 to 1000."""
    data_std: float = 1.0
    """Standard deviation of the latents (EDM)."""
    sigma_min: float = 0.002
    """Lowest noise of EDM's grid."""
    sigma_max: float = 80.0
    """Noise at t = 1 (EDM)."""
    rho: float = 7.0
    """Curvature of EDM's grid."""
    beta_min: float = 0.1
    """Noise rate at t = 0 (vp_linear, bridge)."""
    beta_max: float = 20.0
    """Noise rate at t = 1 (vp_linear, bridge)."""

    def __post_init__(self) -> None:
        positive = ("time_scale", "data_std", "sigma_min", "sigma_max", "rho", "beta_min", "beta_max")
        for name in positive:
            if not getattr(self, name) > 0:
                raise ConfigError(f"path.{name}: {getattr(self, name)} must be above 0")
        if self.prediction in ("velocity", "data_velocity") and self.schedule != "linear":
            raise ConfigError(f"path.prediction: {self.prediction!r} belongs to the linear schedule; give 'v' or 'x0'")
        if (self.prediction == "edm") != (self.schedule == "edm"):
            raise ConfigError("path: prediction 'edm' and schedule 'edm' belong together")
        if self.data_at_one and self.schedule == "edm":
            raise ConfigError("path.data_at_one: EDM networks are told the noise level, not the time")
        if self.schedule == "bridge" and self.prediction != "x0":
            raise ConfigError(
                f"path.prediction: a bridge has no {self.prediction!r} at its end, where data and noise are both gone; "
                "give 'x0'"
            )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a network's output says of a noisy value; `x_t = alpha x0 + sigma epsilon` holds exactly.

    On a path around a prior it does so for x_t and x0 less the prior.
    """

    x0: Float[Array, "*shape"]
    """Data."""
    epsilon: Float[Array, "*shape"]
    """Noise of unit variance."""


class Path:
    """The arithmetic of a `PathConfig`. Methods take NumPy or JAX times; solvers prepare theirs in NumPy's float64.

    Source:
        Around a prior: Grad-TTS (arXiv 2105.06337), whose forward process ends at N(prior, 1), is "vp_linear";
        Bridge-TTS (arXiv 2312.03491), whose process ends at the prior itself, is "bridge".
    """

    def __init__(self, config: PathConfig, prior: Float[Array, "batch time channel"] | None = None) -> None:
        """Makes the path.

        Args:
            config: Schedule, prediction, conventions.
            prior: What x_t is drawn around, and comes to in the end as the data's share goes; None = zero.

        Raises:
            ConfigError: The schedule has no use for a prior.
        """
        if prior is not None and config.schedule == "edm":
            raise ConfigError("path.schedule: 'edm' keeps all of the data, and ends at no prior; give another")
        self.config, self.prior = config, prior

    @property
    def latest(self) -> float:
        """Time that sampling starts at: 1, or just before it where nothing of data, or of noise, is told at 1."""
        if self.config.schedule == "bridge":
            return 1 - 2.0**-20
        vanishing = self.config.prediction == "epsilon" and self.config.schedule in ("linear", "cosine")
        return 0.995 if vanishing else 1.0

    def alpha(self, t: Times) -> Any:
        """Scale of the data."""
        xp = _module(t)
        match self.config.schedule:
            case "linear":
                return 1 - t
            case "cosine":
                return xp.cos(math.pi / 2 * t)
            case "vp_linear":
                return xp.exp(-0.5 * self._integral(t))
            case "edm":
                return xp.ones_like(t)
            case "bridge":
                return (1 - t) * (1 + self._slope * t)

    def sigma(self, t: Times) -> Any:
        """Standard deviation of the noise."""
        xp = _module(t)
        match self.config.schedule:
            case "linear":
                return t * xp.ones_like(t)
            case "cosine":
                return xp.sin(math.pi / 2 * t)
            case "vp_linear":
                return xp.sqrt(-xp.expm1(-self._integral(t)))
            case "edm":
                return self.config.sigma_max * t**self.config.rho
            case "bridge":
                return xp.sqrt(self._total * self.alpha(t) * t * (1 - self._slope + self._slope * t))

    def time_of(self, noise_to_signal: Times) -> Any:
        """Time at which sigma / alpha is this; the inverse of the schedule."""
        xp, config = _module(noise_to_signal), self.config
        match config.schedule:
            case "linear":
                return noise_to_signal / (1 + noise_to_signal)
            case "cosine":
                return 2 / math.pi * xp.arctan(noise_to_signal)
            case "vp_linear":
                # ln(1 + s²) = b0 t + (b1 - b0) t² / 2
                slope, integral = config.beta_max - config.beta_min, xp.log1p(noise_to_signal**2)
                return 2 * integral / (config.beta_min + xp.sqrt(config.beta_min**2 + 2 * slope * integral))
            case "edm":
                return (noise_to_signal / config.sigma_max) ** (1 / config.rho)
            case "bridge":
                gone = noise_to_signal**2 / (self._total + noise_to_signal**2)  # 1 - alpha
                linear = 1 - self._slope
                return 2 * gone / (linear + xp.sqrt(linear**2 + 4 * self._slope * gone))

    def clock(self, t: Times) -> Any:
        """What solvers of second order integrate over: noise level (EDM), angle (cosine, bridge), else time.

        Euler's method over the clock is exact where x0 and epsilon do not change, but for the angles, whose rotation it
        follows to first order.
        """
        match self.config.schedule:
            case "edm":
                return self.sigma(t)
            case "cosine":
                return math.pi / 2 * t
            case "bridge":
                return _module(t).arccos(_module(t).sqrt(self.alpha(t)))
            case _:
                return t

    def rates(self, t: Times) -> tuple[Any, Any]:
        """Derivatives of alpha and sigma by the clock."""
        xp = _module(t)
        one = xp.ones_like(t)
        match self.config.schedule:
            case "linear":
                return -one, one
            case "cosine":
                return -xp.sin(math.pi / 2 * t), xp.cos(math.pi / 2 * t)
            case "vp_linear":
                rate = self.config.beta_min + (self.config.beta_max - self.config.beta_min) * t
                alpha, sigma = self.alpha(t), self.sigma(t)
                return -0.5 * rate * alpha, 0.5 * rate * alpha**2 / sigma
            case "edm":
                return 0 * one, one
            case "bridge":  # alpha = cos², sigma = sqrt(Q) sin cos
                alpha = self.alpha(t)
                return -2 * xp.sqrt(alpha * (1 - alpha)), math.sqrt(self._total) * (2 * alpha - 1)

    def add_noise(
        self,
        x0: Float[Array, "batch time channel"],
        noise: Float[Array, "batch time channel"],
        t: Float[Array, " batch"],
    ) -> Float[Array, "batch time channel"]:
        """The noisy value at time t, one time a row."""
        return self.around(_rows(self.alpha(t), x0) * self.beside(x0) + _rows(self.sigma(t), x0) * noise)

    def beside(self, x: Float[Array, "batch time channel"]) -> Float[Array, "batch time channel"]:
        """What a value differs from the prior by."""
        return x if self.prior is None else x - self.prior

    def around(self, difference: Float[Array, "batch time channel"]) -> Float[Array, "batch time channel"]:
        """The inverse of `beside`."""
        return difference if self.prior is None else difference + self.prior

    def target(
        self,
        x0: Float[Array, "batch time channel"],
        noise: Float[Array, "batch time channel"],
        t: Float[Array, " batch"],
    ) -> Float[Array, "batch time channel"]:
        """What a network is trained to give; its values have about unit variance, but for the velocities' two."""
        alpha, sigma = _rows(self.alpha(t), x0), _rows(self.sigma(t), x0)
        if self.config.prediction == "x0":
            return x0
        x0 = self.beside(x0)
        match self.config.prediction:
            case "epsilon":
                return noise
            case "v":
                return alpha * noise - sigma * x0
            case "velocity":
                return noise - x0
            case "data_velocity":
                return x0 - noise
            case "edm":
                skip, out, _ = self._preconditioning(sigma)
                return (x0 - skip * (x0 + sigma * noise)) / out

    def to_prediction(
        self,
        output: Float[Array, "batch time channel"],
        x_t: Float[Array, "batch time channel"],
        t: Float[Array, " batch"],
    ) -> Prediction:
        """Data and noise that an output stands for.

        Where a quantity is lost in the noise (x0 from epsilon at alpha = 0, epsilon from x0 at sigma = 0), the division
        is by a small number in place of 0.
        """
        if self.prior is not None:
            given = self.beside(output) if self.config.prediction == "x0" else output
            found = Path(self.config).to_prediction(given, self.beside(x_t), t)
            return Prediction(self.around(found.x0), found.epsilon)
        alpha, sigma = _rows(self.alpha(t), x_t), _rows(self.sigma(t), x_t)
        match self.config.prediction:
            case "epsilon":
                return Prediction((x_t - sigma * output) / jnp.maximum(alpha, 1e-5), output)
            case "v":
                return self._from_v(output, x_t, alpha, sigma)
            case "velocity":
                return Prediction(x_t - sigma * output, x_t + alpha * output)
            case "data_velocity":
                return Prediction(x_t + sigma * output, x_t - alpha * output)
            case "edm":
                skip, out, _ = self._preconditioning(sigma)
                x0 = skip * x_t + out * output
            case _:
                x0 = output
        return Prediction(x0, (x_t - alpha * x0) / jnp.maximum(sigma, 1e-5))

    def from_prediction(
        self, prediction: Prediction, x_t: Float[Array, "batch time channel"], t: Float[Array, " batch"]
    ) -> Float[Array, "batch time channel"]:
        """The output that a network would give: the inverse of `to_prediction`."""
        return self.target(prediction.x0, prediction.epsilon, t)

    def scale_input(
        self, x_t: Float[Array, "batch time channel"], t: Float[Array, " batch"]
    ) -> Float[Array, "batch time channel"]:
        """What the network reads in place of x_t: EDM brings it to unit variance."""
        if self.config.schedule != "edm":
            return x_t
        return self._preconditioning(_rows(self.sigma(t), x_t))[2] * x_t

    def time_input(self, t: Float[Array, " batch"]) -> Float[Array, " batch"]:
        """The number that the network's time embedding reads."""
        if self.config.schedule == "edm":
            return jnp.log(jnp.maximum(self.sigma(t), 1e-9)) / 4 * self.config.time_scale
        return (1 - t if self.config.data_at_one else t) * self.config.time_scale

    @property
    def _total(self) -> float:
        """Of the noise rate from 0 to 1."""
        return (self.config.beta_min + self.config.beta_max) / 2

    @property
    def _slope(self) -> float:
        """The h of 1 - q/Q = (1 - t) (1 + h t), which leaves no rounding at either end of a bridge."""
        return (self.config.beta_max - self.config.beta_min) / (2 * self._total)

    def _integral(self, t: Times) -> Any:
        low, high = self.config.beta_min, self.config.beta_max
        return low * t + 0.5 * (high - low) * t**2

    def _preconditioning(self, sigma: Array) -> tuple[Array, Array, Array]:
        """c_skip, c_out, c_in.

        Source:
            Karras et al. 2022 (EDM), table 1.
        """
        std = self.config.data_std
        total = sigma**2 + std**2
        return std**2 / total, sigma * std * jax.lax.rsqrt(total), jax.lax.rsqrt(total)

    def _from_v(self, v: Array, x_t: Array, alpha: Array, sigma: Array) -> Prediction:
        """Solves v = alpha epsilon - sigma x0; alpha² + sigma² is 1 only where the path keeps the variance."""
        total = alpha**2 + sigma**2
        return Prediction((alpha * x_t - sigma * v) / total, (sigma * x_t + alpha * v) / total)


def _module(t: Times) -> Any:
    return jnp if isinstance(t, jax.Array) else np


def _rows(value: Any, like: Array) -> Any:
    """One number a row, ready to multiply the rows of `like`."""
    return value.reshape(value.shape + (1,) * (like.ndim - value.ndim))
