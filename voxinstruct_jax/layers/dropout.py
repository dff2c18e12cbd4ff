"""Dropout by explicit key; no key means none."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["dropout", "split_key"]


def dropout(x: Float[Array, "..."], rate: float, key: jax.Array | None) -> Float[Array, "..."]:
    """Sets a share `rate` of the values to 0 and scales the rest up by as much; without a key returns `x`."""
    if key is None or rate == 0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)


def split_key(key: jax.Array | None, num_keys: int) -> list[jax.Array | None]:
    """Splits a key, or hands None on as often."""
    return [None] * num_keys if key is None else list(jax.random.split(key, num_keys))
