"""The Mel-VAE: log-mel spectrograms to continuous latents at half their rate, and back.

Convolutions over time with mel bins as channels, magnitude-preserving throughout: every kernel has unit norm, no layer
a bias. The latents' mean and deviation a channel are measured while it trains and kept with the weights, so that what
leaves it has unit variance. Read `MelVAEConfig`, then `MelVAE`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from voxinstruct_jax.audio.spectrogram import MEL_MEAN, MEL_STD, MelConfig, log_mel
from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.layers.parameter import make_param, normal

__all__ = ["MelVAE", "MelVAEConfig", "Posterior"]

POOL = 2
"""Mel frames of a latent."""
BLOCKS_DOWN, BLOCKS_UP = 2, 3
"""A level of the encoder, and of the decoder."""
MIX = 0.3
"""Share of a residual branch."""
MAX_ACTIVATION = 256.0
"""Of what a block gives."""
EPSILON, LEAST_SQUARE = 1e-4, 1e-20
"""Added to a root mean square, as EDM2 does, and below the root, for the gradient of a frame of zeros."""
STATISTICS_RATE = 0.01
SMALLEST_VARIANCE = 1e-4


class RunningStatistic(nnx.Variable):
    """A number that moves in training without gradients."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MelVAEConfig:
    """Sizes of the VAE.

    Raises:
        ConfigError: A size is out of range.
    """

    mel: MelConfig
    latent_channels: int
    model_dim: int
    encoder_multiples: tuple[int, ...] = (1, 2, 4)
    """Widths of the levels, in `model_dim`; the rate is halved after the first. The decoder takes them backwards."""

    def __post_init__(self) -> None:
        if min(self.latent_channels, self.model_dim, *self.encoder_multiples) < 1 or len(self.encoder_multiples) < 2:
            raise ConfigError(
                "mel_vae: latent_channels, model_dim and two or more encoder_multiples must be at least 1"
            )

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self.mel.sample_rate

    @property
    def hop_length(self) -> int:
        """Samples a latent frame."""
        return POOL * self.mel.hop_length

    @property
    def frame_rate(self) -> float:
        """Latent frames a second, Hz."""
        return self.sample_rate / self.hop_length

    @classmethod
    def at_43_hz(cls) -> "MelVAEConfig":
        """44.1 kHz, 128 bins, 40 channels: 305.48M weights."""
        mel = MelConfig(sample_rate=44_100, num_mels=128, n_fft=2048, hop_length=512, f_max=22_050.0)
        return cls(mel=mel, latent_channels=40, model_dim=512)

    @classmethod
    def at_31_hz(cls) -> "MelVAEConfig":
        """16 kHz, 80 bins, 20 channels, 31.25 Hz: 171.66M weights."""
        mel = MelConfig(sample_rate=16_000, num_mels=80, n_fft=1024, hop_length=256, f_max=8000.0)
        return cls(mel=mel, latent_channels=20, model_dim=384)

    @classmethod
    def small(cls) -> "MelVAEConfig":
        """16 kHz, 64 bins, 8 channels, 31.25 Hz: some 1.2M weights."""
        mel = MelConfig(sample_rate=16_000, num_mels=64, n_fft=1024, hop_length=256, f_max=8000.0)
        return cls(mel=mel, latent_channels=8, model_dim=32)


@dataclasses.dataclass(frozen=True)
class Posterior:
    """What the encoder says of a clip."""

    mean: Float[Array, "batch time channel"]
    log_variance: Float[Array, "batch time channel"]


class _Conv(nnx.Module):
    """A convolution whose kernels are scaled to unit norm, so that it keeps magnitudes; zero-padded."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, *, rngs: nnx.Rngs) -> None:
        self.kernel = make_param(normal(1.0)(rngs.params(), (kernel_size, inputs, outputs)), (None, "embed", "mlp"))

    def __call__(self, x: Float[Array, "batch time inputs"]) -> Float[Array, "batch time outputs"]:
        kernel = self.kernel[...]
        kernel = _unit(kernel, axes=(0, 1)) * kernel[..., 0].size ** -0.5
        return jax.lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))


class _Block(nnx.Module):
    """Two convolutions, mixed into their input."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs) -> None:
        self.shortcut = _Conv(inputs, outputs, 1, rngs=rngs) if inputs != outputs else None
        self.first, self.second = _Conv(inputs, outputs, 3, rngs=rngs), _Conv(outputs, outputs, 3, rngs=rngs)

    def __call__(self, x: Float[Array, "batch time inputs"]) -> Float[Array, "batch time outputs"]:
        x = _unit(x)
        y = self.second(_silu(self.first(_silu(x))))
        return _mixed(x if self.shortcut is None else self.shortcut(x), y)


