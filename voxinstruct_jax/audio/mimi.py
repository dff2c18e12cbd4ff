"""Mimi: a codec of 12.5 frames a second whose first codebook carries what is spoken, the others how it sounds."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Num

from voxinstruct_jax.audio.quantizer import check_codebooks, check_codes, decode_residual, encode_residual
from voxinstruct_jax.audio.seanet import SeanetConfig, SeanetDecoder, SeanetEncoder
from voxinstruct_jax.audio.waveform import check_samples
from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.layers.attention import attend
from voxinstruct_jax.layers.causal_convolution import CausalConv
from voxinstruct_jax.layers.dense import Dense
from voxinstruct_jax.layers.parameter import make_param, normal, uniform
from voxinstruct_jax.layers.rotary import rotary_tables, rotate

__all__ = ["Mimi", "MimiConfig", "MimiTransformerConfig"]

DOWNSAMPLE = 2
"""From the frames of the convolutions and transformers to those of the codes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MimiTransformerConfig:
    """Sizes of each of the two transformers, at 25 Hz."""

    num_layers: int = 8
    num_heads: int = 8
    num_kv_heads: int = 8
    head_dim: int = 64
    ffn_dim: int = 2048
    window: int = 250
    """A frame sees itself and the `window - 1` frames before it."""
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class MimiConfig:
    """Sizes of the codec; the defaults are those of kyutai/mimi, used with 8 of its 32 codebooks.

    Raises:
        ConfigError: `num_codebooks` is more than there are, or leaves the acoustic codebooks out.
    """

    seanet: SeanetConfig = SeanetConfig(
        num_filters=64,
        latent_dim=512,
        ratios=(8, 6, 5, 4),
        last_kernel_size=3,
        shortcut_conv=False,
        num_lstm_layers=0,
        pad_mode="constant",
    )
    transformer: MimiTransformerConfig = MimiTransformerConfig()
    sample_rate: int = 24_000
    codebook_dim: int = 256
    codebook_size: int = 2048
    num_semantic_codebooks: int = 1
    """These are searched apart from the others, in the same latents."""
    stack_size: int = 32
    """Codebooks in the weights, semantic ones included."""
    num_codebooks: int = 8
    """Leading codebooks that `encode` gives unless asked for another number."""

    def __post_init__(self) -> None:
        if not 1 <= self.num_semantic_codebooks < self.stack_size:
            raise ConfigError(f"num_semantic_codebooks {self.num_semantic_codebooks} must be below {self.stack_size}")
        if not self.num_semantic_codebooks <= self.num_codebooks <= self.stack_size:
            raise ConfigError(f"num_codebooks {self.num_codebooks} must be from the semantic ones to {self.stack_size}")

    @property
    def hop_length(self) -> int:
        """Samples a frame."""
        return self.seanet.hop_length * DOWNSAMPLE

    @property
    def frame_rate(self) -> float:
        """Frames a second, Hz."""
        return self.sample_rate / self.hop_length

    @classmethod
    def tiny(cls) -> "MimiConfig":
        """A codec for tests, of 48 samples a frame."""
        return cls(
            seanet=SeanetConfig(
                num_filters=4,
                latent_dim=16,
                ratios=(4, 3, 2),
                last_kernel_size=3,
                shortcut_conv=False,
                num_lstm_layers=0,
                pad_mode="constant",
            ),
            transformer=MimiTransformerConfig(
                num_layers=2, num_heads=2, num_kv_heads=2, head_dim=8, ffn_dim=32, window=8
            ),
            codebook_dim=8,
            codebook_size=32,
            stack_size=6,
            num_codebooks=4,
        )


