"""The autoregressive loop: instruction to semantic tokens and first-codebook codes, on the device from start to end.

A batch of requests runs as `request x branch` rows, one row a guidance condition, request-major. Two passes prefill the
cache (text and BOS; then language and voice prompt), one `while_loop` draws a token a request and feeds it to all of
its branches. Every request is in its own stage: SEMANTIC until EOS1, ACOUSTIC (first the voice prompt's codes, fed as
they are) until EOS2, DONE. The branch without semantic tokens is fed blanks in their place from the start, so no cache
is ever built twice. Read `decode_ar`, then `_advance`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from voxinstruct_jax.decoding.requests import ARBatch, ARResult, Capacity, FinishReason
from voxinstruct_jax.decoding.rules import FIXED, DecodingRules
from voxinstruct_jax.decoding.sampling import (
    SamplingConfig,
    acoustic_mask,
    fold_keys,
    language_mask,
    mask_logits,
    sample_tokens,
    semantic_mask,
)
from voxinstruct_jax.guidance import Branch, mix_logits
from voxinstruct_jax.models.ar import ARModel
from voxinstruct_jax.models.llama import KVCache, init_cache
from voxinstruct_jax.vocabulary import ACOUSTIC, SEMANTIC, TEXT

__all__ = ["decode_ar"]

_DONE = 0  # stages are numbered like the parts: SEMANTIC, ACOUSTIC


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _State:
    step: Int32[Array, ""]
    logits: Float32[Array, "batch branch vocab"]
    """Of the next token."""
    cache: KVCache
    stage: Int32[Array, " batch"]
    index: Int32[Array, " batch"]
    """Place of the next token in the sequence, counted from BOS."""
    recent: Int32[Array, "batch window"]
    """Last ids, newest last."""
    result: ARResult


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

    Source:
        VoxInstruct, sections 4.2 and 4.3. The released loop crashed or went on silently when EOS1 did not come,
        counted sampled tokens as the budget and rebuilt a cache at EOS1; here each stage has its limit, cutting is
        reported, and semantic tokens are blanked as they are fed (BOS, language and EOS1 stay, as in training).
    """
    state, valid = _prefill(model, batch, branches, sampling, capacity, rules)

    def unfinished(state: _State) -> Bool[Array, ""]:
        return jnp.any(state.stage != _DONE)

    def advance(state: _State) -> _State:
        return _advance(model, batch, valid, state, branches, (sampling, rules))

    return jax.lax.while_loop(unfinished, advance, state).result


def _prefill(
    model: ARModel,
    batch: ARBatch,
    branches: tuple[Branch, ...],
    sampling: SamplingConfig,
    capacity: Capacity,
    rules: DecodingRules,
) -> tuple[_State, Bool[Array, "row slot"]]:
    """Feeds text, BOS, language and prompt; returns the first state and which of their cache slots are real."""
    rows, text_width = batch.text_tokens.shape[:2]
    prefix_width, num_branches = batch.prefix.shape[1], len(branches)
    begin = text_width + prefix_width
    # One slot a token that the longest request can feed: both stages, their ends, the prompt's frames.
    slots = begin + capacity.semantic + 1 + batch.acoustic_prefix.shape[1] + capacity.acoustic + 1
    text_slot = jnp.arange(text_width)
    in_text = text_slot < batch.text_lengths[:, None]
    in_prefix = jnp.arange(prefix_width) < batch.prefix_lengths[:, None]
    valid = jnp.pad(jnp.concatenate([in_text, in_prefix], axis=1), ((0, 0), (0, slots - begin)))
    valid = jnp.repeat(valid, num_branches, axis=0)

    cache = init_cache(model.config.backbone, rows * num_branches, slots, dtype=model.config.dtype)
    hidden, cache = _feed_text(model, batch, branches, valid, cache, rules)
    # The language is read off the plain condition: the paper guides semantic and acoustic tokens only.
    predicted = model.logits(hidden)[branches.index(Branch.COND) :: num_branches]
    predicted = jnp.argmax(mask_logits(predicted, language_mask(model.config.vocabulary)), axis=-1)
    language = jnp.where(batch.prefix[:, 1] > 0, batch.prefix[:, 1], predicted).astype(jnp.int32)
    batch = dataclasses.replace(batch, prefix=batch.prefix.at[:, 1].set(language))
    hidden, cache = _feed_prefix(model, batch, branches, valid, cache, rules)
    state = _State(
        step=jnp.int32(0),
        logits=model.logits(hidden).reshape(rows, num_branches, -1),
        cache=cache,
        stage=jnp.full(rows, SEMANTIC, jnp.int32),
        index=batch.prefix_lengths,
        recent=jnp.zeros((rows, sampling.repetition_window), jnp.int32),
        result=_empty_result(language, capacity),
    )
    return state, valid


