"""Training of masked generation over continuous latents: hidden frames are denoised by what the others tell."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from voxinstruct_jax.audio.latents import LatentConfig
from voxinstruct_jax.data.sound_batches import SoundBatch, SoundData
from voxinstruct_jax.diffusion.masked import MaskingConfig, draw_masks, draw_shares
from voxinstruct_jax.diffusion.objective import diffusion_loss, trivial_loss
from voxinstruct_jax.diffusion.path import Path as NoisePath
from voxinstruct_jax.diffusion.solvers import draw_noise
from voxinstruct_jax.diffusion.systems import DiffusionConfig
from voxinstruct_jax.diffusion.times import sample_times
from voxinstruct_jax.layers.execution import Execution
from voxinstruct_jax.models.latent_diffusion import side_by_side
from voxinstruct_jax.models.masked_latents import MaskedLatentDiffusion, MaskedLatentsConfig
from voxinstruct_jax.sharding.mesh import MeshConfig
from voxinstruct_jax.training.diffusion import (
    conditions_of,
    drop_conditions,
    frame_masks,
    row_mean,
    sound_task,
    split_by_row,
)
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.step import Mean, StepConfig
from voxinstruct_jax.training.task import Program, Task, TrainConfig

__all__ = ["MaskedLatentsExperiment", "masked_latent_loss", "masked_latents_program", "masked_latents_task"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedLatentsExperiment:
    """Trains transformer and head."""

    model: MaskedLatentsConfig
    latents: LatentConfig = LatentConfig()
    latent_weights: str = ""
    """As of `DiffusionExperiment`."""
    diffusion: DiffusionConfig = DiffusionConfig()
    """Of the head, but for the conditions that are left out."""
    masking: MaskingConfig = MaskingConfig()
    data: SoundData = SoundData()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    step: StepConfig = StepConfig()
    execution: Execution = Execution()
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self) -> None:
        self.latents.check_channels("model.network.latent_channels", self.model.network.latent_channels, masked=True)


def masked_latent_loss(
    config: DiffusionConfig, masking: MaskingConfig, model: MaskedLatentDiffusion, batch: SoundBatch, key: jax.Array
) -> tuple[list[Mean], dict[str, Mean]]:
    """Error of the head's prediction, a mean over the hidden frames of each row and several noises each.

    Beside it stand the cost of the predictor which has seen nothing (`loss_trivial`) and the share of hidden frames.

    Source:
        Li et al. 2024 (MAR, arXiv 2406.11838), section 3.2; several draws a frame as in its public code.
    """
    path, latents = NoisePath(config.path), model.latents
    keys = split_by_row(key, batch.row_ids, 5)
    x0 = jax.lax.stop_gradient(latents.encode(batch.target))
    frame_mask, counted = frame_masks(batch, x0.shape[1], latents.config.hop_length)
    seen = side_by_side(model.network, latents)
    conditions = conditions_of(seen, batch, key=jax.random.fold_in(key, batch.row_ids[0]))
    conditions = drop_conditions(config, conditions, keys[:, 0])
    masked = draw_masks(keys[:, 1], draw_shares(keys[:, 2], masking.share), counted)
    told = model.describe(x0, masked, conditions, frame_mask)

    count = masking.draws * x0.shape[1]
    times = jax.vmap(lambda row: sample_times(jax.random.split(row, count), config.times, path))(keys[:, 3]).reshape(-1)
    noise = draw_noise(keys[:, 4], count, x0.shape[2]).reshape(-1, 1, x0.shape[2])

    def rows(values: Float[Array, "batch time width"]) -> Float[Array, "row width"]:
        """One row a frame and draw, the draws of a clip one after another."""
        return jnp.tile(values, (1, masking.draws, 1)).reshape(-1, values.shape[2])

    every_told, clean, all_count = rows(told), rows(x0)[:, None], jnp.ones((len(times), 1), bool)

    def predict(x: Float[Array, "row 1 channel"], time: Float[Array, " row"]) -> Array:
        return model.head(x, time, every_told)

    def by_clip(losses: Float[Array, " row"]) -> Mean:
        frames = losses.reshape(len(x0), masking.draws, -1).mean(1)
        means = (frames * masked).sum(1) / jnp.maximum(masked.sum(1), 1)
        return row_mean(means, jnp.ones_like(means))

    loss = diffusion_loss(path, predict, clean, noise, times, all_count, weighting=config.weighting)
    trivial = trivial_loss(path, clean, noise, times, all_count)
    share = masked.sum(1) / jnp.maximum(counted.sum(1), 1)
    return [by_clip(loss)], {"loss_trivial": by_clip(trivial), "masked": row_mean(share, jnp.ones_like(share))}


def masked_latents_program(experiment: MaskedLatentsExperiment) -> Program:
    """Model and objective of the experiment."""
    return Program(
        build_model=lambda rngs: MaskedLatentDiffusion(
            experiment.model, experiment.latents, execution=experiment.execution, rngs=rngs
        ),
        objective=functools.partial(masked_latent_loss, experiment.diffusion, experiment.masking),
    )


def masked_latents_task(experiment: MaskedLatentsExperiment) -> Task:
    """Opens the data and makes the experiment ready.

    Raises:
        ConfigError: As `diffusion_task`.
        InputError: The data cannot be read.
    """
    return sound_task(
        "masked_latents",
        experiment,
        masked_latents_program(experiment),
        experiment.model.network,
        masking=experiment.masking,
    )
