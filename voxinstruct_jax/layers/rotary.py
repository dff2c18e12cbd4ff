"""Rotary position embedding, half-rotation form."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Num

__all__ = ["rotary_tables", "rotate"]


def rotary_tables(
    positions: Num[Array, "batch time"], head_dim: int, theta: float
) -> tuple[Float[Array, "batch time half"], Float[Array, "batch time half"]]:
    """Returns cosines and sines of position x theta^(-2j / head_dim), j = 0 .. head_dim / 2 - 1, in float32.

    Source:
        Su et al. 2021 (RoFormer), equation 34, with the pairing of LLaMA: first half with second half of a head.
    """
    exponents = jnp.arange(head_dim // 2, dtype=jnp.float32) / (head_dim // 2)
    angles = positions[..., None].astype(jnp.float32) * theta**-exponents
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "batch time heads head_dim"],
    cos: Float[Array, "batch time half"],
    sin: Float[Array, "batch time half"],
) -> Float[Array, "batch time heads head_dim"]:
    """Rotates the pairs (first half, second half) of each head; the tables are cast to the type of `x` first."""
    cos, sin = cos[:, :, None].astype(x.dtype), sin[:, :, None].astype(x.dtype)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
