"""The autoregressive loop: instruction to semantic tokens and first-codebook codes, on the device from start to end.

A batch of requests runs as `request x branch` rows, one row a guidance condition, request-major. Three passes prefill
the cache (text, once for all branches that see it; BOS; language and voice prompt), one `while_loop` draws a token a
request and feeds it to all of its branches. Every request is in its own stage: SEMANTIC until EOS1, ACOUSTIC (first the
voice prompt's codes, fed as they are) until EOS2, DONE. The branch without semantic tokens is fed blanks in their place
from the start, so no cache is ever built twice. An aligned model tells first how long each character lasts: that sets
when each slot is spoken and how many frames there are. Read `decode_ar`, then `_advance`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Num

from voxinstruct_jax.decoding.requests import ARBatch, ARResult, Capacity, FinishReason, Limits
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
from voxinstruct_jax.models.conditioning import expected_durations
from voxinstruct_jax.models.llama import KVCache, init_cache
from voxinstruct_jax.vocabulary import ACOUSTIC, SEMANTIC, TEXT, text_times

__all__ = ["decode_ar"]

_DONE = 0  # stages are numbered like the parts: SEMANTIC, ACOUSTIC
_BOS_TIME = -1.5  # first entry of `vocabulary.audio_times`


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Run:
    """What stays the same from the first step to the last."""

    model: ARModel
    batch: ARBatch
    branches: tuple[Branch, ...]
    sampling: SamplingConfig
    rules: DecodingRules
    text_rows: Float[Array, "batch text dim"]
    durations: Float[Array, "batch text"]
    """Half frames of each text token; 0 if the model is not aligned."""
    valid: Bool[Array, "row slot"]
    """Which cache slots of the prefill are real."""

    @property
    def aligned(self) -> bool:
        """Whether positions are moments."""
        return self.model.config.timing == "aligned"

    def by_branch(self, values: Num[Array, "batch ..."]) -> Num[Array, "row ..."]:
        """Repeats each request's values for its branches."""
        return jnp.repeat(values, len(self.branches), axis=0)


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
    text_rows = _embed_text(model, batch)
    durations = jnp.zeros(batch.text_tokens.shape[:2])
    if model.config.timing == "aligned":
        durations, limits = _fit_durations(expected_durations(model.duration_logits(text_rows)), batch)
        batch = dataclasses.replace(batch, limits=limits)
    run = _Run(
        model=model,
        batch=batch,
        branches=branches,
        sampling=sampling,
        rules=rules,
        text_rows=text_rows,
        durations=durations,
        valid=jnp.repeat(_real_slots(batch, capacity), len(branches), axis=0),
    )

    def unfinished(state: _State) -> Bool[Array, ""]:
        return jnp.any(state.stage != _DONE)

    def advance(state: _State) -> _State:
        return _advance(run, state)

    return jax.lax.while_loop(unfinished, advance, _prefill(run, capacity)).result


def _embed_text(model: ARModel, batch: ARBatch) -> Float[Array, "batch text dim"]:
    in_text = jnp.arange(batch.text_tokens.shape[1]) < batch.text_lengths[:, None]
    has_text = jnp.any(batch.text_tokens != 0, axis=-1) & in_text
    return model.embed_text(batch.text_tokens, has_text.astype(jnp.int32))


def _fit_durations(durations: Float[Array, "batch text"], batch: ARBatch) -> tuple[Float[Array, "batch text"], Limits]:
    """Stretches durations to whole frames within the limits; the limits then leave no other number of frames."""
    in_text = jnp.arange(durations.shape[1]) < batch.text_lengths[:, None]
    durations = jnp.where(in_text, durations, 0)
    total = jnp.maximum(durations.sum(axis=1), 1e-3)
    shortest = jnp.maximum(jnp.asarray(batch.limits.min_acoustic), 1)
    frames = jnp.clip(jnp.round(total / 2).astype(jnp.int32), shortest, batch.limits.max_acoustic)
    limits = dataclasses.replace(
        batch.limits, min_semantic=frames, max_semantic=frames, min_acoustic=frames, max_acoustic=frames
    )
    return durations * (2 * frames / total)[:, None], limits


def _real_slots(batch: ARBatch, capacity: Capacity) -> Bool[Array, "batch slot"]:
    """One cache slot a token that the longest request can feed; True at those that the prefill fills."""
    text_width, prefix_width = batch.text_tokens.shape[1], batch.prefix.shape[1]
    # Both stages, their ends, the prompt's frames.
    later = capacity.semantic + 1 + batch.acoustic_prefix.shape[1] + capacity.acoustic + 1
    in_text = jnp.arange(text_width) < batch.text_lengths[:, None]
    in_prefix = jnp.arange(prefix_width) < batch.prefix_lengths[:, None]
    return jnp.pad(jnp.concatenate([in_text, in_prefix], axis=1), ((0, 0), (0, later)))


