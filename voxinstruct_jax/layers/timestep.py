"""Sinusoids of a time, as denoisers read it."""

import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["timestep_embedding"]


def timestep_embedding(t: Float[Array, " batch"], dim: int) -> Float[Array, "batch dim"]:
    """Cosines, then sines, of t x 10000^(-2j / dim), j = 0 .. dim / 2 - 1, in float32; made for times of 0 to 1000.

    Source:
        Vaswani et al. 2017, section 3.5, in the order of DiT (Peebles and Xie 2023).
    """
    exponents = jnp.arange(dim // 2, dtype=jnp.float32) / (dim // 2)
    angles = t[:, None].astype(jnp.float32) * 10000.0**-exponents
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
