"""What comes before the first step: text, BOS, language and voice prompt are fed to the cache in three passes.

Rows are `request x branch`, request-major. Text sees text alone, so it is run once for all branches that see it. The
branch without semantic tokens is fed blanks in their place from the start, so no cache is ever built twice. Read
`prefill`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Num

from voxinstruct_jax.decoding.requests import ARBatch, Limits
from voxinstruct_jax.decoding.rules import DecodingRules
from voxinstruct_jax.decoding.sampling import language_mask, mask_logits
from voxinstruct_jax.guidance import Branch
from voxinstruct_jax.models.ar import ARModel
from voxinstruct_jax.models.conditioning import expected_durations
from voxinstruct_jax.models.llama import KVCache, init_cache
from voxinstruct_jax.models.style import NUM_CLASSES, SURE, Style, class_places, surely_asked
from voxinstruct_jax.text.tokenizer import INSIDE_QUOTES, QUOTE_CHANNEL
from voxinstruct_jax.vocabulary import SEMANTIC, TEXT, text_times

__all__ = ["BOS_TIME", "Prefilled", "embed_audio", "prefill"]

BOS_TIME = -1.5
"""First entry of `vocabulary.audio_times`."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Prefilled:
    """Requests that are ready for their first step."""

    cache: KVCache
    """A row's real text and prefix without a gap, from slot 0 on; beyond them anything."""
    logits: Float32[Array, "batch branch vocab"]
    """Of the first token after the prefix."""
    language: Int32[Array, " batch"]
    """Token id, predicted or as asked."""
    durations: Float[Array, "batch text"]
    """Half frames of each text token; 0 if the model is not aligned."""
    limits: Limits
    """Those of the batch; of an aligned model settled by the durations; without semantic tokens 0 of them."""
    style: Float[Array, "row dim"]
    """What every audio slot is given of the description; 0 where a branch goes without text."""
    classes: Float[Array, "batch class"]
    """As `ARResult.classes`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Run:
    """What all three passes read."""

    model: ARModel
    batch: ARBatch
    branches: tuple[Branch, ...]
    rules: DecodingRules
    text_rows: Float[Array, "batch text dim"]
    durations: Float[Array, "batch text"]
    style: Float[Array, "row dim"]
    valid: Bool[Array, "row slot"]
    """Which cache slots are real: text slots, then those of the prefix."""

    @property
    def aligned(self) -> bool:
        """Whether positions are moments."""
        return self.model.config.timing == "aligned"

    def by_branch(self, values: Num[Array, "batch ..."]) -> Num[Array, "row ..."]:
        """Repeats each request's values for its branches."""
        return jnp.repeat(values, len(self.branches), axis=0)


def prefill(model: ARModel, batch: ARBatch, branches: tuple[Branch, ...], rules: DecodingRules) -> Prefilled:
    """Feeds text, BOS, language and the semantic tokens of a voice prompt; pure.

    Args:
        model: With trained weights.
        batch: From `batch_requests`, with the same branches.
        branches: Static; `Branch.COND` among them.
        rules: Static.
    """
    has_text = _has_text(batch).astype(jnp.int32)
    text_rows = model.embed_text(batch.text_tokens, has_text)
    read = model.read_style(batch.text_tokens, has_text)
    if read is not None:  # a voice half in doubt drifts to the commoner one
        read = model.style_reader.tell(read, has_text, surely_asked(read))
    durations, limits = jnp.zeros(batch.text_tokens.shape[:2]), batch.limits
    if model.config.timing == "aligned":
        durations = batch.stretch * expected_durations(model.duration_logits(text_rows, batch.text_tokens, read))
        durations, limits = _fit_durations(_keep_tempo(durations, batch, read), batch)
    if not model.config.semantic:
        none = jnp.zeros_like(batch.text_lengths)
        limits = dataclasses.replace(limits, min_semantic=none, max_semantic=none)
    run = _Run(
        model=model,
        batch=batch,
        branches=branches,
        rules=rules,
        text_rows=text_rows,
        durations=durations,
        style=_style_of_rows(model, batch, branches, read),
        valid=jnp.repeat(_real_slots(batch), len(branches), axis=0),
    )
    hidden, cache = _feed_bos(run, _feed_text(run))
    # The language is read off the plain condition: the paper guides semantic and acoustic tokens only.
    predicted = model.logits(hidden)[branches.index(Branch.COND) :: len(branches)]
    predicted = jnp.argmax(mask_logits(predicted, language_mask(model.config.vocabulary)), axis=-1)
    language = jnp.where(batch.prefix[:, 1] > 0, batch.prefix[:, 1], predicted).astype(jnp.int32)
    hidden, cache = _feed_prefix(run, batch.prefix.at[:, 1].set(language), cache)
    return Prefilled(
        cache=_without_gap(run, cache),
        logits=model.logits(hidden).reshape(len(batch.text_tokens), len(branches), -1),
        language=language,
        durations=durations,
        limits=limits,
        style=run.style,
        classes=jnp.zeros((len(text_rows), NUM_CLASSES)) if read is None else read.probabilities[:, 0],
    )


