"""The text encoder: T5 v1.1 (mT5), with low-rank adapters (LoRA) where its own weights are kept frozen.

A token may have several channels, such as a subword and its pronunciation; their embeddings are summed. Read
`TextEncoderConfig`, then `TextEncoder`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.layers.attention import attend, segment_mask
from voxinstruct_jax.layers.dense import Dense, TokenEmbedding
from voxinstruct_jax.layers.dropout import dropout, split_key
from voxinstruct_jax.layers.execution import Execution, keep, run_blocks
from voxinstruct_jax.layers.norms import RMSNorm
from voxinstruct_jax.layers.parameter import LoRAParam, freeze, make_param, normal, uniform
from voxinstruct_jax.sharding.mesh import constrain

__all__ = ["LoRADense", "TextEncoder", "TextEncoderConfig", "relative_buckets"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextEncoderConfig:
    """Sizes of the encoder.

    Raises:
        ConfigError: A size is out of range.
    """

    channel_sizes: tuple[int, ...]
    """Vocabulary of each channel of the tokenizer; id 0 is padding in each."""
    model_dim: int
    num_layers: int
    num_heads: int
    head_dim: int
    ffn_dim: int
    num_buckets: int = 32
    """Relative positions are told apart in this many classes, half of them for each direction."""
    max_distance: int = 128
    """Distances from here on share a bucket (tokens)."""
    lora_rank: int = 0
    """Rank of the adapters on queries and values; 0 = none, all weights train. Otherwise only the adapters do."""
    lora_alpha: float = 16.0
    """Adapters count `lora_alpha / lora_rank` times."""
    dropout: float = 0.1

    def __post_init__(self) -> None:
        sizes = ("model_dim", "num_layers", "num_heads", "head_dim", "ffn_dim")
        wrong = [name for name in sizes if getattr(self, name) < 1]
        if wrong or not self.channel_sizes or min(self.channel_sizes) < 1:
            raise ConfigError(f"text_encoder.{wrong[0] if wrong else 'channel_sizes'}: sizes must be at least 1")
        if self.num_buckets % 4 or not 0 < self.num_buckets // 4 < self.max_distance:
            raise ConfigError(
                f"text_encoder.num_buckets: {self.num_buckets} must be a multiple of 4 and below 4 x max_distance"
            )
        if self.lora_rank < 0 or not 0 <= self.dropout < 1:
            raise ConfigError("text_encoder: lora_rank must be at least 0 and dropout in [0, 1)")

    @classmethod
    def mt5_base(cls) -> "TextEncoderConfig":
        """The encoder of the paper: google/mt5-base, frozen, with adapters of rank 16."""
        return cls(
            channel_sizes=(250112,),
            model_dim=768,
            num_layers=12,
            num_heads=12,
            head_dim=64,
            ffn_dim=2048,
            lora_rank=16,
        )

    @classmethod
    def mt5_small(cls) -> "TextEncoderConfig":
        """google/mt5-small, adapted as `mt5_base`."""
        return dataclasses.replace(cls.mt5_base(), model_dim=512, num_layers=8, num_heads=6, ffn_dim=1024)

    @classmethod
    def mt5_large(cls) -> "TextEncoderConfig":
        """google/mt5-large, adapted as `mt5_base`."""
        return dataclasses.replace(cls.mt5_base(), model_dim=1024, num_layers=24, num_heads=16, ffn_dim=2816)

    @classmethod
    def small(cls, channel_sizes: tuple[int, ...], *, num_layers: int = 3) -> "TextEncoderConfig":
        """Trained from scratch with the embedded voice."""
        return cls(
            channel_sizes=channel_sizes, model_dim=256, num_layers=num_layers, num_heads=4, head_dim=64, ffn_dim=512
        )

    @classmethod
    def tiny(cls, channel_sizes: tuple[int, ...]) -> "TextEncoderConfig":
        """For tests."""
        return cls(channel_sizes=channel_sizes, model_dim=32, num_layers=2, num_heads=4, head_dim=8, ffn_dim=64)


class LoRADense(nnx.Module):
    """A linear map whose kernel W is joined by a low-rank one: W x + (alpha / rank) B (A x).

    Source:
        Hu et al. 2021, section 4.1; A starts as uniform noise and B as zero, so the sum starts at W.
    """

    def __init__(
        self, config: TextEncoderConfig, outputs: tuple[int, int], *, stddev: float, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        dim, rank = config.model_dim, config.lora_rank
        options: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.base = Dense((dim,), outputs, ("embed", "heads", None), init=normal(stddev), **options)
        self.dropout, self.scale, self.dtype = config.dropout, config.lora_alpha / max(rank, 1), dtype
        self.rank = rank
        if rank:
            # Kaiming-uniform with a = sqrt(5), as the release: U(±1/sqrt(fan_in)).
            down = uniform(dim**-0.5)(rngs.params(), (dim, rank))
            self.down = make_param(down, ("embed", None), kind=LoRAParam)
            self.up = make_param(jnp.zeros((rank, *outputs)), (None, "heads", None), kind=LoRAParam)

    def __call__(self, x: Float[Array, "batch text dim"], key: jax.Array | None) -> Float[Array, "batch text heads h"]:
        y = self.base(x)
        if not self.rank:
            return y
        low = dropout(x, self.dropout, key).astype(self.dtype) @ self.down[...].astype(self.dtype)
        return y + self.scale * jnp.tensordot(low, self.up[...].astype(self.dtype), axes=1)


class SelfAttention(nnx.Module):
    """Attention of T5: relative bias in place of positions, scores not scaled."""

    def __init__(self, config: TextEncoderConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        heads, dim = (config.num_heads, config.head_dim), config.model_dim
        width = config.num_heads * config.head_dim
        options: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.query = LoRADense(config, heads, stddev=(dim * config.head_dim) ** -0.5, **options)
        self.key = Dense((dim,), heads, ("embed", "heads", None), init=normal(dim**-0.5), **options)
        self.value = LoRADense(config, heads, stddev=dim**-0.5, **options)
        self.output = Dense(heads, (dim,), ("heads", None, "embed"), init=normal(width**-0.5), **options)
        self.dropout = config.dropout

    def __call__(
        self,
        x: Float[Array, "batch text dim"],
        mask: Bool[Array, "batch text text"],
        bias: Float[Array, "1 heads text text"],
        key: jax.Array | None,
    ) -> Float[Array, "batch text dim"]:
        query_key, value_key, attention_key = split_key(key, 3)
        query, value = self.query(x, query_key), self.value(x, value_key)
        query *= query.shape[-1] ** 0.5  # `attend` scales scores down by this much; T5 does not.
        y = attend(query, self.key(x), value, mask, bias=bias, dropout_rate=self.dropout, dropout_key=attention_key)
        return self.output(y)


class FeedForward(nnx.Module):
    """Gated GELU: output(gelu(gate x) ⊙ up x)."""

    def __init__(self, config: TextEncoderConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        dim, ffn_dim = config.model_dim, config.ffn_dim
        options: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.gate = Dense((dim,), (ffn_dim,), ("embed", "mlp"), init=normal(dim**-0.5), **options)
        self.up = Dense((dim,), (ffn_dim,), ("embed", "mlp"), init=normal(dim**-0.5), **options)
        self.output = Dense((ffn_dim,), (dim,), ("mlp", "embed"), init=normal(ffn_dim**-0.5), **options)
        self.dropout = config.dropout

    def __call__(self, x: Float[Array, "batch text dim"], key: jax.Array | None) -> Float[Array, "batch text dim"]:
        inner = jax.nn.gelu(self.gate(x), approximate=True) * self.up(x)
        return self.output(dropout(inner, self.dropout, key))


class EncoderBlock(nnx.Module):
    """Pre-norm attention and feed-forward, each added to its input."""

    def __init__(self, config: TextEncoderConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.attention_norm = RMSNorm(config.model_dim)
        self.attention = SelfAttention(config, dtype=dtype, rngs=rngs)
        self.ffn_norm = RMSNorm(config.model_dim)
        self.ffn = FeedForward(config, dtype=dtype, rngs=rngs)
        self.dropout = config.dropout

    def __call__(
        self,
        x: Float[Array, "batch text dim"],
        mask: Bool[Array, "batch text text"],
        bias: Float[Array, "1 heads text text"],
        key: jax.Array | None,
    ) -> Float[Array, "batch text dim"]:
        keys = split_key(key, 4)
        y = keep(self.attention(self.attention_norm(x), mask, bias, keys[0]), "attention")
        x = constrain(x + dropout(y, self.dropout, keys[1]), "batch", None, None)
        y = keep(self.ffn(self.ffn_norm(x), keys[2]), "ffn")
        return constrain(x + dropout(y, self.dropout, keys[3]), "batch", None, None)


class TextEncoder(nnx.Module):
    """T5 v1.1 encoder over packed rows: nothing is seen across segments.

    Source:
        Raffel et al. 2020 and the mT5 of Xue et al. 2021; VoxInstruct, section 4.2, adapts it by LoRA.
    """

    def __init__(
        self,
        config: TextEncoderConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        execution: Execution = Execution(),
        rngs: nnx.Rngs,
    ) -> None:
        """Makes the weights; with adapters, all but them are `FrozenParam`."""
        self.config, self.dtype, self.execution = config, dtype, execution
        # T5's initial values: unit embeddings, and projections that keep the variance without scaled scores.
        self.embedding = TokenEmbedding(config.channel_sizes, config.model_dim, init=normal(1.0), rngs=rngs)
        table = normal(config.model_dim**-0.5)(rngs.params(), (config.num_buckets, config.num_heads))
        self.relative_bias = make_param(table, (None, "heads"))
        self.blocks = nnx.List([EncoderBlock(config, dtype=dtype, rngs=rngs) for _ in range(config.num_layers)])
        self.norm = RMSNorm(config.model_dim)
        if config.lora_rank:
            freeze(self)

    def __call__(
        self,
        text_tokens: Int[Array, "batch text channel"],
        text_segment_ids: Int[Array, "batch text"],
        *,
        key: jax.Array | None = None,
    ) -> Float[Array, "batch text dim"]:
        """Encodes tokens.

        Args:
            text_tokens: Ids; 0 = nothing in this channel.
            text_segment_ids: Texts within a row, from 1; 0 = padding, whose result is undefined.
            key: Of dropout; None = no dropout.
        """
        return self.encode(self.embedding(text_tokens), segment_mask(text_segment_ids), key=key)

    def encode(
        self,
        x: Float[Array, "batch text dim"],
        mask: Bool[Array, "batch text text"],
        *,
        key: jax.Array | None = None,
        observed: list[Float[Array, "batch text dim"]] | None = None,
    ) -> Float[Array, "batch text dim"]:
        """Encodes rows that are embedded already.

        Args:
            x: Embeddings.
            mask: True where a token (first) may see a token (second).
            key: Of dropout; None = no dropout.
            observed: A list that takes up the input of every block.
        """
        first_key, last_key, *keys = split_key(key, self.config.num_layers + 2)
        buckets = relative_buckets(x.shape[1], self.config.num_buckets, self.config.max_distance)
        bias = jnp.moveaxis(self.relative_bias[...][buckets], -1, 0)[None]
        x = dropout(x.astype(self.dtype), self.config.dropout, first_key)

        def apply(block: Any, x: Array, block_key: jax.Array | None) -> Array:
            if observed is not None:
                observed.append(x)
            return block(x, mask, bias, block_key)

        execution = self.execution if observed is None else Execution()  # a scan shows no block's input
        x = run_blocks(self.blocks, x, keys, apply, execution, dtype=self.dtype)
        return dropout(self.norm(x), self.config.dropout, last_key)


def relative_buckets(length: int, num_buckets: int, max_distance: int) -> Int[np.ndarray, "text text"]:
    """Class of each (query, key) distance: exact when near, logarithmic when far, one half for each direction.

    Source:
        Raffel et al. 2020, section 2.1; the rounding is that of the T5 code.
    """
    places = np.arange(length)
    distance = places[None, :] - places[:, None]
    half, exact = num_buckets // 2, num_buckets // 4
    near = np.abs(distance)
    # In float32, as T5: at exact powers the last bit decides the bucket.
    ratio = np.log(np.maximum(near, exact).astype(np.float32) / exact) / np.float32(np.log(max_distance / exact))
    far = np.minimum(exact + (ratio * (half - exact)).astype(np.int32), half - 1)
    return np.where(distance > 0, half, 0) + np.where(near < exact, near, far)
