"""Two helping losses: one tells a head where in the text the speech is, one tells the text roughly how it sounds.

Without them a model of a few million parameters trained for an hour never finds the alignment of text and speech; with
millions of clips it is found without help, so the paper's settings leave them out. Both ask little: they know only a
soft band around the diagonal of spoken characters against semantic tokens, and against acoustic tokens.

Source: Tachibana et al. 2018, "Efficiently trainable text-to-speech system ...", section 4.1, in a log-mass form.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from voxinstruct_jax.models.ar import ARModel
from voxinstruct_jax.text.tokenizer import INSIDE_QUOTES, QUOTE_CHANNEL
from voxinstruct_jax.training.language_model import weighted_mean
from voxinstruct_jax.vocabulary import ACOUSTIC, SEMANTIC, TEXT, PackedBatch

__all__ = ["guided_attention_loss", "relative_place", "text_units_loss"]

BAND = 0.08
"""Standard deviation of the band, as a share of the sentence: speech is not uniform in time."""
HEAD = 0
FLOOR = 1e-4


def guided_attention_loss(
    model: ARModel,
    batch: PackedBatch,
    observed: list[Float[Array, "batch time dim"]],
    layers: tuple[int, ...],
    wanted: Bool[Array, "batch time"],
) -> Float[Array, ""]:
    """Mean negative log of the attention mass near the diagonal, over speech slots and layers.

    Args:
        model: Its tokenizer must mark the spoken characters (`QUOTE_CHANNEL`).
        batch: Packed rows.
        observed: Inputs of the model's blocks.
        layers: Blocks, from 0, whose first head is guided.
        wanted: False where a clip went without its text.
    """
    bands, spoken, speech = _diagonal(model, batch)
    has_text = relative_place(batch.segment_ids, spoken)[1]
    counts = speech & has_text & wanted
    mask, losses = model.attention_mask(batch), []
    for layer in layers:
        weights = model.backbone.attention_weights(layer, HEAD, observed[layer], batch.positions, mask)
        losses.append(weighted_mean(-jnp.log(jnp.sum(weights * bands, axis=-1) + FLOOR), counts))
    return sum(losses, jnp.zeros(())) / len(layers)


def text_units_loss(
    model: ARModel,
    batch: PackedBatch,
    logits: Float[Array, "batch time vocab"],
    wanted: Bool[Array, "batch time"],
) -> Float[Array, ""]:
    """Cross-entropy of the semantic tokens near the diagonal, predicted at the slots of the spoken characters.

    It gives the text a first idea of how it sounds, which attention can then find and use.

    Args:
        model: As in `guided_attention_loss`.
        batch: Packed rows.
        logits: Of the model, at all slots; those of text slots have no other use.
        wanted: False where a clip went without its text.
    """
    bands, spoken, _ = _diagonal(model, batch)
    semantic = (batch.part_ids == SEMANTIC) & model.config.vocabulary.is_semantic(batch.tokens[:, 0])
    near = jnp.swapaxes(bands, 1, 2) * semantic[:, None, :]
    mass = jnp.sum(near, axis=-1, keepdims=True)
    # as a distribution over ids: a gather at [text slot, speech slot] would have a slow scatter as its gradient
    ids = jax.nn.one_hot(batch.tokens[:, 0], logits.shape[-1])
    targets = jnp.einsum("bts,bsv->btv", near / jnp.maximum(mass, 1e-9), ids)
    loss = -jnp.sum(targets * jax.nn.log_softmax(logits, axis=-1), axis=-1)
    return weighted_mean(loss, spoken & wanted & (mass[..., 0] > 1e-3))


def _diagonal(
    model: ARModel, batch: PackedBatch
) -> tuple[Float[Array, "batch time time"], Bool[Array, "batch time"], Bool[Array, "batch time"]]:
    """The soft band of speech slots (first) against spoken characters (second), and which slots are which."""
    spoken = jnp.take_along_axis(batch.text_tokens[..., QUOTE_CHANNEL], batch.text_index, axis=1) == INSIDE_QUOTES
    spoken &= (batch.part_ids == TEXT) & (batch.segment_ids > 0)
    semantic = (batch.part_ids == SEMANTIC) & model.config.vocabulary.is_semantic(batch.tokens[:, 0])
    acoustic = batch.part_ids == ACOUSTIC
    if batch.prompted is not None:
        acoustic &= batch.prompted == 0
    places = (relative_place(batch.segment_ids, chosen)[0] for chosen in (spoken, semantic, acoustic))
    text_place, semantic_place, acoustic_place = places
    speech_place = jnp.where(semantic, semantic_place, acoustic_place)
    distance = (speech_place[:, :, None] - text_place[:, None, :]) / BAND
    together = batch.segment_ids[:, :, None] == batch.segment_ids[:, None, :]
    together &= (semantic | acoustic)[:, :, None] & spoken[:, None, :]
    return jnp.where(together, jnp.exp(-0.5 * distance**2), 0), spoken, semantic | acoustic


def relative_place(
    segment_ids: Int[Array, "batch time"], chosen: Bool[Array, "batch time"]
) -> tuple[Float[Array, "batch time"], Bool[Array, "batch time"]]:
    """Place of each chosen slot among its clip's chosen slots, in (0, 1), and whether the clip has any."""

    def one_row(
        ids: Int[Array, " time"], real: Bool[Array, " time"]
    ) -> tuple[Float[Array, " time"], Bool[Array, " time"]]:
        totals = jax.ops.segment_sum(real.astype(jnp.int32), ids, num_segments=ids.shape[0] + 1)
        before = jnp.cumsum(totals) - totals
        rank = jnp.cumsum(real) - real - before[ids]
        return (rank + 0.5) / jnp.maximum(totals[ids], 1), totals[ids] > 0

    return jax.vmap(one_row)(segment_ids, chosen)
