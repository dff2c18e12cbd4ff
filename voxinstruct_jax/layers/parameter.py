"""How parameters are made: every one names its logical axes; none needs a mesh to be made."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

__all__ = [
    "Axes",
    "FrozenParam",
    "Initializer",
    "LoRAParam",
    "freeze",
    "make_param",
    "normal",
    "uniform",
    "xavier",
    "zeros",
]

Axes = tuple[str | None, ...]
"""Logical axis of each array axis: vocab, embed, heads, mlp, layers, or None. `sharding/` maps them to the mesh."""

Initializer = Callable[[jax.Array, tuple[int, ...]], Float[Array, "..."]]
"""(key, shape) → float32 values."""


class FrozenParam(nnx.Variable):
    """A weight that training leaves alone. Not an `nnx.Param`, so neither gradients nor the optimiser see it."""


class LoRAParam(nnx.Param):
    """A weight of an adapter: trained where what it adapts is frozen."""


def make_param(value: Float[Array, "..."], axes: Axes | None, *, kind: type[nnx.Variable] = nnx.Param) -> nnx.Variable:
    """Wraps a value with its logical axes, readable as the metadata `out_sharding`.

    Flax would place the value at once if a mesh were set, and would take logical names for mesh axes: hence not eager.
    """
    return kind(value, out_sharding=axes, eager_sharding=False)


def normal(stddev: float) -> Initializer:
    """Values from N(0, stddev²)."""
    return lambda key, shape: stddev * jax.random.normal(key, shape)


def uniform(bound: float) -> Initializer:
    """Values from U(-bound, bound)."""
    return lambda key, shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound)


def xavier(key: jax.Array, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Glorot and Bengio's uniform values for a kernel [inputs, outputs], or [places, inputs, outputs]."""
    places = math.prod(shape[:-2])
    bound = math.sqrt(6 / (places * (shape[-2] + shape[-1])))
    return jax.random.uniform(key, shape, minval=-bound, maxval=bound)


def zeros(key: jax.Array, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Zeros: what starts as nothing."""
    return jnp.zeros(shape)


def freeze(module: nnx.Module, *, adapters: bool = False) -> None:
    """Turns the plain parameters below `module` into `FrozenParam`; adapters (LoRA) stay trainable unless named too."""
    for _, node in nnx.iter_modules(module):
        for name, value in list(vars(node).items()):
            if type(value) is nnx.Param or (adapters and isinstance(value, LoRAParam)):
                setattr(node, name, make_param(value[...], value.get_metadata().get("out_sharding"), kind=FrozenParam))
