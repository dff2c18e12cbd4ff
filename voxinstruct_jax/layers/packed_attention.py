"""Attention over packed rows: one meaning, several programs.

`Visibility` says who sees whom by segments, without a square of booleans. `attend_packed` runs it by plain XLA
(`reference`, any device), by splash attention (Pallas, TPU) or by the Triton flash kernel (Pallas, GPU), all of which
come with JAX. The kernels know "causal" or "both ways" within segments, and no mix; where text sees text both ways and
the rest is causal, the text is attended to a second time in its own narrow rows.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.layers.attention import attend, segment_mask
from voxinstruct_jax.sharding.mesh import BATCH_AXES, platform

__all__ = ["AttentionBackend", "Visibility", "attend_packed", "resolve_backend", "visibility_mask"]

AttentionBackend = Literal["auto", "reference", "splash", "triton"]
"""`auto` takes splash on a TPU, Triton on a GPU of compute capability 8 or higher, the reference elsewhere."""

_KERNELS: dict[str, Literal["splash", "triton"]] = {"tpu": "splash", "gpu": "triton"}
KERNEL_BLOCK = 128
"""Rows are whole blocks of this many slots for a kernel."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Visibility:
    """Who sees whom in packed rows: slots of one segment see each other, later ones only earlier ones if causal."""

    segment_ids: Int[Array, "batch time"]
    """Clip of each slot, from 1; 0 = padding."""
    causal: bool = dataclasses.field(metadata={"static": True})
    text: "TextRows | None" = None
    """Where set, text slots see all text of their clip, causal or not."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TextRows:
    """The text of packed rows, once more in narrow rows of its own."""

    is_text: Bool[Array, "batch time"]
    """Slots that hold text."""
    index: Int[Array, "batch time"]
    """Place in the narrow row of each text slot."""
    segment_ids: Int[Array, "batch text"]
    """Clip of each place of the narrow row; 0 = padding."""

    def slots(self) -> Int[Array, "batch text"]:
        """Slot of each place of the narrow row; any slot where it is padding."""
        batch, width = self.segment_ids.shape
        places = jnp.where(self.is_text, self.index, width)  # what is no text falls off the end
        slots = jnp.broadcast_to(jnp.arange(self.index.shape[1]), self.index.shape)
        return jnp.zeros((batch, width), slots.dtype).at[jnp.arange(batch)[:, None], places].set(slots, mode="drop")


def visibility_mask(visibility: Visibility) -> Bool[Array, "batch time time"]:
    """Returns the same as a square: which slot (first) sees which (second)."""
    same = segment_mask(visibility.segment_ids)
    if not visibility.causal:
        return same
    places = jnp.arange(visibility.segment_ids.shape[1])
    earlier = places[None, :] <= places[:, None]
    if visibility.text is None:
        return same & earlier
    return same & (earlier | visibility.text.is_text[:, None, :])


def resolve_backend(backend: AttentionBackend, dropout: float) -> Literal["reference", "splash", "triton"]:
    """Returns what `auto` means on this machine's devices.

    Raises:
        ConfigError: A kernel is asked for and attention has dropout, which no kernel draws.
    """
    if backend == "auto":
        return "reference" if dropout else _KERNELS.get(platform(), "reference")
    if dropout and backend != "reference":
        raise ConfigError(f"attention {backend!r} has no dropout; set --model.dropout 0, or take 'reference'")
    return backend


def attend_packed(
    query: Float[Array, "batch time heads head_dim"],
    key: Float[Array, "batch time kv_heads head_dim"],
    value: Float[Array, "batch time kv_heads head_dim"],
    visibility: Visibility,
    *,
    backend: Literal["reference", "splash", "triton"] = "reference",
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> Float[Array, "batch time heads head_dim"]:
    """Scaled dot-product attention, its softmax in float32; undefined and finite at padding.

    Args:
        query: `heads` is a multiple of `kv_heads`; neighbouring query heads share a key head.
        key: Not repeated for the query heads.
        value: As `key`.
        visibility: Who sees whom.
        backend: Program to run; off its hardware a kernel is interpreted, which is slow and meant for tests.
        dropout_rate: Of the attention probabilities; reference only.
        dropout_key: None = no dropout.
    """
    if backend == "reference":
        mask = visibility_mask(visibility)
        return attend(query, key, value, mask, dropout_rate=dropout_rate, dropout_key=dropout_key)
    repeats = query.shape[2] // key.shape[2]
    key, value = (jnp.repeat(x, repeats, axis=2) if repeats > 1 else x for x in (key, value))
    kernel = functools.partial(_on_mesh, {"splash": _splash, "triton": _triton}[backend])
    whole = kernel(query, key, value, visibility.segment_ids, visibility.causal)
    if not visibility.causal or visibility.text is None:
        return whole
    text, slots = visibility.text, visibility.text.slots()

    def narrow(x: Array) -> Array:
        return jnp.take_along_axis(x, slots[:, :, None, None], axis=1)

    seen = kernel(narrow(query), narrow(key), narrow(value), text.segment_ids, False)
    placed = jnp.take_along_axis(seen, text.index[:, :, None, None], axis=1)
    return jnp.where(text.is_text[:, :, None, None], placed, whole)


def _on_mesh(kernel: Any, query: Array, key: Array, value: Array, segment_ids: Array, causal: bool) -> Array:
    """Runs a kernel on each device's own rows and heads: the compiler cannot split what it cannot see into."""
    time = query.shape[1]
    padding = -time % KERNEL_BLOCK
    if padding:
        wide = ((0, 0), (0, padding), (0, 0), (0, 0))
        query, key, value = (jnp.pad(x, wide) for x in (query, key, value))
        segment_ids = jnp.pad(segment_ids, ((0, 0), (0, padding)))
    local = functools.partial(kernel, causal=causal)
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        heads = "tensor" if query.shape[2] % mesh.shape["tensor"] == 0 else None
        spread = PartitionSpec(BATCH_AXES, None, heads, None)
        local = jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(spread, spread, spread, PartitionSpec(BATCH_AXES, None)),
            out_specs=spread,
            check_vma=False,
        )
    return local(query, key, value, segment_ids)[:, :time]


