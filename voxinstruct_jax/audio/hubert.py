"""HuBERT: the paper's source of semantic units, base or large; weights come from files (`interop.hubert`).

Read `Hubert`, then `HubertFeatures`, which is what preparation takes. K-means over the features is `semantic.py`.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Num

from voxinstruct_jax.audio.waveform import check_samples
from voxinstruct_jax.config import ConfigError, InputError
from voxinstruct_jax.layers.attention import attend
from voxinstruct_jax.layers.parameter import FrozenParam, make_param

__all__ = ["SAMPLE_RATE", "Hubert", "HubertConfig", "HubertFeatures"]

SAMPLE_RATE = 16_000
VARIANCE_FLOOR = 1e-5
PIECE_S = 2
"""Clips are filled up to whole pieces, so that a corpus of any lengths compiles few programs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HubertConfig:
    """Sizes of the network; the defaults are HuBERT base.

    Raises:
        ConfigError: A size is out of range.
    """

    conv_dims: tuple[int, ...] = (512,) * 7
    conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    model_dim: int = 768
    num_layers: int = 12
    num_heads: int = 12
    ffn_dim: int = 3072
    position_kernel: int = 128
    """Taps of the convolution that tells places apart (frames)."""
    position_groups: int = 16
    epsilon: float = 1e-5
    """Of the layer norms."""
    conv_norm: Literal["group", "layer"] = "group"
    """Behind the first convolution each channel is normed over time (base), or behind each one all channels (large)."""
    conv_bias: bool = False
    norm_first: bool = False
    """Blocks norm their input and one norm follows the last block (large), not each sum (base)."""

    def __post_init__(self) -> None:
        if not len(self.conv_dims) == len(self.conv_kernels) == len(self.conv_strides) > 0:
            raise ConfigError("hubert: conv_dims, conv_kernels and conv_strides must be of one length, at least 1")
        sizes = ("model_dim", "num_layers", "num_heads", "ffn_dim", "position_kernel", "position_groups")
        wrong = [name for name in sizes if getattr(self, name) < 1]
        if wrong or min(*self.conv_dims, *self.conv_kernels, *self.conv_strides) < 1:
            raise ConfigError(f"hubert.{wrong[0] if wrong else 'conv_dims'}: sizes must be at least 1")
        for name in ("num_heads", "position_groups"):
            if self.model_dim % getattr(self, name):
                raise ConfigError(f"hubert.model_dim {self.model_dim} must be a multiple of {name}")

    @property
    def min_samples(self) -> int:
        """Samples behind one frame (400 in HuBERT base, 25 ms)."""
        needed = 1
        for kernel, stride in zip(reversed(self.conv_kernels), reversed(self.conv_strides), strict=True):
            needed = (needed - 1) * stride + kernel
        return needed

    def num_frames(self, num_samples: int) -> int:
        """Frames of a clip: `samples / 320 - 1` for whole multiples of 320 in HuBERT base, rounded down."""
        return max(0, _count_frames(self, num_samples))


class TimeNorm(nnx.Module):
    """Each channel to zero mean and unit variance over a clip's frames (group norm, as many groups as channels)."""

    def __init__(self, dim: int) -> None:
        self.scale = make_param(jnp.ones(dim), (None,))
        self.bias = make_param(jnp.zeros(dim), (None,))

    def __call__(self, x: Float[Array, "batch time dim"], valid: Bool[Array, "batch time"]) -> Float[Array, "..."]:
        weight = valid / jnp.maximum(1, valid.sum(axis=1))[:, None]

        def mean(values: Float[Array, "batch time dim"]) -> Float[Array, "batch one dim"]:
            # As a product: on CPU XLA works a sum over thousands of frames out anew for every element that needs it.
            return jnp.einsum("bt,btd->bd", weight, values, precision="highest")[:, None]

        centred = x - mean(x)
        variance = mean(centred**2)
        return centred * jax.lax.rsqrt(variance + 1e-5) * self.scale[...] + self.bias[...]


