"""AdamW with warm-up, decay and clipping."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from voxinstruct_jax.config import ConfigError

__all__ = ["OptimizerConfig", "learning_rate", "make_optimizer"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its learning-rate schedule."""

    peak_lr: float = 1e-4
    warmup_steps: int = 10_000
    decay: Literal["inverse_sqrt", "cosine"] = "inverse_sqrt"
    decay_steps: int = 1_000_000  # where a cosine ends; an inverse square root has no end
    final_lr_ratio: float = 0.01  # of the peak, at the end of a cosine
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.1  # on tensors with at least two axes; norms and biases have none
    max_grad_norm: float = 5.0

    def __post_init__(self) -> None:
        if self.peak_lr <= 0 or self.warmup_steps < 1:
            raise ConfigError(f"peak_lr {self.peak_lr} must be above 0 and warmup_steps {self.warmup_steps} at least 1")
        if self.decay == "cosine" and self.decay_steps <= self.warmup_steps:
            raise ConfigError(f"decay_steps {self.decay_steps} must be above warmup_steps {self.warmup_steps}")


def learning_rate(config: OptimizerConfig) -> optax.Schedule:
    """Returns step → learning rate: a linear warm-up, then the decay.

    Source:
        VoxInstruct, section 5.1: peak 1e-4, 10,000 warm-up steps. Its release decays by the inverse square root of the
        step (and doubles the rate at each further million, a fault that is not reproduced).
    """
    if config.decay == "cosine":
        return optax.warmup_cosine_decay_schedule(
            0.0, config.peak_lr, config.warmup_steps, config.decay_steps, config.peak_lr * config.final_lr_ratio
        )

    def inverse_sqrt(step: ArrayLike) -> jax.Array:
        step = jnp.maximum(step, 1)
        return config.peak_lr * jnp.minimum((config.warmup_steps / step) ** 0.5, step / config.warmup_steps)

    return inverse_sqrt


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Global-norm clipping, then AdamW, once an update."""
    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adamw(
            learning_rate(config),
            b1=config.beta1,
            b2=config.beta2,
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim >= 2, params),
        ),
    )