def embed_audio(
    model: ARModel,
    tokens: Int[Array, "row time"],
    part_ids: Int[Array, "row time"],
    without_semantic: Bool[Array, " row"],
    style: Float[Array, "row dim"],
    rules: DecodingRules,
) -> Float[Array, "row time dim"]:
    """Embeds tokens where there is no text; rows without semantic tokens get blanks in their place."""
    semantic = jnp.asarray(model.config.vocabulary.is_semantic(tokens))
    if rules.blank_whole_semantic_part:
        semantic = part_ids == SEMANTIC
    tokens = jnp.where(without_semantic[:, None] & semantic, 0, tokens)
    no_text = jnp.zeros((*tokens.shape, model.config.backbone.model_dim), model.config.dtype)
    return model.embed(tokens, part_ids, no_text, style[:, None] if model.config.style_reader else None)


def _has_text(batch: ARBatch) -> Bool[Array, "batch text"]:
    in_text = jnp.arange(batch.text_tokens.shape[1]) < batch.text_lengths[:, None]
    return jnp.any(batch.text_tokens != 0, axis=-1) & in_text


def _style_of_rows(
    model: ARModel, batch: ARBatch, branches: tuple[Branch, ...], read: Style | None
) -> Float[Array, "row dim"]:
    """The vector of each request, which all its branches get that see text."""
    if read is None:
        return jnp.zeros((len(batch.text_tokens) * len(branches), model.config.backbone.model_dim))
    sees_text = jnp.array([branch != Branch.TEXT_FREE for branch in branches])
    vectors = read.vectors[:, :1] * sees_text[:, None]
    return vectors.reshape(-1, vectors.shape[-1])


def _keep_tempo(
    durations: Float[Array, "batch text"], batch: ARBatch, read: Style | None
) -> Float[Array, "batch text"]:
    """Stretches or shortens the words as little as the speed that is asked for needs."""
    if read is None:
        return durations
    spoken = batch.text_tokens[..., QUOTE_CHANNEL] == INSIDE_QUOTES
    total = jnp.maximum(jnp.where(spoken, durations, 0).sum(axis=1), 1e-3)
    speeds = read.probabilities[:, 0, class_places("speed")]
    asked = jnp.argmax(speeds, axis=1)[:, None, None]
    least, most = jnp.moveaxis(jnp.take_along_axis(batch.tempo, asked, axis=1)[:, 0], -1, 0)
    kept = jnp.where(speeds.max(axis=1) > SURE["speed"], jnp.clip(total, least, most), total)
    return durations * jnp.where(spoken, (kept / total)[:, None], 1.0)