class FrontEnd(nnx.Module):
    """Convolutions without padding, from samples to frames, each followed by GELU."""

    def __init__(self, config: HubertConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.config = config
        inputs = (1, *config.conv_dims)
        # The first layer and its norm stay in float32: bfloat16 samples would carry noise 50 dB below the speech.
        self.convs = nnx.List(
            [
                nnx.Conv(
                    inputs[i],
                    inputs[i + 1],
                    (kernel,),
                    strides=config.conv_strides[i],
                    padding="VALID",
                    use_bias=config.conv_bias,
                    dtype=dtype if i else jnp.float32,
                    rngs=rngs,
                )
                for i, kernel in enumerate(config.conv_kernels)
            ]
        )
        if config.conv_norm == "group":
            self.norm = TimeNorm(config.conv_dims[0])
        else:
            self.norms = nnx.List([_conv_norm(dim, rngs) for dim in config.conv_dims])
        self.dtype = dtype

    def __call__(
        self, samples: Float[Array, "batch sample"], lengths: Int[Array, " batch"]
    ) -> Float[Array, "batch frame channel"]:
        x = self.convs[0](samples[..., None])
        if self.config.conv_norm == "group":
            counts = (lengths - self.config.conv_kernels[0]) // self.config.conv_strides[0] + 1
            x = self.norm(x, jnp.arange(x.shape[1]) < counts[:, None])
        else:
            x = self.norms[0](x)
        x = jax.nn.gelu(x.astype(self.dtype), approximate=False)
        for i, conv in enumerate(self.convs[1:], start=1):
            x = conv(x)
            if self.config.conv_norm == "layer":
                x = self.norms[i](x).astype(self.dtype)
            x = jax.nn.gelu(x, approximate=False)
        return x


class Block(nnx.Module):
    """Attention and feed-forward; a norm follows each sum, or stands before each part (`norm_first`)."""

    def __init__(self, config: HubertConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        dim = config.model_dim
        self.query, self.key, self.value, self.output = (nnx.Linear(dim, dim, dtype=dtype, rngs=rngs) for _ in range(4))
        self.attention_norm = _layer_norm(dim, config, dtype, rngs)
        self.expand = nnx.Linear(dim, config.ffn_dim, dtype=dtype, rngs=rngs)
        self.project = nnx.Linear(config.ffn_dim, dim, dtype=dtype, rngs=rngs)
        self.ffn_norm = _layer_norm(dim, config, dtype, rngs)
        self.num_heads, self.norm_first = config.num_heads, config.norm_first

    def __call__(
        self, x: Float[Array, "batch frame dim"], mask: Bool[Array, "batch frame frame"]
    ) -> Float[Array, "batch frame dim"]:
        if self.norm_first:
            x = x + self.attention(self.attention_norm(x), mask)
            return x + self.feed_forward(self.ffn_norm(x))
        x = self.attention_norm(x + self.attention(x, mask))
        return self.ffn_norm(x + self.feed_forward(x))

    def attention(
        self, x: Float[Array, "batch frame dim"], mask: Bool[Array, "batch frame frame"]
    ) -> Float[Array, "batch frame dim"]:
        """Returns what is added to the input."""
        query, key, value = (
            linear(x).reshape(*x.shape[:2], self.num_heads, -1) for linear in (self.query, self.key, self.value)
        )
        return self.output(attend(query, key, value, mask).reshape(x.shape))

    def feed_forward(self, x: Float[Array, "batch frame dim"]) -> Float[Array, "batch frame dim"]:
        """Returns what is added to the input."""
        return self.project(jax.nn.gelu(self.expand(x), approximate=False))


class Hubert(nnx.Module):
    """Samples → convolutions → positional convolution → transformer.

    Layers are counted as in Hugging Face's `hidden_states`: hidden k is the output of block k, hidden 0 the input of
    block 1. The paper's ninth layer is hidden 9. In the large form only the last hidden has gone through the last norm.

    Source:
        Hsu et al. 2021, section III-C; the network of wav2vec 2.0 (Baevski et al. 2020), section 2, without its
        quantiser. The weight norm of the positional convolution is folded when weights are loaded.
    """

    def __init__(self, config: HubertConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs) -> None:
        """Makes the weights, in float32; `dtype` is that of the computation and of the result."""
        self.config, self.dtype = config, dtype
        dim, channels = config.model_dim, config.conv_dims[-1]
        self.front_end = FrontEnd(config, dtype=dtype, rngs=rngs)
        self.channel_norm = _layer_norm(channels, config, dtype, rngs)
        self.projection = nnx.Linear(channels, dim, dtype=dtype, rngs=rngs)
        # An even kernel reaches one frame further back than ahead.
        padding = (config.position_kernel // 2, (config.position_kernel - 1) // 2)
        self.position = nnx.Conv(
            dim,
            dim,
            (config.position_kernel,),
            padding=(padding,),
            feature_group_count=config.position_groups,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = _layer_norm(dim, config, dtype, rngs)
        self.blocks = nnx.List([Block(config, dtype=dtype, rngs=rngs) for _ in range(config.num_layers)])
        # Stands for masked frames in pre-training; nothing here reads it, but exported files must hold it.
        self.mask_embedding = make_param(jnp.zeros(dim), ("embed",), kind=FrozenParam)

    def __call__(
        self,
        samples: Num[Array | np.ndarray, "batch sample"],
        layer: int = 9,
        *,
        lengths: Int[Array | np.ndarray, " batch"] | None = None,
    ) -> Float[Array, "batch frame dim"]:
        """Returns the hidden states of one layer; the blocks above it don't run.

        Args:
            samples: 16 kHz; neither mean nor level is normalised here (see `HubertFeatures`). Memory grows with the
                square of the length.
            layer: 0 to `num_layers`.
            lengths: Samples of each row, at least `config.min_samples`, where rows are filled up at their end; a row's
                frames are then those it has alone, and the frames after `config.num_frames(length)` are undefined.
                None = all are full.

        Raises:
            InputError: There is no such layer, less than one frame of samples, or they are whole numbers or not finite.
        """
        self.check_layer(layer)
        given = check_samples(samples)
        _check_length(self.config, samples.shape[1])
        counts = np.full(len(samples), samples.shape[1]) if lengths is None else lengths
        return _encode(self, given, jnp.asarray(counts), layer)

    def check_layer(self, layer: int) -> None:
        """Raises an `InputError` unless hidden `layer` exists."""
        if not 0 <= layer <= self.config.num_layers:
            raise InputError(f"HuBERT has layers 0 to {self.config.num_layers}, not {layer}")


@dataclasses.dataclass(frozen=True)
class HubertFeatures:
    """One layer of HuBERT as a source of features for semantic units (`semantic.FeatureSource`).

    The large form was trained on clips of zero mean and unit variance, so it is given such.

    Raises:
        InputError: There is no such layer.
    """

    hubert: Hubert
    layer: int = 9

    def __post_init__(self) -> None:
        self.hubert.check_layer(self.layer)

    @property
    def name(self) -> str:
        """Stands in shards and checkpoints that were made with these features."""
        config = self.hubert.config
        return f"hubert-{config.num_layers}x{config.model_dim}-layer{self.layer}"

    def features(self, samples: Float[np.ndarray, " sample"]) -> Float[np.ndarray, "frame dim"]:
        """Returns features of 16 kHz samples at 50 Hz; `frame = hubert.config.num_frames(sample)`, 49 for one second.

        Raises:
            InputError: The clip is shorter than one frame (25 ms).
        """
        return self.features_of([samples], 1)[0]

    def features_of(
        self, clips: Sequence[Float[np.ndarray, " _"]], batch_size: int
    ) -> list[Float[np.ndarray, "_ dim"]]:
        """As `features`, of several clips, `batch_size` of one static shape at a time."""
        config, piece = self.hubert.config, PIECE_S * SAMPLE_RATE
        found: list[np.ndarray] = []
        for at in range(0, len(clips), batch_size):
            batch = clips[at : at + batch_size]
            lengths = np.full(batch_size, config.min_samples)
            lengths[: len(batch)] = [len(clip) for clip in batch]
            _check_length(config, int(lengths.min()))
            padded = np.zeros((batch_size, -(-int(lengths.max()) // piece) * piece), np.float32)
            for row, clip in zip(padded, batch, strict=False):
                row[: len(clip)] = _normed(clip) if config.norm_first else clip
            with jax.default_matmul_precision("highest"):
                hidden = np.asarray(self.hubert(padded, self.layer, lengths=lengths), np.float32)
            found += [row[: config.num_frames(len(clip))] for row, clip in zip(hidden, batch, strict=False)]
        return found


def _normed(samples: Float[np.ndarray, " sample"]) -> Float[np.ndarray, " sample"]:
    """A clip of mean 0 and variance 1, as the models with `norm_first` were trained on."""
    return (samples - samples.mean()) / np.sqrt(samples.var() + VARIANCE_FLOOR)


@functools.partial(jax.jit, static_argnames="layer")
def _encode(
    hubert: Hubert, samples: Float[Array, "batch sample"], lengths: Int[Array, " batch"], layer: int
) -> Float[Array, "batch frame dim"]:
    x = hubert.projection(hubert.channel_norm(hubert.front_end(samples, lengths)))
    valid = jnp.arange(x.shape[1]) < _count_frames(hubert.config, lengths)[:, None]
    x = jnp.where(valid[..., None], x, 0)  # the zeros that a shorter row alone would be padded with
    x = x + jax.nn.gelu(hubert.position(x), approximate=False)
    first = hubert.config.norm_first
    x = x if first else hubert.norm(x)
    mask = jnp.broadcast_to(valid[:, None], (*x.shape[:2], x.shape[1]))
    for block in hubert.blocks[:layer]:
        x = block(x, mask)
    return hubert.norm(x) if first and layer == hubert.config.num_layers else x


def _count_frames(config: HubertConfig, num_samples: Any) -> Any:
    """Frames of one count or an array of counts; 0 or less where there is none."""
    for kernel, stride in zip(config.conv_kernels, config.conv_strides, strict=True):
        num_samples = (num_samples - kernel) // stride + 1
    return num_samples


def _check_length(config: HubertConfig, num_samples: int) -> None:
    if num_samples < config.min_samples:
        raise InputError(
            f"{num_samples} samples are too short for HuBERT; give at least {config.min_samples} at 16 kHz"
        )


def _layer_norm(dim: int, config: HubertConfig, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(dim, epsilon=config.epsilon, use_fast_variance=False, dtype=dtype, rngs=rngs)


def _conv_norm(dim: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """In float32, whatever the type of the convolutions; its epsilon is not among the settings."""
    return nnx.LayerNorm(dim, epsilon=1e-5, use_fast_variance=False, dtype=jnp.float32, rngs=rngs)
