"""Times: from which density they are drawn in training, and on which grid a solver walks.

Source:
    Uniform: Liu et al. 2023 (rectified flow). Logit-normal and shift: Esser et al. 2024 (Stable Diffusion 3), sections
    3.1 and 5.3.2. U-shaped: Lee et al. 2024. Sway: Chen et al. 2024 (F5-TTS), section 3.3. Karras: EDM, equation 5.
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.diffusion.path import Path

__all__ = ["Grid", "TimeDensity", "sample_times", "time_grid"]

EDGE = 1e-5
"""Drawn times stay this far from 0 and 1, where some predictions are undefined."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimeDensity:
    """How training times are drawn.

    Raises:
        ConfigError: A number is out of range.
    """

    kind: Literal["uniform", "logit_normal", "u_shaped", "log_normal_noise"] = "uniform"
    """`log_normal_noise` draws ln(sigma / alpha) from N(mean, std²), as EDM."""
    mean: float = 0.0
    std: float = 1.0
    edge: float = 4.0
    """a of the U-shaped density exp(a t) + exp(a (1 - t))."""
    shift: float = 1.0
    """Above 1: more noise, for long sequences."""

    def __post_init__(self) -> None:
        for name in ("std", "edge", "shift"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"times.{name}: {getattr(self, name)} must be above 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """Times that a solver stops at.

    Raises:
        ConfigError: A number is out of range.
    """

    kind: Literal["uniform", "sway", "karras", "last_short"] = "uniform"
    """`last_short`: equal steps from 1 to 1/1000, then one to 0, as UNISON's release."""
    steps: int = 100
    sway: float = -1.0
    """k of `sway`: below 0 takes smaller steps near the noise."""
    shift: float = 1.0
    """As of `TimeDensity`."""

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.shift > 0 or not -1 <= self.sway <= 2 / (math.pi - 2):
            raise ConfigError(
                f"grid: steps {self.steps} must be at least 1, shift {self.shift} above 0, sway {self.sway} from -1 to "
                f"{2 / (math.pi - 2):.2f}"
            )


def sample_times(keys: Array, density: TimeDensity, path: Path) -> Float[Array, " batch"]:
    """Draws one time a row, in (0, 1).

    Args:
        keys: One key a row.
        density: To draw from.
        path: Gives the time of a noise level.
    """
    if density.kind in ("uniform", "u_shaped"):
        t = jax.vmap(jax.random.uniform)(keys)
        if density.kind == "u_shaped":
            # p(t) = a (e^{at} + e^{a(1-t)}) / (2 (e^a - 1)); its integral is inverted through sinh
            a = density.edge
            t = 0.5 + jnp.arcsinh((2 * t - 1) * math.sinh(a / 2)) / a
    else:
        normal = density.mean + density.std * jax.vmap(jax.random.normal)(keys)
        t = jax.nn.sigmoid(normal) if density.kind == "logit_normal" else path.time_of(jnp.exp(normal))
    return jnp.clip(_shifted(t, density.shift), EDGE, 1 - EDGE)


def time_grid(grid: Grid, path: Path) -> Float[np.ndarray, " steps_and_end"]:
    """Returns falling times from 1 to 0, `steps + 1` of them, in float64.

    Raises:
        ConfigError: The grid does not fit the path.
    """
    even = np.linspace(1.0, 0.0, grid.steps + 1)
    match grid.kind:
        case "uniform":
            times = even
        case "sway":
            data_time = 1 - even
            times = 1 - (data_time + grid.sway * (np.cos(np.pi / 2 * data_time) - 1 + data_time))
        case "last_short":
            times = np.append(np.linspace(1.0, 0.001, grid.steps), 0.0)
        case "karras":
            config = path.config
            if config.schedule != "edm":
                raise ConfigError("grid.kind: 'karras' needs a path with schedule 'edm'")
            ends = config.sigma_max ** (1 / config.rho), config.sigma_min ** (1 / config.rho)
            times = path.time_of(np.append(np.linspace(*ends, grid.steps) ** config.rho, 0.0))
    times = _shifted(times, grid.shift)
    times[0], times[-1] = 1.0, 0.0
    return times


def _shifted(t: Any, shift: float) -> Any:
    return shift * t / (1 + (shift - 1) * t)
