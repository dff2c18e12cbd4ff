"""Normalisation."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from voxinstruct_jax.layers.parameter import make_param

__all__ = ["RMSNorm", "layer_norm", "modulate"]


class RMSNorm(nnx.Module):
    """Scales each vector to unit mean square, then by a learnt weight; no mean is taken off, no bias added.

    Source:
        Zhang and Sennrich 2019. The square is averaged in float32 and the result cast back before the weight, in the
        order of LLaMA and T5: bfloat16 weights trained elsewhere depend on it.
    """

    def __init__(self, dim: int, *, epsilon: float = 1e-6) -> None:
        self.weight = make_param(jnp.ones(dim), ("embed",))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        wide = x.astype(jnp.float32)
        mean_square = jnp.mean(wide * wide, axis=-1, keepdims=True)
        return (wide * jax.lax.rsqrt(mean_square + self.epsilon)).astype(x.dtype) * self.weight[...].astype(x.dtype)


def layer_norm(x: Float[Array, "*batch dim"], epsilon: float = 1e-6) -> Float[Array, "*batch dim"]:
    """Layer normalisation without weights, in float32."""
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    return (centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + epsilon)).astype(x.dtype)


def modulate(
    x: Float[Array, "batch time dim"], shift: Float[Array, "batch dim"], scale: Float[Array, "batch dim"]
) -> Float[Array, "batch time dim"]:
    """Layer-normalises, then scales by 1 + scale and shifts, one of each a row.

    Source:
        Peebles and Xie 2023 (DiT), section 3.2, adaptive layer norm.
    """
    return (layer_norm(x).astype(jnp.float32) * (1 + scale[:, None]) + shift[:, None]).astype(x.dtype)
