"""Latents of speech from what a trained `GradTTS` says of phones: how long each lasts, then what it sounds like."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from voxinstruct_jax.diffusion.alignment import stretch
from voxinstruct_jax.diffusion.denoiser import make_denoiser
from voxinstruct_jax.diffusion.path import Path
from voxinstruct_jax.diffusion.solvers import draw_noise, sample
from voxinstruct_jax.diffusion.systems import DiffusionConfig
from voxinstruct_jax.models.grad_tts import GradTTS

__all__ = ["phone_durations", "phone_latents"]


def phone_durations(
    log_durations: Float[Array, "batch phone"],
    mask: Bool[Array | np.ndarray, "batch phone"],
    pace: float | Float[Array, ""] = 1.0,
) -> Int[Array, "batch phone"]:
    """Frames that each phone lasts: at least one, 0 at padding.

    Ends are rounded, not lengths: at the rate of a codec a phone lasts a frame or two, and half a frame more for each
    would be heard.

    Args:
        log_durations: From `GradTTS.encode`.
        mask: True = a real phone.
        pace: Factor on all durations; above 1 is slower.

    Source:
        Grad-TTS (arXiv 2105.06337), whose published program, at 86 frames a second, rounds each duration up.
    """
    ends = jnp.round(jnp.cumsum(jnp.where(mask, jnp.exp(log_durations) * pace, 0), axis=1))
    return jnp.where(mask, jnp.maximum(jnp.diff(ends, axis=1, prepend=0), 1), 0).astype(jnp.int32)


def phone_latents(
    model: GradTTS,
    config: DiffusionConfig,
    means: Float[Array, "batch phone channel"],
    durations: Int[Array, "batch phone"],
    text_tokens: Int[Array, "batch token feature"],
    keys: Array,
    *,
    num_frames: int,
) -> tuple[Float[Array, "batch time channel"], Bool[Array, "batch time"]]:
    """Draws latents; `model.latents` decodes them.

    Args:
        model: Trained.
        config: Path, guidance and solver.
        means: From `GradTTS.encode`.
        durations: Frames that each phone lasts.
        text_tokens: Of the instruction; 0 in the first channel = padding.
        keys: One a row.
        num_frames: Frames of the program; what would be longer is cut.

    Returns:
        Latents, and which frames are real.

    Source:
        Grad-TTS (arXiv 2105.06337).
    """
    prior, real = stretch(means, durations, num_frames)
    conditions = model.conditions(prior, text_tokens)
    path = Path(config.path, prior)
    denoiser = make_denoiser(model.network, path, conditions, real, config.guidance)
    noise = draw_noise(keys, num_frames, model.config.latents.channels)
    return sample(denoiser, path, noise, config.sampler, keys=keys), real
