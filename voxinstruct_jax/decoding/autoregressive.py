"""A batch of requests from instruction to semantic tokens and first-codebook codes, on the device from start to end.

The engine's slots (`decoding.slots`) with one group of requests that fills all of them. An aligned model tells first
how long each character lasts: that sets when each slot is spoken and how many frames there are.
"""

import jax.numpy as jnp

from voxinstruct_jax.decoding.requests import ARBatch, ARResult, Capacity
from voxinstruct_jax.decoding.rules import FIXED, DecodingRules
from voxinstruct_jax.decoding.sampling import SamplingConfig
from voxinstruct_jax.decoding.slots import SlotSizes, advance, empty_slots, fill_slots
from voxinstruct_jax.guidance import Branch
from voxinstruct_jax.layers.attention import PAST_BLOCK
from voxinstruct_jax.models.ar import ARModel

__all__ = ["decode_ar"]


def decode_ar(
    model: ARModel,
    batch: ARBatch,
    *,
    branches: tuple[Branch, ...],
    sampling: SamplingConfig,
    capacity: Capacity,
    rules: DecodingRules = FIXED,
) -> ARResult:
    """Generates language, semantic tokens and first-codebook codes; pure, to be called inside `jax.jit`.

    A request's tokens follow from its own row alone: its key is folded with stage and place, positions count real text
    tokens only, and padding is never attended.

    Args:
        model: With trained weights; merged inside the jitted function.
        batch: From `batch_requests`, with the same branches.
        branches: Static; `Branch.COND` among them.
        sampling: Static.
        capacity: Static.
        rules: Static; where the release is followed in its faults. Ids out of a stage's range are then given as they
            come: units and codes below 0.
    """
    requests, text = batch.text_tokens.shape[:2]
    prefix, frames = batch.prefix.shape[1], batch.acoustic_prefix.shape[1]
    # Both stages with their ends, and the prompt's frames.
    context = text + prefix + capacity.semantic + 1 + frames + capacity.acoustic + 1
    rows = requests * len(branches)
    sizes = SlotSizes(
        slots=requests,
        rows=rows,
        context=-(-context // PAST_BLOCK) * PAST_BLOCK,
        capacity=capacity,
        text=text,
        acoustic_prefix=frames,
    )
    places = jnp.arange(requests), jnp.arange(rows).reshape(requests, -1)
    state = empty_slots(model.config, sizes, sampling)
    state = fill_slots(model, state, batch, *places, branches=branches, rules=rules)
    return advance(model, state, sampling=sampling, rules=rules).result