class TransformerBlock(nnx.Module):
    """Pre-norm attention and feed-forward, each scaled by a learnt vector and added to its input."""

    def __init__(self, dim: int, config: MimiTransformerConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        heads, kv_heads = (config.num_heads, config.head_dim), (config.num_kv_heads, config.head_dim)
        options = {"init": normal(0.02), "dtype": dtype, "rngs": rngs}
        self.attention_norm = _norm(dim, config, rngs)
        self.query = Dense((dim,), heads, ("embed", "heads", None), **options)
        self.key = Dense((dim,), kv_heads, ("embed", "heads", None), **options)
        self.value = Dense((dim,), kv_heads, ("embed", "heads", None), **options)
        self.output = Dense(heads, (dim,), ("heads", None, "embed"), **options)
        self.attention_scale = make_param(jnp.full(dim, 0.01), ("embed",))
        self.ffn_norm = _norm(dim, config, rngs)
        self.expand = Dense((dim,), (config.ffn_dim,), ("embed", "mlp"), **options)
        self.project = Dense((config.ffn_dim,), (dim,), ("mlp", "embed"), **options)
        self.ffn_scale = make_param(jnp.full(dim, 0.01), ("embed",))

    def __call__(
        self,
        x: Float[Array, "batch time dim"],
        mask: Bool[Array, "batch time time"],
        cos: Float[Array, "batch time half"],
        sin: Float[Array, "batch time half"],
    ) -> Float[Array, "batch time dim"]:
        y = self.attention_norm(x)
        query, key = rotate(self.query(y), cos, sin), rotate(self.key(y), cos, sin)
        x = x + self.attention_scale[...] * self.output(attend(query, key, self.value(y), mask))
        y = jax.nn.gelu(self.expand(self.ffn_norm(x)), approximate=False)
        return x + self.ffn_scale[...] * self.project(y)


class Transformer(nnx.Module):
    """Blocks with rotary positions in which a frame sees a window of the past; no norm at the end."""

    def __init__(self, dim: int, config: MimiTransformerConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.config = config
        self.blocks = nnx.List(
            [TransformerBlock(dim, config, dtype=dtype, rngs=rngs) for _ in range(config.num_layers)]
        )

    def __call__(self, x: Float[Array, "batch time dim"]) -> Float[Array, "batch time dim"]:
        places = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        distance = places[:, :, None] - places[:, None, :]
        mask = (distance >= 0) & (distance < self.config.window)
        cos, sin = rotary_tables(places, self.config.head_dim, self.config.rope_theta)
        for block in self.blocks:
            x = block(x, mask, cos, sin)
        return x


class ProjectedQuantizer(nnx.Module):
    """A residual quantiser in a narrower space."""

    def __init__(self, num_codebooks: int, config: MimiConfig, *, rngs: nnx.Rngs) -> None:
        dim, inner = config.seanet.latent_dim, config.codebook_dim
        self.enter = make_param(uniform(dim**-0.5)(rngs.params(), (dim, inner)), ("embed", None))
        self.leave = make_param(uniform(inner**-0.5)(rngs.params(), (inner, dim)), (None, "embed"))
        entries = normal(1.0)(rngs.params(), (num_codebooks, config.codebook_size, inner))
        self.entries = make_param(entries, (None, "vocab", None))

    def encode(
        self, latents: Float[Array, "batch frame latent"], num_codebooks: int
    ) -> Int[Array, "batch codebook frame"]:
        """Returns codes of the leading codebooks."""
        inner = jnp.matmul(latents, self.enter[...], precision=jax.lax.Precision.HIGHEST)
        return encode_residual(inner, self.entries[...][:num_codebooks])

    def decode(self, codes: Int[Array, "batch codebook frame"]) -> Float[Array, "batch frame latent"]:
        """Returns latents."""
        return decode_residual(codes, self.entries[...]) @ self.leave[...]


class Mimi(nnx.Module):
    """Encodes speech to codes and back, causally; whole clips at once.

    Attention costs time and memory by the square of the length: minutes are fine, an hour is not.

    Source:
        Moshi (Défossez et al. 2024), section 3.3, in the form of transformers' `MimiModel`; its weights are read by
        `interop.mimi`. The attention window is that of the paper and the original program (10 s).
    """

    def __init__(self, config: MimiConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs) -> None:
        """Makes the weights; `dtype` is that of convolutions and matrix products, codes are found in float32."""
        self.config, self.dtype = config, dtype
        dim, acoustic = config.seanet.latent_dim, config.stack_size - config.num_semantic_codebooks
        self.encoder = SeanetEncoder(config.seanet, dtype=dtype, rngs=rngs)
        self.encoder_transformer = Transformer(dim, config.transformer, dtype=dtype, rngs=rngs)
        self.downsample = CausalConv(
            dim,
            dim,
            2 * DOWNSAMPLE,
            stride=DOWNSAMPLE,
            pad_mode="edge",
            use_bias=False,
            dtype=dtype,
            rngs=rngs,
        )
        self.semantic = ProjectedQuantizer(config.num_semantic_codebooks, config, rngs=rngs)
        self.acoustic = ProjectedQuantizer(acoustic, config, rngs=rngs)
        self.upsample = make_param(uniform(0.5)(rngs.params(), (2, DOWNSAMPLE, dim)), (None, None, "embed"))
        """Taps of a transposed convolution, one filter a channel: those of the frame before, then the frame's own."""
        self.decoder_transformer = Transformer(dim, config.transformer, dtype=dtype, rngs=rngs)
        self.decoder = SeanetDecoder(config.seanet, dtype=dtype, rngs=rngs)

    def encode(
        self, samples: Num[Array | np.ndarray, "batch sample"], num_codebooks: int | None = None
    ) -> Int[Array, "batch codebook frame"]:
        """Returns codes, semantic ones first; `frame = ceil(sample / hop_length)`.

        Args:
            samples: At `config.sample_rate`, at least one.
            num_codebooks: Leading codebooks, at least the semantic ones; by default `config.num_codebooks`.

        Raises:
            InputError: There are not as many codebooks, or the samples are none, whole numbers or not finite.
        """
        count = check_codebooks(num_codebooks or self.config.num_codebooks, self.config.stack_size)
        return _encode(self, check_samples(samples), count)

    def decode(self, codes: Int[Array | np.ndarray, "batch codebook frame"]) -> Float[Array, "batch sample"]:
        """Returns the waveform; `sample = frame * hop_length`. Leading codebooks alone give a coarser sound.

        Raises:
            InputError: There are not as many codebooks or entries, or no frames.
        """
        return _decode(self, check_codes(codes, self.config.stack_size, self.config.codebook_size))

    def latents(self, samples: Float[Array, "batch sample"]) -> Float[Array, "batch frame latent"]:
        """Encodes up to the quantisers."""
        frames = self.encoder_transformer(self.encoder(samples).astype(jnp.float32))
        return self.downsample(frames).astype(jnp.float32)

    def waveform(self, latents: Float[Array, "batch frame latent"]) -> Float[Array, "batch sample"]:
        """Decodes latents, quantised or not."""
        before = jnp.pad(latents[:, :-1], ((0, 0), (1, 0), (0, 0)))
        taps = self.upsample[...]
        batch, frames, dim = latents.shape
        raised = before[:, :, None] * taps[0] + latents[:, :, None] * taps[1]
        return self.decoder(self.decoder_transformer(raised.reshape(batch, frames * DOWNSAMPLE, dim)))


@functools.partial(jax.jit, static_argnums=2)
def _encode(codec: Mimi, samples: Array, num_codebooks: int) -> Array:
    latents, semantic = codec.latents(samples), codec.config.num_semantic_codebooks
    codes = codec.semantic.encode(latents, min(num_codebooks, semantic))
    if num_codebooks <= semantic:
        return codes
    return jnp.concatenate([codes, codec.acoustic.encode(latents, num_codebooks - semantic)], axis=1)


@jax.jit
def _decode(codec: Mimi, codes: Array) -> Array:
    semantic = codec.config.num_semantic_codebooks
    latents = codec.semantic.decode(codes[:, :semantic])
    if codes.shape[1] > semantic:
        latents = latents + codec.acoustic.decode(codes[:, semantic:])
    return codec.waveform(latents)


def _norm(dim: int, config: MimiTransformerConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(dim, epsilon=config.norm_epsilon, use_fast_variance=False, rngs=rngs)