def _prefill(run: _Run, capacity: Capacity) -> _State:
    """Feeds text, BOS, language and prompt."""
    model, batch, num_branches = run.model, run.batch, len(run.branches)
    rows = len(batch.text_tokens)
    hidden, cache = _feed_bos(run, _feed_text(run))
    # The language is read off the plain condition: the paper guides semantic and acoustic tokens only.
    predicted = model.logits(hidden)[run.branches.index(Branch.COND) :: num_branches]
    predicted = jnp.argmax(mask_logits(predicted, language_mask(model.config.vocabulary)), axis=-1)
    language = jnp.where(batch.prefix[:, 1] > 0, batch.prefix[:, 1], predicted).astype(jnp.int32)
    hidden, cache = _feed_prefix(run, batch.prefix.at[:, 1].set(language), cache)
    return _State(
        step=jnp.int32(0),
        logits=model.logits(hidden).reshape(rows, num_branches, -1),
        cache=cache,
        stage=jnp.full(rows, SEMANTIC, jnp.int32),
        index=batch.prefix_lengths,
        recent=jnp.zeros((rows, run.sampling.repetition_window), jnp.int32),
        result=_empty_result(language, run.durations, capacity),
    )


def _empty_result(
    language: Int32[Array, " batch"], durations: Float[Array, "batch text"], capacity: Capacity
) -> ARResult:
    rows = len(language)
    none = jnp.zeros(rows, jnp.int32)
    return ARResult(
        language=language,
        semantic_tokens=jnp.zeros((rows, capacity.semantic), jnp.int32),
        semantic_lengths=none,
        codes=jnp.zeros((rows, capacity.acoustic), jnp.int32),
        code_lengths=none,
        finish_reasons=none + FinishReason.STOP,
        durations=durations,
    )


def _feed_text(run: _Run) -> KVCache:
    """Feeds the text slots; returns a cache with room for all that follows.

    Text sees text alone, so branches with the same text have the same keys and values: they are computed once.
    """
    model, batch = run.model, run.batch
    rows, width = batch.text_tokens.shape[:2]
    without_text = [branch == Branch.TEXT_FREE for branch in run.branches]
    kinds = sorted(set(without_text))
    text_rows = jnp.stack([jnp.zeros_like(run.text_rows) if empty else run.text_rows for empty in kinds], axis=1)
    positions: Num[Array, "batch slot"] = jnp.broadcast_to(jnp.arange(width), (rows, width))
    if run.aligned:
        positions = text_times(run.durations)
    nothing, slot = jnp.zeros((rows * len(kinds), width), jnp.int32), jnp.arange(width)
    x = model.embed(nothing, nothing + TEXT, text_rows.reshape(*nothing.shape, -1))
    in_text = slot < batch.text_lengths[:, None]
    mask = jnp.broadcast_to(in_text[:, None], (rows, width, width))
    if model.config.text_attention == "causal":
        mask &= slot <= slot[:, None]
    mask, positions = (jnp.repeat(part, len(kinds), axis=0) for part in (mask, positions))
    cache = init_cache(model.config.backbone, len(nothing), width, dtype=model.config.dtype)
    _, cache = model.decode(x, positions, cache, jnp.int32(0), mask)
    chosen = np.add.outer(np.arange(rows) * len(kinds), [kinds.index(empty) for empty in without_text]).reshape(-1)
    room = ((0, 0), (0, 0), (0, run.valid.shape[1] - width), (0, 0))
    return jax.tree.map(lambda layer: jnp.pad(layer[chosen], room), cache)


def _feed_bos(run: _Run, cache: KVCache) -> tuple[Float[Array, "row dim"], KVCache]:
    """Feeds BOS; returns its hidden state."""
    batch = run.batch
    rows, width = batch.text_tokens.shape[:2]
    part_ids = jnp.full((rows, 1), SEMANTIC, jnp.int32)
    positions: Num[Array, "batch slot"] = batch.text_lengths[:, None]
    if run.aligned:
        positions = jnp.full((rows, 1), _BOS_TIME)
    bos = jnp.full((rows, 1), run.model.config.vocabulary.bos)
    x = _embed_audio(run.model, _branch_tokens(run, bos, part_ids), run.by_branch(part_ids))
    mask = run.valid & (jnp.arange(run.valid.shape[1]) <= width)
    hidden, cache = run.model.decode(x, run.by_branch(positions), cache, jnp.int32(width), mask[:, None])
    return hidden[:, 0], cache


def _feed_prefix(
    run: _Run, prefix: Int32[Array, "batch prefix"], cache: KVCache
) -> tuple[Float[Array, "row dim"], KVCache]:
    """Feeds language and prompt, all after BOS; returns the hidden state of each row's last one."""
    batch = run.batch
    begin, width = batch.text_tokens.shape[1] + 1, prefix.shape[1] - 1
    part_ids = jnp.full((len(prefix), width), SEMANTIC, jnp.int32)
    positions: Num[Array, "batch slot"] = batch.text_lengths[:, None] + 1 + jnp.arange(width)
    if run.aligned:
        positions = jnp.broadcast_to(_BOS_TIME + 1 + jnp.arange(width), positions.shape)
    in_reach = jnp.arange(run.valid.shape[1]) <= begin + jnp.arange(width)[:, None]
    x = _embed_audio(run.model, _branch_tokens(run, prefix[:, 1:], part_ids), run.by_branch(part_ids))
    mask = run.valid[:, None] & in_reach
    hidden, cache = run.model.decode(x, run.by_branch(positions), cache, jnp.int32(begin), mask)
    last = run.by_branch(batch.prefix_lengths - 2)
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0], cache


