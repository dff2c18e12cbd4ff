"""The NAR objective: masked prediction of one codebook from those below it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.layers.dropout import split_key
from voxinstruct_jax.layers.execution import Execution
from voxinstruct_jax.models.conditioning import place_text
from voxinstruct_jax.models.nar import NARConfig, NARModel, nearby_weights
from voxinstruct_jax.sharding.mesh import MeshConfig
from voxinstruct_jax.training.language_model import (
    TokenData,
    clip_uniform,
    row_keys,
    token_losses,
    token_program,
    token_task,
)
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.step import Mean, StepConfig, weighted_mean
from voxinstruct_jax.training.task import Program, Task, TrainConfig
from voxinstruct_jax.vocabulary import ACOUSTIC, PackedBatch

__all__ = ["MaskDraw", "NARExperiment", "NARObjective", "draw_masks", "nar_loss", "nar_program", "nar_task"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NARObjective:
    """What is drawn in training.

    Raises:
        ConfigError: A share is no probability, or `codebook_decay` is negative.
    """

    drop_text: float = 0.1
    """Share of clips without instruction."""
    drop_prompt: float = 0.3
    """Share of clips whose own beginning is not shown as a voice prompt."""
    codebook_decay: float = 0.0
    """Codebook k + 1 is drawn in proportion to 1 / k^decay: 0 = all alike, as in the paper. What is wrong in a lower
    codebook is louder, and those above it are predicted from it."""

    def __post_init__(self) -> None:
        for name in ("drop_text", "drop_prompt"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"objective.{name}: {getattr(self, name)} is no probability; give 0 to 1")
        if self.codebook_decay < 0:
            raise ConfigError(f"objective.codebook_decay: {self.codebook_decay} is below 0; 0 = all codebooks alike")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NARExperiment:
    """Trains the NAR model."""

    model: NARConfig
    objective: NARObjective = NARObjective()
    data: TokenData = TokenData()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    step: StepConfig = StepConfig()
    execution: Execution = Execution()
    mesh: MeshConfig = MeshConfig()


@dataclasses.dataclass(frozen=True)
class MaskDraw:
    """What one training pass shows and asks."""

    codebook: Int[Array, " batch"]
    """Predicted codebook of each row, from 1."""
    tokens: Int[Array, "batch codebook time"]
    """Visible ids, 0 elsewhere."""
    masked: Bool[Array, "batch time"]
    """Places to predict in the row's codebook."""


def nar_loss(
    config: NARObjective, model: NARModel, batch: PackedBatch, key: jax.Array
) -> tuple[list[Mean], dict[str, Mean]]:
    """Cross-entropy over the masked places of one codebook a row.

    Source:
        VoxInstruct, section 4.2, equation 3 and the paragraph above it. The unmasked part of the current codebook is
        visible, as decoding shows it; the release blanked all of it.
    """
    mask_key, text_key, dropout_key = jax.random.split(key, 3)
    draw = draw_masks(config, model.config, batch, mask_key)
    drop_text = clip_uniform(row_keys(text_key, batch), batch.segment_ids) < config.drop_text
    shown = dataclasses.replace(batch, tokens=draw.tokens)
    encoder_key, backbone_key = split_key(jax.random.fold_in(dropout_key, batch.clip_ids[0]), 2)
    text_rows = model.embed_text(batch.text_tokens, batch.text_segment_ids, key=encoder_key)
    hidden = model.hidden(shown, place_text(text_rows, batch, drop_text), draw.codebook, key=backbone_key)
    ids = jnp.take_along_axis(batch.tokens, draw.codebook[:, None, None], axis=1)[:, 0]
    targets = jnp.maximum(ids - model.config.vocabulary.acoustic_offset, 0)
    loss, hit = token_losses(
        lambda part: model.logits(part, draw.codebook), hidden, targets, chunk=model.execution.loss_chunk
    )
    metrics = {"accuracy": weighted_mean(hit, draw.masked)}
    for codebook in range(1, model.config.vocabulary.num_codebooks):
        asked = draw.masked & (draw.codebook == codebook)[:, None]
        metrics[f"loss_codebook_{codebook + 1}"] = weighted_mean(loss, asked)
        metrics[f"accuracy_codebook_{codebook + 1}"] = weighted_mean(hit, asked)
    return [weighted_mean(loss, draw.masked)], metrics