def _empty_result(language: Int32[Array, " batch"], capacity: Capacity) -> ARResult:
    rows = len(language)
    none = jnp.zeros(rows, jnp.int32)
    return ARResult(
        language=language,
        semantic_tokens=jnp.zeros((rows, capacity.semantic), jnp.int32),
        semantic_lengths=none,
        codes=jnp.zeros((rows, capacity.acoustic), jnp.int32),
        code_lengths=none,
        finish_reasons=none + FinishReason.STOP,
    )


def _feed_text(
    model: ARModel,
    batch: ARBatch,
    branches: tuple[Branch, ...],
    valid: Bool[Array, "row slot"],
    cache: KVCache,
    rules: DecodingRules,
) -> tuple[Float[Array, "row dim"], KVCache]:
    """Feeds the text slots and BOS; returns the last hidden state."""
    rows, width = batch.text_tokens.shape[:2]
    has_text = jnp.any(batch.text_tokens != 0, axis=-1) & (jnp.arange(width) < batch.text_lengths[:, None])
    text_rows = model.embed_text(batch.text_tokens, has_text.astype(jnp.int32))
    kept = jnp.array([branch != Branch.TEXT_FREE for branch in branches], text_rows.dtype)
    text_rows = (text_rows[:, None] * kept[:, None, None]).reshape(rows * len(branches), width, -1)
    text_rows = jnp.pad(text_rows, ((0, 0), (0, 1), (0, 0)))

    slot = jnp.arange(width + 1)
    is_bos = slot == width
    bos = jnp.where(is_bos, model.config.vocabulary.bos, 0)
    positions = jnp.where(is_bos, batch.text_lengths[:, None], slot)
    keys = jnp.arange(valid.shape[1])
    in_reach = jnp.where(is_bos[:, None], keys <= width, keys < width)
    if model.config.text_attention == "causal":
        in_reach &= keys <= slot[:, None]
    part_ids = jnp.broadcast_to(jnp.where(is_bos, SEMANTIC, TEXT), (rows, width + 1))
    tokens = _branch_tokens(model, jnp.broadcast_to(bos, part_ids.shape), part_ids, branches, rules)
    x = model.embed(tokens, jnp.repeat(part_ids, len(branches), axis=0), text_rows)
    hidden, cache = model.decode(
        x, jnp.repeat(positions, len(branches), axis=0), cache, jnp.int32(0), valid[:, None] & in_reach
    )
    return hidden[:, -1], cache


def _feed_prefix(
    model: ARModel,
    batch: ARBatch,
    branches: tuple[Branch, ...],
    valid: Bool[Array, "row slot"],
    cache: KVCache,
    rules: DecodingRules,
) -> tuple[Float[Array, "row dim"], KVCache]:
    """Feeds language and prompt, all after BOS; returns the hidden state of each row's last one."""
    begin, width = batch.text_tokens.shape[1] + 1, batch.prefix.shape[1] - 1
    part_ids = jnp.full((len(batch.prefix), width), SEMANTIC, jnp.int32)
    tokens = _branch_tokens(model, batch.prefix[:, 1:], part_ids, branches, rules)
    part_ids = jnp.repeat(part_ids, len(branches), axis=0)
    positions = jnp.repeat(batch.text_lengths[:, None] + 1 + jnp.arange(width), len(branches), axis=0)
    in_reach = jnp.arange(valid.shape[1]) <= begin + jnp.arange(width)[:, None]
    x = _embed_audio(model, tokens, part_ids)
    hidden, cache = model.decode(x, positions, cache, jnp.int32(begin), valid[:, None] & in_reach)
    last = jnp.repeat(batch.prefix_lengths - 2, len(branches))
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0], cache


def _embed_audio(
    model: ARModel, tokens: Int[Array, "row time"], part_ids: Int[Array, "row time"]
) -> Float[Array, "row time dim"]:
    """Embeds tokens where there is no text."""
    no_text = jnp.zeros((*tokens.shape, model.config.backbone.model_dim), model.config.dtype)
    return model.embed(tokens, part_ids, no_text)


def _branch_tokens(
    model: ARModel,
    tokens: Int[Array, "batch time"],
    part_ids: Int[Array, "batch time"],
    branches: tuple[Branch, ...],
    rules: DecodingRules,
) -> Int[Array, "row time"]:
    """Gives each branch its tokens: blanks for semantic tokens in the branch without them."""
    blank = jnp.array([branch == Branch.SEMANTIC_FREE for branch in branches])[:, None]
    in_question = (
        part_ids == SEMANTIC if rules.blank_whole_semantic_part else model.config.vocabulary.is_semantic(tokens)
    )
    return jnp.where(blank & jnp.asarray(in_question)[:, None], 0, tokens[:, None]).reshape(-1, tokens.shape[1])


