"""Latent spaces of denoisers: waveforms to frames of unit variance a channel, and back."""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from voxinstruct_jax.audio.codec import CodecConfig, MelCodec
from voxinstruct_jax.audio.mel_vae import MelVAE, MelVAEConfig
from voxinstruct_jax.audio.spectrogram import MEL_MEAN, MEL_STD, MelConfig, log_mel
from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.layers.parameter import freeze

__all__ = ["LatentConfig", "LatentSpace"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentConfig:
    """Which latents: what a codec's decoder reads, those of a Mel-VAE, or the log-mel frames themselves.

    Raises:
        ConfigError: Both a codec and a VAE are given.
    """

    vae: MelVAEConfig | None = None
    codec: CodecConfig | None = None
    """Of the own codec: sums of its codebooks' entries, which its decoder turns into the waveform, as for a codec
    language model."""
    mel: MelConfig = MelConfig(sample_rate=16_000, num_mels=32, n_fft=1024, hop_length=512, f_max=8000.0)
    """Of log-mel frames; read where there is neither VAE nor codec."""

    def __post_init__(self) -> None:
        if self.vae is not None and self.codec is not None:
            raise ConfigError("latents: give a codec or a vae, not both")

    @property
    def part(self) -> str:
        """Frozen part of the latent space that has weights of its own: `vae`, `codec`, or none."""
        return "codec" if self.codec else "vae" if self.vae else ""

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return (self.codec or self.vae or self.mel).sample_rate

    @property
    def hop_length(self) -> int:
        """Samples a frame."""
        return (self.codec or self.vae or self.mel).hop_length

    @property
    def channels(self) -> int:
        """Of a frame."""
        if self.codec:
            return self.codec.quantizer.latent_dim
        return self.vae.latent_channels if self.vae else self.mel.num_mels

    @property
    def frame_rate(self) -> float:
        """Hz."""
        return self.sample_rate / self.hop_length

    @property
    def spectrogram(self) -> MelConfig | None:
        """What `LatentSpace.decode` gives; None where the latents give the waveform themselves."""
        if self.codec:
            return None
        return self.vae.mel if self.vae else self.mel

    def check_channels(self, name: str, found: int, *, masked: bool = False) -> None:
        """Checks that a network reads as many channels as there are.

        Args:
            name: Of the network's setting.
            found: Its value.
            masked: Whether the network also reads which frames are masked, in a channel more.

        Raises:
            ConfigError: It reads another number.
        """
        wanted, what = (self.channels + 1, "latents and their mask") if masked else (self.channels, "latents")
        if found != wanted:
            raise ConfigError(f"{name}: {found}, but these {what} have {wanted} channels; give {wanted}")


class LatentSpace(nnx.Module):
    """Frozen: training a denoiser leaves it alone."""

    def __init__(self, config: LatentConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        if config.vae is not None:
            self.vae = MelVAE(config.vae, rngs=rngs)
            freeze(self.vae)
        if config.codec is not None:
            self.codec = MelCodec(config.codec, rngs=rngs)
            freeze(self.codec)

    def encode(self, samples: Float[Array, "batch sample"]) -> Float[Array, "batch time channel"]:
        """Returns latents; `time = ceil(sample / hop_length)`, the rest of the last frame being silence."""
        if self.config.vae is not None:
            return self.vae.encode(samples)
        if self.config.codec is not None:
            quantizer, (mean, std) = self.codec.quantizer, self.codec.quantizer.statistics()
            return (quantizer.decode(quantizer.encode(self.codec.latents(samples))) - mean) / std
        padded = jnp.pad(samples, ((0, 0), (0, -samples.shape[1] % self.config.hop_length)))
        return (log_mel(padded, self.config.mel) - MEL_MEAN) / MEL_STD

    def decode(self, latents: Float[Array, "batch time channel"]) -> Float[Array, "batch frame bin"]:
        """Natural-log mel spectrogram as `config.spectrogram` describes it; a vocoder makes the waveform.

        Raises:
            ConfigError: These are a codec's latents, see `waveform`.
        """
        if self.config.codec is not None:
            raise ConfigError("latents of a codec are decoded to a waveform, not to a spectrogram")
        if self.config.vae is not None:
            return self.vae.decode(latents)
        return latents * MEL_STD + MEL_MEAN

    def waveform(self, latents: Float[Array, "batch time channel"]) -> Float[Array, "batch sample"]:
        """Decodes a codec's latents by its own decoder; `sample = time * hop_length`.

        Raises:
            ConfigError: These are not a codec's latents, see `decode`.
        """
        if self.config.codec is None:
            raise ConfigError("only latents of a codec are decoded to a waveform")
        mean, std = self.codec.quantizer.statistics()
        return self.codec.waveform(latents * std + mean)
