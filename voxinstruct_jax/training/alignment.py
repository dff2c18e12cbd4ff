"""A guided attention loss: it tells one head of a layer roughly where in the text the speech is.

Without it a model of a few million parameters trained for an hour never finds the alignment of text and speech; with
millions of clips it is found without help, so the paper's settings leave it out. It asks little: some attention within
a soft band around the diagonal of spoken characters against semantic tokens, and against acoustic tokens.

Source: Tachibana et al. 2018, "Efficiently trainable text-to-speech system ...", section 4.1, in a log-mass form.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from voxinstruct_jax.models.ar import ARModel
from voxinstruct_jax.text.tokenizer import INSIDE_QUOTES, QUOTE_CHANNEL
from voxinstruct_jax.training.language_model import weighted_mean
from voxinstruct_jax.vocabulary import ACOUSTIC, SEMANTIC, TEXT, PackedBatch

__all__ = ["guided_attention_loss", "relative_place"]

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
    spoken = jnp.take_along_axis(batch.text_tokens[..., QUOTE_CHANNEL], batch.text_index, axis=1) == INSIDE_QUOTES
    spoken &= (batch.part_ids == TEXT) & (batch.segment_ids > 0)
    semantic = (batch.part_ids == SEMANTIC) & model.config.vocabulary.is_semantic(batch.tokens[:, 0])
    acoustic = batch.part_ids == ACOUSTIC
    if batch.prompted is not None:
        acoustic &= batch.prompted == 0
    place, has_text = relative_place(batch.segment_ids, spoken)
    speech = jnp.where(
        semantic, relative_place(batch.segment_ids, semantic)[0], relative_place(batch.segment_ids, acoustic)[0]
    )
    distance = (speech[:, :, None] - place[:, None, :]) / BAND
    same_clip = batch.segment_ids[:, :, None] == batch.segment_ids[:, None, :]
    band = jnp.where(same_clip & spoken[:, None, :], jnp.exp(-0.5 * distance**2), 0)
    counts = (semantic | acoustic) & has_text & wanted
    mask, losses = model.attention_mask(batch), []
    for layer in layers:
        weights = model.backbone.attention_weights(layer, HEAD, observed[layer], batch.positions, mask)
        losses.append(weighted_mean(-jnp.log(jnp.sum(weights * band, axis=-1) + FLOOR), counts))
    return sum(losses, jnp.zeros(())) / len(layers)


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
