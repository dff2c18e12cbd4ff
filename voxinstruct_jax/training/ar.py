"""The AR objective: next-token prediction of language, semantic tokens and first-codebook acoustic tokens."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.models.ar import ARConfig, ARModel
from voxinstruct_jax.sharding.mesh import MeshConfig
from voxinstruct_jax.training.alignment import guided_attention_loss, text_units_loss
from voxinstruct_jax.training.language_model import (
    TokenData,
    clip_uniform,
    row_keys,
    token_task,
    weighted_mean,
)
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.step import Metrics
from voxinstruct_jax.training.task import Task, TrainConfig
from voxinstruct_jax.vocabulary import ACOUSTIC, SEMANTIC, TEXT, PackedBatch

__all__ = ["ARExperiment", "ARObjective", "ar_loss", "ar_task", "ar_targets"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ARObjective:
    """Shares of clips that lose a condition, which is what guidance needs at inference."""

    drop_text: float = 0.1
    drop_semantic: float = 0.1
    alignment_weight: float = 0.0  # of each of the two losses of `training.alignment`; 0 = none
    alignment_layers: tuple[int, ...] = (1, 2)  # blocks, from 0, whose first head is guided

    def __post_init__(self) -> None:
        if min(self.drop_text, self.drop_semantic) < 0 or self.drop_text + self.drop_semantic > 1:
            raise ConfigError(
                f"drop_text {self.drop_text} and drop_semantic {self.drop_semantic} must sum to at most 1"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ARExperiment:
    """Trains the AR model."""

    model: ARConfig
    objective: ARObjective = ARObjective()
    data: TokenData = TokenData()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()


def ar_loss(
    config: ARObjective, model: ARModel, batch: PackedBatch, key: jax.Array
) -> tuple[Float[Array, ""], Metrics]:
    """Cross-entropy of every token after BOS, as one mean over the batch.

    A clip loses its text or its semantic tokens, never both. Where the semantic tokens are blank they are no targets
    either: to predict them from blanks would teach nothing that decoding uses.

    Source:
        VoxInstruct, sections 4.2 (equations 1 and 2) and 4.3 (empty conditions, each with probability .1 in the
        release).
    """
    drop_key, dropout_key = jax.random.split(key)
    draw = clip_uniform(row_keys(drop_key, batch), batch.segment_ids)
    drop_text = draw < config.drop_text
    drop_semantic = (draw >= config.drop_text) & (draw < config.drop_text + config.drop_semantic)
    observed: list[Float[Array, "batch time dim"]] = []
    logits = model(batch, drop_text, drop_semantic, key=dropout_key, observed=observed)
    targets, target_part = ar_targets(batch)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    semantic = (target_part == SEMANTIC) & ~drop_semantic
    acoustic = target_part == ACOUSTIC
    hit = (logits.argmax(-1) == targets).astype(jnp.float32)
    total, alignment = weighted_mean(loss, semantic | acoustic), jnp.zeros(())
    text_units = jnp.zeros(())
    if config.alignment_weight:
        alignment = guided_attention_loss(model, batch, observed, config.alignment_layers, ~drop_text)
        text_units = text_units_loss(model, batch, logits, ~drop_text)
        total += config.alignment_weight * (alignment + text_units)
    return total, {
        "loss_alignment": alignment,
        "loss_text_units": text_units,
        "loss_semantic": weighted_mean(loss, semantic),
        "loss_acoustic": weighted_mean(loss, acoustic),
        "accuracy_semantic": weighted_mean(hit, semantic),
        "accuracy_acoustic": weighted_mean(hit, acoustic),
    }


def ar_targets(batch: PackedBatch) -> tuple[Int[Array, "batch time"], Int[Array, "batch time"]]:
    """Returns the next token of each slot and its part; part `TEXT` where nothing is to be predicted."""

    def following(x: Int[Array, "batch time"]) -> Int[Array, "batch time"]:
        return jnp.pad(x[:, 1:], ((0, 0), (0, 1)))

    same_clip = following(batch.segment_ids) == batch.segment_ids
    counts: Bool[Array, "batch time"] = same_clip & (batch.segment_ids > 0) & (batch.part_ids != TEXT)
    if batch.prompted is not None:
        counts &= following(batch.prompted) == 0
    return following(batch.tokens[:, 0]), jnp.where(counts, following(batch.part_ids), TEXT)


def ar_task(experiment: ARExperiment) -> Task:
    """Opens the data and makes the experiment ready."""
    objective = functools.partial(ar_loss, experiment.objective)
    return token_task("ar", experiment, lambda rngs: ARModel(experiment.model, rngs=rngs), objective)
