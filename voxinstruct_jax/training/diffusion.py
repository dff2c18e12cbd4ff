"""Training of denoisers on latents: InstructAudio, UNISON and their kin, each a configuration."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from voxinstruct_jax.audio.latents import LatentConfig
from voxinstruct_jax.checkpoints.weights import weights_fingerprint
from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.data.sound_batches import (
    SoundBatch,
    SoundBatches,
    SoundData,
    describe,
    open_pool,
    without_places,
)
from voxinstruct_jax.diffusion.objective import diffusion_loss, trivial_loss
from voxinstruct_jax.diffusion.path import Path as NoisePath
from voxinstruct_jax.diffusion.solvers import draw_noise
from voxinstruct_jax.diffusion.systems import DiffusionConfig
from voxinstruct_jax.diffusion.times import sample_times
from voxinstruct_jax.layers.execution import Execution
from voxinstruct_jax.models.conditions import Conditions, null_conditions
from voxinstruct_jax.models.latent_diffusion import LatentDiffusion
from voxinstruct_jax.models.mmdit import MMDiTConfig
from voxinstruct_jax.sharding.mesh import BATCH_AXES, MeshConfig, build_mesh, row_shares
from voxinstruct_jax.text.phones import NUM_PHONES
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.step import Mean, StepConfig
from voxinstruct_jax.training.task import Program, StoredPart, Task, TrainConfig, identity

__all__ = [
    "DiffusionExperiment",
    "RowKeys",
    "abstract_sound_batch",
    "conditions_of",
    "denoising_loss",
    "diffusion_program",
    "diffusion_task",
    "drop_conditions",
    "frame_masks",
    "latent_loss",
    "row_keys",
    "row_mean",
    "sound_task",
    "split_by_row",
]

TIME_BINS = 4
"""Of training times, whose losses are logged apart."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionExperiment:
    """Trains a denoiser."""

    model: MMDiTConfig
    latents: LatentConfig = LatentConfig()
    latent_weights: str = ""
    """Weights folder of the latents' codec or Mel-VAE (`voxinstruct convert` of its run); needed where there is one."""
    diffusion: DiffusionConfig = DiffusionConfig()
    data: SoundData = SoundData()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    step: StepConfig = StepConfig()
    execution: Execution = Execution()
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self) -> None:
        self.latents.check_channels("model.latent_channels", self.model.latent_channels)


def latent_loss(
    config: DiffusionConfig, model: LatentDiffusion, batch: SoundBatch, key: jax.Array
) -> tuple[list[Mean], dict[str, Mean]]:
    """Error of the prediction at a drawn time of each row; a short clip counts as much as a long one.

    Beside the loss stand that of the predictor which has seen nothing (`loss_trivial`) and the loss by quarters of the
    time, from data (`loss_t0`) to noise.

    Source:
        UNISON, equation 3; InstructAudio, section 2.4.
    """
    path, network = NoisePath(config.path), model.network
    keys = row_keys(key, batch.row_ids)
    x0 = jax.lax.stop_gradient(model.latents.encode(batch.target))
    conditions = conditions_of(model, batch, key=jax.random.fold_in(key, batch.row_ids[0]))
    conditions = drop_conditions(config, conditions, keys.drop)
    frame_mask, loss_mask = frame_masks(batch, x0.shape[1], model.latents.config.hop_length)

    def predict(x: Float[Array, "batch time channel"], time: Float[Array, " batch"]) -> Array:
        return network(x, time, conditions, frame_mask)

    loss, metrics = denoising_loss(config, path, predict, x0, keys, loss_mask)
    return [loss], metrics


@dataclasses.dataclass(frozen=True)
class RowKeys:
    """One key a row and purpose, by the row's number in the run."""

    time: jax.Array
    noise: jax.Array
    drop: jax.Array


def row_keys(key: jax.Array, row_ids: Int[Array, " batch"]) -> RowKeys:
    """Splits the key of a step."""
    keys = split_by_row(key, row_ids, 3)
    return RowKeys(keys[:, 0], keys[:, 1], keys[:, 2])