def _fit_durations(durations: Float[Array, "batch text"], batch: ARBatch) -> tuple[Float[Array, "batch text"], Limits]:
    """Stretches durations to whole frames within the limits; the limits then leave no other number of frames."""
    limits = jax.tree.map(jnp.asarray, batch.limits)
    semantic_only = limits.max_acoustic == 0
    in_text = jnp.arange(durations.shape[1]) < batch.text_lengths[:, None]
    durations = jnp.where(in_text, durations, 0)
    total = jnp.maximum(durations.sum(axis=1), 1e-3)
    shortest = jnp.maximum(jnp.where(semantic_only, limits.min_semantic, limits.min_acoustic), 1)
    longest = jnp.where(semantic_only, limits.max_semantic, limits.max_acoustic)
    frames = jnp.clip(jnp.round(total / 2).astype(jnp.int32), shortest, longest)
    acoustic = jnp.where(semantic_only, 0, frames)
    limits = dataclasses.replace(
        limits, min_semantic=frames, max_semantic=frames, min_acoustic=acoustic, max_acoustic=acoustic
    )
    return durations * (2 * frames / total)[:, None], limits


def _real_slots(batch: ARBatch) -> Bool[Array, "batch slot"]:
    in_text = jnp.arange(batch.text_tokens.shape[1]) < batch.text_lengths[:, None]
    in_prefix = jnp.arange(batch.prefix.shape[1]) < batch.prefix_lengths[:, None]
    return jnp.concatenate([in_text, in_prefix], axis=1)


def _feed_text(run: _Run) -> KVCache:
    """Feeds the text slots; returns a cache with room for the prefix."""
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
    positions: Num[Array, "batch slot"] = batch.text_lengths[:, None]
    if run.aligned:
        positions = jnp.full((rows, 1), BOS_TIME)
    x = _embed_prefix(run, jnp.full((rows, 1), run.model.config.vocabulary.bos))
    mask = run.valid & (jnp.arange(run.valid.shape[1]) <= width)
    hidden, cache = run.model.decode(x, run.by_branch(positions), cache, jnp.int32(width), mask[:, None])
    return hidden[:, 0], cache


def _feed_prefix(
    run: _Run, prefix: Int32[Array, "batch prefix"], cache: KVCache
) -> tuple[Float[Array, "row dim"], KVCache]:
    """Feeds language and prompt, all after BOS; returns the hidden state of each row's last one."""
    batch = run.batch
    begin, width = batch.text_tokens.shape[1] + 1, prefix.shape[1] - 1
    positions: Num[Array, "batch slot"] = batch.text_lengths[:, None] + 1 + jnp.arange(width)
    if run.aligned:
        positions = jnp.broadcast_to(BOS_TIME + 1 + jnp.arange(width), positions.shape)
    in_reach = jnp.arange(run.valid.shape[1]) <= begin + jnp.arange(width)[:, None]
    mask = run.valid[:, None] & in_reach
    x = _embed_prefix(run, prefix[:, 1:])
    hidden, cache = run.model.decode(x, run.by_branch(positions), cache, jnp.int32(begin), mask)
    last = run.by_branch(batch.prefix_lengths - 2)
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0], cache


def _embed_prefix(run: _Run, tokens: Int[Array, "batch time"]) -> Float[Array, "row time dim"]:
    tokens = run.by_branch(tokens)
    blank = jnp.tile(jnp.array([branch == Branch.SEMANTIC_FREE for branch in run.branches]), len(run.batch.prefix))
    return embed_audio(run.model, tokens, jnp.full(tokens.shape, SEMANTIC), blank, run.style, run.rules)


def _without_gap(run: _Run, cache: KVCache) -> KVCache:
    """Moves each row's prefix up to the end of its text."""
    width, slot = run.batch.text_tokens.shape[1], jnp.arange(run.valid.shape[1])
    lengths = run.by_branch(run.batch.text_lengths)[:, None]
    source = jnp.where(slot < lengths, slot, jnp.minimum(slot - lengths + width, len(slot) - 1))
    return jax.tree.map(lambda layer: jnp.take_along_axis(layer, source[:, None, :, None], axis=2), cache)
