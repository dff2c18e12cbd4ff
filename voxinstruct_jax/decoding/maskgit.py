"""Iterative masked decoding of codebooks 2 and up: guess all hidden tokens, keep the surest, guess the others again.

One scan runs over all (codebook, step) pairs, so that a single pass of the model is compiled. Read `fill_codebooks`;
`masked_layout` writes what it starts from.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Key

from voxinstruct_jax.config import ConfigError, InputError
from voxinstruct_jax.decoding.rules import FIXED, DecodingRules
from voxinstruct_jax.decoding.sampling import fold_keys, mask_logits
from voxinstruct_jax.models.conditioning import place_text
from voxinstruct_jax.models.nar import NARModel
from voxinstruct_jax.models.unmasking import reveal_totals
from voxinstruct_jax.vocabulary import ACOUSTIC, LANGUAGE_SLOT, Layout, PackedBatch, Vocabulary, build_layout

__all__ = ["fill_codebooks", "masked_layout", "reveal"]

_STAGE = 3  # folded into keys; the AR stages are 1 and 2


def masked_layout(
    vocabulary: Vocabulary,
    language: str,
    semantic_tokens: Int[np.ndarray, " unit"],
    first_codes: Int[np.ndarray, " frame"],
    prompt_codes: Int[np.ndarray, "codebook prompt_frame"],
    rules: DecodingRules = FIXED,
) -> Layout:
    """Writes a clip whose codebooks from the second on are known for the voice prompt alone.

    Args:
        vocabulary: Its ids.
        language: A name it knows.
        semantic_tokens: Of the prompt, then of the clip: units from 0.
        first_codes: First codebook, voice prompt left out, from 0; at least one frame.
        prompt_codes: All codebooks of the voice prompt; no frames without one.
        rules: With shifted ranges, units and codes out of range stand as the ids that were drawn.

    Returns:
        A layout with 0 where `fill_codebooks` has work to do: frames after the prompt, and EOS2, as in training.

    Raises:
        InputError: There is no frame to fill, or the ids are out of range.
    """
    if not len(first_codes):
        raise InputError("no frames were generated, so there are no codebooks to fill; raise the minimum length")
    hidden = np.zeros((vocabulary.num_codebooks, len(first_codes)), np.int32)
    units, hidden[0] = semantic_tokens, first_codes
    if rules.shifted_semantic_ids:
        units = np.maximum(units, 0)
    if rules.shifted_acoustic_ids:
        hidden = np.maximum(hidden, 0)
    layout = build_layout(vocabulary, language, units, np.concatenate([prompt_codes, hidden], axis=1))
    layout.tokens[:, LANGUAGE_SLOT + 1 : LANGUAGE_SLOT + 1 + len(units)] = semantic_tokens + vocabulary.semantic_offset
    layout.tokens[0, -(len(first_codes) + 1) : -1] = first_codes + vocabulary.acoustic_offset
    layout.tokens[1:, -(len(first_codes) + 1) :] = vocabulary.pad
    return layout


def reveal(
    confidence: Float[Array, "batch time"], masked: Bool[Array, "batch time"], count: Int[Array, " batch"]
) -> Bool[Array, "batch time"]:
    """Picks the `count` surest masked places of each row; of equal ones the first.

    Source:
        VoxInstruct, section 4.2. The release sorts bfloat16 confidences, with many ties and no order among them.
    """
    order = jnp.argsort(jnp.where(masked, confidence, -jnp.inf), axis=-1, stable=True, descending=True)
    rank = jnp.argsort(order, axis=-1)
    return masked & (rank < count[:, None])


def fill_codebooks(
    model: NARModel,
    batch: PackedBatch,
    keys: Key[Array, " batch"],
    *,
    num_steps: tuple[int, ...],
    temperature: float = 0.0,
    rules: DecodingRules = FIXED,
    max_targets: int | None = None,
) -> Int32[Array, "batch codebook time"]:
    """Fills the hidden tokens (0) of codebooks 2 and up; pure, to be called inside `jax.jit`.

    What is known (first codebook, voice prompt) stays as it is, and a row follows from itself alone.

    Args:
        model: With trained weights; merged inside the jitted function.
        batch: One clip a row, from `masked_layout`.
        keys: One a row; not read at temperature 0.
        num_steps: Static; passes of each codebook from the second on. 1 guesses a codebook in one go.
        temperature: Static; 0 takes the most likely token, as the release. Confidence is always that at 1.
        rules: Static; where the release is followed in its faults.
        max_targets: Static; no row hides more slots. It spares work at the others; None = as many as there are slots.

    Returns:
        The tokens with nothing hidden in the acoustic part; EOS2 stands in all rows.

    Raises:
        ConfigError: `num_steps` has not one entry of at least 1 for each codebook from the second on.

    Source:
        VoxInstruct, section 4.2. The release may put BOS or an end inside speech, since it takes the best of all
        classes; here a frame gets a code and the last place EOS2.
    """
    vocabulary = model.config.vocabulary
    if len(num_steps) != vocabulary.num_codebooks - 1 or min(num_steps) < 1 or temperature < 0:
        raise ConfigError(
            f"num_steps {num_steps} must hold {vocabulary.num_codebooks - 1} numbers from 1 up, and temperature "
            f"{temperature} be at least 0"
        )
    text_rows = model.embed_text(jnp.asarray(batch.text_tokens), jnp.asarray(batch.text_segment_ids))
    text_rows = place_text(text_rows, batch, jnp.zeros(batch.part_ids.shape, bool))
    hidden = (batch.tokens == vocabulary.pad) & ((batch.part_ids == ACOUSTIC) & (batch.segment_ids > 0))[:, None]
    # Hidden slots first, in their order; what is left over of `max_targets` stands at slots that nothing changes.
    places = jnp.argsort(~hidden.any(axis=1), axis=1, stable=True)[:, :max_targets]
    hidden = jnp.take_along_axis(hidden, places[:, None], axis=2)
    classes = jnp.take_along_axis(_allowed_classes(vocabulary, batch, rules), places[..., None], axis=1)
    positions = jnp.take_along_axis(jnp.asarray(batch.positions), places, axis=1)
    rows = jnp.arange(len(places))[:, None]

    def step(
        tokens: Int32[Array, "batch codebook time"], now: tuple[Int[Array, ""], Int[Array, ""], Int[Array, " target"]]
    ) -> tuple[Int32[Array, "batch codebook time"], None]:
        codebook, number, totals = now
        row = jnp.take_along_axis(jnp.take(tokens, codebook, axis=1), places, axis=1)
        masked = (row == vocabulary.pad) & jnp.take(hidden, codebook, axis=1)
        num_hidden = jnp.take(hidden, codebook, axis=1).sum(axis=-1)
        count = totals[num_hidden] - (num_hidden - masked.sum(axis=-1))
        rows_codebook = jnp.broadcast_to(codebook, masked.shape[:1])
        logits = model.predict(dataclasses.replace(batch, tokens=tokens), text_rows, rows_codebook, places=places)
        folded = fold_keys(keys, _STAGE, codebook, number)
        guesses, confidence = _guess(mask_logits(logits, classes), folded, positions, temperature)
        row = jnp.where(reveal(confidence, masked, count), guesses + vocabulary.acoustic_offset, row)
        return tokens.at[rows, codebook, places].set(row), None

    return jax.lax.scan(step, jnp.asarray(batch.tokens), _schedule(num_steps, batch.part_ids.shape[1]))[0]


def _schedule(
    num_steps: tuple[int, ...], width: int
) -> tuple[Int32[Array, " pass"], Int32[Array, " pass"], Int32[Array, "pass target"]]:
    """Codebook, step within it, and table of totals of each pass."""
    codebooks = np.repeat(np.arange(1, len(num_steps) + 1, dtype=np.int32), num_steps)
    numbers = np.concatenate([np.arange(steps, dtype=np.int32) for steps in num_steps])
    totals = np.concatenate([reveal_totals(steps, width) for steps in num_steps])
    return jnp.asarray(codebooks), jnp.asarray(numbers), jnp.asarray(totals)


def _allowed_classes(
    vocabulary: Vocabulary, batch: PackedBatch, rules: DecodingRules
) -> Bool[Array, "batch time head"]:
    """Codes at frames, EOS2 where the first codebook has it."""
    classes = jnp.arange(vocabulary.nar_head_size)
    if rules.any_class_at_frames:
        return jnp.ones((*batch.part_ids.shape, len(classes)), bool)
    at_end = (batch.tokens[:, 0] == vocabulary.eos2)[..., None]
    return jnp.where(
        at_end, classes == vocabulary.eos2 - vocabulary.acoustic_offset, classes < vocabulary.codebook_size
    )


def _guess(
    logits: Float32[Array, "batch time head"],
    keys: Key[Array, " batch"],
    positions: Int[Array, "batch time"],
    temperature: float,
) -> tuple[Int32[Array, "batch time"], Float32[Array, "batch time"]]:
    """Returns a class a place and its probability, both among the allowed classes."""
    if temperature == 0:
        guesses = jnp.argmax(logits, axis=-1)
    else:
        # A key a place: wider rows must not change the draws.
        keys = fold_keys(jnp.broadcast_to(keys[:, None], positions.shape), positions)
        guesses = jax.vmap(jax.vmap(jax.random.categorical))(keys, logits / temperature)
    probabilities = jax.nn.softmax(logits, axis=-1)
    confidence = jnp.take_along_axis(probabilities, guesses[..., None], axis=-1)[..., 0]
    return guesses.astype(jnp.int32), confidence
