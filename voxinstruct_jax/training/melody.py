"""Training of a codec's melody: which course pitch takes follows from what is said."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from voxinstruct_jax.audio.codec import CodecConfig, MelCodec
from voxinstruct_jax.audio.harmonics import LOWEST_HZ
from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.data.segments import SegmentBatch
from voxinstruct_jax.layers.parameter import freeze
from voxinstruct_jax.sharding.mesh import MeshConfig
from voxinstruct_jax.training.codec import SegmentData, open_coded_clips, segment_task
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.step import Mean, StepConfig
from voxinstruct_jax.training.task import Program, Task, TrainConfig

__all__ = ["MelodyExperiment", "MelodyObjective", "melody_loss", "melody_task"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MelodyObjective:
    """One distance is the whole loss.

    Raises:
        ConfigError: `dropout` is not in [0, 1).
    """

    dropout: float = 0.15
    """Of what is known of frames: few hours of speech are soon known by heart."""

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"objective.dropout: {self.dropout} must be at least 0 and below 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MelodyExperiment:
    """Trains the melody of a codec and nothing else of it.

    Raises:
        ConfigError: The codec has no melody, or there is nothing to learn it from.
    """

    model: CodecConfig
    objective: MelodyObjective = MelodyObjective()
    data: SegmentData = SegmentData()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    step: StepConfig = StepConfig()
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self) -> None:
        if not self.model.melody_dim:
            raise ConfigError("model.melody_dim: must be above 0, it is the melody that is trained")
        if self.data.gain_db:
            raise ConfigError("data.gain_db: must be 0, a melody has no level")


def melody_loss(
    config: MelodyObjective, model: MelCodec, batch: SegmentBatch, key: jax.Array
) -> tuple[list[Mean], dict[str, Mean]]:
    """Mean distance (semitones) of melody and pitch over the voiced steps of crops, each about its own mean.

    `flat_distance` is that of a melody without any course: what has to be beaten.
    """
    voiced = jnp.asarray(batch.pitch) > 0
    semitones = 12 * jnp.log2(jnp.where(voiced, batch.pitch, LOWEST_HZ))
    melody = model.melody(jnp.asarray(batch.features), dropout_rate=config.dropout, key=key)
    loss, flat = (_distance(course, semitones, voiced) for course in (melody, jnp.zeros_like(melody)))
    return [loss], {"flat_distance": flat}


def melody_task(experiment: MelodyExperiment) -> Task:
    """Opens the data and makes the experiment ready.

    Raises:
        ConfigError: No file of codes is given, which holds what is said in the frames.
        InputError: The data cannot be read.
    """
    if not experiment.data.codes:
        raise ConfigError("data.codes: give the file that launch/predict_codes.py writes; it holds the features")
    cache, paths, tokens = open_coded_clips(experiment.data, experiment.model)
    return segment_task("melody", experiment, _program(experiment), cache, paths, tokens=tokens)


def _program(experiment: MelodyExperiment) -> Program:
    def build(rngs: nnx.Rngs) -> MelCodec:
        model = MelCodec(experiment.model, rngs=rngs)
        for name, part in vars(model).items():
            if isinstance(part, nnx.Module) and name != "melody":
                freeze(part)
        return model

    return Program(build_model=build, objective=functools.partial(melody_loss, experiment.objective))


def _distance(course: Float[Array, "batch step"], semitones: Float[Array, "batch step"], voiced: Array) -> Mean:
    """Of the voiced steps of a batch, whatever the heights of both are."""
    difference = jnp.where(voiced, course - semitones, 0.0)
    mean = difference.sum(1, keepdims=True) / jnp.maximum(voiced.sum(1, keepdims=True), 1)
    distance = jnp.abs(jnp.where(voiced, difference - mean, 0.0)).sum()
    count = jnp.maximum(voiced.sum(), 1).astype(jnp.float32)
    return Mean(distance, count)
