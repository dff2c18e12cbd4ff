"""Attention with any mask: the reference of `packed_attention`, and what decoding and the text encoder run."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from voxinstruct_jax.layers.dropout import dropout

__all__ = ["TextAttention", "attend", "segment_mask"]

TextAttention = Literal["bidirectional", "causal"]
"""How text slots see one another; causal only for weights of the original release."""

HIDDEN_SCORE = -1e30
"""Finite, so that a query with nothing to see (padding) gives a plain mean and not NaN."""


def attend(
    query: Float[Array, "batch time heads head_dim"],
    key: Float[Array, "batch source kv_heads head_dim"],
    value: Float[Array, "batch source kv_heads head_dim"],
    mask: Bool[Array, "batch time source"],
    *,
    bias: Float[Array, "#batch heads time source"] | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> Float[Array, "batch time heads head_dim"]:
    """Scaled dot-product attention, its softmax in float32.

    Args:
        query: `heads` is a multiple of `kv_heads`; neighbouring query heads share a key head.
        key: Not repeated for the query heads.
        value: As `key`.
        mask: True where the query may see the key; a query that may see none gives an undefined, finite row.
        bias: Added to the scaled scores.
        dropout_rate: Of the attention probabilities.
        dropout_key: None = no dropout.
    """
    batch, time, heads, head_dim = query.shape
    kv_heads = key.shape[2]
    grouped = query.reshape(batch, time, kv_heads, heads // kv_heads, head_dim)
    scores = jnp.einsum("btkgh,bskh->bkgts", grouped, key, preferred_element_type=jnp.float32) * head_dim**-0.5
    if bias is not None:
        scores += bias.reshape(bias.shape[0], kv_heads, heads // kv_heads, *bias.shape[2:]).astype(jnp.float32)
    scores = jnp.where(mask[:, None, None], scores, HIDDEN_SCORE)
    probabilities = dropout(jax.nn.softmax(scores, axis=-1), dropout_rate, dropout_key).astype(value.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", probabilities, value).reshape(query.shape)


def segment_mask(segment_ids: Int[Array, "batch time"]) -> Bool[Array, "batch time time"]:
    """Everything within a segment sees everything in it; padding (0) neither sees nor is seen."""
    return (segment_ids[:, :, None] == segment_ids[:, None, :]) & (segment_ids[:, None, :] > 0)