class _Attention(nnx.Module):
    """One head over all frames, mixed into its input."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs) -> None:
        self.projection, self.output = _Conv(dim, 3 * dim, 1, rngs=rngs), _Conv(dim, dim, 1, rngs=rngs)

    def __call__(self, x: Float[Array, "batch time dim"]) -> Float[Array, "batch time dim"]:
        query, key, value = (_unit(part) for part in jnp.split(self.projection(x), 3, axis=-1))
        scores = jnp.einsum("btd,bsd->bts", query, key) * x.shape[-1] ** -0.5
        return _mixed(x, self.output(jnp.einsum("bts,bsd->btd", jax.nn.softmax(scores), value)))


class _Statistics(nnx.Module):
    """Mean and deviation of each channel, measured in training: of all batches at first, then a running mean."""

    def __init__(self, channels: int, mean: float, std: float) -> None:
        self.mean = RunningStatistic(jnp.full(channels, mean))
        self.variance = RunningStatistic(jnp.full(channels, std**2))
        self.count = RunningStatistic(jnp.zeros(()))

    def observe(self, values: Float[Array, "batch time channel"]) -> None:
        """Moves them towards those of a batch."""
        flat = jax.lax.stop_gradient(values).reshape(-1, values.shape[-1])
        rate = jnp.maximum(STATISTICS_RATE, 1 / (self.count[...] + 1))
        mean = self.mean[...] + rate * (flat.mean(0) - self.mean[...])
        spread = jnp.square(flat - mean).mean(0)
        self.variance.set_value(self.variance[...] + rate * (spread - self.variance[...]))
        self.mean.set_value(mean)
        self.count.set_value(self.count[...] + 1)

    def standardised(self, values: Float[Array, "batch time channel"]) -> Float[Array, "batch time channel"]:
        return (values - self.mean[...]) / self._std()

    def restored(self, values: Float[Array, "batch time channel"]) -> Float[Array, "batch time channel"]:
        return values * self._std() + self.mean[...]

    def _std(self) -> Float[Array, " channel"]:
        return jnp.sqrt(self.variance[...] + SMALLEST_VARIANCE)


class MelVAE(nnx.Module):
    """Encodes log-mel spectrograms to latents and back.

    Source:
        MMAudio (Cheng et al. 2025), its audio autoencoder after EDM2 (Karras et al. 2024), which UNISON takes as it is
        (section 3.2) and InstructAudio's extends.
    """

    def __init__(self, config: MelVAEConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        widths = [multiple * config.model_dim for multiple in config.encoder_multiples]
        bins, channels = config.mel.num_mels, config.latent_channels
        options: dict[str, Any] = {"rngs": rngs}
        self.first = _Conv(bins, config.model_dim, 3, **options)
        blocks, inputs = [], config.model_dim
        for width in widths:
            blocks += [_Block(inputs, width, **options)]
            blocks += [_Block(width, width, **options) for _ in range(BLOCKS_DOWN - 1)]
            inputs = width
        self.encoder = nnx.List(blocks)
        self.down = nnx.List([_Conv(widths[0], widths[0], 1, **options) for _ in range(2)])
        self.encoder_middle = _middle(inputs, rngs)
        self.to_latent = _Conv(inputs, 2 * channels, 3, **options)
        self.from_latent = _Conv(channels, inputs, 3, **options)
        self.decoder_middle = _middle(inputs, rngs)
        blocks = []
        for width in reversed(widths):
            blocks += [_Block(inputs, width, **options)]
            blocks += [_Block(width, width, **options) for _ in range(BLOCKS_UP - 1)]
            inputs = width
        self.decoder = nnx.List(blocks)
        self.up = _Conv(widths[1], widths[1], 3, **options)
        self.last = _Conv(inputs, bins, 3, **options)
        self.gain = make_param(jnp.zeros(2), (None,))
        self.mel_statistics = _Statistics(bins, MEL_MEAN, MEL_STD)
        self.latent_statistics = _Statistics(channels, 0.0, 1.0)

    def spectrogram(self, samples: Float[Array, "batch sample"]) -> Float[Array, "batch frame bin"]:
        """Natural-log mel of whole latent frames; what is short of one is silence."""
        padded = jnp.pad(samples, ((0, 0), (0, -samples.shape[1] % self.config.hop_length)))
        return log_mel(padded, self.config.mel)

    def posterior(self, mel: Float[Array, "batch frame bin"]) -> Posterior:
        """Encodes a standardised spectrogram; `time = frame / 2`."""
        x = self.first(mel)
        for number, block in enumerate(self.encoder, start=1):
            x = _clip(block(x))
            if number == BLOCKS_DOWN:  # after the first level
                x = self.down[1](self.down[0](x).reshape(x.shape[0], -1, POOL, x.shape[2]).mean(2))
        outputs = self.to_latent(_silu(_clip(_through(self.encoder_middle, x)))) * (1 + self.gain[...][0])
        mean, log_variance = jnp.split(outputs, 2, axis=-1)
        return Posterior(mean, jnp.clip(log_variance, -20.0, 10.0))

    def reconstruct(self, latents: Float[Array, "batch time channel"]) -> Float[Array, "batch frame bin"]:
        """Decodes raw latents to a standardised spectrogram."""
        x = _clip(_through(self.decoder_middle, self.from_latent(latents)))
        upsampled = BLOCKS_UP * (len(self.config.encoder_multiples) - 1)
        for number, block in enumerate(self.decoder, start=1):
            x = _clip(block(x))
            if number == upsampled:
                x = self.up(jnp.repeat(x, POOL, axis=1))
        return self.last(_silu(x)) * (1 + self.gain[...][1])

    def encode(self, samples: Float[Array, "batch sample"]) -> Float[Array, "batch time channel"]:
        """Latents of unit variance: the posterior's mean, standardised; `time = ceil(sample / hop_length)`."""
        mel = self.mel_statistics.standardised(self.spectrogram(samples))
        return self.latent_statistics.standardised(self.posterior(mel).mean)

    def decode(self, latents: Float[Array, "batch time channel"]) -> Float[Array, "batch frame bin"]:
        """Natural-log mel of standardised latents."""
        return self.mel_statistics.restored(self.reconstruct(self.latent_statistics.restored(latents)))


