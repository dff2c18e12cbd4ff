"""Attention with any mask: the reference of `packed_attention`, and what decoding and the text encoder run."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from voxinstruct_jax.layers.dropout import dropout

__all__ = ["TextAttention", "attend", "attend_to_cache", "segment_mask"]

TextAttention = Literal["bidirectional", "causal"]
"""How text slots see one another; causal only for weights of the original release."""

HIDDEN_SCORE = -1e30
"""Finite, so that a query with nothing to see (padding) gives a plain mean and not NaN."""
MANY_SCORES = 2**21
"""Scores from which on a CPU takes one head after another: those of one stay in its caches."""


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
    if bias is None and (dropout_rate == 0 or dropout_key is None):
        return attend_to_cache(query, key.swapaxes(1, 2), value.swapaxes(1, 2), mask)
    batch, time, heads, head_dim = query.shape
    kv_heads = key.shape[2]
    grouped = query.reshape(batch, time, kv_heads, heads // kv_heads, head_dim)
    scores = jnp.einsum("btkgh,bskh->bkgts", grouped, key, preferred_element_type=jnp.float32) * head_dim**-0.5
    if bias is not None:
        scores += bias.reshape(bias.shape[0], kv_heads, heads // kv_heads, *bias.shape[2:]).astype(jnp.float32)
    scores = jnp.where(mask[:, None, None], scores, HIDDEN_SCORE)
    probabilities = dropout(jax.nn.softmax(scores, axis=-1), dropout_rate, dropout_key).astype(value.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", probabilities, value).reshape(query.shape)


def attend_to_cache(
    query: Float[Array, "batch time heads head_dim"],
    keys: Float[Array, "batch kv_heads source head_dim"],
    values: Float[Array, "batch kv_heads source head_dim"],
    mask: Bool[Array, "batch time source"],
) -> Float[Array, "batch time heads head_dim"]:
    """As `attend`, from keys and values with their heads first: what a head reads then lies in one piece."""
    batch, time, heads, head_dim = query.shape
    kv_heads = keys.shape[1]
    grouped = query.reshape(batch, time, kv_heads, heads // kv_heads, head_dim).transpose(0, 2, 3, 1, 4)
    arguments = grouped, keys, values, mask
    if batch * heads * time * keys.shape[2] < MANY_SCORES:
        attended = _attend_heads(*arguments)
    else:
        attended = jax.lax.platform_dependent(*arguments, cpu=_attend_head_by_head, default=_attend_heads)
    return attended.transpose(0, 3, 1, 2, 4).reshape(query.shape)


def _attend_heads(
    query: Float[Array, "batch kv_heads group time head_dim"],
    keys: Float[Array, "batch kv_heads source head_dim"],
    values: Float[Array, "batch kv_heads source head_dim"],
    mask: Bool[Array, "batch time source"],
) -> Float[Array, "batch kv_heads group time head_dim"]:
    scores = jnp.einsum("bkgth,bksh->bkgts", query, keys, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None, None], scores * query.shape[-1] ** -0.5, HIDDEN_SCORE)
    # A softmax that divides after the product: there are far fewer outputs than scores.
    shares = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    summed = jnp.einsum("bkgts,bksh->bkgth", shares.astype(values.dtype), values, preferred_element_type=jnp.float32)
    return (summed / shares.sum(axis=-1, keepdims=True)).astype(values.dtype)


def _attend_head_by_head(
    query: Float[Array, "batch kv_heads group time head_dim"],
    keys: Float[Array, "batch kv_heads source head_dim"],
    values: Float[Array, "batch kv_heads source head_dim"],
    mask: Bool[Array, "batch time source"],
) -> Float[Array, "batch kv_heads group time head_dim"]:
    def attend_head(head: tuple[Array, Array, Array]) -> Array:
        query, keys, values = (part[:, None] for part in head)
        return _attend_heads(query, keys, values, mask)[:, 0]

    by_head = tuple(jnp.moveaxis(part, 1, 0) for part in (query, keys, values))
    return jnp.moveaxis(jax.lax.map(attend_head, by_head), 0, 1)


def segment_mask(segment_ids: Int[Array, "batch time"]) -> Bool[Array, "batch time time"]:
    """Everything within a segment sees everything in it; padding (0) neither sees nor is seen."""
    return (segment_ids[:, :, None] == segment_ids[:, None, :]) & (segment_ids[:, None, :] > 0)
