"""Training of Grad-TTS: alignment, the encoder's guess, durations, and the score around the guess."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from voxinstruct_jax.audio.latents import LatentConfig
from voxinstruct_jax.config import ConfigError, fingerprint
from voxinstruct_jax.data.sound_batches import SoundBatch, SoundData
from voxinstruct_jax.diffusion.alignment import gaussian_log_likelihood, monotonic_alignment, stretch
from voxinstruct_jax.diffusion.path import Path as NoisePath
from voxinstruct_jax.diffusion.systems import SYSTEMS, DiffusionConfig
from voxinstruct_jax.layers.execution import Execution
from voxinstruct_jax.models.grad_tts import GradTTS, GradTTSConfig
from voxinstruct_jax.sharding.mesh import MeshConfig
from voxinstruct_jax.text.phones import NUM_PHONES
from voxinstruct_jax.training.diffusion import (
    DiffusionExperiment,
    denoising_loss,
    diffusion_task,
    drop_conditions,
    frame_masks,
    row_keys,
    row_mean,
)
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.step import Mean, StepConfig, weighted_mean
from voxinstruct_jax.training.task import Program, Task, TrainConfig

__all__ = ["GradTTSExperiment", "grad_tts_loss", "grad_tts_program", "grad_tts_task"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradTTSExperiment:
    """Trains Grad-TTS."""

    model: GradTTSConfig
    latent_weights: str = ""
    """As of `DiffusionExperiment`."""
    diffusion: DiffusionConfig = SYSTEMS["grad_tts"]
    data: SoundData = SoundData(pad_is_silence=False)
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    step: StepConfig = StepConfig()
    execution: Execution = Execution()
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self) -> None:
        if self.data.phone_width < 2:
            raise ConfigError(f"data.phone_width: {self.data.phone_width}; phones are what is aligned, give 2 or more")

    @property
    def latents(self) -> LatentConfig:
        """Of the model."""
        return self.model.latents


def grad_tts_loss(
    config: DiffusionConfig, model: GradTTS, batch: SoundBatch, key: jax.Array
) -> tuple[list[Mean], dict[str, Mean]]:
    """Three losses, summed: the score's, the encoder's guess (nats but for a constant), durations (squared logarithms).

    Metrics are those of `training.diffusion.latent_loss`, each loss by itself, what the second and the third are for
    predictors that say a mean (`loss_prior_trivial`, `loss_duration_trivial`), and `aligned`, the share of clips that
    have a frame for each phone; the others count for nothing.

    Source:
        Grad-TTS (arXiv 2105.06337); alignment and the duration loss are those of Glow-TTS (arXiv 2005.11129).
    """
    keys, x0 = row_keys(key, batch.row_ids), jax.lax.stop_gradient(model.latents.encode(batch.target))
    frame_mask, loss_mask = frame_masks(batch, x0.shape[1], model.latents.config.hop_length)
    phones = batch.phones[:, 1:]  # the first id is the mark of the turn, which is not heard
    phone_mask = phones > 0
    means, log_durations = model.encode(phones, phone_mask)
    counts = phone_mask.sum(1), frame_mask.sum(1)
    aligned = counts[0] <= counts[1]
    durations = monotonic_alignment(gaussian_log_likelihood(means, x0), *counts)
    prior, _ = stretch(means, durations, x0.shape[1])
    phone_mask, loss_mask = phone_mask & aligned[:, None], loss_mask & aligned[:, None]
    dropout_key = jax.random.fold_in(key, batch.row_ids[0])
    conditions = model.conditions(prior, batch.text_tokens, key=dropout_key)
    conditions = drop_conditions(config, conditions, keys.drop)

    def predict(x: Float[Array, "batch time channel"], time: Float[Array, " batch"]) -> Array:
        return model.network(x, time, conditions, frame_mask)

    diffusion, metrics = denoising_loss(config, NoisePath(config.path, prior), predict, x0, keys, loss_mask)
    guess = weighted_mean(0.5 * jnp.square(x0 - prior).mean(-1), loss_mask)
    asked = jnp.log(jnp.maximum(durations, 1).astype(jnp.float32))
    lengths = weighted_mean(jnp.square(log_durations - asked), phone_mask)
    middle = (x0 * loss_mask[..., None]).sum((0, 1)) / jnp.maximum(loss_mask.sum(), 1)
    usual = weighted_mean(asked, phone_mask).value
    metrics |= {
        "loss_diffusion": diffusion,
        "loss_prior": guess,
        "loss_duration": lengths,
        "loss_prior_trivial": weighted_mean(0.5 * jnp.square(x0 - middle).mean(-1), loss_mask),
        "loss_duration_trivial": weighted_mean(jnp.square(asked - usual), phone_mask),
        "aligned": row_mean(aligned.astype(jnp.float32), jnp.ones(len(aligned))),
    }
    return [diffusion, guess, lengths], metrics


def grad_tts_program(experiment: GradTTSExperiment) -> Program:
    """Model and objective of the experiment."""
    return Program(
        build_model=lambda rngs: GradTTS(experiment.model, execution=experiment.execution, rngs=rngs),
        objective=functools.partial(grad_tts_loss, experiment.diffusion),
    )


def grad_tts_task(experiment: GradTTSExperiment) -> Task:
    """Opens the data and makes the experiment ready.

    Raises:
        ConfigError: The encoder knows too few phones, or as `diffusion_task`.
        InputError: The data cannot be read.
    """
    known = experiment.model.phones.num_phones
    if known < NUM_PHONES:
        raise ConfigError(f"model.phones.num_phones: {known} must be at least {NUM_PHONES}")
    task = diffusion_task(_denoiser_of(experiment))
    own = {"kind": "grad_tts", "model": fingerprint(experiment.model)}
    return dataclasses.replace(task, program=grad_tts_program(experiment), identity=task.identity | own)


def _denoiser_of(experiment: GradTTSExperiment) -> DiffusionExperiment:
    """The same without the encoder: its data, latents and checks are those of any denoiser."""
    shared = {field.name: getattr(experiment, field.name) for field in dataclasses.fields(experiment)}
    return DiffusionExperiment(**shared | {"model": experiment.model.network, "latents": experiment.latents})
