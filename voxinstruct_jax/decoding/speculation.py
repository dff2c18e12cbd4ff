"""Speculative decoding that changes no token: a cheap draft goes ahead, one pass checks it, what fits is kept.

A draft proposes one token a place, and the model's own draw decides: it is made from the exact distribution (all
guidance branches mixed, filters, repetitions) with the key of its place, and a proposal is kept if it is the token
drawn. For a draft that proposes with certainty this is the rule of speculative sampling, whose residual distribution is
the target's without the proposal. So tokens are those of plain decoding, under the same seed too, and only their number
a pass changes. Read `advance_with_draft`, then `count_draft`.
"""

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Int32, Shaped

from voxinstruct_jax.decoding.rules import DecodingRules
from voxinstruct_jax.decoding.sampling import SamplingConfig
from voxinstruct_jax.decoding.slots import DONE, SlotState, draw_tokens, feed_tokens, run_steps
from voxinstruct_jax.models.ar import ARModel
from voxinstruct_jax.vocabulary import ACOUSTIC, Vocabulary

__all__ = ["DraftTable", "advance_with_draft", "count_draft", "step_with_draft"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class DraftTable:
    """The likeliest next token after what stands before it."""

    next_unit: Int32[Array | np.ndarray, " unit"]
    """After a unit."""
    next_code: Int32[Array | np.ndarray, "unit code"]
    """In a frame with this unit, after a code."""


def count_draft(
    clips: Iterable[tuple[Int[np.ndarray, " _"], Int[np.ndarray, " _"]]], vocabulary: Vocabulary
) -> DraftTable:
    """Counts which token follows most often.

    Args:
        clips: Units, one a frame, and the codes of the first codebook.
        vocabulary: Their numbers.
    """
    units, codes = vocabulary.num_semantic, vocabulary.codebook_size
    pairs = np.zeros((units, units), np.int32)
    triples: dict[tuple[int, int], dict[int, int]] = {}
    for clip_units, clip_codes in clips:
        np.add.at(pairs, (clip_units[:-1], clip_units[1:]), 1)
        for unit, last, code in zip(
            clip_units[1:].tolist(), clip_codes[:-1].tolist(), clip_codes[1:].tolist(), strict=False
        ):
            counts = triples.setdefault((unit, last), {})
            counts[code] = counts.get(code, 0) + 1
    next_code = np.broadcast_to(np.arange(codes, dtype=np.int32), (units, codes)).copy()  # unseen: it goes on
    for (unit, last), counts in triples.items():
        next_code[unit, last] = max(counts, key=lambda code: (counts[code], -code))
    return DraftTable(next_unit=pairs.argmax(axis=1).astype(np.int32), next_code=next_code)


def advance_with_draft(
    model: ARModel,
    state: SlotState,
    table: DraftTable,
    *,
    count: int,
    sampling: SamplingConfig,
    rules: DecodingRules,
    steps: int | None = None,
) -> SlotState:
    """As `slots.advance`, one to `count + 1` tokens a step; pure.

    Args:
        model: With trained weights.
        state: From `fill_slots`.
        table: What is proposed.
        count: Static; proposals a step.
        sampling: Static.
        rules: Static.
        steps: Static; None = to the end of all requests.

    Source:
        Leviathan et al. 2023, section 2.3, for a draft that puts all its probability on one token.
    """
    return run_steps(lambda state: step_with_draft(model, state, table, count, sampling, rules), state, steps)[1]


def step_with_draft(
    model: ARModel, state: SlotState, table: DraftTable, count: int, sampling: SamplingConfig, rules: DecodingRules
) -> SlotState:
    """Draws a token a slot, proposes those that follow, feeds all and keeps as many as are drawn again."""
    tokens, after = draw_tokens(model.config, state, sampling, rules)
    proposed = _propose(model.config.vocabulary, after, tokens, table, count)
    logits, cache = feed_tokens(model, state, after, jnp.concatenate([tokens[:, None], proposed], axis=1), rules)
    going, kept = after.stage != DONE, jnp.zeros_like(tokens)
    for number in range(count):
        drawn, beyond = draw_tokens(model.config, dataclasses.replace(after, logits=logits[:, number]), sampling, rules)
        going &= (after.stage != DONE) & (drawn == proposed[:, number])
        after = _where(going, beyond, after)
        kept += going
    by_row = kept[jnp.minimum(state.slot_of_row, len(kept) - 1)]
    return dataclasses.replace(
        after, cache=cache, logits=jnp.take_along_axis(logits, by_row[:, None, None], axis=1)[:, 0]
    )


def _where(chosen: Bool[Array, " slot"], new: SlotState, old: SlotState) -> SlotState:
    """Takes what a draw changes from one state where chosen, from the other elsewhere."""

    def pick(one: Shaped[Array, "slot ..."], other: Shaped[Array, "slot ..."]) -> Shaped[Array, "slot ..."]:
        return jnp.where(chosen.reshape(-1, *[1] * (one.ndim - 1)), one, other)

    changed = {
        name: jax.tree.map(pick, getattr(new, name), getattr(old, name))
        for name in ("stage", "index", "recent", "result")
    }
    return dataclasses.replace(old, **changed)


def _propose(
    vocabulary: Vocabulary, state: SlotState, tokens: Int32[Array, " slot"], table: DraftTable, count: int
) -> Int32[Array, "slot proposal"]:
    """Follows the table from the last token."""
    acoustic, result = state.stage == ACOUSTIC, state.result
    next_unit, next_code = jnp.asarray(table.next_unit), jnp.asarray(table.next_code)
    unit = jnp.clip(tokens - vocabulary.semantic_offset, 0, vocabulary.num_semantic - 1)
    code = jnp.clip(tokens - vocabulary.acoustic_offset, 0, vocabulary.codebook_size - 1)
    units, proposed = jnp.asarray(result.semantic_tokens), []
    for ahead in range(count):
        unit = next_unit[unit]
        frame = jnp.clip(jnp.asarray(result.code_lengths) + ahead, 0, units.shape[1] - 1)
        frame_unit = jnp.take_along_axis(units, frame[:, None], axis=1)[:, 0]
        code = next_code[jnp.clip(frame_unit, 0, vocabulary.num_semantic - 1), code]
        proposed.append(jnp.where(acoustic, code + vocabulary.acoustic_offset, unit + vocabulary.semantic_offset))
    return jnp.stack(proposed, axis=1).astype(jnp.int32)