def split_by_row(key: jax.Array, row_ids: Int[Array, " batch"], count: int) -> jax.Array:
    """Returns `[batch, count]` keys of a step's key, by the row's number in the run, wherever the row is worked at."""
    return jax.vmap(lambda row: jax.random.split(jax.random.fold_in(key, row), count))(row_ids)


def denoising_loss(
    config: DiffusionConfig,
    path: NoisePath,
    predict: Callable[[Float[Array, "batch time channel"], Float[Array, " batch"]], Float[Array, "batch time channel"]],
    x0: Float[Array, "batch time channel"],
    keys: RowKeys,
    loss_mask: Bool[Array, "batch time"],
) -> tuple[Mean, dict[str, Mean]]:
    """Error of a network on any path, with the metrics that `latent_loss` names.

    Args:
        config: Times and weighting.
        path: That of the configuration, around a prior where the system has one.
        predict: As in `diffusion_loss`.
        x0: Latents.
        keys: Of times and noise.
        loss_mask: True = the frame counts.
    """
    t = sample_times(keys.time, config.times, path)
    noise = draw_noise(keys.noise, *x0.shape[1:])
    losses = diffusion_loss(path, predict, x0, noise, t, loss_mask, weighting=config.weighting)
    trivial = trivial_loss(path, x0, noise, t, loss_mask)
    every = jnp.ones_like(losses)
    metrics = {"loss_trivial": row_mean(trivial, every)}
    for part in range(TIME_BINS):
        inside = jnp.floor(t * TIME_BINS) == part
        metrics[f"loss_t{part}"] = row_mean(losses, inside.astype(jnp.float32))
    return row_mean(losses, every), metrics


def conditions_of(model: LatentDiffusion, batch: SoundBatch, *, key: jax.Array | None = None) -> Conditions:
    """What a batch tells the network.

    Args:
        model: Encodes text and source.
        batch: Examples.
        key: Of the text encoder's dropout; None = no dropout.
    """
    conditions = model.conditions(batch.text_tokens, batch.phones, text_states=batch.text_states, key=key)
    if not model.network.config.source:
        return conditions
    return model.add_source(conditions, batch.source, batch.tags, batch.prefix_samples)


def diffusion_program(experiment: DiffusionExperiment) -> Program:
    """Model and objective of the experiment."""
    return Program(
        build_model=lambda rngs: LatentDiffusion(
            experiment.model, experiment.latents, execution=experiment.execution, rngs=rngs
        ),
        objective=functools.partial(latent_loss, experiment.diffusion),
    )


def diffusion_task(experiment: DiffusionExperiment) -> Task:
    """Opens the data and makes the experiment ready.

    Raises:
        ConfigError: The network or its latents need weights or states that are not given.
        InputError: The data cannot be read.
    """
    return sound_task("diffusion", experiment, diffusion_program(experiment), experiment.model)


