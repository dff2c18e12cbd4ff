"""Vocos: ConvNeXt blocks at the spectrogram's rate and an inverse Fourier head that makes the waveform."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Complex, Float

from voxinstruct_jax.audio.harmonics import NUM_PITCH_CLASSES, likely_pitch, pulse_train
from voxinstruct_jax.audio.spectrogram import MEL_MEAN, MEL_STD, FramePadding, MelConfig, istft, log_mel, stft
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
    source_rate: int = 0
    """Sample rate (Hz) of a harmonic source whose pitch is told by the features; 0 = none: all phases are predicted."""


class Vocos(nnx.Module):
    """Turns frame features into a waveform through predicted magnitude and phase.

    Source:
        Vocos (Siuzdak 2023), sections 3.2 and 3.3: no upsampling layers, magnitude by exp (clipped at 100), phase as an
        angle, ISTFT with "same" padding. With a source, harmonics and noise are filtered apart, as in DDSP (Engel et
        al. 2020, section 3) and the neural source-filter model (Wang et al. 2019, section 2), frame by frame in the
        spectrum: the head's magnitudes and phases are those of the filter of the harmonics.
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
        if config.source_rate:
            self.noise_head = nnx.Linear(config.dim, config.n_fft // 2 + 1, kernel_init=init, rngs=rngs)
            self.pitch_head = nnx.Linear(config.dim, NUM_PITCH_CLASSES, kernel_init=init, rngs=rngs)

    def __call__(self, features: Float[Array, "batch frame dim"]) -> Float[Array, "batch sample"]:
        """Returns the waveform; `sample = frame * hop_length`."""
        return self.sound(self.hidden(features))

    def hidden(self, features: Float[Array, "batch frame dim"]) -> Float[Array, "batch frame dim"]:
        """What the heads read."""
        x = self.norm(features)
        for block in self.blocks:
            x = block(x)
        return self.final_norm(x)

    def sound(
        self, hidden: Float[Array, "batch frame dim"], pitch: Float[Array, "batch frame"] | None = None
    ) -> Float[Array, "batch sample"]:
        """Returns the waveform.

        Args:
            hidden: From `hidden`.
            pitch: Of the source (Hz); 0 = unvoiced. None = what the pitch head takes it for.
        """
        config, outputs = self.config, self.head(hidden)
        if not config.source_rate:
            return fourier_head(outputs, config.n_fft, config.hop_length)
        if pitch is None:
            pitch = likely_pitch(self.pitch_head(hidden))
        source = pulse_train(jax.lax.stop_gradient(pitch), config.hop_length, config.source_rate)
        # A harmonic has about magnitude 1 at its place in the spectrum, as noise has everywhere.
        harmonics = stft(source / (config.n_fft / 4), config.n_fft, config.hop_length)
        noise = _exponential(self.noise_head(hidden)) * _random_phases(hidden.shape[1], config.n_fft // 2 + 1)
        return istft(_spectra(outputs) * harmonics + noise, config.n_fft, config.hop_length)


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
    return istft(_spectra(outputs), n_fft, hop_length, padding)


def _spectra(outputs: Float[Array, "batch frame outputs"]) -> Complex[Array, "batch frame bin"]:
    log_magnitude, phase = jnp.split(outputs, 2, axis=-1)
    return _exponential(log_magnitude) * (jnp.cos(phase) + 1j * jnp.sin(phase))


def _exponential(log_magnitude: Float[Array, "*axes"]) -> Float[Array, "*axes"]:
    return jnp.minimum(jnp.exp(log_magnitude), MAX_MAGNITUDE)


def _random_phases(frames: int, bins: int) -> Complex[Array, "frame bin"]:
    """The same for a frame whatever is behind it: what is spoken does not depend on the padding of its batch."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(frames))
    angles = 2 * jnp.pi * jax.vmap(lambda key: jax.random.uniform(key, (bins,)))(keys)
    return jnp.cos(angles) + 1j * jnp.sin(angles)
