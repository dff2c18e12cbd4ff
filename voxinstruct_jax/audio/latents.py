"""Latent spaces of denoisers: waveforms to frames of unit variance a channel."""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from voxinstruct_jax.audio.mel_vae import MEL_MEAN, MEL_STD, MelVAE, MelVAEConfig
from voxinstruct_jax.audio.spectrogram import MelConfig, log_mel
from voxinstruct_jax.layers.parameter import freeze

__all__ = ["LatentConfig", "LatentSpace"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentConfig:
    """Which latents: those of a Mel-VAE, or the log-mel frames themselves."""

    vae: MelVAEConfig | None = None
    """None = log-mel frames."""
    mel: MelConfig = MelConfig(sample_rate=16_000, num_mels=32, n_fft=1024, hop_length=512, f_max=8000.0)
    """Of log-mel frames; read where there is no VAE."""

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self.vae.sample_rate if self.vae else self.mel.sample_rate

    @property
    def hop_length(self) -> int:
        """Samples a frame."""
        return self.vae.hop_length if self.vae else self.mel.hop_length

    @property
    def channels(self) -> int:
        """Of a frame."""
        return self.vae.latent_channels if self.vae else self.mel.num_mels

    @property
    def frame_rate(self) -> float:
        """Hz."""
        return self.sample_rate / self.hop_length


class LatentSpace(nnx.Module):
    """Frozen: training a denoiser leaves it alone."""

    def __init__(self, config: LatentConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        if config.vae is not None:
            self.vae = MelVAE(config.vae, rngs=rngs)
            freeze(self.vae)

    def encode(self, samples: Float[Array, "batch sample"]) -> Float[Array, "batch time channel"]:
        """Returns latents; `time = ceil(sample / hop_length)`, the rest of the last frame being silence."""
        if self.config.vae is not None:
            return self.vae.encode(samples)
        padded = jnp.pad(samples, ((0, 0), (0, -samples.shape[1] % self.config.hop_length)))
        return (log_mel(padded, self.config.mel) - MEL_MEAN) / MEL_STD

    def decode(self, latents: Float[Array, "batch time channel"]) -> Float[Array, "batch frame bin"]:
        """Natural-log mel spectrogram; a vocoder makes the waveform."""
        if self.config.vae is not None:
            return self.vae.decode(latents)
        return latents * MEL_STD + MEL_MEAN
