"""Latents of speech from a trained `GradTTS`."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from voxinstruct_jax.diffusion.alignment import stretch
from voxinstruct_jax.diffusion.denoiser import make_denoiser
from voxinstruct_jax.diffusion.path import Path
from voxinstruct_jax.diffusion.solvers import draw_noise, sample
from voxinstruct_jax.diffusion.systems import DiffusionConfig
from voxinstruct_jax.models.grad_tts import GradTTS

__all__ = ["phone_latents"]


def phone_latents(
    model: GradTTS,
    config: DiffusionConfig,
    phones: Int[Array, "batch phone"],
    text_tokens: Int[Array, "batch token feature"],
    keys: Array,
    *,
    num_frames: int,
    pace: float = 1.0,
) -> tuple[Float[Array, "batch time channel"], Bool[Array, "batch time"]]:
    """Draws latents as long as the predicted durations; `model.latents` decodes them.

    Args:
        model: Trained.
        config: Path, guidance and solver.
        phones: Ids without the mark of the turn, 0 = padding.
        text_tokens: Of the instruction; 0 in the first channel = padding.
        keys: One a row.
        num_frames: Frames of the program; what would be longer is cut.
        pace: Factor on all durations; above 1 is slower.

    Returns:
        Latents, and which frames are real.

    Source:
        Grad-TTS (arXiv 2105.06337); durations are rounded up, as in its published program.
    """
    mask = phones > 0
    means, log_durations = model.encode(phones, mask)
    durations = jnp.where(mask, jnp.maximum(jnp.ceil(jnp.exp(log_durations) * pace), 1), 0).astype(jnp.int32)
    prior, real = stretch(means, durations, num_frames)
    conditions = model.conditions(prior, text_tokens)
    path = Path(config.path, prior)
    denoiser = make_denoiser(model.network, path, conditions, real, config.guidance)
    noise = draw_noise(keys, num_frames, model.config.latents.channels)
    return sample(denoiser, path, noise, config.sampler, keys=keys), real
