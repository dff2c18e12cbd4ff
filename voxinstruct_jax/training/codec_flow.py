"""Training of denoisers of codec latents: a flow decoder over semantic units, a bridge from the first codebook."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float

from voxinstruct_jax.audio.codecs import codes_fingerprint
from voxinstruct_jax.checkpoints.weights import load_weights
from voxinstruct_jax.config import ConfigError, InputError
from voxinstruct_jax.data.code_batches import CodeBatch, CodeBatches, CodeData
from voxinstruct_jax.data.shards import ShardReader
from voxinstruct_jax.diffusion.path import Path as NoisePath
from voxinstruct_jax.diffusion.systems import DiffusionConfig
from voxinstruct_jax.layers.execution import Execution
from voxinstruct_jax.models.codec_flow import CodecFlow, CodecFlowConfig
from voxinstruct_jax.sharding.mesh import BATCH_AXES, MeshConfig, build_mesh, row_shares
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
from voxinstruct_jax.training.diffusion import denoising_loss, drop_conditions, row_keys, row_mean
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.step import Mean, StepConfig
from voxinstruct_jax.training.task import Program, Task, TrainConfig, identity

__all__ = [
    "CodecFlowExperiment",
    "abstract_code_batch",
    "codec_flow_loss",
    "codec_flow_program",
    "codec_flow_task",
    "expected_latents",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodecFlowExperiment:
    """Trains a denoiser of codec latents."""

    model: CodecFlowConfig
    codec_weights: str = "voxinstruct_jax/release/codec"
    """Weights folder of the codec that made the shards."""
    diffusion: DiffusionConfig = DiffusionConfig()
    data: CodeData = CodeData()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    step: StepConfig = StepConfig()
    execution: Execution = Execution()
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self) -> None:
        path = self.diffusion.path
        if self.model.first_codebook != (path.schedule == "bridge"):
            raise ConfigError(
                "diffusion.path.schedule: a bridge and model.first_codebook, which it begins at, belong together"
            )


def codec_flow_loss(
    config: DiffusionConfig, model: CodecFlow, batch: CodeBatch, key: jax.Array
) -> tuple[list[Mean], dict[str, Mean]]:
    """Error of the prediction at a drawn time of each row; metrics as in `training.diffusion.latent_loss`.

    Where the first codebook is given, `error_first_codebook` is the squared distance of its entries from the latents:
    what a model that predicts x0 must come below.
    """
    keys, frames = row_keys(key, batch.row_ids), batch.units.shape[1]
    x0 = jax.lax.stop_gradient(model.latents(batch.codes))
    first = batch.codes[:, 0]
    prior, mask = model.prior(first), _real(batch, frames)
    dropout_key = jax.random.fold_in(key, batch.row_ids[0])
    conditions = model.conditions(batch.units, first, batch.text_tokens, key=dropout_key)
    conditions = drop_conditions(config, conditions, keys.drop)

    def predict(x: Float[Array, "batch time channel"], time: Float[Array, " batch"]) -> Array:
        return model.predict(x, time, conditions, mask, prior)

    path = NoisePath(config.path, prior)
    loss, metrics = denoising_loss(config, path, predict, x0, keys, mask)
    if prior is not None:
        distance = (jnp.square(prior - x0).mean(-1) * mask).sum(1) / jnp.maximum(mask.sum(1), 1)
        metrics["error_first_codebook"] = row_mean(distance, jnp.ones_like(distance))
    return [loss], metrics


def expected_latents(
    config: DiffusionConfig, model: CodecFlow, batch: CodeBatch, key: jax.Array
) -> tuple[Float[Array, "batch time channel"], Float[Array, "batch time channel"], Bool[Array, "batch time"]]:
    """What the network expects before it has seen anything of the latents, the latents themselves, and real frames.

    The expectation is the data that it predicts at the path's end, from noise or from the prior alone. Its squared
    error is at best the variance that the conditions leave: the figure to compare with predictors that are means.
    """
    first = batch.codes[:, 0]
    prior, mask = model.prior(first), _real(batch, batch.units.shape[1])
    path = NoisePath(config.path, prior)
    x0 = model.latents(batch.codes)
    end = jnp.full(len(x0), path.latest)
    x_t = path.around(path.sigma(end)[:, None, None] * jax.random.normal(key, x0.shape))
    conditions = model.conditions(batch.units, first, batch.text_tokens)
    output = model.predict(path.scale_input(x_t, end), path.time_input(end), conditions, mask, prior)
    return path.to_prediction(output, x_t, end).x0, x0, mask


def codec_flow_program(experiment: CodecFlowExperiment) -> Program:
    """Model and objective of the experiment."""
    return Program(
        build_model=lambda rngs: CodecFlow(experiment.model, execution=experiment.execution, rngs=rngs),
        objective=functools.partial(codec_flow_loss, experiment.diffusion),
    )


def codec_flow_task(experiment: CodecFlowExperiment) -> Task:
    """Opens the shards and makes the experiment ready.

    Raises:
        InputError: The shards cannot be read, or hold other codes or units than the model knows.
        ConfigError: The text encoder is not one of this package's tokenizer.
    """
    tokenizer, data, reader = PronunciationTokenizer(), experiment.data, ShardReader(experiment.data.shards)
    _check(experiment, tokenizer, reader)
    shares = row_shares(build_mesh(experiment.mesh), data.rows)
    batches = CodeBatches(reader, tokenizer, data, experiment.train.seed, host_rows=shares)
    codec = Path(experiment.codec_weights)
    return Task(
        program=codec_flow_program(experiment),
        batches=batches,
        count_tokens=lambda batch: int(batch.num_frames.sum()),
        count_audio_s=lambda batch: float(batch.num_frames.sum()) / batches.frame_rate,
        count_flops=None,
        rows=data.rows,
        measure=lambda batch: {"padding": float((np.asarray(batch.units) == 0).sum()) / (data.rows * data.frames)},
        summary=f"{len(reader)} clips, {reader.index.hours:.2f} hours, {batches.frame_rate:g} frames a second",
        optimizer=experiment.optimizer,
        train=experiment.train,
        step=experiment.step,
        mesh=experiment.mesh,
        frozen={"codec": codec},
        identity=identity(
            "codec_flow",
            batches.fingerprint,
            experiment.train,
            model=experiment.model,
            codec=codes_fingerprint(experiment.model.codec, load_weights(codec)[1]),
            objective=experiment.diffusion,
            optimizer=experiment.optimizer,
        ),
    )


def abstract_code_batch(experiment: CodecFlowExperiment, mesh: Mesh) -> CodeBatch:
    """Returns shapes and placement of the batches of an experiment: enough to compile its step, without data."""
    data, encoder = experiment.data, experiment.model.network.text_encoder
    sharding = NamedSharding(mesh, PartitionSpec(BATCH_AXES))

    def rows(*shape: int) -> Any:
        return jax.ShapeDtypeStruct((data.rows, *shape), jnp.int32, sharding=sharding)

    return CodeBatch(
        codes=rows(experiment.model.codec.num_codebooks, data.frames),
        units=rows(data.frames),
        num_frames=rows(),
        text_tokens=rows(data.text_width, len(encoder.channel_sizes) if encoder else 1),
        row_ids=rows(),
    )


def _real(batch: CodeBatch, frames: int) -> Bool[Array, "batch time"]:
    return jnp.arange(frames) < batch.num_frames[:, None]


def _check(experiment: CodecFlowExperiment, tokenizer: PronunciationTokenizer, reader: ShardReader) -> None:
    model, index = experiment.model, reader.index
    encoder = model.network.text_encoder
    if encoder is not None and encoder.channel_sizes != tokenizer.channel_sizes:
        raise ConfigError(
            f"model.network.text_encoder.channel_sizes: {encoder.channel_sizes} must be those of the tokenizer, "
            f"{tokenizer.channel_sizes}"
        )
    codec = model.codec
    if index.num_codebooks != codec.num_codebooks or index.largest_code >= codec.codebook_size:
        raise InputError(
            f"{reader.folder}: {index.num_codebooks} codebooks with codes up to {index.largest_code}; the codec has "
            f"{codec.num_codebooks} of {codec.codebook_size}"
        )
    if model.num_units and index.largest_semantic_token >= model.num_units:
        raise InputError(
            f"{reader.folder}: semantic tokens reach {index.largest_semantic_token}, model.num_units is "
            f"{model.num_units}"
        )
