"""What the objectives of AR and NAR share: their data, per-clip draws, and masked means over packed rows."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from voxinstruct_jax.data.batches import BatchConfig, TokenBatches
from voxinstruct_jax.data.shards import ShardReader
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
from voxinstruct_jax.vocabulary import PackedBatch, Vocabulary

__all__ = ["TokenData", "clip_uniform", "count_tokens", "open_batches", "row_keys", "weighted_mean"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenData:
    """Packed token batches. `shards` is a folder that `prepare` wrote."""

    shards: str = "shards"
    batch: BatchConfig = BatchConfig()


def open_batches(data: TokenData, vocabulary: Vocabulary, *, seed: int) -> TokenBatches:
    """Opens prepared data with the tokenizer of the small text encoder; the draws follow the run's seed."""
    batch = dataclasses.replace(data.batch, seed=seed)
    return TokenBatches(ShardReader(Path(data.shards)), PronunciationTokenizer(), vocabulary, batch)


def count_tokens(batch: PackedBatch) -> int:
    """Real slots of a host batch, text included."""
    return int(np.count_nonzero(batch.segment_ids))


def row_keys(key: jax.Array, batch: PackedBatch) -> jax.Array:
    """One key a row, by the row's global number: the same draws on any number of hosts."""
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(batch.clip_ids)


def clip_uniform(keys: jax.Array, segment_ids: Int[Array, "batch time"]) -> Float[Array, "batch time"]:
    """Draws one number from U(0, 1) a clip and gives it to all slots of the clip."""
    draw = jax.vmap(lambda key, ids: jax.random.uniform(key, (ids.shape[0] + 1,))[ids])
    return draw(keys, segment_ids)


def weighted_mean(
    values: Float[Array, "batch time"], weights: Bool[Array, "batch time"] | Float[Array, "batch time"]
) -> Float[Array, ""]:
    """Mean over the whole batch, so a short clip's tokens weigh as much as a long one's; 0 where nothing counts."""
    return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1)