def sound_task(
    kind: str,
    experiment: Any,
    program: Program,
    network: MMDiTConfig,
    *,
    initial: Mapping[str, StoredPart] | None = None,
    **further: Any,
) -> Task:
    """Makes an experiment on `SoundData` ready.

    Args:
        kind: Of the run.
        experiment: With the fields of `DiffusionExperiment`; its model and objective may be others.
        program: What is computed in a step.
        network: What reads the batches.
        initial: Where parts of the model begin.
        **further: What is part of the run's identity besides.

    Raises:
        ConfigError: The network or its latents need weights or states that are not given.
        InputError: The data cannot be read.
    """
    tokenizer, data = PronunciationTokenizer(), experiment.data
    _check_parts(experiment, network, tokenizer)
    pool, data_fingerprint = open_pool(data, experiment.latents.sample_rate)
    batches = SoundBatches(
        pool,
        data,
        tokenizer,
        experiment.train.seed,
        host_rows=row_shares(build_mesh(experiment.mesh), data.rows),
    )
    latents, parts = experiment.latents, {}
    if latents.part:
        parts["latents"] = {latents.part: Path(experiment.latent_weights)}
    return Task(
        program=program,
        batches=batches,
        count_tokens=lambda batch: int((-(-batch.num_samples // latents.hop_length)).sum()),
        count_audio_s=lambda batch: float(batch.num_samples.sum()) / latents.sample_rate,
        count_flops=None,
        rows=data.rows,
        measure=batches.measure,
        summary=describe(data),
        optimizer=experiment.optimizer,
        train=experiment.train,
        step=experiment.step,
        mesh=experiment.mesh,
        frozen=parts,
        initial=initial or {},
        identity=identity(
            kind,
            data_fingerprint,
            experiment.train,
            model=experiment.model,
            latents=[latents, weights_fingerprint(Path(experiment.latent_weights)) if latents.part else ""],
            objective=experiment.diffusion,
            optimizer=experiment.optimizer,
            batch=without_places(data),
            **further,
        ),
    )


def abstract_sound_batch(data: SoundData, latents: LatentConfig, network: MMDiTConfig, mesh: Mesh) -> SoundBatch:
    """Returns shapes and placement of the batches of an experiment: enough to compile its step, without data."""
    sharding = NamedSharding(mesh, PartitionSpec(BATCH_AXES))

    def rows(*shape: int, dtype: Any = jnp.int32) -> Any:
        return jax.ShapeDtypeStruct((data.rows, *shape), dtype, sharding=sharding)

    samples = round(data.clip_s * latents.sample_rate)
    channels = len(network.text_encoder.channel_sizes) if network.text_encoder else 1
    states = None
    if network.text_encoder is None:
        states = rows(network.text_layers, data.text_width, network.text_dim, dtype=jnp.bfloat16)
    return SoundBatch(
        target=rows(samples, dtype=jnp.float32),
        source=rows(samples, dtype=jnp.float32),
        num_samples=rows(),
        prefix_samples=rows(),
        tags=rows(),
        text_tokens=rows(data.text_width, channels),
        phones=rows(data.phone_width),
        row_ids=rows(),
        text_states=states,
    )


def _check_parts(experiment: Any, model: MMDiTConfig, tokenizer: PronunciationTokenizer) -> None:
    if model.text_encoder is None:
        raise ConfigError(
            "model.text_encoder: none is given, and states of an encoder that is run apart cannot be read yet; take a "
            "configuration that has one (this one can be planned and inspected)"
        )
    if model.text_encoder.channel_sizes != tokenizer.channel_sizes:
        raise ConfigError(
            f"model.text_encoder.channel_sizes: {model.text_encoder.channel_sizes} must be those of the tokenizer, "
            f"{tokenizer.channel_sizes}"
        )
    if model.phones is not None and model.phones.num_phones < NUM_PHONES:
        raise ConfigError(f"model.phones.num_phones: {model.phones.num_phones} must be at least {NUM_PHONES}")
    if experiment.latents.part and not experiment.latent_weights:
        made_by = {"vae": "Mel-VAE", "codec": "codec"}[experiment.latents.part]
        raise ConfigError(
            f"latent_weights: these latents need the weights of their {made_by}; give --latent-weights FOLDER"
        )


def drop_conditions(config: DiffusionConfig, conditions: Conditions, keys: Array) -> Conditions:
    """Leaves conditions out: each row, by its key, lies in one of the shares, or in none."""
    start, draws = 0.0, jax.vmap(jax.random.uniform)(keys)
    for slots, share in config.drop:
        conditions = null_conditions(conditions, slots, (draws >= start) & (draws < start + share))
        start += share
    return conditions


def frame_masks(
    batch: SoundBatch, frames: int, hop_length: int
) -> tuple[Bool[Array, "batch time"], Bool[Array, "batch time"]]:
    """Frames that are real, and of them those that count."""
    real = _frames_below(-(-batch.num_samples // hop_length), frames)
    given = _frames_below(-(-batch.prefix_samples // hop_length), frames)
    return real, real & ~given


def _frames_below(counts: Array, frames: int) -> Bool[Array, "batch time"]:
    return jnp.arange(frames) < counts[:, None]


def row_mean(values: Float[Array, " batch"], weights: Float[Array, " batch"]) -> Mean:
    """Mean over rows, however long each is."""
    return Mean(jnp.sum(values * weights), jnp.sum(weights))
