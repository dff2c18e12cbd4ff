"""Training of the Mel-VAE by the distance of spectrograms and the divergence of its latents."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from voxinstruct_jax.audio.mel_vae import MelVAE, MelVAEConfig
from voxinstruct_jax.data.segments import SegmentBatch
from voxinstruct_jax.sharding.mesh import MeshConfig
from voxinstruct_jax.training.codec import SegmentData, open_clips, segment_task
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.step import Mean, StepConfig
from voxinstruct_jax.training.task import Program, Task, TrainConfig

__all__ = ["MelVAEExperiment", "MelVAEObjective", "mel_vae_loss", "mel_vae_task"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MelVAEObjective:
    """Weight of the divergence."""

    kl_weight: float = 1e-4
    """Of the divergence from N(0, 1), nats a latent channel and frame."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MelVAEExperiment:
    """Trains the VAE."""

    model: MelVAEConfig
    objective: MelVAEObjective = MelVAEObjective()
    data: SegmentData = SegmentData()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    step: StepConfig = StepConfig()
    mesh: MeshConfig = MeshConfig()


def mel_vae_loss(
    config: MelVAEObjective, model: MelVAE, batch: SegmentBatch, key: jax.Array
) -> tuple[list[Mean], dict[str, Mean]]:
    """L1 of standardised log-mel cells, and the divergence of the posterior; the latents' statistics move along.

    `mel_l1_mean` is the distance of the batch's mean spectrum: what a decoder without latents comes to at best.

    Source:
        Kingma and Welling 2014, equation 10; the weights are of the size that the field's audio VAEs have.
    """
    measured = model.spectrogram(batch.samples)
    model.mel_statistics.observe(measured)
    mel = jax.lax.stop_gradient(model.mel_statistics.standardised(measured))
    posterior = model.posterior(mel)
    noise = jax.random.normal(key, posterior.mean.shape)
    drawn = posterior.mean + jnp.exp(0.5 * posterior.log_variance) * noise
    model.latent_statistics.observe(posterior.mean)
    distance = jnp.abs(model.reconstruct(drawn) - mel).mean()
    divergence = (
        0.5 * (jnp.square(posterior.mean) + jnp.exp(posterior.log_variance) - 1 - posterior.log_variance).mean()
    )
    one = jnp.ones(())
    metrics = {
        "mel_l1": distance,
        "mel_l1_mean": jnp.abs(mel - mel.mean((0, 1))).mean(),
        "kl": divergence,
        "latent_std": posterior.mean.std(),
    }
    loss = distance + config.kl_weight * divergence
    return [Mean(loss, one)], {name: Mean(value, one) for name, value in metrics.items()}


def mel_vae_task(experiment: MelVAEExperiment) -> Task:
    """Opens the data and makes the experiment ready.

    Raises:
        InputError: The data cannot be read.
    """
    config = experiment.model
    cache, paths = open_clips(experiment.data, config.sample_rate)
    program = Program(
        build_model=lambda rngs: MelVAE(config, rngs=rngs),
        objective=functools.partial(mel_vae_loss, experiment.objective),
    )
    return segment_task("mel_vae", experiment, program, cache, paths)
