"""The stage in which an AR model learns what descriptions ask for: text alone, many instructions a step.

A step of speech holds some five clips, too few to find out of forty words the one that means "a man". Here a step holds
dozens of instructions and costs less. How long words last when they are spoken slowly, or stressed, needs no sound
either. The weights are an AR model's, and the next stage starts from them.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from voxinstruct_jax.attributes import STYLE_CLASSES
from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.data.description_batches import DescriptionBatch, DescriptionBatches, DescriptionData
from voxinstruct_jax.data.shards import ShardReader
from voxinstruct_jax.layers.execution import Execution
from voxinstruct_jax.models.ar import ARConfig, ARModel
from voxinstruct_jax.models.style import style_losses
from voxinstruct_jax.sharding.mesh import BATCH_AXES, MeshConfig, build_mesh, row_shares
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
from voxinstruct_jax.training.ar import duration_losses
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.step import Mean, StepConfig, weighted_mean
from voxinstruct_jax.training.task import Program, Task, TrainConfig, identity

__all__ = ["StyleExperiment", "abstract_description_batch", "description_loss", "style_program", "style_task"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StyleExperiment:
    """Trains the style reader of an AR model and, of an aligned one, its duration head; all else stays as it is.

    Raises:
        ConfigError: The model has no style reader.
    """

    model: ARConfig
    data: DescriptionData = DescriptionData()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    step: StepConfig = StepConfig()
    execution: Execution = Execution()
    mesh: MeshConfig = MeshConfig()
    durations: bool = True
    """Whether the duration head is taught, too: that needs the text encoder, most of the cost."""

    def __post_init__(self) -> None:
        if not self.model.style_reader:
            raise ConfigError("model.style_reader: there is none to be taught; set it to true")


def description_loss(
    model: ARModel, batch: DescriptionBatch, key: jax.Array, *, durations: bool = True
) -> tuple[list[Mean], dict[str, Mean]]:
    """Cross-entropy of each attribute over the instructions of whose clips it is known, and of how long words last.

    Many instructions do not say all of it: a share of the loss stays, and is no error. Durations are learnt under the
    true attributes, said or not.

    Source:
        PromptTTS (Guo et al. 2022), section 2.2: the style encoder is taught with the classes of its descriptions.
    """
    known = jnp.broadcast_to(batch.attributes[:, None], (*batch.text_segment_ids.shape, batch.attributes.shape[1]))
    style = model.read_style(batch.text_tokens, batch.text_segment_ids, known)
    assert style is not None  # as `StyleExperiment` has made sure
    found = style_losses(style.logits[:, :1], batch.attributes[:, None])
    losses = {f"loss_{name}": weighted_mean(found[name].loss, found[name].told) for name in STYLE_CLASSES}
    if model.config.timing == "aligned" and durations:
        text_rows = jax.lax.stop_gradient(model.embed_text(batch.text_tokens, batch.text_segment_ids, key=key))
        logits = model.duration_logits(text_rows, batch.text_tokens, style)
        losses["loss_duration"] = weighted_mean(*duration_losses(logits, batch.durations))
    hits = {f"accuracy_{name}": weighted_mean(found[name].hit, found[name].known) for name in STYLE_CLASSES}
    return list(losses.values()), losses | hits


def style_program(experiment: StyleExperiment) -> Program:
    """Model and objective of the experiment."""
    return Program(
        build_model=lambda rngs: ARModel(experiment.model, execution=experiment.execution, rngs=rngs),
        objective=functools.partial(description_loss, durations=experiment.durations),
    )


def abstract_description_batch(experiment: StyleExperiment, mesh: Mesh) -> DescriptionBatch:
    """Returns shapes and placement of the batches of an experiment: enough to compile its step, without data."""
    data, channels = experiment.data, len(experiment.model.text_encoder.channel_sizes)
    sharding = NamedSharding(mesh, PartitionSpec(BATCH_AXES))

    def rows(*shape: int) -> Any:
        return jax.ShapeDtypeStruct((data.rows, *shape), jnp.int32, sharding=sharding)

    return DescriptionBatch(
        text_tokens=rows(data.text_width, channels),
        text_segment_ids=rows(data.text_width),
        attributes=rows(len(STYLE_CLASSES)),
        durations=rows(data.text_width),
        row_ids=rows(),
    )


def style_task(experiment: StyleExperiment) -> Task:
    """Opens the data and makes the experiment ready.

    Raises:
        InputError: The data cannot be read.
    """
    data, rows = experiment.data, experiment.data.rows
    reader = ShardReader(data.shards)
    shares = row_shares(build_mesh(experiment.mesh), rows)
    batches = DescriptionBatches(reader, PronunciationTokenizer(), data, experiment.train.seed, host_rows=shares)
    return Task(
        program=style_program(experiment),
        batches=batches,
        count_tokens=lambda batch: int(np.count_nonzero(batch.text_segment_ids)),
        count_audio_s=lambda _: 0.0,
        count_flops=None,
        rows=rows,
        summary=f"{len(reader)} clips",
        optimizer=experiment.optimizer,
        train=experiment.train,
        step=experiment.step,
        mesh=experiment.mesh,
        identity=identity(
            "style", batches.fingerprint, experiment.train, model=experiment.model, optimizer=experiment.optimizer
        ),
    )
