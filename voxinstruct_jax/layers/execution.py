"""How a stack of blocks is run in training: what is kept for the backward pass, one by one or as a scan.

None of it changes what is computed, so none of it belongs to a model's settings or to a run's identity.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.layers.packed_attention import AttentionBackend

__all__ = ["Execution", "Remat", "keep", "run_blocks"]

Remat = Literal["none", "dots", "names", "full"]
"""What a block keeps for its backward pass: all; products with weights; the outputs of attention and feed-forward;
its input only."""

_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "names": jax.checkpoint_policies.save_only_these_names("attention", "ffn"),
    "full": None,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution:
    """How the blocks of a model are run.

    Raises:
        ConfigError: `loss_chunk` is negative.
    """

    attention: AttentionBackend = "auto"
    remat: Remat = "none"
    scan: bool = False
    """One block traced and looped over in place of one after another: quicker to compile, and more memory without
    `remat`, since a scan keeps whatever a block keeps in stacked arrays."""
    loss_chunk: int = 0
    """Slots whose logits exist at once; 0 = all of a row."""

    def __post_init__(self) -> None:
        if self.loss_chunk < 0:
            raise ConfigError(f"execution.loss_chunk: {self.loss_chunk} is below 0; 0 = no chunks")


def keep(x: Float[Array, "..."], name: Literal["attention", "ffn"]) -> Float[Array, "..."]:
    """Names a result that `Execution.remat` "names" keeps."""
    return checkpoint_name(x, name)


def run_blocks(
    blocks: Sequence[nnx.Module],
    x: Float[Array, "batch time dim"],
    keys: Sequence[jax.Array | None],
    apply: Callable[[nnx.Module, Float[Array, "batch time dim"], jax.Array | None], Float[Array, "batch time dim"]],
    execution: Execution,
    *,
    dtype: DTypeLike,
) -> Float[Array, "batch time dim"]:
    """Runs blocks of one kind after another.

    Args:
        blocks: All with the same arrays.
        x: Input of the first.
        keys: Of dropout, or what else a block reads besides x: one array a block.
        apply: (block, x, its key) → x.
        execution: How.
        dtype: Of the blocks' computation: a scan stacks the kernels in it.
    """

    def one(block: nnx.Module, x: Float[Array, "batch time dim"], key: jax.Array | None) -> Array:
        if execution.remat == "none":
            return apply(block, x, key)
        return jax.checkpoint(lambda x, key: apply(block, x, key), policy=_POLICIES[execution.remat])(x, key)

    if not execution.scan:
        for block, key in zip(blocks, keys, strict=True):
            x = one(block, x, key)
        return x
    graph, _ = nnx.split(blocks[0])

    def stack(*arrays: Array) -> Array:
        return jnp.stack([array.astype(dtype) if array.ndim > 1 else array for array in arrays])

    states = jax.tree.map(stack, *(nnx.state(block) for block in blocks))
    drawn = [key for key in keys if key is not None]
    all_keys = jnp.stack(drawn) if drawn else None

    def body(x: Array, turn: tuple[nnx.State, jax.Array | None]) -> tuple[Array, None]:
        state, key = turn
        return one(nnx.merge(graph, state), x, key), None

    return jax.lax.scan(body, x, (states, all_keys))[0]