def _advance(
    model: ARModel,
    batch: ARBatch,
    valid: Bool[Array, "row slot"],
    state: _State,
    branches: tuple[Branch, ...],
    settings: tuple[SamplingConfig, DecodingRules],
) -> _State:
    """Draws a token a request, notes it, feeds it."""
    tokens, stage, result = _choose(model, batch, state, *settings)
    begin = batch.text_tokens.shape[1] + batch.prefix.shape[1]
    keys = jnp.arange(valid.shape[1])
    # Every slot since the prefill is real in every row: each request is fed a token in each step until it is done.
    mask = valid | ((keys >= begin) & (keys <= begin + state.step))
    part_ids = state.stage[:, None]
    fed = _branch_tokens(model, tokens[:, None], part_ids, branches, settings[1])
    part_ids = jnp.repeat(part_ids, len(branches), axis=0)
    positions = jnp.repeat(batch.text_lengths + state.index, len(branches))[:, None]
    hidden, cache = model.decode(
        _embed_audio(model, fed, part_ids), positions, state.cache, begin + state.step, mask[:, None]
    )
    return _State(
        step=state.step + 1,
        logits=model.logits(hidden[:, 0]).reshape(state.logits.shape),
        cache=cache,
        stage=stage,
        index=state.index + 1,
        recent=jnp.concatenate([state.recent[:, 1:], tokens[:, None]], axis=1),
        result=result,
    )


def _choose(
    model: ARModel, batch: ARBatch, state: _State, sampling: SamplingConfig, rules: DecodingRules
) -> tuple[Int32[Array, " batch"], Int32[Array, " batch"], ARResult]:
    """Applies the rules of the stages to a draw; returns the tokens to feed, the next stages and the result so far."""
    vocabulary, limits, result = model.config.vocabulary, batch.limits, state.result
    active, acoustic = state.stage != _DONE, state.stage == ACOUSTIC
    drawn = _draw(model, batch, state, sampling, rules)
    prompting, prompt_tokens = _prompt_tokens(batch, state)
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
    stage = jnp.where(ended, jnp.where(acoustic, _DONE, ACOUSTIC), state.stage)
    stage = jnp.where(active & ~overfull, stage, _DONE)
    cut = jnp.where(acoustic, FinishReason.MAX_ACOUSTIC, FinishReason.MAX_SEMANTIC)
    reasons = jnp.where(overlong, cut, result.finish_reasons)
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


def _draw(
    model: ARModel, batch: ARBatch, state: _State, sampling: SamplingConfig, rules: DecodingRules
) -> Int32[Array, " batch"]:
    """Mixes the branches, masks what the stage forbids and draws."""
    vocabulary, limits = model.config.vocabulary, batch.limits
    acoustic = state.stage == ACOUSTIC
    weights = jnp.where(acoustic[:, None], batch.acoustic_weights, batch.semantic_weights)
    allowed = jnp.where(acoustic[:, None], acoustic_mask(vocabulary, rules), semantic_mask(vocabulary, rules))
    # No frame at all can't be turned into a waveform, so EOS2 never comes first.
    shortest = jnp.where(acoustic, jnp.maximum(limits.min_acoustic, 1), limits.min_semantic)
    count = jnp.where(acoustic, state.result.code_lengths, state.result.semantic_lengths)
    end = jnp.where(acoustic, vocabulary.eos2, vocabulary.eos1)
    too_early = (count < shortest)[:, None] & (jnp.arange(vocabulary.size) == end[:, None])
    logits = mask_logits(mix_logits(state.logits, weights), allowed & ~too_early)
    top_k = jnp.where(acoustic, sampling.acoustic_top_k, sampling.semantic_top_k)
    return sample_tokens(fold_keys(batch.keys, state.stage, state.index), logits, state.recent, top_k, sampling)


def _prompt_tokens(batch: ARBatch, state: _State) -> tuple[Bool[Array, " batch"], Int32[Array, " batch"]]:
    """Tells which requests are still fed the voice prompt's codes, and the code each is fed."""
    width = batch.acoustic_prefix.shape[1]
    if not width:
        return jnp.zeros_like(state.stage, bool), jnp.zeros_like(state.stage)
    place = state.index - batch.prefix_lengths - state.result.semantic_lengths - 1
    prompting = (state.stage == ACOUSTIC) & (place < batch.acoustic_prefix_lengths)
    place = jnp.clip(place, 0, width - 1)[:, None]
    return prompting, jnp.take_along_axis(batch.acoustic_prefix, place, axis=1)[:, 0]


def _append(
    values: Int32[Array | np.ndarray, "batch time"],
    lengths: Int32[Array | np.ndarray, " batch"],
    new: Int32[Array, " batch"],
    chosen: Bool[Array, " batch"],
) -> tuple[Int32[Array, "batch time"], Int32[Array, " batch"]]:
    """Writes the new value behind the last one of the rows chosen."""
    place = jnp.where(chosen, lengths, values.shape[1])
    return jnp.asarray(values).at[jnp.arange(len(values)), place].set(new, mode="drop"), jnp.asarray(lengths) + chosen