def draw_masks(config: NARObjective, model: NARConfig, batch: PackedBatch, key: jax.Array) -> MaskDraw:
    """Draws codebook, voice prompt and mask.

    All clips of a row share the codebook, so one head serves the row. In each clip of L acoustic tokens (EOS2 counted):
    the prompt is its first P = floor(v L) of them (none with probability `drop_prompt`), v ~ U(0, 1), and
    max(1, floor((L - P) cos(pi u / 2))) of the rest are masked, u ~ U(0, 1). A prompt lent by another clip is
    part of it.
    """
    codebook_key, prompt_key, length_key, ratio_key, order_key = jax.random.split(key, 5)
    codebooks = jnp.arange(1, model.vocabulary.num_codebooks)
    rows = jax.vmap(lambda k: 1 + jax.random.categorical(k, -config.codebook_decay * jnp.log(codebooks)))
    codebook = rows(row_keys(codebook_key, batch)).astype(jnp.int32)
    acoustic = batch.part_ids == ACOUSTIC
    length, place = _length_and_place(batch.segment_ids, acoustic)
    lent = batch.prompted == 1 if batch.prompted is not None else jnp.zeros_like(acoustic)
    lent_length, _ = _length_and_place(batch.segment_ids, lent)
    prompted = clip_uniform(row_keys(prompt_key, batch), batch.segment_ids) >= config.drop_prompt
    share = clip_uniform(row_keys(length_key, batch), batch.segment_ids)
    prompt = jnp.maximum(jnp.where(prompted, jnp.floor(share * length), 0), lent_length)
    target = acoustic & (place >= prompt)
    ratio = jnp.cos(jnp.pi / 2 * clip_uniform(row_keys(ratio_key, batch), batch.segment_ids))
    count = jnp.maximum(1, jnp.floor((length - prompt) * ratio))
    order = jax.vmap(lambda k, ids: jax.random.uniform(k, ids.shape))(row_keys(order_key, batch), batch.segment_ids)
    masked = target & (_rank(batch.segment_ids, jnp.where(target, order, 2.0)) < count)
    index = jnp.arange(model.vocabulary.num_codebooks)[None, :, None]
    current = codebook[:, None, None]
    visible = (index < current) | ~target[:, None] | ((index == current) & ~masked[:, None])
    return MaskDraw(codebook, jnp.where(visible, batch.tokens, 0), masked)


def nar_program(experiment: NARExperiment) -> Program:
    """Model, objective and operations of the experiment."""
    config = experiment.model
    objective = functools.partial(nar_loss, experiment.objective)
    nearby = nearby_weights(config.nearby_frames, config.backbone) if config.nearby_frames else 0
    head_size = config.vocabulary.nar_head_size
    return token_program(experiment, NARModel, objective, head_size, causal=False, further_weights=nearby)


def nar_task(experiment: NARExperiment) -> Task:
    """Opens the data and makes the experiment ready."""
    return token_task("nar", experiment, nar_program(experiment))


def _length_and_place(
    segment_ids: Int[Array, "batch time"], acoustic: Bool[Array, "batch time"]
) -> tuple[Int[Array, "batch time"], Int[Array, "batch time"]]:
    """Number of acoustic tokens of each slot's clip, and how many of them stand before the slot."""

    def one_row(
        ids: Int[Array, " time"], real: Bool[Array, " time"]
    ) -> tuple[Int[Array, " time"], Int[Array, " time"]]:
        totals = jax.ops.segment_sum(real.astype(jnp.int32), ids, num_segments=ids.shape[0] + 1)
        before = jnp.cumsum(totals) - totals  # acoustic tokens of earlier clips; padding (clip 0) has none
        return totals[ids], jnp.cumsum(real) - real - before[ids]

    return jax.vmap(one_row)(segment_ids, acoustic)


def _rank(segment_ids: Int[Array, "batch time"], scores: Float[Array, "batch time"]) -> Int[Array, "batch time"]:
    """Rank of a slot's score within its clip, from 0, lowest first."""

    def one_row(ids: Int[Array, " time"], values: Float[Array, " time"]) -> Int[Array, " time"]:
        order = jnp.lexsort((values, ids))
        rank = jnp.zeros_like(ids).at[order].set(jnp.arange(ids.shape[0]))
        size = jnp.bincount(ids, length=ids.shape[0] + 1)
        return rank - (jnp.cumsum(size) - size)[ids]

    return jax.vmap(one_row)(segment_ids, scores)