def _middle(dim: int, rngs: nnx.Rngs) -> nnx.List:
    return nnx.List([_Block(dim, dim, rngs=rngs), _Attention(dim, rngs=rngs), _Block(dim, dim, rngs=rngs)])


def _through(blocks: Any, x: Array) -> Array:
    for block in blocks:
        x = block(x)
    return x


def _unit(x: Float[Array, "..."], axes: int | tuple[int, ...] = -1) -> Float[Array, "..."]:
    """Scales to unit mean square over the axes; by default each frame."""
    mean_square = jnp.square(x).mean(axes, keepdims=True)
    return x / (EPSILON + jnp.sqrt(mean_square + LEAST_SQUARE))


def _clip(x: Float[Array, "batch time dim"]) -> Float[Array, "batch time dim"]:
    return jnp.clip(x, -MAX_ACTIVATION, MAX_ACTIVATION)


def _silu(x: Float[Array, "batch time dim"]) -> Float[Array, "batch time dim"]:
    """SiLU that keeps unit variance; Karras et al. 2024, equation 81."""
    return jax.nn.silu(x) / 0.596


def _mixed(x: Float[Array, "batch time dim"], y: Float[Array, "batch time dim"]) -> Float[Array, "batch time dim"]:
    """A weighted sum that keeps unit variance; Karras et al. 2024, equation 88."""
    return ((1 - MIX) * x + MIX * y) / ((1 - MIX) ** 2 + MIX**2) ** 0.5
