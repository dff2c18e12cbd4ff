"""Requests in slots, a step for all of them at once: the device side of the engine, and of a single request.

A slot holds a request while it is decoded; it has one row of the model's batch for each guidance branch that the
request needs, so requests with one, two and three branches share a batch without a wasted row. Every request is in its
own stage: SEMANTIC until EOS1, ACOUSTIC (first the voice prompt's codes, fed as they are) until EOS2, DONE. Each row
has its own place in the cache, which holds its sequence without a gap: what a request gets does not depend on when it
came or who is beside it. Read `fill_slots`, then `advance` and `step_slots`.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Key, Num, Shaped

from voxinstruct_jax.decoding.prefill import BOS_TIME, embed_audio, prefill
from voxinstruct_jax.decoding.requests import ARBatch, ARResult, Capacity, FinishReason, Limits
from voxinstruct_jax.decoding.rules import DecodingRules
from voxinstruct_jax.decoding.sampling import (
    SamplingConfig,
    acoustic_mask,
    fold_keys,
    mask_logits,
    sample_tokens,
    semantic_mask,
)
from voxinstruct_jax.guidance import Branch, mix_logits
from voxinstruct_jax.models.ar import ARConfig, ARModel
from voxinstruct_jax.models.llama import KVCache, init_cache
from voxinstruct_jax.models.style import NUM_CLASSES
from voxinstruct_jax.vocabulary import ACOUSTIC, SEMANTIC, Vocabulary

__all__ = [
    "DONE",
    "SlotSizes",
    "SlotState",
    "advance",
    "draw_tokens",
    "empty_slots",
    "feed_tokens",
    "fill_slots",
    "run_steps",
    "step_slots",
]

DONE = 0
"""The stage of a free slot; the others are numbered like the parts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlotSizes:
    """Static sizes of a `SlotState`."""

    slots: int
    """Requests at once."""
    rows: int
    """Branches of all of them at once."""
    context: int
    """Cache slots of a row: text, BOS to EOS2 and the voice prompt."""
    capacity: Capacity
    """Tokens that a result has room for."""
    text: int
    """Text tokens that durations are kept for."""
    acoustic_prefix: int = 0
    """Frames of a voice prompt."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _Asked:
    """What the steps read of each slot's request; as in `ARBatch`, weights of all branches, 0 where one is not run."""

    text_lengths: Int32[Array, " slot"]
    prefix_lengths: Int32[Array, " slot"]
    acoustic_prefix: Int32[Array, "slot frame"]
    acoustic_prefix_lengths: Int32[Array, " slot"]
    semantic_weights: Float32[Array, "slot 3"]
    acoustic_weights: Float32[Array, "slot 3"]
    limits: Limits
    keys: Key[Array, " slot"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SlotState:
    """All that lives on the device between steps."""

    asked: _Asked
    slot_of_row: Int32[Array, " row"]
    """The number of slots = the row is free."""
    branch_of_row: Int32[Array, " row"]
    row_of_branch: Int32[Array, "slot 3"]
    """The number of rows = the branch is not run."""
    cache: KVCache
    style: Float32[Array, "row dim"]
    """What every audio slot of the row is given of the description."""
    logits: Float32[Array, "row vocab"]
    """Of the next token."""
    stage: Int32[Array, " slot"]
    index: Int32[Array, " slot"]
    """Place of the next token in the sequence, counted from BOS."""
    recent: Int32[Array, "slot window"]
    """Last ids, newest last."""
    result: ARResult


def empty_slots(
    config: ARConfig, sizes: SlotSizes, sampling: SamplingConfig, *, cache_dtype: DTypeLike | None = None
) -> SlotState:
    """Returns a state without requests.

    Args:
        config: Of the model.
        sizes: Static.
        sampling: Static.
        cache_dtype: Of keys and values; None = the computation type of the model.
    """
    slots, rows = sizes.slots, sizes.rows
    zero, weights = jnp.zeros(slots, jnp.int32), jnp.zeros((slots, len(Branch)))
    return SlotState(
        asked=_Asked(
            text_lengths=zero,
            prefix_lengths=zero,
            acoustic_prefix=jnp.zeros((slots, sizes.acoustic_prefix), jnp.int32),
            acoustic_prefix_lengths=zero,
            semantic_weights=weights,
            acoustic_weights=weights,
            limits=Limits(min_semantic=zero, max_semantic=zero, min_acoustic=zero, max_acoustic=zero, max_total=zero),
            keys=jax.random.split(jax.random.key(0), slots),
        ),
        slot_of_row=jnp.full(rows, slots, jnp.int32),
        branch_of_row=jnp.zeros(rows, jnp.int32),
        row_of_branch=jnp.full((slots, len(Branch)), rows, jnp.int32),
        cache=init_cache(config.backbone, rows, sizes.context, dtype=cache_dtype or config.dtype),
        style=jnp.zeros((rows, config.backbone.model_dim)),
        logits=jnp.zeros((rows, config.vocabulary.size)),
        stage=zero + DONE,
        index=zero,
        recent=jnp.zeros((slots, sampling.repetition_window), jnp.int32),
        result=ARResult(
            language=zero,
            semantic_tokens=jnp.zeros((slots, sizes.capacity.semantic), jnp.int32),
            semantic_lengths=zero,
            codes=jnp.zeros((slots, sizes.capacity.acoustic), jnp.int32),
            code_lengths=zero,
            finish_reasons=zero + FinishReason.STOP,
            durations=jnp.zeros((slots, sizes.text)),
            classes=jnp.zeros((slots, NUM_CLASSES)),
        ),
    )


def fill_slots(
    model: ARModel,
    state: SlotState,
    batch: ARBatch,
    slots: Int[Array, " batch"],
    rows: Int[Array, "batch branch"],
    *,
    branches: tuple[Branch, ...],
    rules: DecodingRules,
) -> SlotState:
    """Prefills requests and puts them into free slots; pure.

    Args:
        model: With trained weights.
        state: Whose other slots stay as they are.
        batch: From `batch_requests`, with the same branches.
        slots: Where each request goes; the number of slots = nowhere, it only fills the batch.
        rows: Free rows of each request, in the order of its branches; the number of rows = nowhere.
        branches: Static.
        rules: Static.
    """
    filled = prefill(model, batch, branches, rules)
    flat_rows, num_slots = rows.reshape(-1), len(state.stage)

    def put_rows(old: Array, new: Array) -> Array:
        where = (flat_rows, slice(None), slice(0, new.shape[2]))
        return old.at[where].set(new[:, :, : old.shape[2]].astype(old.dtype), mode="drop")

    def put(old: Array, new: Array) -> Array:
        if old.ndim > 1:  # narrower arrays stand at the left
            new = jnp.pad(new, ((0, 0), (0, old.shape[1] - new.shape[1])))
        return old.at[slots].set(new.astype(old.dtype) if new.dtype != old.dtype else new, mode="drop")

    none, places = jnp.zeros(len(slots), jnp.int32), jnp.array(branches)
    asked = _Asked(
        text_lengths=batch.text_lengths,
        prefix_lengths=batch.prefix_lengths,
        acoustic_prefix=batch.acoustic_prefix,
        acoustic_prefix_lengths=batch.acoustic_prefix_lengths,
        semantic_weights=jnp.zeros((len(slots), len(Branch))).at[:, places].set(batch.semantic_weights),
        acoustic_weights=jnp.zeros((len(slots), len(Branch))).at[:, places].set(batch.acoustic_weights),
        limits=filled.limits,
        keys=batch.keys,
    )
    result = ARResult(
        language=filled.language,
        semantic_tokens=none[:, None],
        semantic_lengths=none,
        codes=none[:, None],
        code_lengths=none,
        finish_reasons=none + FinishReason.STOP,
        durations=filled.durations,
        classes=filled.classes,
    )
    # Rows that these slots had before and do not get again become free.
    had = jnp.zeros(num_slots + 1, bool).at[slots].set(True).at[num_slots].set(False)
    slot_of_row = jnp.where(had[state.slot_of_row], num_slots, state.slot_of_row)
    own_rows = jnp.full((len(slots), len(Branch)), len(state.slot_of_row), jnp.int32).at[:, places].set(rows)
    return SlotState(
        asked=jax.tree.map(put, state.asked, asked),
        slot_of_row=slot_of_row.at[flat_rows].set(jnp.repeat(slots, len(branches)), mode="drop"),
        branch_of_row=state.branch_of_row.at[flat_rows].set(jnp.tile(places, len(slots)), mode="drop"),
        row_of_branch=put(state.row_of_branch, own_rows),
        cache=jax.tree.map(put_rows, state.cache, filled.cache),
        style=state.style.at[flat_rows].set(filled.style, mode="drop"),
        logits=state.logits.at[flat_rows].set(filled.logits.reshape(len(flat_rows), -1), mode="drop"),
        stage=put(state.stage, none + SEMANTIC),
        index=put(state.index, batch.prefix_lengths),
        recent=put(state.recent, none[:, None]),
        result=jax.tree.map(put, state.result, result),
    )


def advance(
    model: ARModel, state: SlotState, *, sampling: SamplingConfig, rules: DecodingRules, steps: int | None = None
) -> SlotState:
    """Draws tokens for all slots until there have been `steps` or every slot is done; pure.

    A request's tokens follow from its own slot alone: its key is folded with stage and place, and no row sees another.

    Args:
        model: With trained weights.
        state: From `fill_slots`.
        sampling: Static.
        rules: Static.
        steps: Static; None = to the end of all requests.

    Source:
        VoxInstruct, sections 4.2 and 4.3. The released loop crashed or went on silently when EOS1 did not come,
        counted sampled tokens as the budget and rebuilt a cache at EOS1; here each stage has its limit, cutting is
        reported, and semantic tokens are blanked as they are fed (BOS, language and EOS1 stay, as in training).
    """
    return run_steps(lambda state: step_slots(model, state, sampling, rules), state, steps)[1]


def run_steps(
    step: Callable[[SlotState], SlotState], state: SlotState, steps: int | None
) -> tuple[Int32[Array, ""], SlotState]:
    """Runs a step so many times, or until every slot is done; returns how often it ran, too."""

    def unfinished(carry: tuple[Array, SlotState]) -> Bool[Array, ""]:
        number, state = carry
        going = jnp.any(state.stage != DONE)
        return going if steps is None else going & (number < steps)

    def once(carry: tuple[Array, SlotState]) -> tuple[Array, SlotState]:
        return carry[0] + 1, step(carry[1])

    return jax.lax.while_loop(unfinished, once, (jnp.int32(0), state))


def step_slots(model: ARModel, state: SlotState, sampling: SamplingConfig, rules: DecodingRules) -> SlotState:
    """Draws a token a slot, notes it, feeds it to all rows of the slot."""
    tokens, after = draw_tokens(model.config, state, sampling, rules)
    logits, cache = feed_tokens(model, state, after, tokens[:, None], rules)
    return dataclasses.replace(after, cache=cache, logits=logits[:, 0])


def draw_tokens(
    config: ARConfig, state: SlotState, sampling: SamplingConfig, rules: DecodingRules
) -> tuple[Int32[Array, " slot"], SlotState]:
    """Draws the next token of each slot; returns them, and the state in which they are noted and not fed yet."""
    drawn = _draw(config, state, sampling, rules)
    tokens, stage, result = _choose(config.vocabulary, state, drawn)
    active = state.stage != DONE
    recent = jnp.concatenate([state.recent[:, 1:], tokens[:, None]], axis=1)
    after = dataclasses.replace(
        state,
        stage=stage,
        index=jnp.where(active, state.index + 1, state.index),
        recent=jnp.where(active[:, None], recent, state.recent),
        result=result,
    )
    return tokens, after


def feed_tokens(
    model: ARModel, state: SlotState, after: SlotState, tokens: Int32[Array, "slot time"], rules: DecodingRules
) -> tuple[Float32[Array, "row time vocab"], KVCache]:
    """Feeds tokens to all rows of their slots.

    Args:
        model: With trained weights.
        state: From which the first of the tokens was drawn.
        after: In which it is noted; the tokens that follow it belong to that stage.
        tokens: Those that follow one another.
        rules: Static.
    """
    active, last, time = state.stage != DONE, len(state.stage) - 1, jnp.arange(tokens.shape[1])

    def by_row(values: Shaped[Array, "slot ..."]) -> Shaped[Array, "row ..."]:
        return values[jnp.minimum(state.slot_of_row, last)]

    place = state.asked.text_lengths + state.index
    in_use = (state.slot_of_row <= last) & by_row(active)
    cache_slot = jnp.where(in_use, by_row(place), state.cache.keys[0].shape[2])  # beyond the last: writes nothing
    first: Num[Array, " slot"] = place
    if model.config.timing == "aligned":
        first = _times(model.config.vocabulary, tokens[:, 0], state, after.result)
    part_ids = jnp.where(time == 0, state.stage[:, None], after.stage[:, None])
    blank = state.branch_of_row == Branch.SEMANTIC_FREE
    x = embed_audio(model, by_row(tokens), by_row(part_ids), blank, state.style, rules)
    hidden, cache = model.decode(x, by_row(first)[:, None] + time, state.cache, cache_slot)
    return model.logits(hidden), cache


def _times(
    vocabulary: Vocabulary, tokens: Int32[Array, " slot"], state: SlotState, result: ARResult
) -> Float[Array, " slot"]:
    """When the tokens fed now are spoken: `vocabulary.audio_times`, one place a slot."""
    in_semantic = (state.stage == SEMANTIC) & (tokens != vocabulary.eos1)
    asked = state.asked
    acoustic = state.index - asked.prefix_lengths - result.semantic_lengths - 1 - asked.acoustic_prefix_lengths
    return jnp.where(in_semantic, state.index + BOS_TIME, acoustic + 0.5)


def _draw(config: ARConfig, state: SlotState, sampling: SamplingConfig, rules: DecodingRules) -> Int32[Array, " slot"]:
    """Mixes the branches, masks what the stage forbids and draws."""
    vocabulary, asked, limits = config.vocabulary, state.asked, state.asked.limits
    acoustic = state.stage == ACOUSTIC
    weights = jnp.where(acoustic[:, None], asked.acoustic_weights, asked.semantic_weights)
    masks = acoustic_mask(vocabulary, rules), semantic_mask(vocabulary, rules)
    allowed = jnp.where(acoustic[:, None], *masks)
    # No frame at all can't be turned into a waveform, so EOS2 never comes first.
    shortest = jnp.where(acoustic, jnp.maximum(limits.min_acoustic, 1), limits.min_semantic)
    count = jnp.where(acoustic, state.result.code_lengths, state.result.semantic_lengths)
    is_end = jnp.arange(vocabulary.size) == jnp.where(acoustic, vocabulary.eos2, vocabulary.eos1)[:, None]
    allowed &= ~((count < shortest)[:, None] & is_end)
    if config.timing == "aligned":  # the number of frames is settled, so a stage ends there
        allowed = jnp.where((count >= shortest)[:, None], is_end, allowed)
    logits = state.logits.at[state.row_of_branch].get(mode="fill", fill_value=0)
    logits = mask_logits(mix_logits(logits, weights), allowed)
    top_k = jnp.where(acoustic, sampling.acoustic_top_k, sampling.semantic_top_k)
    return sample_tokens(fold_keys(asked.keys, state.stage, state.index), logits, state.recent, top_k, sampling)


def _choose(
    vocabulary: Vocabulary, state: SlotState, drawn: Int32[Array, " slot"]
) -> tuple[Int32[Array, " slot"], Int32[Array, " slot"], ARResult]:
    """Applies the rules of the stages to a draw; returns the tokens to feed, the next stages and the result so far."""
    limits, result = state.asked.limits, state.result
    active, acoustic = state.stage != DONE, state.stage == ACOUSTIC
    prompting, prompt_tokens = _prompt_tokens(state)
    end = jnp.where(acoustic, vocabulary.eos2, vocabulary.eos1)
    count = jnp.where(acoustic, result.code_lengths, result.semantic_lengths)
    longest = jnp.where(
        acoustic,
        jnp.clip(limits.max_acoustic, 1, result.codes.shape[1]),
        jnp.minimum(limits.max_semantic, result.semantic_tokens.shape[1]),
    )
    overlong = active & ~prompting & (count >= longest) & (drawn != end)
    overfull = active & (state.index >= limits.max_total - 1) & (prompting | (drawn != vocabulary.eos2))

    tokens = jnp.where(prompting, prompt_tokens, jnp.where(overlong, end, drawn))
    ended = ~prompting & (tokens == end)
    last = acoustic | (limits.max_acoustic == 0)
    stage = jnp.where(ended, jnp.where(last, DONE, ACOUSTIC), state.stage)
    stage = jnp.where(active & ~overfull, stage, DONE)
    cut = jnp.where(acoustic, FinishReason.MAX_ACOUSTIC, FinishReason.MAX_SEMANTIC)
    # A model without semantic tokens has its end of them forced: nothing is cut.
    reasons = jnp.where(overlong & (longest > 0), cut, result.finish_reasons)
    reasons = jnp.where(overfull, FinishReason.MAX_TOTAL, reasons).astype(jnp.int32)
    generated = active & ~ended & ~prompting & ~overfull
    semantic, semantic_lengths = _append(
        result.semantic_tokens, result.semantic_lengths, tokens - vocabulary.semantic_offset, generated & ~acoustic
    )
    codes, code_lengths = _append(
        result.codes, result.code_lengths, tokens - vocabulary.acoustic_offset, generated & acoustic
    )
    result = dataclasses.replace(
        result,
        semantic_tokens=semantic,
        semantic_lengths=semantic_lengths,
        codes=codes,
        code_lengths=code_lengths,
        finish_reasons=reasons,
    )
    return jnp.where(active, tokens, 0), stage, result


def _prompt_tokens(state: SlotState) -> tuple[Bool[Array, " slot"], Int32[Array, " slot"]]:
    """Tells which requests are still fed the voice prompt's codes, and the code each is fed."""
    asked, width = state.asked, state.asked.acoustic_prefix.shape[1]
    if not width:
        return jnp.zeros_like(state.stage, bool), jnp.zeros_like(state.stage)
    place = state.index - asked.prefix_lengths - state.result.semantic_lengths - 1
    prompting = (state.stage == ACOUSTIC) & (place < asked.acoustic_prefix_lengths)
    place = jnp.clip(place, 0, width - 1)[:, None]
    return prompting, jnp.take_along_axis(asked.acoustic_prefix, place, axis=1)[:, 0]


def _append(
    values: Int32[Array | np.ndarray, "slot time"],
    lengths: Int32[Array | np.ndarray, " slot"],
    new: Int32[Array, " slot"],
    chosen: Bool[Array, " slot"],
) -> tuple[Int32[Array, "slot time"], Int32[Array, " slot"]]:
    """Writes the new value behind the last one of the slots chosen."""
    place = jnp.where(chosen, lengths, values.shape[1])
    return jnp.asarray(values).at[jnp.arange(len(values)), place].set(new, mode="drop"), jnp.asarray(lengths) + chosen
