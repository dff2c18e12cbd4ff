"""A train step by formula, for devices whose compiler is not at hand: what a device holds, moves and sends.

Weights, moments and their placement are exact; activations and traffic are counted from the sizes of the blocks. A
fused kernel of attention writes no square of scores; plain attention does, and so does the text encoder. Start at
`derive_step`.

Source:
    Activations after Korthikanti et al. 2022, section 4.1, counted for LLaMA's blocks; collectives of split weights
    after Rajbhandari et al. 2020 (ZeRO), section 7.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from voxinstruct_jax.layers.execution import Remat
from voxinstruct_jax.training.flops import block_weights, text_block_weights
from voxinstruct_jax.training.hlo import Collective, Traffic
from voxinstruct_jax.training.step import TrainState

__all__ = ["bytes_a_device", "derive_step"]

FLOAT32 = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Stack:
    """Blocks of one kind on one device."""

    num_layers: int
    tokens: float
    """That a device works on at once."""
    width: int
    heads: float
    """Width of the queries; of a tensor split the device's part, as the next two."""
    kv_heads: float
    ffn: float
    weights: float
    """Of a block, whole but for the tensor split."""
    scores: float
    """Of attention, in numbers; 0 where a kernel never writes them."""

    @property
    def products(self) -> float:
        """Results of products with weights, in numbers a token."""
        return self.heads + 2 * self.kv_heads + 2 * self.width + 2 * self.ffn

    @property
    def everything(self) -> float:
        """All results of a block: norms, rotated heads and the gate's parts too."""
        return 6 * self.width + 3 * self.heads + 3 * self.kv_heads + 4 * self.ffn

    def kept(self, remat: Remat) -> float:
        """What a block keeps for its backward pass, in numbers a token."""
        return {
            "none": self.everything,
            "dots": self.width + self.products,
            "names": 3 * self.width,
            "full": self.width,
        }[remat]


def derive_step(
    experiment: Any, head_size: int, shapes: TrainState, sizes: Mapping[str, int], near: int
) -> tuple[int, Traffic]:
    """Returns the bytes of a device's memory at the fullest, and what a device moves in a step.

    Args:
        experiment: Of the AR or NAR model.
        head_size: Classes of the head.
        shapes: Of the state, with its placement.
        sizes: Devices along each mesh axis.
        near: Devices that the fast links join: a host of GPUs, a slice of TPUs.
    """
    execution, accumulate = experiment.execution, experiment.step.accumulate
    item = jnp.dtype(experiment.model.dtype).itemsize
    stacks = _stacks(experiment, sizes)
    recomputed = execution.remat != "none"
    rows = experiment.data.batch.rows / (sizes["data"] * sizes["fsdp"] * accumulate)
    time = experiment.data.batch.time_width
    logits = rows * min(execution.loss_chunk or time, time) * head_size / sizes["tensor"] * FLOAT32
    weights = bytes_a_device(shapes.params)
    activations = sum(stack.num_layers * stack.tokens * stack.kept(execution.remat) * item for stack in stacks)
    if not recomputed:
        activations += sum(stack.num_layers * stack.scores * FLOAT32 for stack in stacks)
    # the block at work keeps all, and gradients of it; its weights lie whole beside those of the next
    working = max(
        2 * (stack.tokens * stack.everything + stack.weights) * item + 2 * stack.scores * FLOAT32 for stack in stacks
    )
    gradients = weights * (2 if accumulate > 1 else 1)
    peak = bytes_a_device(shapes) + gradients + activations + working + 2 * logits

    # weights: written where they are put together, read forward, backward and again where blocks are recomputed
    gathered = sum(stack.num_layers * stack.weights for stack in stacks) * item
    moved = accumulate * (6 + recomputed) * gathered
    # each result is written and read; backward is twice the work of forward
    passes = 2 + 4 + 2 * recomputed
    results = sum(
        stack.num_layers * (stack.tokens * stack.everything * item + stack.scores * FLOAT32) for stack in stacks
    )
    moved += accumulate * passes * results
    moved += accumulate * 4 * rows * time * head_size / sizes["tensor"] * FLOAT32
    moved += 8 * weights  # optimiser: weight, gradient and two moments, read and written
    return int(peak), Traffic(_collectives(experiment, stacks, weights, sizes, near), moved)


