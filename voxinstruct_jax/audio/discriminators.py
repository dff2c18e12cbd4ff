"""Discriminators of adversarial codec training: convolutions over spectra of several windows.

They hear what distances between spectra do not punish, the blur above all. They exist while a codec is trained and
nowhere else.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from voxinstruct_jax.audio.spectrogram import stft
from voxinstruct_jax.config import ConfigError

__all__ = ["DiscriminatorConfig", "Judgement", "SpectrumDiscriminators"]

SLOPE = 0.1
FLOOR = 1e-5
BANDS = 5
"""Frequency bands that are judged apart: a filter that fits 200 Hz says nothing of 8 kHz."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """Sizes of the discriminators.

    Raises:
        ConfigError: A size is below 1.
    """

    windows: tuple[int, ...] = (512, 1024, 2048)
    """Of the spectra, samples; one network each."""
    channels: int = 32
    num_layers: int = 4
    """Convolutions before the verdict; all but the first and the last halve the frequencies."""

    def __post_init__(self) -> None:
        if not self.windows or min(*self.windows, self.channels, self.num_layers) < 1:
            raise ConfigError("discriminator: windows, channels and num_layers must be at least 1")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Judgement:
    """What one network thinks of a batch of sounds."""

    logits: list[Float[Array, "batch frame _"]]
    """By band; above 0 = real."""
    features: list[Float[Array, "batch frame _ channel"]]
    """Of all layers and bands, for feature matching."""


class _Band(nnx.Module):
    """Convolutions over one band of a complex spectrum."""

    def __init__(self, config: DiscriminatorConfig, *, rngs: nnx.Rngs) -> None:
        width, count = config.channels, config.num_layers
        strides = [(1, 1 if layer in (0, count - 1) else 2) for layer in range(count)]
        self.layers = nnx.List(
            [
                nnx.Conv(2 if layer == 0 else width, width, (3, 9), strides=stride, rngs=rngs)
                for layer, stride in enumerate(strides)
            ]
        )
        self.verdict = nnx.Conv(width, 1, (3, 3), rngs=rngs)

    def __call__(self, x: Float[Array, "batch frame bin part"]) -> Judgement:
        features = []
        for layer in self.layers:
            x = jax.nn.leaky_relu(layer(x), SLOPE)
            features.append(x)
        return Judgement([self.verdict(x)[..., 0]], features)


class SpectrumDiscriminators(nnx.Module):
    """One network a window and band.

    Source:
        Complex spectra of several windows: EnCodec (Défossez et al. 2022), section 3.4. Bands: DAC (Kumar et al. 2023),
        section 3.3.
    """

    def __init__(self, config: DiscriminatorConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.windows = nnx.List([nnx.List([_Band(config, rngs=rngs) for _ in range(BANDS)]) for _ in config.windows])

    def __call__(self, samples: Float[Array, "batch sample"]) -> list[Judgement]:
        """Judges sounds, a judgement a window."""
        judged = []
        for window, bands in zip(self.config.windows, self.windows, strict=True):
            spectrum = stft(samples, window, window // 4)
            # Speech falls by 60 dB and more over frequency; the root keeps the phase and lifts what is quiet.
            spectrum = spectrum / jnp.sqrt(jnp.abs(spectrum + FLOOR) + FLOOR)
            parts = jnp.stack([spectrum.real, spectrum.imag], axis=-1)
            edges = [round(parts.shape[2] * place / BANDS) for place in range(BANDS + 1)]
            found = [
                band(parts[:, :, start:end]) for band, start, end in zip(bands, edges[:-1], edges[1:], strict=True)
            ]
            judged.append(
                Judgement(
                    [logits for each in found for logits in each.logits],
                    [feature for each in found for feature in each.features],
                )
            )
        return judged
