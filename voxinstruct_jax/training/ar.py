"""The AR objective: next-token prediction of language, semantic tokens and first-codebook acoustic tokens."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from voxinstruct_jax.config import ConfigError, InputError
from voxinstruct_jax.layers.dropout import split_key
from voxinstruct_jax.layers.execution import Execution
from voxinstruct_jax.models.ar import ARConfig, ARModel
from voxinstruct_jax.models.conditioning import NUM_DURATIONS
from voxinstruct_jax.models.style import Style, style_losses
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
from voxinstruct_jax.vocabulary import ACOUSTIC, SEMANTIC, TEXT, PackedBatch, Vocabulary

__all__ = [
    "ARExperiment",
    "ARObjective",
    "ar_loss",
    "ar_program",
    "ar_targets",
    "ar_task",
    "duration_loss",
    "duration_losses",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ARObjective:
    """Shares of clips that lose a condition, which is what guidance needs at inference."""

    drop_text: float = 0.1
    drop_semantic: float = 0.1
    drop_acoustic: float = 0.0
    """Share of clips that lose the acoustic tokens before each one, half of them all and half a part drawn from
    U(0, 1). Those tell the voice from their second on, so that a small model never learns to read it off the
    instruction."""
    duration_weight: float = 0.3
    """Of the cross-entropy of text durations, in aligned models."""
    style_weight: float = 0.3
    """Of the cross-entropy of the attributes read, summed over them, in models with a style reader."""
    told_style: float = 0.5
    """Share of clips that such a model is told the attributes of, read or not: it learns what each sounds like from all
    clips, also from those whose instruction does not say it."""

    def __post_init__(self) -> None:
        if min(self.drop_text, self.drop_semantic) < 0 or self.drop_text + self.drop_semantic > 1:
            raise ConfigError(
                f"drop_text {self.drop_text} and drop_semantic {self.drop_semantic} must sum to at most 1"
            )
        for name in ("drop_acoustic", "told_style"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is not within [0, 1]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ARExperiment:
    """Trains the AR model."""

    model: ARConfig
    objective: ARObjective = ARObjective()
    data: TokenData = TokenData()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    step: StepConfig = StepConfig()
    execution: Execution = Execution()
    mesh: MeshConfig = MeshConfig()


def ar_loss(
    config: ARObjective, model: ARModel, batch: PackedBatch, key: jax.Array
) -> tuple[list[Mean], dict[str, Mean]]:
    """Cross-entropy of every token after BOS, as one mean over the batch; aligned models tell durations too.

    A clip loses its text or its semantic tokens, never both. Where the semantic tokens are blank they are no targets
    either: to predict them from blanks would teach nothing that decoding uses.

    Source:
        VoxInstruct, sections 4.2 (equations 1 and 2) and 4.3 (empty conditions, each with probability .1 in the
        release). Words dropped from a decoder's past: Bowman et al. 2016, "Generating Sentences from a Continuous
        Space", section 3.1.
    """
    drop_key, dropout_key = jax.random.split(key)
    draw = clip_uniform(row_keys(drop_key, batch), batch.segment_ids)
    drop_text = draw < config.drop_text
    drop_semantic = (draw >= config.drop_text) & (draw < config.drop_text + config.drop_semantic)
    text_key, backbone_key = split_key(jax.random.fold_in(dropout_key, batch.clip_ids[0]), 2)
    text_rows = model.embed_text(batch.text_tokens, batch.text_segment_ids, key=text_key)
    shown = _hide_acoustic(config.drop_acoustic, model.config.vocabulary, batch, jax.random.fold_in(drop_key, 1))
    known = _told_attributes(config.told_style, batch, jax.random.fold_in(drop_key, 2))
    shown = dataclasses.replace(shown, text_attributes=known)
    hidden = model.hidden(shown, text_rows, drop_text, drop_semantic, key=backbone_key)
    targets, target_part = ar_targets(batch)
    loss, hit = token_losses(model.logits, hidden, targets, chunk=model.execution.loss_chunk)
    semantic = (target_part == SEMANTIC) & ~drop_semantic
    acoustic = target_part == ACOUSTIC
    vocabulary = model.config.vocabulary
    language = semantic & (targets >= vocabulary.language_offset) & (targets < vocabulary.semantic_offset)
    style = model.read_style(batch.text_tokens, batch.text_segment_ids, known)
    parts, told = [weighted_mean(loss, semantic | acoustic)], {}
    if model.config.timing == "aligned":
        told["loss_duration"] = duration_loss(model, batch, text_rows, style)
        parts.append(told["loss_duration"].scaled(config.duration_weight))
    if style is not None:
        read = style_loss(style, batch)
        parts += [mean.scaled(config.style_weight) for mean in read.values()]
        told |= {f"loss_{name}": mean for name, mean in read.items()}
    return parts, {
        **told,
        "loss_language": weighted_mean(loss, language),
        "loss_semantic": weighted_mean(loss, semantic),
        "loss_acoustic": weighted_mean(loss, acoustic),
        "accuracy_semantic": weighted_mean(hit, semantic),
        "accuracy_acoustic": weighted_mean(hit, acoustic),
    }


def _hide_acoustic(share: float, vocabulary: Vocabulary, batch: PackedBatch, key: jax.Array) -> PackedBatch:
    """The batch in which this share of clips has lost acoustic tokens."""
    if not share:
        return batch
    clip_key, part_key, slot_key = jax.random.split(key, 3)
    chosen = clip_uniform(row_keys(clip_key, batch), batch.segment_ids) < share
    part = 2 * clip_uniform(row_keys(part_key, batch), batch.segment_ids)
    draw = jax.vmap(lambda row: jax.random.uniform(row, batch.segment_ids.shape[1:]))(row_keys(slot_key, batch))
    first = batch.tokens[:, 0]
    hidden = chosen & (draw < part) & (batch.part_ids == ACOUSTIC) & (first != vocabulary.eos2)
    return dataclasses.replace(batch, tokens=batch.tokens.at[:, 0].set(jnp.where(hidden, vocabulary.pad, first)))


def _told_attributes(share: float, batch: PackedBatch, key: jax.Array) -> Int[Array, "batch text attribute"] | None:
    """The attributes of this share of clips; 0, as if not known, of the others."""
    if batch.text_attributes is None:
        return None
    told = clip_uniform(row_keys(key, batch), batch.text_segment_ids) < share
    return jnp.where(told[..., None], batch.text_attributes, 0)


def style_loss(style: Style, batch: PackedBatch) -> dict[str, Mean]:
    """Cross-entropy of each attribute over the clips of which it is known."""
    if batch.text_attributes is None:
        raise InputError("a style reader needs the clips' attributes; pack them with their numbers")
    ids = batch.text_segment_ids
    first = (ids > 0) & (ids != jnp.pad(ids, ((0, 0), (1, 0)))[:, :-1])
    readings = style_losses(style.logits, batch.text_attributes)
    return {name: weighted_mean(reading.loss, reading.known & first) for name, reading in readings.items()}


def duration_loss(
    model: ARModel, batch: PackedBatch, text_rows: Float[Array, "batch text dim"], style: Style | None = None
) -> Mean:
    """Mean of `duration_losses` over the text of a batch."""
    if batch.text_durations is None:
        raise InputError("an aligned model needs durations; prepare the data with units that know phones")
    durations = jnp.where(batch.text_segment_ids > 0, batch.text_durations, -1)
    return weighted_mean(*duration_losses(model.duration_logits(text_rows, batch.text_tokens, style), durations))


def duration_losses(
    logits: Float[Array, "batch text duration"], durations: Int[Array, "batch text"]
) -> tuple[Float[Array, "batch text"], Bool[Array, "batch text"]]:
    """Cross-entropy of how long each text token is spoken, and where that is known.

    Most tokens last no time, which also tells what is content.

    Args:
        logits: Of an aligned AR model.
        durations: Half frames; -1 = not known.

    Source:
        The duration predictor of FastSpeech (Ren et al. 2019), section 3.3, with classes in place of a mean.
    """
    targets = jnp.clip(durations, 0, NUM_DURATIONS - 1)
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets), durations >= 0


def ar_targets(batch: PackedBatch) -> tuple[Int[Array, "batch time"], Int[Array, "batch time"]]:
    """Returns the next token of each slot and its part; part `TEXT` where nothing is to be predicted."""

    def following(x: Int[Array, "batch time"]) -> Int[Array, "batch time"]:
        return jnp.pad(x[:, 1:], ((0, 0), (0, 1)))

    same_clip = following(batch.segment_ids) == batch.segment_ids
    counts: Bool[Array, "batch time"] = same_clip & (batch.segment_ids > 0) & (batch.part_ids != TEXT)
    if batch.prompted is not None:
        counts &= following(batch.prompted) == 0
    return following(batch.tokens[:, 0]), jnp.where(counts, following(batch.part_ids), TEXT)


def ar_program(experiment: ARExperiment) -> Program:
    """Model, objective and operations of the experiment."""
    objective = functools.partial(ar_loss, experiment.objective)
    return token_program(experiment, ARModel, objective, experiment.model.vocabulary.size, causal=True)


def ar_task(experiment: ARExperiment) -> Task:
    """Opens the data and makes the experiment ready."""
    return token_task("ar", experiment, ar_program(experiment))
