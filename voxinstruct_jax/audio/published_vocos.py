"""Vocos as published: a waveform from EnCodec's codes, or from a mel spectrogram.

The own codec's `vocos.Vocos` is the same idea without the first convolution, the conditioned norms and the exact GELU,
which weights trained elsewhere depend on.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Num

from voxinstruct_jax.audio.quantizer import check_codes, decode_residual
from voxinstruct_jax.audio.spectrogram import FramePadding, htk_filters, stft
from voxinstruct_jax.audio.vocos import fourier_head
from voxinstruct_jax.audio.waveform import check_samples
from voxinstruct_jax.config import ConfigError, InputError
from voxinstruct_jax.layers.convolution import DepthwiseConv
from voxinstruct_jax.layers.parameter import FrozenParam, make_param, normal

__all__ = ["CodeVocos", "CodeVocosConfig", "FeatureVocos", "FeatureVocosConfig", "MelVocos", "MelVocosConfig"]

MEL_FLOOR = 1e-7
KERNEL_SIZE = 7


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureVocosConfig:
    """Sizes from features to waveform; the defaults are those published for EnCodec's codes.

    Raises:
        ConfigError: A size is out of range.
    """

    feature_dim: int = 128
    dim: int = 384
    ffn_dim: int = 1152
    num_layers: int = 8
    num_conditions: int = 4
    """Rows of each norm's scale and shift; 1 = not conditioned."""
    n_fft: int = 1280
    hop_length: int = 320
    padding: FramePadding = "same"

    def __post_init__(self) -> None:
        sizes = ("feature_dim", "dim", "ffn_dim", "num_layers", "num_conditions", "hop_length")
        wrong = [name for name in sizes if getattr(self, name) < 1]
        if wrong or self.n_fft < self.hop_length or self.n_fft % 2:
            raise ConfigError(
                f"{wrong[0] if wrong else 'n_fft'}: sizes must be at least 1, n_fft even and not below hop"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodeVocosConfig:
    """Vocos for EnCodec's codes at 1.5, 3, 6 or 12 kbit/s."""

    features: FeatureVocosConfig = FeatureVocosConfig()
    codebook_size: int = 1024
    stack_size: int = 16
    """Codebooks in the table."""

    @classmethod
    def tiny(cls) -> "CodeVocosConfig":
        """For tests, beside `encodec.EncodecConfig.tiny`."""
        features = FeatureVocosConfig(feature_dim=16, dim=32, ffn_dim=96, num_layers=2)
        return cls(features=features, codebook_size=32, stack_size=8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MelVocosConfig:
    """Vocos for log-mel spectrograms of 24 kHz speech."""

    features: FeatureVocosConfig = FeatureVocosConfig(
        feature_dim=100,
        dim=512,
        ffn_dim=1536,
        num_conditions=1,
        n_fft=1024,
        hop_length=256,
        padding="center",
    )
    sample_rate: int = 24_000
    mel_n_fft: int = 1024
    mel_padding: FramePadding = "center"


class ConditionedNorm(nnx.Module):
    """Layer norm whose scale and shift are rows of two tables."""

    def __init__(self, num_conditions: int, dim: int) -> None:
        self.scale = make_param(jnp.ones((num_conditions, dim)), (None, "embed"))
        self.shift = make_param(jnp.zeros((num_conditions, dim)), (None, "embed"))

    def __call__(
        self, x: Float[Array, "batch frame dim"], condition: Int[Array, ""]
    ) -> Float[Array, "batch frame dim"]:
        centred = x - x.mean(axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + 1e-6)
        return normed * self.scale[...][condition] + self.shift[...][condition]


class ConditionedBlock(nnx.Module):
    """ConvNeXt block with a conditioned norm and the exact GELU."""

    def __init__(self, config: FeatureVocosConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        init = nnx.initializers.truncated_normal(0.02)
        self.depthwise = DepthwiseConv(config.dim, KERNEL_SIZE, rngs=rngs)
        self.norm = ConditionedNorm(config.num_conditions, config.dim)
        self.expand = nnx.Linear(config.dim, config.ffn_dim, kernel_init=init, dtype=dtype, rngs=rngs)
        self.project = nnx.Linear(config.ffn_dim, config.dim, kernel_init=init, dtype=dtype, rngs=rngs)
        self.gamma = nnx.Param(jnp.full(config.dim, 1 / config.num_layers))

    def __call__(
        self, x: Float[Array, "batch frame dim"], condition: Int[Array, ""]
    ) -> Float[Array, "batch frame dim"]:
        y = self.expand(self.norm(self.depthwise(x), condition))
        return x + self.gamma[...] * self.project(jax.nn.gelu(y, approximate=False))


class FeatureVocos(nnx.Module):
    """Features to waveform.

    Source:
        Vocos (Siuzdak 2023), section 3, with the adaptive layer norm of its EnCodec variant (section 4.3).
    """

    def __init__(self, config: FeatureVocosConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs) -> None:
        """Makes the weights; `dtype` is that of the matrix products, all else is float32."""
        self.config = config
        init = nnx.initializers.truncated_normal(0.02)
        self.embed = nnx.Conv(config.feature_dim, config.dim, (KERNEL_SIZE,), kernel_init=init, dtype=dtype, rngs=rngs)
        self.norm = ConditionedNorm(config.num_conditions, config.dim)
        self.blocks = nnx.List([ConditionedBlock(config, dtype=dtype, rngs=rngs) for _ in range(config.num_layers)])
        self.final_norm = ConditionedNorm(1, config.dim)
        self.head = nnx.Linear(config.dim, config.n_fft + 2, kernel_init=init, dtype=dtype, rngs=rngs)

    def __call__(
        self, features: Float[Array, "batch frame dim"], condition: Int[Array, ""]
    ) -> Float[Array, "batch sample"]:
        """Returns the waveform; `sample = frame * hop_length`, for "center" padding one hop less."""
        outputs = self.outputs(features, condition)
        return fourier_head(outputs, self.config.n_fft, self.config.hop_length, self.config.padding)

    def outputs(
        self, features: Float[Array, "batch frame dim"], condition: Int[Array, ""]
    ) -> Float[Array, "batch frame outputs"]:
        """Returns log magnitudes, then phases."""
        return self.head(self.hidden(features, condition)).astype(jnp.float32)

    def hidden(
        self, features: Float[Array, "batch frame dim"], condition: Int[Array, ""]
    ) -> Float[Array, "batch frame hidden"]:
        """Returns what the head reads."""
        x = self.norm(self.embed(features).astype(jnp.float32), condition)
        for block in self.blocks:
            x = block(x, condition)
        return self.final_norm(x, jnp.zeros((), jnp.int32))


class CodeVocos(nnx.Module):
    """EnCodec's codes to waveform; the entries of the codes are summed as EnCodec's decoder does."""

    def __init__(self, config: CodeVocosConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs) -> None:
        """Makes the weights; `dtype` is that of the matrix products."""
        self.config = config
        shape = (config.stack_size, config.codebook_size, config.features.feature_dim)
        self.entries = make_param(normal(1.0)(rngs.params(), shape), (None, "vocab", "embed"))
        self.vocos = FeatureVocos(config.features, dtype=dtype, rngs=rngs)

    def __call__(
        self, codes: Int[Array | np.ndarray, "batch codebook frame"], bandwidth_id: int = 2
    ) -> Float[Array, "batch sample"]:
        """Returns the waveform; `sample = frame * hop_length`, for "center" padding one hop less.

        Args:
            codes: Of the leading codebooks.
            bandwidth_id: 0 to 3 for 1.5, 3, 6 and 12 kbit/s, that is 2, 4, 8 and 16 codebooks.

        Raises:
            InputError: There are not as many codebooks, entries or bandwidths, or no frames.
        """
        checked = check_codes(codes, self.config.stack_size, self.config.codebook_size)
        if not 0 <= bandwidth_id < self.config.features.num_conditions:
            raise InputError(f"bandwidth_id {bandwidth_id} must be from 0 to {self.config.features.num_conditions - 1}")
        return _speak_codes(self, checked, jnp.asarray(bandwidth_id))


class MelVocos(nnx.Module):
    """Log-mel spectrograms to waveform."""

    def __init__(self, config: MelVocosConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs) -> None:
        """Makes the weights; `dtype` is that of the matrix products."""
        self.config = config
        filters = htk_filters(config.sample_rate, config.mel_n_fft, config.features.feature_dim)
        self.filters = make_param(jnp.asarray(filters), (None, None), kind=FrozenParam)
        self.vocos = FeatureVocos(config.features, dtype=dtype, rngs=rngs)

    def __call__(self, mel: Float[Array | np.ndarray, "batch frame mel"]) -> Float[Array, "batch sample"]:
        """Returns the waveform of what `mel` gives; for "center" padding `sample = (frame - 1) * hop_length`."""
        return _speak_mel(self, jnp.asarray(mel, jnp.float32))

    def mel(self, samples: Num[Array | np.ndarray, "batch sample"]) -> Float[Array, "batch frame mel"]:
        """Returns natural-log mel magnitudes; for "center" padding `frame = 1 + sample // hop_length`.

        Raises:
            InputError: The samples are none, whole numbers or not finite.
        """
        return _mel(self, check_samples(samples))


@jax.jit
def _speak_codes(model: CodeVocos, codes: Array, bandwidth_id: Array) -> Array:
    return model.vocos(decode_residual(codes, model.entries[...]), bandwidth_id)


@jax.jit
def _speak_mel(model: MelVocos, mel: Array) -> Array:
    return model.vocos(mel, jnp.zeros((), jnp.int32))


@jax.jit
def _mel(model: MelVocos, samples: Array) -> Array:
    config = model.config
    magnitude = jnp.abs(stft(samples, config.mel_n_fft, config.features.hop_length, config.mel_padding))
    mel = jnp.matmul(magnitude, model.filters[...], precision=jax.lax.Precision.HIGHEST)
    return jnp.log(jnp.maximum(mel, MEL_FLOOR))