def _embed_audio(
    model: ARModel, tokens: Int[Array, "row time"], part_ids: Int[Array, "row time"]
) -> Float[Array, "row time dim"]:
    """Embeds tokens where there is no text."""
    no_text = jnp.zeros((*tokens.shape, model.config.backbone.model_dim), model.config.dtype)
    return model.embed(tokens, part_ids, no_text)


def _branch_tokens(
    run: _Run, tokens: Int[Array, "batch time"], part_ids: Int[Array, "batch time"]
) -> Int[Array, "row time"]:
    """Gives each branch its tokens: blanks for semantic tokens in the branch without them."""
    blank = jnp.array([branch == Branch.SEMANTIC_FREE for branch in run.branches])[:, None]
    semantic = jnp.asarray(run.model.config.vocabulary.is_semantic(tokens))
    if run.rules.blank_whole_semantic_part:
        semantic = part_ids == SEMANTIC
    return jnp.where(blank & semantic[:, None], 0, tokens[:, None]).reshape(-1, tokens.shape[1])


def _advance(run: _Run, state: _State) -> _State:
    """Draws a token a request, notes it, feeds it."""
    batch = run.batch
    tokens, stage, result = _choose(run, state)
    begin = batch.text_tokens.shape[1] + batch.prefix.shape[1]
    keys = jnp.arange(run.valid.shape[1])
    # Every slot since the prefill is real in every row: each request is fed a token in each step until it is done.
    mask = run.valid | ((keys >= begin) & (keys <= begin + state.step))
    part_ids = state.stage[:, None]
    x = _embed_audio(run.model, _branch_tokens(run, tokens[:, None], part_ids), run.by_branch(part_ids))
    positions: Num[Array, " batch"] = batch.text_lengths + state.index
    if run.aligned:
        positions = _times(run, tokens, state, result)
    hidden, cache = run.model.decode(
        x, run.by_branch(positions)[:, None], state.cache, begin + state.step, mask[:, None]
    )
    return _State(
        step=state.step + 1,
        logits=run.model.logits(hidden[:, 0]).reshape(state.logits.shape),
        cache=cache,
        stage=stage,
        index=state.index + 1,
        recent=jnp.concatenate([state.recent[:, 1:], tokens[:, None]], axis=1),
        result=result,
    )


def _times(run: _Run, tokens: Int32[Array, " batch"], state: _State, result: ARResult) -> Float[Array, " batch"]:
    """When the tokens fed now are spoken: `vocabulary.audio_times`, one slot a row."""
    batch = run.batch
    in_semantic = (state.stage == SEMANTIC) & (tokens != run.model.config.vocabulary.eos1)
    acoustic = state.index - batch.prefix_lengths - result.semantic_lengths - 1 - batch.acoustic_prefix_lengths
    return jnp.where(in_semantic, state.index + _BOS_TIME, acoustic + 0.5)


def _choose(run: _Run, state: _State) -> tuple[Int32[Array, " batch"], Int32[Array, " batch"], ARResult]:
    """Applies the rules of the stages to a draw; returns the tokens to feed, the next stages and the result so far."""
    vocabulary, limits, result = run.model.config.vocabulary, run.batch.limits, state.result
    active, acoustic = state.stage != _DONE, state.stage == ACOUSTIC
    drawn = _draw(run, state)
    prompting, prompt_tokens = _prompt_tokens(run.batch, state)
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


def _draw(run: _Run, state: _State) -> Int32[Array, " batch"]:
    """Mixes the branches, masks what the stage forbids and draws."""
    vocabulary, batch, sampling = run.model.config.vocabulary, run.batch, run.sampling
    acoustic, limits = state.stage == ACOUSTIC, batch.limits
    weights = jnp.where(acoustic[:, None], batch.acoustic_weights, batch.semantic_weights)
    masks = acoustic_mask(vocabulary, run.rules), semantic_mask(vocabulary, run.rules)
    allowed = jnp.where(acoustic[:, None], *masks)
    # No frame at all can't be turned into a waveform, so EOS2 never comes first.
    shortest = jnp.where(acoustic, jnp.maximum(limits.min_acoustic, 1), limits.min_semantic)
    count = jnp.where(acoustic, state.result.code_lengths, state.result.semantic_lengths)
    is_end = jnp.arange(vocabulary.size) == jnp.where(acoustic, vocabulary.eos2, vocabulary.eos1)[:, None]
    allowed &= ~((count < shortest)[:, None] & is_end)
    if run.aligned:  # the number of frames is settled, so a stage ends there
        allowed = jnp.where((count >= shortest)[:, None], is_end, allowed)
    logits = mask_logits(mix_logits(state.logits, weights), allowed)
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