def _splash(query: Array, key: Array, value: Array, segment_ids: Array, *, causal: bool) -> Array:
    """The TPU kernel, which wants heads first and scales nothing."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    time, heads, head_dim = query.shape[1:]
    block = _block(time, 512)
    sizes = splash.BlockSizes(
        block_q=block, block_kv=block, block_kv_compute=block, block_q_dkv=block, block_kv_dkv=block,
        block_kv_dkv_compute=block, use_fused_bwd_kernel=True,
    )  # fmt: skip
    one = masks.CausalMask((time, time)) if causal else masks.FullMask((time, time))
    run = splash.make_splash_mha(
        masks.MultiHeadMask([one] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        interpret=platform() != "tpu",
    )

    def row(q: Array, k: Array, v: Array, ids: Array) -> Any:
        return run(q, k, v, segment_ids=splash.SegmentIds(q=ids, kv=ids))

    heads_first = jnp.swapaxes(query * head_dim**-0.5, 1, 2), jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2)
    return jnp.swapaxes(jax.vmap(row)(*heads_first, segment_ids), 1, 2).astype(value.dtype)


def _triton(query: Array, key: Array, value: Array, segment_ids: Array, *, causal: bool) -> Array:
    """The GPU kernel."""
    from jax.experimental.pallas.ops.gpu import attention

    time, _, head_dim = query.shape[1:]
    block = _block(time, 128 if head_dim <= 64 else 64)
    sizes = attention.BlockSizes(
        block_q=block, block_k=block, block_q_dkv=block // 2, block_kv_dkv=block // 2, block_q_dq=block // 2,
        block_kv_dq=block // 2,
    )  # fmt: skip
    return attention.mha(
        query, key, value, segment_ids, sm_scale=head_dim**-0.5, causal=causal, block_sizes=sizes,
        interpret=platform() != "gpu",
    )  # fmt: skip


def _block(time: int, largest: int) -> int:
    """The largest power of two that divides the rows."""
    return next(size for size in (512, 256, 128, 64) if size <= largest and time % size == 0)
