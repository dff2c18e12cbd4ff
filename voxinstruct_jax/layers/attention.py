"""Attention with any mask: the reference of `packed_attention`, and what decoding and the text encoder run."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from voxinstruct_jax.layers.dropout import dropout

__all__ = ["PAST_BLOCK", "TextAttention", "attend", "attend_to_cache", "attend_to_past", "segment_mask"]

TextAttention = Literal["bidirectional", "causal"]
"""How text slots see one another; causal only for weights of the original release."""

HIDDEN_SCORE = -1e30
"""Finite, so that a query with nothing to see (padding) gives a plain mean and not NaN."""
PAST_BLOCK = 64
"""Slots that `attend_to_past` reads at a time."""
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


def attend_to_past(
    query: Float[Array, "batch time heads head_dim"],
    keys: Float[Array, "batch kv_heads slot head_dim"],
    values: Float[Array, "batch kv_heads slot head_dim"],
    start: Int[Array, " batch"],
) -> Float[Array, "batch time heads head_dim"]:
    """As `attend_to_cache`, each row up to its own place: query t sees the slots up to `start + t`.

    Slots are read in blocks and only as far as they are seen, and a block that a row does not see adds an exact zero:
    a row's result follows from the row alone, to the last bit, however many slots there are.

    Args:
        query: Of positions that follow one another.
        keys: In a type of their own; they are read in that of the query.
        values: As `keys`.
        start: Slot of the first query; one beyond the last slot sees nothing and gives zeros.

    Source:
        The running softmax of Milakov and Gimelshein 2018, by blocks as in FlashAttention (Dao et al. 2022).
    """
    batch, time, heads, head_dim = query.shape
    kv_heads, slots = keys.shape[1:3]
    grouped = query.reshape(batch, time, kv_heads, heads // kv_heads, head_dim).transpose(0, 2, 3, 1, 4)
    ends = jnp.where(start < slots, start + time, 0)
    arguments = grouped, keys, values, start, ends
    attended = jax.lax.platform_dependent(*arguments, cpu=_attend_row_by_row, default=_attend_blocks)
    return attended.transpose(0, 3, 1, 2, 4).reshape(query.shape)


def _attend_row_by_row(
    query: Float[Array, "batch kv_heads group time head_dim"],
    keys: Float[Array, "batch kv_heads slot head_dim"],
    values: Float[Array, "batch kv_heads slot head_dim"],
    start: Int[Array, " batch"],
    ends: Int[Array, " batch"],
) -> Float[Array, "batch kv_heads group time head_dim"]:
    """What a CPU does: it reads no more of a row than the row sees."""

    def attend_row(row: tuple[Array, Array, Array, Array]) -> Array:
        number, query, start, end = row
        return _attend_blocks(query[None], keys, values, start[None], end[None], first_row=number)[0]

    return jax.lax.map(attend_row, (jnp.arange(len(query)), query, start, ends))


def _attend_blocks(
    query: Float[Array, "batch kv_heads group time head_dim"],
    keys: Float[Array, "all kv_heads slot head_dim"],
    values: Float[Array, "all kv_heads slot head_dim"],
    start: Int[Array, " batch"],
    ends: Int[Array, " batch"],
    first_row: Int[Array, ""] | int = 0,
) -> Float[Array, "batch kv_heads group time head_dim"]:
    """Reads the rows from `first_row` on, block by block, as far as the longest one sees."""
    (batch, kv_heads, _, time, head_dim), slots = query.shape, keys.shape[2]
    width = min(PAST_BLOCK, slots)
    shape = (batch, kv_heads, width, head_dim)

    def add_block(number: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        highest, total, summed = carry
        begin = jnp.minimum(number * width, slots - width)  # the last block may overlap the one before it
        block = [jax.lax.dynamic_slice(x, (first_row, 0, begin, 0), shape).astype(query.dtype) for x in (keys, values)]
        slot = begin + jnp.arange(width)
        seen = (slot >= number * width) & (slot <= (start[:, None] + jnp.arange(time))[..., None])
        scores = jnp.einsum("bkgth,bksh->bkgts", query, block[0], preferred_element_type=jnp.float32)
        scores = jnp.where(seen[:, None, None], scores * head_dim**-0.5, HIDDEN_SCORE)
        now = jnp.maximum(highest, scores.max(axis=-1))
        shares = jnp.where(seen[:, None, None], jnp.exp(scores - now[..., None]), 0)
        faded = jnp.exp(highest - now)
        added = jnp.einsum(
            "bkgts,bksh->bkgth", shares.astype(query.dtype), block[1], preferred_element_type=jnp.float32
        )
        return now, total * faded + shares.sum(axis=-1), summed * faded[..., None] + added

    lead = query.shape[:-1]
    nothing = jnp.full(lead, HIDDEN_SCORE), jnp.zeros(lead), jnp.zeros(query.shape)
    _, total, summed = jax.lax.fori_loop(0, -(-ends.max() // width), add_block, nothing)
    return (summed / jnp.where(total > 0, total, 1)[..., None]).astype(query.dtype)


def segment_mask(segment_ids: Int[Array, "batch time"]) -> Bool[Array, "batch time time"]:
    """Everything within a segment sees everything in it; padding (0) neither sees nor is seen."""
    return (segment_ids[:, :, None] == segment_ids[:, None, :]) & (segment_ids[:, None, :] > 0)
