"""Requests to a model of latents as one program of static sizes: conditions, solver, waveform.

What a row becomes follows from the row, the sizes and the number of rows: noise is drawn by a key of its own, and the
network sees no other row. Read `SpeechRows`, then `sample_speech`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Key, UInt32

from voxinstruct_jax.audio.latents import LatentSpace
from voxinstruct_jax.audio.vocos import MelVocoder
from voxinstruct_jax.diffusion.denoiser import make_denoiser
from voxinstruct_jax.diffusion.masked import sample_masked
from voxinstruct_jax.diffusion.path import Path
from voxinstruct_jax.diffusion.phone_speech import phone_latents
from voxinstruct_jax.diffusion.solvers import draw_noise, sample
from voxinstruct_jax.diffusion.systems import DiffusionConfig
from voxinstruct_jax.models.grad_tts import GradTTS
from voxinstruct_jax.models.latent_diffusion import LatentDiffusion, side_by_side
from voxinstruct_jax.models.masked_latents import MaskedLatentDiffusion
from voxinstruct_jax.vocabulary import HostOrDevice

__all__ = ["LatentModel", "SpeechRows", "hold_last", "sample_speech", "to_waveform"]

LatentModel = LatentDiffusion | GradTTS | MaskedLatentDiffusion
"""What makes latents of an instruction and its words."""

REFERENCE = 2
"""Task tag of a voice that is spoken with."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeechRows:
    """Requests, padded to static sizes."""

    text_tokens: Int32[HostOrDevice, "batch token channel"]
    """Of the instruction; 0 in the first channel = padding."""
    phones: Int32[HostOrDevice, "batch phone"]
    """Of what is spoken, 0 = padding; not read by Grad-TTS."""
    num_frames: Int32[HostOrDevice, " batch"]
    """Frames of each row, a voice prompt's included."""
    seeds: UInt32[HostOrDevice, " batch"]
    prompt: Float32[HostOrDevice, "batch sample"] | None = None
    """Voices to speak with, zeros behind them; None = no row has one."""
    prompt_samples: Int32[HostOrDevice, " batch"] | None = None
    phone_means: Float32[HostOrDevice, "batch spoken mean"] | None = None
    """What `GradTTS.encode` says of each phone: to Grad-TTS alone, in place of the phones."""
    durations: Int32[HostOrDevice, "batch spoken"] | None = None
    """Frames of each of them, `num_frames` in all."""


def sample_speech(
    model: LatentModel,
    vocoder: MelVocoder | None,
    config: DiffusionConfig,
    rows: SpeechRows,
    frames: int,
    rounds: int = 0,
) -> Float[Array, "batch sample"]:
    """Speaks; `sample = frames * hop_length`, of which a row's first `num_frames` frames are its own.

    Args:
        model: Network and latent space.
        vocoder: Turns spectrograms into sound; None where the latents are a codec's.
        config: Path, guidance, solver.
        rows: Requests.
        frames: Of the longest row, at least.
        rounds: Of masked latents: passes of the transformer.
    """
    keys = _keys(jnp.asarray(rows.seeds))
    mask = jnp.arange(frames) < jnp.asarray(rows.num_frames)[:, None]
    if isinstance(model, GradTTS):
        assert rows.phone_means is not None
        assert rows.durations is not None
        means, durations, text = (jnp.asarray(each) for each in (rows.phone_means, rows.durations, rows.text_tokens))
        latents, _ = phone_latents(model, config, means, durations, text, keys[0], num_frames=frames)
    elif isinstance(model, MaskedLatentDiffusion):
        conditions = side_by_side(model.network, model.latents).conditions(rows.text_tokens, rows.phones)
        none = jnp.zeros((*mask.shape, model.latents.config.channels))
        latents = sample_masked(model, config, rounds, conditions, none, mask, mask, keys[0])
    else:
        latents = _denoised(model, config, rows, mask, keys)
    return to_waveform(model.latents, vocoder, latents, jnp.asarray(rows.num_frames))


def _denoised(
    model: LatentDiffusion,
    config: DiffusionConfig,
    rows: SpeechRows,
    mask: Bool[Array, "batch time"],
    keys: tuple[Key[Array, " batch"], Key[Array, " batch"]],
) -> Float[Array, "batch time channel"]:
    frames = mask.shape[1]
    conditions = model.conditions(rows.text_tokens, rows.phones)
    if rows.prompt is not None and rows.prompt_samples is not None:
        hop = model.latents.config.hop_length
        samples = jnp.pad(rows.prompt, ((0, 0), (0, frames * hop - rows.prompt.shape[1])))
        tags = jnp.full(len(rows.seeds), REFERENCE)
        conditions = model.add_source(conditions, samples, tags, jnp.asarray(rows.prompt_samples))
    path, (noise_keys, solver_keys) = Path(config.path), keys
    # of one key a longer draw begins as a shorter one, so noise is drawn at the request's own length, then padded
    noise = draw_noise(noise_keys, frames, model.latents.config.channels) * mask[..., None]
    denoiser = make_denoiser(model.network, path, conditions, mask, config.guidance)
    return sample(denoiser, path, noise, config.sampler, keys=solver_keys)


def to_waveform(
    space: LatentSpace,
    vocoder: MelVocoder | None,
    latents: Float[Array, "batch time channel"],
    num_frames: Int[Array, " batch"],
) -> Float[Array, "batch sample"]:
    """Decodes latents of any system.

    Args:
        space: That they lie in.
        vocoder: Of spectrograms; None where the latents are a codec's.
        latents: To be decoded.
        num_frames: Of each row.
    """
    latents = hold_last(latents, num_frames)
    return space.waveform(latents) if vocoder is None else vocoder(space.decode(latents))


def hold_last(
    latents: Float[Array, "batch time channel"], num_frames: Int[Array, " batch"]
) -> Float[Array, "batch time channel"]:
    """Lets each row go on behind its end as it ended: decoders look a little ahead."""
    last = jnp.minimum(jnp.arange(latents.shape[1]), num_frames[:, None] - 1)
    return jnp.take_along_axis(latents, last[..., None], axis=1)


def _keys(seeds: UInt32[Array, " batch"]) -> tuple[Key[Array, " batch"], Key[Array, " batch"]]:
    """Of the noise, and of solvers that draw more."""
    pairs = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed)))(seeds)
    return pairs[:, 0], pairs[:, 1]