def bytes_a_device(shapes: Any) -> int:
    """Bytes that arrays of these shapes and placements take on a device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes)
    )


def _stacks(experiment: Any, sizes: Mapping[str, int]) -> list[_Stack]:
    backbone, encoder, batch = experiment.model.backbone, experiment.model.text_encoder, experiment.data.batch
    rows = batch.rows / (sizes["data"] * sizes["fsdp"] * experiment.step.accumulate)
    tensor = sizes["tensor"]
    text_heads = encoder.num_heads * encoder.head_dim / tensor
    fused = experiment.execution.attention != "reference"
    return [
        _Stack(
            num_layers=backbone.num_layers,
            tokens=rows * batch.time_width,
            width=backbone.model_dim,
            heads=backbone.num_heads * backbone.head_dim / tensor,
            kv_heads=backbone.num_kv_heads * backbone.head_dim / tensor,
            ffn=backbone.ffn_dim / tensor,
            weights=block_weights(backbone) / tensor,
            scores=0 if fused else rows * backbone.num_heads / tensor * batch.time_width**2,
        ),
        _Stack(
            num_layers=encoder.num_layers,
            tokens=rows * batch.text_width,
            width=encoder.model_dim,
            heads=text_heads,
            kv_heads=text_heads,
            ffn=encoder.ffn_dim / tensor,
            weights=text_block_weights(encoder) / tensor,
            scores=rows * encoder.num_heads / tensor * batch.text_width**2,
        ),
    ]


def _collectives(
    experiment: Any, stacks: list[_Stack], weights: float, sizes: Mapping[str, int], near: int
) -> tuple[Collective, ...]:
    """Of weights over `fsdp`, of gradients over `fsdp` and `data`, of activations over `tensor`."""
    accumulate, recomputed = experiment.step.accumulate, experiment.execution.remat != "none"
    item = jnp.dtype(experiment.model.dtype).itemsize
    data, fsdp, tensor = sizes["data"], sizes["fsdp"], sizes["tensor"]
    # over far links a sum is taken in two stages: among neighbours, then each sends its part of the result
    inner = math.gcd(data, max(1, near // (fsdp * tensor)))
    outer = data // inner
    layers = sum(stack.num_layers for stack in stacks)
    gathered = sum(stack.num_layers * stack.weights for stack in stacks) * item
    trained = weights / FLOAT32 * item  # of a device's share, as gradients are sent
    summed = sum(stack.num_layers * stack.tokens * stack.width * item for stack in stacks)

    def over(group: int, span: int, kind: str, runs: int, sent: float) -> list[Collective]:
        link = "ici" if span <= near else "dcn"
        return [Collective(kind, link, group, runs, sent)] if group > 1 else []

    return (
        *over(
            fsdp, fsdp * tensor, "all-gather", 2 * layers * accumulate, 2 * accumulate * gathered * (fsdp - 1) / fsdp
        ),
        *over(fsdp, fsdp * tensor, "reduce-scatter", layers * accumulate, accumulate * trained * (fsdp - 1)),
        *over(inner, inner * fsdp * tensor, "all-reduce", layers, 2 * trained * (inner - 1) / inner),
        *over(outer, data * fsdp * tensor, "all-reduce", layers, 2 * trained / inner * (outer - 1) / outer),
        *over(
            tensor,
            tensor,
            "all-reduce",
            (4 + 2 * recomputed) * layers * accumulate,
            (4 + 2 * recomputed) * accumulate * summed * 2 * (tensor - 1) / tensor,
        ),
    )
