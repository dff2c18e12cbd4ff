"""Vocos: ConvNeXt blocks at the spectrogram's rate and an inverse Fourier head that makes the waveform."""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from voxinstruct_jax.audio.spectrogram import MEL_MEAN, MEL_STD, FramePadding, MelConfig, istft, log_mel
from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.layers.convolution import ConvNeXtBlock

__all__ = ["MelVocoder", "MelVocoderConfig", "Vocos", "VocosConfig", "fourier_head"]

MAX_MAGNITUDE = 100.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocosConfig:
    """Width and depth of the backbone; window and hop of the inverse transform in samples."""

    dim: int = 192
    ffn_dim: int = 576
    num_layers: int = 5
    n_fft: int = 960
    hop_length: int = 240


class Vocos(nnx.Module):
    """Turns frame features into a waveform through predicted magnitude and phase.

    Source:
        Vocos (Siuzdak 2023), sections 3.2 and 3.3: no upsampling layers, magnitude by exp (clipped at 100), phase as an
        angle, ISTFT with "same" padding.
    """

    def __init__(self, config: VocosConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        scale = 1 / config.num_layers
        self.norm = nnx.LayerNorm(config.dim, epsilon=1e-6, rngs=rngs)
        self.blocks = nnx.List(
            [ConvNeXtBlock(config.dim, config.ffn_dim, scale=scale, rngs=rngs) for _ in range(config.num_layers)]
        )
        self.final_norm = nnx.LayerNorm(config.dim, epsilon=1e-6, rngs=rngs)
        init = nnx.initializers.truncated_normal(0.02)
        self.head = nnx.Linear(config.dim, config.n_fft + 2, kernel_init=init, rngs=rngs)

    def __call__(self, features: Float[Array, "batch frame dim"]) -> Float[Array, "batch sample"]:
        """Returns the waveform; `sample = frame * hop_length`."""
        x = self.norm(features)
        for block in self.blocks:
            x = block(x)
        return fourier_head(self.head(self.final_norm(x)), self.config.n_fft, self.config.hop_length)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MelVocoderConfig:
    """Sizes from a log-mel spectrogram to the waveform.

    Raises:
        ConfigError: Spectrogram and inverse transform differ in their hop.
    """

    mel: MelConfig
    vocos: VocosConfig

    def __post_init__(self) -> None:
        if self.vocos.hop_length != self.mel.hop_length:
            raise ConfigError(
                f"vocos.hop_length {self.vocos.hop_length} must equal mel.hop_length {self.mel.hop_length}"
            )

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self.mel.sample_rate

    @property
    def hop_length(self) -> int:
        """Samples a frame."""
        return self.mel.hop_length

    @property
    def frame_rate(self) -> float:
        """Frames a second, Hz."""
        return self.sample_rate / self.hop_length

    @classmethod
    def small(cls, mel: MelConfig) -> "MelVocoderConfig":
        """Some 2M weights."""
        return cls(mel=mel, vocos=VocosConfig(n_fft=mel.n_fft, hop_length=mel.hop_length))


class MelVocoder(nnx.Module):
    """Turns natural-log mel spectrograms, as `spectrogram.log_mel` gives them, into waveforms."""

    def __init__(self, config: MelVocoderConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.first = nnx.Linear(config.mel.num_mels, config.vocos.dim, rngs=rngs)
        self.vocos = Vocos(config.vocos, rngs=rngs)

    def __call__(self, mel: Float[Array, "batch frame mel"]) -> Float[Array, "batch sample"]:
        """Returns the waveform; `sample = frame * hop_length`."""
        return self.vocos(self.first((mel - MEL_MEAN) / MEL_STD))

    def reconstruct(self, samples: Float[Array, "batch sample"]) -> Float[Array, "batch sample"]:
        """Returns speech as it comes back from its spectrogram; whole frames are given."""
        return self(log_mel(samples, self.config.mel))


def fourier_head(
    outputs: Float[Array, "batch frame outputs"], n_fft: int, hop_length: int, padding: FramePadding = "same"
) -> Float[Array, "batch sample"]:
    """Turns `n_fft + 2` outputs a frame, log magnitudes, then phases, into a waveform; see `istft` for its length."""
    log_magnitude, phase = jnp.split(outputs, 2, axis=-1)
    magnitude = jnp.minimum(jnp.exp(log_magnitude), MAX_MAGNITUDE)
    spectra = magnitude * (jnp.cos(phase) + 1j * jnp.sin(phase))
    return istft(spectra, n_fft, hop_length, padding)
