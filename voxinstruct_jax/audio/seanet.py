"""SEANet: the convolutional encoder from samples to frames, and the decoder back, that EnCodec and Mimi share."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.layers.causal_convolution import CausalConv, CausalUpsample, PadMode
from voxinstruct_jax.layers.lstm import LSTM

__all__ = ["SeanetConfig", "SeanetDecoder", "SeanetEncoder"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeanetConfig:
    """Sizes of encoder and decoder; the defaults are EnCodec's at 24 kHz.

    Raises:
        ConfigError: A size is out of range.
    """

    num_filters: int = 32
    """Channels at the sample rate; they double with each stage."""
    latent_dim: int = 128
    ratios: tuple[int, ...] = (8, 5, 4, 2)
    """Rate changes of the decoder's stages; the encoder takes them from the last."""
    kernel_size: int = 7
    last_kernel_size: int = 7
    residual_kernel_size: int = 3
    num_residual_layers: int = 1
    dilation_growth: int = 2
    """Residual unit j of a stage has dilation `dilation_growth ** j`."""
    compress: int = 2
    """Residual units are narrower by this factor inside."""
    shortcut_conv: bool = True
    """The skip of a residual unit is a convolution of one tap, not the input itself."""
    num_lstm_layers: int = 2
    pad_mode: PadMode = "reflect"

    def __post_init__(self) -> None:
        sizes = ("num_filters", "latent_dim", "kernel_size", "last_kernel_size", "residual_kernel_size", "compress")
        wrong = [name for name in sizes if getattr(self, name) < 1]
        if wrong or not self.ratios or min(self.ratios) < 1:
            raise ConfigError(f"seanet.{wrong[0] if wrong else 'ratios'}: sizes must be at least 1")

    @property
    def hop_length(self) -> int:
        """Samples a frame."""
        return math.prod(self.ratios)

    @property
    def frame_dim(self) -> int:
        """Channels at the frame rate, before the last convolution of the encoder."""
        return self.num_filters * 2 ** len(self.ratios)


class ResidualUnit(nnx.Module):
    """ELU, narrow dilated convolution, ELU, pointwise convolution, added to the skip."""

    def __init__(self, config: SeanetConfig, dim: int, dilation: int, options: dict[str, Any]) -> None:
        inner = dim // config.compress
        self.dilated = CausalConv(dim, inner, config.residual_kernel_size, dilation=dilation, **options)
        self.pointwise = CausalConv(inner, dim, 1, **options)
        self.shortcut = CausalConv(dim, dim, 1, **options) if config.shortcut_conv else None

    def __call__(self, x: Float[Array, "batch time dim"]) -> Float[Array, "batch time dim"]:
        y = self.pointwise(jax.nn.elu(self.dilated(jax.nn.elu(x))))
        return y + (x if self.shortcut is None else self.shortcut(x))


class EncoderStage(nnx.Module):
    """Residual units, then a lower rate with twice the channels."""

    def __init__(self, config: SeanetConfig, dim: int, ratio: int, options: dict[str, Any]) -> None:
        self.units = _residual_units(config, dim, options)
        self.downsample = CausalConv(dim, 2 * dim, 2 * ratio, stride=ratio, **options)

    def __call__(self, x: Float[Array, "batch time dim"]) -> Float[Array, "batch frame outputs"]:
        for unit in self.units:
            x = unit(x)
        return self.downsample(jax.nn.elu(x))


class DecoderStage(nnx.Module):
    """A higher rate with half the channels, then residual units."""

    def __init__(self, config: SeanetConfig, dim: int, ratio: int, options: dict[str, Any]) -> None:
        plain = {name: options[name] for name in ("dtype", "rngs")}
        self.upsample = CausalUpsample(dim, dim // 2, stride=ratio, **plain)
        self.units = _residual_units(config, dim // 2, options)

    def __call__(self, x: Float[Array, "batch frame dim"]) -> Float[Array, "batch time outputs"]:
        x = self.upsample(jax.nn.elu(x))
        for unit in self.units:
            x = unit(x)
        return x


class SeanetEncoder(nnx.Module):
    """Samples to latents.

    Source:
        SEANet (Tagliasacchi et al. 2020) as in EnCodec (Défossez et al. 2022), section 3.1.
    """

    def __init__(self, config: SeanetConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs) -> None:
        options = {"pad_mode": config.pad_mode, "dtype": dtype, "rngs": rngs}
        self.first = CausalConv(1, config.num_filters, config.kernel_size, **options)
        self.stages = nnx.List(
            [
                EncoderStage(config, config.num_filters * 2**index, ratio, options)
                for index, ratio in enumerate(reversed(config.ratios))
            ]
        )
        self.lstm = _lstm(config, dtype, rngs)
        self.last = CausalConv(config.frame_dim, config.latent_dim, config.last_kernel_size, **options)

    def __call__(self, samples: Float[Array, "batch sample"]) -> Float[Array, "batch frame latent"]:
        """Returns latents; `frame = ceil(sample / hop_length)`."""
        x = self.first(samples[..., None])
        for stage in self.stages:
            x = stage(x)
        return self.last(jax.nn.elu(x if self.lstm is None else self.lstm(x)))


class SeanetDecoder(nnx.Module):
    """Latents to samples, the mirror of `SeanetEncoder`."""

    def __init__(self, config: SeanetConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs) -> None:
        options = {"pad_mode": config.pad_mode, "dtype": dtype, "rngs": rngs}
        self.first = CausalConv(config.latent_dim, config.frame_dim, config.kernel_size, **options)
        self.lstm = _lstm(config, dtype, rngs)
        self.stages = nnx.List(
            [
                DecoderStage(config, config.frame_dim // 2**index, ratio, options)
                for index, ratio in enumerate(config.ratios)
            ]
        )
        self.last = CausalConv(config.num_filters, 1, config.last_kernel_size, **options)

    def __call__(self, latents: Float[Array, "batch frame latent"]) -> Float[Array, "batch sample"]:
        """Returns float32 samples; `sample = frame * hop_length`."""
        x = self.first(latents)
        if self.lstm is not None:
            x = self.lstm(x)
        for stage in self.stages:
            x = stage(x)
        return self.last(jax.nn.elu(x))[..., 0].astype(jnp.float32)


def _residual_units(config: SeanetConfig, dim: int, options: dict[str, Any]) -> nnx.List:
    dilations = (config.dilation_growth**index for index in range(config.num_residual_layers))
    return nnx.List([ResidualUnit(config, dim, dilation, options) for dilation in dilations])


def _lstm(config: SeanetConfig, dtype: DTypeLike, rngs: nnx.Rngs) -> LSTM | None:
    return LSTM(config.frame_dim, config.num_lstm_layers, dtype=dtype, rngs=rngs) if config.num_lstm_layers else None
