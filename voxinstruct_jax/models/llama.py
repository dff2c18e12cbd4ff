"""LLaMA blocks, which the AR and the NAR model share, and the key-value cache of step-by-step decoding.

The blocks know nothing of tokens: they take embeddings, positions and who sees whom. Decoding runs the layers one by
one, since a scan over layers makes it two to three times slower. Read `Llama`.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Num, Shaped

from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.layers.attention import attend, attend_to_cache, attend_to_past
from voxinstruct_jax.layers.dense import AdaptedDense, Dense
from voxinstruct_jax.layers.dropout import split_key
from voxinstruct_jax.layers.execution import Execution, keep, run_blocks
from voxinstruct_jax.layers.norms import RMSNorm
from voxinstruct_jax.layers.packed_attention import Visibility, attend_packed, resolve_backend, visibility_mask
from voxinstruct_jax.layers.parameter import normal
from voxinstruct_jax.layers.rotary import rotary_tables, rotate
from voxinstruct_jax.sharding.mesh import constrain

__all__ = ["ComputeType", "KVCache", "Llama", "LlamaConfig", "init_cache"]

ComputeType = Literal["float32", "bfloat16"]
"""Type of activations and products; weights, softmax and logits are float32 always."""

Rotary = tuple[Float[Array, "batch time half"], Float[Array, "batch time half"]]
STDDEV = 0.02


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Sizes of the transformer.

    Raises:
        ConfigError: A size is out of range, or the heads do not fit one another.
    """

    num_layers: int
    model_dim: int
    num_heads: int
    num_kv_heads: int
    """Key and value heads, each shared by `num_heads / num_kv_heads` query heads."""
    head_dim: int
    ffn_dim: int
    rope_theta: float = 10000.0
    dropout: float = 0.1
    """Of attention probabilities; there is no other in these blocks."""
    lora_rank: int = 0
    """Rank of adapters beside query, key and value; all other weights of the model are frozen then. 0 = none."""
    lora_alpha: float = 16.0
    """Adapters count `lora_alpha / lora_rank` times."""

    def __post_init__(self) -> None:
        if self.lora_rank < 0:
            raise ConfigError(f"backbone.lora_rank: {self.lora_rank} is below 0; 0 = no adapters")
        for name in ("num_layers", "model_dim", "num_heads", "num_kv_heads", "head_dim", "ffn_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"backbone.{name}: {getattr(self, name)} must be at least 1")
        if self.num_heads % self.num_kv_heads or self.head_dim % 2:
            raise ConfigError(
                f"backbone: num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}, "
                f"and head_dim {self.head_dim} even"
            )
        if not 0 <= self.dropout < 1 or self.rope_theta <= 0:
            raise ConfigError("backbone: dropout must be in [0, 1) and rope_theta positive")

    @classmethod
    def paper(cls) -> "LlamaConfig":
        """Both models of the paper (section 5.1)."""
        return cls(num_layers=12, model_dim=1024, num_heads=16, num_kv_heads=16, head_dim=64, ffn_dim=4096)

    @classmethod
    def large(cls) -> "LlamaConfig":
        """1.2 billion weights, the width of LLaMA's 1.3B kin."""
        return cls(num_layers=24, model_dim=2048, num_heads=16, num_kv_heads=16, head_dim=128, ffn_dim=5632)

    @classmethod
    def huge(cls) -> "LlamaConfig":
        """6.5 billion weights, LLaMA 7B's sizes; for plans."""
        return cls(num_layers=32, model_dim=4096, num_heads=32, num_kv_heads=32, head_dim=128, ffn_dim=11008)

    @classmethod
    def small(cls, num_layers: int) -> "LlamaConfig":
        """The embedded voice."""
        return cls(num_layers=num_layers, model_dim=256, num_heads=4, num_kv_heads=4, head_dim=64, ffn_dim=704)

    @classmethod
    def tiny(cls) -> "LlamaConfig":
        """For tests; two query heads share a key head."""
        return cls(num_layers=2, model_dim=32, num_heads=4, num_kv_heads=2, head_dim=8, ffn_dim=64)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class KVCache:
    """Keys (already rotated) and values of the slots written so far; others hold anything and must be masked."""

    keys: tuple[Float[Array, "batch kv_heads slot head_dim"], ...]
    """One array a layer; heads first, so that a step reads each head in one piece."""
    values: tuple[Float[Array, "batch kv_heads slot head_dim"], ...]
    """One array a layer."""


def init_cache(config: LlamaConfig, batch: int, slots: int, dtype: DTypeLike = jnp.float32) -> KVCache:
    """Returns an empty cache.

    Args:
        config: Sizes of the blocks.
        batch: Rows.
        slots: Positions that fit in.
        dtype: The computation type of the model.
    """
    shape = (batch, config.num_kv_heads, slots, config.head_dim)

    def empty() -> tuple[jax.Array, ...]:
        # One buffer a layer: a donated cache must not hold the same buffer twice.
        return tuple(jnp.zeros(shape, dtype) for _ in range(config.num_layers))

    return KVCache(keys=empty(), values=empty())


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerCache:
    """One layer's share of a `KVCache`, and the slot that the next position goes to, of all rows or of each."""

    keys: Float[Array, "batch kv_heads slot head_dim"]
    values: Float[Array, "batch kv_heads slot head_dim"]
    slot: Int[Array, "*batch"]

    def write(
        self, keys: Float[Array, "batch time kv_heads head_dim"], values: Float[Array, "batch time kv_heads head_dim"]
    ) -> "LayerCache":
        """Returns it with the new positions written in; a row whose slot lies beyond the last one is left alone."""

        def put(old: Array, new: Array) -> Array:
            if not self.slot.ndim:
                return jax.lax.dynamic_update_slice_in_dim(old, new.swapaxes(1, 2).astype(old.dtype), self.slot, axis=2)
            rows, slots = jnp.arange(len(old))[:, None], self.slot[:, None] + jnp.arange(new.shape[1])
            return old.at[rows, :, slots].set(new.astype(old.dtype), mode="drop")

        return LayerCache(keys=put(self.keys, keys), values=put(self.values, values), slot=self.slot)

    def attend(
        self, query: Float[Array, "batch time heads head_dim"], mask: Bool[Array, "batch time slot"] | None
    ) -> Float[Array, "batch time heads head_dim"]:
        """Attends to what the mask shows; without one, to each row's own past."""
        if mask is not None:
            return attend_to_cache(query, self.keys, self.values, mask)
        return attend_to_past(query, self.keys, self.values, self.slot)


class LlamaAttention(nnx.Module):
    """Grouped-query attention with rotary positions; no biases."""

    def __init__(self, config: LlamaConfig, *, dtype: DTypeLike, execution: Execution, rngs: nnx.Rngs) -> None:
        dim, heads, kv_heads = config.model_dim, config.num_heads, config.num_kv_heads
        axes = ("embed", "heads", None)
        options: dict[str, Any] = {"init": normal(STDDEV), "dtype": dtype, "rngs": rngs}
        kind = Dense
        if config.lora_rank:
            kind = functools.partial(AdaptedDense, adapter=(config.lora_rank, config.lora_alpha))
        self.query = kind((dim,), (heads, config.head_dim), axes, **options)
        self.key = kind((dim,), (kv_heads, config.head_dim), axes, **options)
        self.value = kind((dim,), (kv_heads, config.head_dim), axes, **options)
        self.output = Dense((heads, config.head_dim), (dim,), ("heads", None, "embed"), **options)
        self.dropout, self.execution = config.dropout, execution

    def __call__(
        self,
        x: Float[Array, "batch time dim"],
        rotary: Rotary,
        visibility: Visibility,
        *,
        dropout_key: jax.Array | None = None,
    ) -> Float[Array, "batch time dim"]:
        """Runs whole packed rows."""
        dropout = self.dropout if dropout_key is not None else 0.0
        y = attend_packed(
            *self._project(x, rotary),
            visibility,
            backend=resolve_backend(self.execution.attention, dropout),
            dropout_rate=dropout,
            dropout_key=dropout_key,
        )
        return self.output(constrain(y, "batch", None, "heads", None))

    def decode(
        self,
        x: Float[Array, "batch time dim"],
        rotary: Rotary,
        mask: Bool[Array, "batch time slot"] | None,
        cache: LayerCache,
    ) -> tuple[Float[Array, "batch time dim"], LayerCache]:
        """Runs new positions; returns the output, and the cache with them."""
        query, keys, values = self._project(x, rotary)
        cache = cache.write(keys, values)
        return self.output(cache.attend(query, mask)), cache

    def _project(self, x: Float[Array, "batch time dim"], rotary: Rotary) -> tuple[Array, Array, Array]:
        query, key, value = (
            constrain(y, "batch", None, "heads", None) for y in (self.query(x), self.key(x), self.value(x))
        )
        return rotate(query, *rotary), rotate(key, *rotary), value


class SwiGLU(nnx.Module):
    """Gated feed-forward: down(silu(gate x) ⊙ up x)."""

    def __init__(self, config: LlamaConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        dim, ffn_dim = config.model_dim, config.ffn_dim
        options: dict[str, Any] = {"init": normal(STDDEV), "dtype": dtype, "rngs": rngs}
        self.gate = Dense((dim,), (ffn_dim,), ("embed", "mlp"), **options)
        self.up = Dense((dim,), (ffn_dim,), ("embed", "mlp"), **options)
        self.down = Dense((ffn_dim,), (dim,), ("mlp", "embed"), **options)

    def __call__(self, x: Float[Array, "batch time dim"]) -> Float[Array, "batch time dim"]:
        inner = jax.nn.silu(self.gate(x)) * self.up(x)
        return self.down(constrain(inner, "batch", None, "mlp"))


class LlamaBlock(nnx.Module):
    """Pre-norm attention and feed-forward, each added to its input."""

    def __init__(self, config: LlamaConfig, *, dtype: DTypeLike, execution: Execution, rngs: nnx.Rngs) -> None:
        self.attention_norm = RMSNorm(config.model_dim)
        self.attention = LlamaAttention(config, dtype=dtype, execution=execution, rngs=rngs)
        self.ffn_norm = RMSNorm(config.model_dim)
        self.ffn = SwiGLU(config, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch time dim"],
        rotary: Rotary,
        visibility: Visibility,
        *,
        dropout_key: jax.Array | None = None,
    ) -> Float[Array, "batch time dim"]:
        """Runs whole packed rows."""
        y = self.attention(self.attention_norm(x), rotary, visibility, dropout_key=dropout_key)
        x = constrain(x + keep(y, "attention"), "batch", None, None)
        return constrain(x + keep(self.ffn(self.ffn_norm(x)), "ffn"), "batch", None, None)

    def decode(
        self,
        x: Float[Array, "batch time dim"],
        rotary: Rotary,
        mask: Bool[Array, "batch time slot"] | None,
        cache: LayerCache,
    ) -> tuple[Float[Array, "batch time dim"], LayerCache]:
        """Runs new positions; returns the output, and the cache with them."""
        y, cache = self.attention.decode(self.attention_norm(x), rotary, mask, cache)
        x += y
        return x + self.ffn(self.ffn_norm(x)), cache

    def at_places(
        self,
        x: Float[Array, "batch time dim"],
        rotary: Rotary,
        mask: Bool[Array, "batch time source"],
        places: Int[Array, "batch target"],
    ) -> Float[Array, "batch target dim"]:
        """Returns the output of some places; the others are seen and their own outputs not computed."""

        def taken(values: Shaped[Array, "batch time width"]) -> Shaped[Array, "batch target width"]:
            return jnp.take_along_axis(values, places[..., None], axis=1)

        attention, normed = self.attention, self.attention_norm(x)
        query = rotate(attention.query(taken(normed)), *(taken(table) for table in rotary))
        key, value = rotate(attention.key(normed), *rotary), attention.value(normed)
        x = taken(x) + attention.output(attend(query, key, value, taken(mask)))
        return x + self.ffn(self.ffn_norm(x))


class Llama(nnx.Module):
    """The stack of blocks and its final norm.

    Source:
        Touvron et al. 2023; VoxInstruct, section 5.1, uses it for both models. Linear weights start from N(0, .02²).
    """

    def __init__(
        self,
        config: LlamaConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        execution: Execution = Execution(),
        rngs: nnx.Rngs,
    ) -> None:
        self.config, self.dtype, self.execution = config, dtype, execution
        options: dict[str, Any] = {"dtype": dtype, "execution": execution, "rngs": rngs}
        self.blocks = nnx.List([LlamaBlock(config, **options) for _ in range(config.num_layers)])
        self.norm = RMSNorm(config.model_dim)

    def __call__(
        self,
        x: Float[Array, "batch time dim"],
        positions: Num[Array, "batch time"],
        visibility: Visibility,
        *,
        key: jax.Array | None = None,
        places: Int[Array, "batch target"] | None = None,
    ) -> Float[Array, "batch time_or_target dim"]:
        """Runs whole packed rows.

        Args:
            x: Embeddings.
            positions: Of the rotary embedding.
            visibility: Who sees whom.
            key: Of dropout; None = no dropout.
            places: Where the output is wanted, without dropout; None = everywhere. It spares most of the last block.
        """
        rotary, keys = self._rotary(positions), split_key(key, self.config.num_layers)
        whole = self.config.num_layers - (places is not None)

        def apply(block: Any, x: Array, block_key: jax.Array | None) -> Array:
            return block(x, rotary, visibility, dropout_key=block_key)

        x = constrain(x, "batch", None, None)
        x = run_blocks(self.blocks[:whole], x, keys[:whole], apply, self.execution, dtype=self.dtype)
        if places is not None:
            x = self.blocks[-1].at_places(x, rotary, visibility_mask(visibility), places)
        return self.norm(x)

    def decode(
        self,
        x: Float[Array, "batch time dim"],
        positions: Num[Array, "batch time"],
        cache: KVCache,
        slot: Int[Array, "*batch"],
        mask: Bool[Array, "batch time slot"] | None = None,
    ) -> tuple[Float[Array, "batch time dim"], KVCache]:
        """Runs new positions only, one or a prefill of many.

        Args:
            x: Embeddings of the new positions.
            positions: Of the rotary embedding; they need not equal the slots.
            cache: From `init_cache` or an earlier call.
            slot: First cache slot to write, of all rows or of each; the new positions take as many as they are. A row
                with a slot of its own that lies beyond the last one writes and sees nothing.
            mask: True where a new position may see a slot, the new ones included. None = each sees all slots up to its
                own; then every row has a slot of its own.
        """
        rotary = self._rotary(positions)
        layers = []
        for block, keys, values in zip(self.blocks, cache.keys, cache.values, strict=True):
            x, layer = block.decode(x, rotary, mask, LayerCache(keys=keys, values=values, slot=slot))
            layers.append(layer)
        return self.norm(x), KVCache(keys=tuple(x.keys for x in layers), values=tuple(x.values for x in layers))

    def _rotary(self, positions: Num[Array, "batch time"]) -> Rotary:
        return rotary_tables(positions, self.config.head_dim, self.config.rope_theta)
