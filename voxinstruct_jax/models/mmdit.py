"""Multimodal diffusion transformers: UNISON's DeepFusion and InstructAudio's joint and single blocks, one code.

An audio stream of latent frames and a text stream meet in joint attention. UNISON makes its text stream anew in each
block, from the layer of a text encoder as deep as the block; InstructAudio carries one stream of instruction and phones
along, then drops it. What UNISON's ablations compare it with are settings of the same. The network knows of no path,
guidance or solver. Read `MMDiTConfig`, then `MMDiT`.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Num

from voxinstruct_jax.config import ConfigError, InputError
from voxinstruct_jax.layers.attention import attend
from voxinstruct_jax.layers.convolution import Conv
from voxinstruct_jax.layers.dense import Affine
from voxinstruct_jax.layers.execution import Execution, keep, run_blocks
from voxinstruct_jax.layers.norms import RMSNorm, modulate
from voxinstruct_jax.layers.packed_attention import Visibility, attend_packed, resolve_backend
from voxinstruct_jax.layers.parameter import normal, xavier, zeros
from voxinstruct_jax.layers.rotary import rotary_tables, rotate
from voxinstruct_jax.layers.timestep import timestep_embedding
from voxinstruct_jax.models.conditions import Conditions
from voxinstruct_jax.models.phone_encoder import PhoneEncoder, PhoneEncoderConfig
from voxinstruct_jax.sharding.mesh import constrain
from voxinstruct_jax.text.encoder import TextEncoder, TextEncoderConfig

__all__ = ["MMDiT", "MMDiTConfig", "layer_map"]

Rotary = tuple[Float[Array, "batch time half"], Float[Array, "batch time half"]]
TextRotary = tuple[Float[Array, "batch token half"], Float[Array, "batch token half"]]
TextStream = Literal["fresh", "persistent", "both", "shared"]

FFN_RATIO = 4
SINUSOIDS = 256
HIDDEN_MULTIPLE = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class MMDiTConfig:
    """Sizes of the network, and which of the two it is.

    Raises:
        ConfigError: A size is out of range, or the parts do not fit one another.
    """

    latent_channels: int
    output_channels: int = 0
    """Of what comes out; 0 = as many as go in."""
    source: bool = False
    """Whether the network also reads a source's latents and a task tag: X = [z_t | z_s | m]."""
    model_dim: int = 1024
    num_heads: int = 8
    joint_blocks: int = 20
    single_blocks: int = 0
    text_stream: TextStream = "fresh"
    """`fresh`: made in each block from a layer of the text encoder, not carried on (UNISON). `persistent`: one stream,
    with its own feed-forward, up to the last joint block (InstructAudio). `both`: the one beside the other. `shared`:
    as `fresh`, but text and frames go through the same weights."""
    text_layer: Literal["last", "penultimate"] = "last"
    """Of the text encoder, that a stream which is carried on begins with."""
    kernel_size: int = 1
    """Of feed-forward and attention output in the audio stream."""
    text_kernel_size: int = 1
    """Of the same in a persistent text stream."""
    embedder: Literal["conv_swiglu", "conv_gelu", "lite"] = "conv_swiglu"
    embedder_kernel_size: int = 7
    head_kernel_size: int = 1
    rotary_dims: int = 96
    """Of a head's dimensions those that are rotated by the frame index."""
    deep_time: bool = False
    """Whether the time goes through an MLP of its own for either stream (InstructAudio)."""
    text_dim: int = 3584
    """Width of the text encoder's states."""
    text_encoder: TextEncoderConfig | None = None
    """Run in the step, and trained with the network unless it has adapters; None = its states come in the batch."""
    phones: PhoneEncoderConfig | None = None
    """Encoder of what is spoken; its output follows the instruction in the text stream."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation; norms, modulation, softmax and the output are float32 always."""

    def __post_init__(self) -> None:
        sizes = ("latent_channels", "model_dim", "num_heads", "joint_blocks", "text_dim")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name}: {getattr(self, name)} must be at least 1")
        for name in ("kernel_size", "text_kernel_size", "embedder_kernel_size", "head_kernel_size"):
            if getattr(self, name) % 2 != 1:
                raise ConfigError(f"model.{name}: {getattr(self, name)} must be odd")
        if self.model_dim % self.num_heads or min(self.single_blocks, self.output_channels) < 0:
            raise ConfigError(
                f"model: model_dim {self.model_dim} must be a multiple of num_heads {self.num_heads}, "
                f"single_blocks {self.single_blocks} and output_channels {self.output_channels} at least 0"
            )
        if self.rotary_dims % 2 or not 0 <= self.rotary_dims <= self.head_dim:
            raise ConfigError(f"model.rotary_dims: {self.rotary_dims} must be even and at most {self.head_dim}")
        if self.text_encoder is not None and self.text_encoder.model_dim != self.text_dim:
            raise ConfigError(
                f"model.text_dim: {self.text_dim} must be the text encoder's model_dim {self.text_encoder.model_dim}"
            )
        if self.phones is not None and self.text_stream != "persistent":
            raise ConfigError(
                f"model.phones: text_stream {self.text_stream!r} has no place for phones; make it 'persistent'"
            )
        if self.text_stream == "shared" and self.kernel_size > 1:
            raise ConfigError(
                f"model.kernel_size: {self.kernel_size} must be 1 where text goes through the same weights"
            )

    @property
    def head_dim(self) -> int:
        """Dimensions a head."""
        return self.model_dim // self.num_heads

    @property
    def carries_text(self) -> bool:
        """Whether a text stream goes from block to block."""
        return self.text_stream in ("persistent", "both")

    @property
    def text_layers(self) -> int:
        """Layers of the text encoder that the network reads: that of a stream carried on, then those of the blocks."""
        return self.carries_text + (self.text_stream != "persistent") * self.joint_blocks

    @classmethod
    def unison(cls, *, joint_blocks: int, latent_channels: int, text_stream: TextStream = "fresh") -> "MMDiTConfig":
        """UNISON D20 (20 blocks, 40 channels: 620.78M weights) and D24 (24, 20: 731.71M).

        Of its ablations D24-L is `persistent`, D24-OL `both`, and S32-O `shared` with 32 blocks (685.44M). The former
        two have 13.64M weights less than published: the last block's text, which nothing reads, ends at its keys and
        values.
        """
        return cls(
            latent_channels=latent_channels,
            source=True,
            joint_blocks=joint_blocks,
            text_stream=text_stream,
            text_layer="penultimate" if text_stream in ("persistent", "both") else "last",
        )

    @classmethod
    def instructaudio(cls) -> "MMDiTConfig":
        """InstructAudio at paper size; its Zipformer is replaced by a plain conformer, which has 2.6M weights less."""
        return cls(
            latent_channels=40,
            num_heads=16,
            joint_blocks=14,
            single_blocks=6,
            text_stream="persistent",
            kernel_size=3,
            text_kernel_size=3,
            embedder="conv_gelu",
            head_kernel_size=7,
            rotary_dims=64,
            deep_time=True,
            phones=PhoneEncoderConfig.paper(),
        )

    @classmethod
    def unison_tiny(cls, latent_channels: int, channel_sizes: tuple[int, ...]) -> "MMDiTConfig":
        """Some .8M weights besides the text encoder; trains on a CPU in a minute."""
        encoder = dataclasses.replace(
            TextEncoderConfig.tiny(channel_sizes), model_dim=64, head_dim=16, ffn_dim=128, num_layers=4, dropout=0.0
        )
        return cls(
            latent_channels=latent_channels,
            source=True,
            model_dim=96,
            num_heads=4,
            joint_blocks=4,
            embedder="lite",
            rotary_dims=18,
            text_dim=64,
            text_encoder=encoder,
        )

    @classmethod
    def instructaudio_tiny(cls, latent_channels: int, channel_sizes: tuple[int, ...], num_phones: int) -> "MMDiTConfig":
        """Some 1M weights; trains on a CPU in a minute."""
        encoder = dataclasses.replace(
            TextEncoderConfig.tiny(channel_sizes), model_dim=64, head_dim=16, ffn_dim=128, dropout=0.0
        )
        return cls(
            latent_channels=latent_channels,
            model_dim=64,
            num_heads=4,
            joint_blocks=2,
            single_blocks=1,
            text_stream="persistent",
            kernel_size=3,
            text_kernel_size=3,
            embedder="conv_gelu",
            embedder_kernel_size=3,
            head_kernel_size=7,
            rotary_dims=16,
            deep_time=True,
            text_dim=64,
            text_encoder=encoder,
            phones=PhoneEncoderConfig(num_phones=num_phones, model_dim=64, num_layers=2, num_heads=4, ffn_dim=128),
        )

    @classmethod
    def told_frame_by_frame(cls, latent_channels: int, channel_sizes: tuple[int, ...]) -> "MMDiTConfig":
        """Some 3M weights, one joint block with the instruction: what is said comes in the source, frame by frame."""
        encoder = dataclasses.replace(
            TextEncoderConfig.tiny(channel_sizes), model_dim=64, head_dim=16, ffn_dim=128, dropout=0.0
        )
        return cls(
            latent_channels=latent_channels,
            source=True,
            model_dim=128,
            num_heads=4,
            joint_blocks=1,
            single_blocks=3,
            text_stream="persistent",
            kernel_size=3,
            embedder="conv_gelu",
            embedder_kernel_size=3,
            rotary_dims=32,
            text_dim=64,
            text_encoder=encoder,
        )


def layer_map(num_layers: int, num_blocks: int) -> tuple[int, ...]:
    """Hidden state of a text encoder of `num_layers` that each block reads: 1 = after the first, L = after the last.

    Source:
        UNISON, section 3.4: i_k = floor(1 + k (L - 1) / (D - 1)), here in integers; floating point misses some.
    """
    if num_blocks == 1:
        return (num_layers,)
    return tuple((num_layers - 1) * block // (num_blocks - 1) + 1 for block in range(num_blocks))


@dataclasses.dataclass(frozen=True)
class _Context:
    """What all blocks of a call read."""

    audio_time: Float[Array, "batch dim"]
    text_time: Float[Array, "batch dim"]
    rotary: Rotary
    """Of the frames."""
    text_rotary: TextRotary | None
    frame_mask: Bool[Array, "batch time"]
    text_mask: Bool[Array, "batch token"]
    seam: int
    """Token at which the phones begin: a convolution does not reach across."""


class _Stream(nnx.Module):
    """One modality's share of a block: modulation, queries, keys and values; output and feed-forward if carried on."""

    def __init__(
        self, config: MMDiTConfig, kernel_size: int, *, full: bool, execution: Execution, rngs: nnx.Rngs
    ) -> None:
        dim, heads = config.model_dim, (config.num_heads, config.head_dim)
        options: dict[str, Any] = {"init": xavier, "dtype": config.dtype, "rngs": rngs}
        parts = 6 if full else 2
        self.modulation = Affine((dim,), (parts, dim), ("embed", None, None), init=zeros, rngs=rngs)
        self.query, self.key, self.value = (
            Affine((dim,), heads, ("embed", "heads", None), init=_flat_xavier, dtype=config.dtype, rngs=rngs)
            for _ in range(3)
        )
        self.query_norm, self.key_norm = RMSNorm(config.head_dim), RMSNorm(config.head_dim)
        self.full, self.rotary_dims = full, config.rotary_dims
        if full:
            self.output = Conv((kernel_size, dim, dim), ("heads", "embed"), **options)
            self.up = Conv((kernel_size, dim, FFN_RATIO * dim), ("embed", "mlp"), **options)
            self.down = Conv((kernel_size, FFN_RATIO * dim, dim), ("mlp", "embed"), **options)

    def modulations(self, time: Float[Array, "batch dim"]) -> Float[Array, "batch part dim"]:
        """Shift, scale and gate of attention, then of the feed-forward; float32."""
        return self.modulation(jax.nn.silu(time))

    def project(
        self, x: Float[Array, "batch time dim"], parts: Float[Array, "batch part dim"], rotary: Rotary | None
    ) -> tuple[Array, Array, Array]:
        """Queries, keys, values; norms first, rotation after."""
        y = modulate(x, parts[:, 0], parts[:, 1])
        query, key, value = (
            constrain(part(y), "batch", None, "heads", None) for part in (self.query, self.key, self.value)
        )
        query, key = self.query_norm(query), self.key_norm(key)
        if rotary is not None:
            query, key = (_rotate_first(part, rotary, self.rotary_dims) for part in (query, key))
        return query, key, value

    def finish(
        self,
        x: Float[Array, "batch time dim"],
        attended: Float[Array, "batch time heads head_dim"],
        parts: Float[Array, "batch part dim"],
        mask: Bool[Array, "batch time"],
        seam: int = 0,
    ) -> Float[Array, "batch time dim"]:
        """Adds what attention and feed-forward say, each through its gate."""
        attended = attended.reshape(x.shape)
        y = keep(_masked(self.output, attended, mask, seam), "attention")
        x = constrain(x + _gated(parts[:, 2], y), "batch", None, None)
        y = modulate(x, parts[:, 3], parts[:, 4])
        y = jax.nn.gelu(_masked(self.up, y, mask, seam), approximate=True)
        y = keep(_masked(self.down, constrain(y, "batch", None, "mlp"), mask, seam), "ffn")
        return constrain(x + _gated(parts[:, 5], y), "batch", None, None)


def _text_projection(config: MMDiTConfig, rngs: nnx.Rngs) -> Affine:
    return Affine((config.text_dim,), (config.model_dim,), (None, "embed"), init=xavier, dtype=config.dtype, rngs=rngs)


class _JointBlock(nnx.Module):
    """Audio and text attend to both. Text is carried on behind the frames, given anew, or both."""

    def __init__(self, config: MMDiTConfig, *, last: bool, execution: Execution, rngs: nnx.Rngs) -> None:
        options: dict[str, Any] = {"execution": execution, "rngs": rngs}
        self.audio = _Stream(config, config.kernel_size, full=True, **options)
        self.text = _Stream(config, config.text_kernel_size, full=config.carries_text and not last, **options)
        self.execution = execution
        if config.text_stream != "persistent":
            self.projection = _text_projection(config, rngs)

    def __call__(
        self, x: Float[Array, "batch time dim"], given: Float[Array, "batch token text_dim"] | None, context: _Context
    ) -> Float[Array, "batch time dim"]:
        """Runs the block.

        Args:
            x: The frames; behind them the tokens of a text stream that is carried on.
            given: The text encoder's states, for the tokens that are made anew.
            context: What all blocks read.
        """
        frames = context.frame_mask.shape[1]
        audio, text = x[:, :frames], x[:, frames:]
        carried = text.shape[1]
        if given is not None:
            text = jnp.concatenate([text, self.projection(given)], axis=1)
        parts, text_parts = self.audio.modulations(context.audio_time), self.text.modulations(context.text_time)
        own = self.audio.project(audio, parts, context.rotary)
        other = self.text.project(text, text_parts, context.text_rotary)
        joined = [jnp.concatenate(pair, axis=1) for pair in zip(own, other, strict=True)]
        mask = jnp.concatenate([context.frame_mask, context.text_mask], axis=1)
        wanted = frames + carried if self.text.full else frames
        attended = _attend(joined, mask, wanted, self.execution)
        audio = self.audio.finish(audio, attended[:, :frames], parts, context.frame_mask)
        if not carried:
            return audio
        text = text[:, :carried]
        if self.text.full:
            text_mask = context.text_mask[:, :carried]
            text = self.text.finish(text, attended[:, frames:], text_parts, text_mask, context.seam)
        return jnp.concatenate([audio, text], axis=1)


class _SharedBlock(nnx.Module):
    """Text, made anew, and frames through the same weights; attention and feed-forward side by side.

    Source:
        UNISON, section 4.4 (S32-O), whose single-stream blocks are those of FLUX.
    """

    def __init__(self, config: MMDiTConfig, *, execution: Execution, rngs: nnx.Rngs) -> None:
        dim, options = config.model_dim, {"init": xavier, "dtype": config.dtype, "rngs": rngs}
        self.execution = execution
        self.projection = _text_projection(config, rngs)
        self.stream = _Stream(config, 1, full=False, execution=execution, rngs=rngs)
        self.gate = Affine((dim,), (dim,), ("embed", None), init=zeros, rngs=rngs)
        self.up = Conv((1, dim, FFN_RATIO * dim), ("embed", "mlp"), **options)
        self.down = Conv((1, (1 + FFN_RATIO) * dim, dim), ("mlp", "embed"), **options)

    def __call__(
        self, x: Float[Array, "batch time dim"], given: Float[Array, "batch token text_dim"], context: _Context
    ) -> Float[Array, "batch time dim"]:
        parts = self.stream.modulations(context.audio_time)
        own = self.stream.project(x, parts, context.rotary)
        other = self.stream.project(self.projection(given), parts, None)
        joined = [jnp.concatenate(pair, axis=1) for pair in zip(own, other, strict=True)]
        mask = jnp.concatenate([context.frame_mask, context.text_mask], axis=1)
        attended = _attend(joined, mask, x.shape[1], self.execution).reshape(x.shape)
        inner = jax.nn.gelu(self.up(modulate(x, parts[:, 0], parts[:, 1])), approximate=True)
        y = keep(self.down(jnp.concatenate([attended, inner], axis=-1)), "ffn")
        return constrain(x + _gated(self.gate(jax.nn.silu(context.audio_time)), y), "batch", None, None)


class _SingleBlock(nnx.Module):
    """The audio stream alone."""

    def __init__(self, config: MMDiTConfig, *, execution: Execution, rngs: nnx.Rngs) -> None:
        self.audio = _Stream(config, config.kernel_size, full=True, execution=execution, rngs=rngs)
        self.execution = execution

    def __call__(self, x: Float[Array, "batch time dim"], context: _Context) -> Float[Array, "batch time dim"]:
        parts = self.audio.modulations(context.audio_time)
        projected = self.audio.project(x, parts, context.rotary)
        attended = _attend(list(projected), context.frame_mask, x.shape[1], self.execution)
        return self.audio.finish(x, attended, parts, context.frame_mask)


class _Embedder(nnx.Module):
    """Latent channels to tokens; what is read of a source and its tag starts at nothing.

    Source:
        UNISON, section 3.4 (zero weights of z_s and m).
    """

    def __init__(self, config: MMDiTConfig, *, rngs: nnx.Rngs) -> None:
        channels = config.latent_channels
        dim, kernel = config.model_dim, config.embedder_kernel_size
        options: dict[str, Any] = {"dtype": config.dtype, "rngs": rngs}
        inputs = 2 * channels + 1 if config.source else channels

        def target_only(key: jax.Array, shape: tuple[int, ...]) -> Array:
            return (
                xavier(key, (shape[0], channels, shape[2]))
                if inputs == channels
                else jnp.pad(xavier(key, (shape[0], channels, shape[2])), ((0, 0), (0, inputs - channels), (0, 0)))
            )

        self.kind = config.embedder
        size = 3 if self.kind == "lite" else kernel
        self.first = Conv((size, inputs, dim), (None, "embed"), init=target_only, **options)
        options["init"] = xavier
        if self.kind == "lite":
            self.second = Conv((1, dim, dim), ("embed", None), **options)
        elif self.kind == "conv_gelu":
            self.up = Conv((kernel, dim, FFN_RATIO * dim), ("embed", "mlp"), **options)
            self.down = Conv((kernel, FFN_RATIO * dim, dim), ("mlp", "embed"), **options)
        else:
            hidden = -(-(2 * FFN_RATIO * dim // 3) // HIDDEN_MULTIPLE) * HIDDEN_MULTIPLE
            self.gate = Conv((kernel, dim, hidden), ("embed", "mlp"), bias=False, **options)
            self.up = Conv((kernel, dim, hidden), ("embed", "mlp"), bias=False, **options)
            self.down = Conv((kernel, hidden, dim), ("mlp", "embed"), bias=False, **options)

    def __call__(
        self, x: Float[Array, "batch time inputs"], mask: Bool[Array, "batch time"]
    ) -> Float[Array, "batch time dim"]:
        y = _masked(self.first, x, mask)
        if self.kind == "lite":
            return _masked(self.second, jax.nn.silu(y), mask)
        if self.kind == "conv_gelu":
            y = jax.nn.gelu(_masked(self.up, jax.nn.selu(y), mask), approximate=True)
            return _masked(self.down, y, mask)
        y = jax.nn.silu(y)
        inner = jax.nn.silu(_masked(self.gate, y, mask)) * _masked(self.up, y, mask)
        return _masked(self.down, inner, mask)


class _Time(nnx.Module):
    """The time as a vector for the modulation of either stream."""

    def __init__(self, config: MMDiTConfig, *, rngs: nnx.Rngs) -> None:
        dim, deep = config.model_dim, config.deep_time
        self.sinusoids, self.deep = (dim if deep else SINUSOIDS), deep
        options: dict[str, Any] = {"init": normal(0.02), "rngs": rngs}
        self.first = Affine((self.sinusoids,), (2 * dim if deep else dim,), (None, "mlp"), **options)
        self.second = Affine((2 * dim if deep else dim,), (dim,), ("mlp", None), **options)
        if deep:
            self.streams = nnx.List([_mlp(dim, options) for _ in range(2)])

    def __call__(self, t: Float[Array, " batch"]) -> tuple[Float[Array, "batch dim"], Float[Array, "batch dim"]]:
        """Returns the vectors of the audio stream, and of text and head."""
        x = timestep_embedding(t, self.sinusoids)
        if not self.deep:
            time = self.second(jax.nn.silu(self.first(x)))
            return time, time
        time = self.second(jax.nn.gelu(self.first(x), approximate=True))
        audio, text = (down(jax.nn.gelu(up(time), approximate=True)) for up, down in self.streams)
        return audio, text


class MMDiT(nnx.Module):
    """The network: noisy latents, a time and conditions to a prediction of the latents' shape, or of other channels.

    Source:
        UNISON (arXiv 2605.31530), section 3.4; InstructAudio (arXiv 2511.18487), section 2.4; both after Esser et al.
        2024 (Stable Diffusion 3). What they leave open is listed in docs/decisions/0016-diffusion.md.
    """

    def __init__(self, config: MMDiTConfig, *, execution: Execution = Execution(), rngs: nnx.Rngs) -> None:
        self.config, self.execution = config, execution
        dim, options = config.model_dim, {"execution": execution, "rngs": rngs}
        if config.text_encoder is not None:
            self.text_encoder = TextEncoder(config.text_encoder, dtype=config.dtype, **options)
        if config.carries_text:
            self.text_projection = _text_projection(config, rngs)
        if config.phones is not None:
            self.phone_encoder = PhoneEncoder(config.phones, dim, dtype=config.dtype, rngs=rngs)
        self.embedder = _Embedder(config, rngs=rngs)
        self.time = _Time(config, rngs=rngs)
        last = config.joint_blocks - 1
        self.joint_blocks = nnx.List(
            [
                _SharedBlock(config, **options)
                if config.text_stream == "shared"
                else _JointBlock(config, last=k == last, **options)
                for k in range(last + 1)
            ]
        )
        self.single_blocks = nnx.List([_SingleBlock(config, **options) for _ in range(config.single_blocks)])
        self.head_modulation = Affine((dim,), (2, dim), ("embed", None, None), init=zeros, rngs=rngs)
        outputs = config.output_channels or config.latent_channels
        self.head = Conv((config.head_kernel_size, dim, outputs), ("embed", None), init=zeros, rngs=rngs)

    def encode_text(
        self,
        tokens: Int[Array, "batch token channel"],
        mask: Bool[Array, "batch token"],
        *,
        key: jax.Array | None = None,
    ) -> Float[Array, "batch layer token text_dim"]:
        """Runs the text encoder; returns the layers that the network reads.

        Args:
            tokens: Ids.
            mask: True = a real token.
            key: Of dropout; None = no dropout.

        Raises:
            InputError: The network has no encoder: it takes the states of one that was run apart.
        """
        if self.config.text_encoder is None:
            raise InputError("this network has no text encoder of its own; give the states of one (`Conditions.text`)")
        embedded = self.text_encoder.embedding(tokens)
        seen = mask[:, :, None] & mask[:, None]
        if self.config.text_stream == "persistent" and self.config.text_layer == "last":
            return self.text_encoder.encode(embedded, seen, key=key)[:, None]
        inputs: list[Array] = []
        final = self.text_encoder.encode(embedded, seen, key=key, observed=inputs)
        states = [*inputs, final]  # the input of block k + 1 is the output of block k
        chosen = [-2 if self.config.text_layer == "penultimate" else -1] if self.config.carries_text else []
        if self.config.text_stream != "persistent":
            chosen += layer_map(self.config.text_encoder.num_layers, self.config.joint_blocks)
        return jnp.stack([states[layer] for layer in chosen], axis=1)

    def __call__(
        self,
        x: Float[Array, "batch time channel"],
        t: Float[Array, " batch"],
        conditions: Conditions,
        frame_mask: Bool[Array, "batch time"],
    ) -> Float[Array, "batch time output"]:
        """Predicts; undefined at padding.

        Args:
            x: Noisy latents.
            t: What the sinusoids read, as `Path.time_input` gives it.
            conditions: Text of `MMDiTConfig.text_layers`; phones and source where the network reads them.
            frame_mask: True = a real frame.
        """
        config = self.config
        audio_time, text_time = self.time(t)
        y = self.embedder(self._inputs(x, conditions), frame_mask)
        text, given, text_mask, seam = self._text(conditions, x.shape[0])
        context = _Context(
            audio_time=audio_time,
            text_time=text_time,
            rotary=self._rotary(jnp.broadcast_to(jnp.arange(x.shape[1]), frame_mask.shape)),
            text_rotary=self._text_rotary(conditions, frame_mask, seam),
            frame_mask=frame_mask,
            text_mask=text_mask,
            seam=seam,
        )
        y = self._run_joint(y, text, given, context)

        def single(block: Any, y: Array, _: jax.Array | None) -> Array:
            return block(y, context)

        if config.single_blocks:
            nothing = [None] * config.single_blocks
            y = run_blocks(self.single_blocks, y, nothing, single, self.execution, dtype=config.dtype)
        parts = self.head_modulation(jax.nn.silu(text_time))
        y = modulate(y.astype(jnp.float32), parts[:, 0], parts[:, 1])
        return _masked(self.head, y, frame_mask)

    def _run_joint(
        self,
        y: Float[Array, "batch time dim"],
        text: Float[Array, "batch carried dim"] | None,
        given: list[Float[Array, "batch token text_dim"]] | list[None],
        context: _Context,
    ) -> Float[Array, "batch time dim"]:
        config, frames = self.config, y.shape[1]

        def joint(block: Any, y: Array, given: jax.Array | None) -> Array:
            return block(y, given, context)

        if text is None:
            return run_blocks(self.joint_blocks, y, given, joint, self.execution, dtype=config.dtype)
        y = jnp.concatenate([y, text], axis=1)
        if config.joint_blocks > 1:
            y = run_blocks(self.joint_blocks[:-1], y, given[:-1], joint, self.execution, dtype=config.dtype)
        return joint(self.joint_blocks[-1], y, given[-1])[:, :frames]

    def _inputs(
        self, x: Float[Array, "batch time channel"], conditions: Conditions
    ) -> Float[Array, "batch time inputs"]:
        if not self.config.source:
            return x
        source = jnp.zeros_like(x) if conditions.source is None else conditions.source
        tag = jnp.zeros(x.shape[:2], x.dtype) if conditions.task_tag is None else conditions.task_tag
        return jnp.concatenate([x, source, tag[..., None]], axis=-1)

    def _text(self, conditions: Conditions, batch: int) -> tuple[Array | None, list[Array] | list[None], Array, int]:
        """Text to carry on, states that each block is given, who of both may be seen, and where the phones begin."""
        config, text, mask = self.config, conditions.text, conditions.text_mask
        if text is None or mask is None:
            text = jnp.zeros((batch, config.text_layers, 1, config.text_dim), config.dtype)
            mask = jnp.zeros((batch, 1), bool)
        if text.shape[1] != config.text_layers:
            raise InputError(f"{text.shape[1]} layers of text states; this network reads {config.text_layers}")
        given = [text[:, k] for k in range(config.carries_text, config.text_layers)]
        if not config.carries_text:
            return None, given, mask, 0
        tokens, seam = self.text_projection(text[:, 0]), text.shape[2]
        if given:
            return tokens, given, jnp.concatenate([mask, mask], axis=1), seam
        if config.phones is not None and conditions.content is not None and conditions.content_mask is not None:
            phones = self.phone_encoder(conditions.content, conditions.content_mask)
            tokens = jnp.concatenate([tokens, phones], axis=1)
            mask = jnp.concatenate([mask, conditions.content_mask], axis=1)
        return tokens, [None] * config.joint_blocks, mask, seam

    def _rotary(self, positions: Num[Array, "batch time"]) -> Rotary:
        return rotary_tables(positions, self.config.rotary_dims, 10000.0)

    def _text_rotary(
        self, conditions: Conditions, frame_mask: Bool[Array, "batch time"], seam: int
    ) -> TextRotary | None:
        """Phones are spread over the frames; the instruction is not turned at all, which is position 0."""
        if self.config.phones is None:  # nothing of it is turned
            return None
        positions = jnp.zeros((frame_mask.shape[0], seam))
        if conditions.content is not None:
            # Of the ids, not of the mask: a dropped content keeps its places.
            count = jnp.maximum((conditions.content > 0).sum(1, keepdims=True), 1)
            spread = jnp.arange(conditions.content.shape[1]) * frame_mask.sum(1, keepdims=True) / count
            positions = jnp.concatenate([positions, spread], axis=1)
        return self._rotary(positions)


def _mlp(dim: int, options: dict[str, Any]) -> nnx.List:
    return nnx.List([
        Affine((dim,), (FFN_RATIO * dim,), (None, "mlp"), **options),
        Affine((FFN_RATIO * dim,), (dim,), ("mlp", None), **options),
    ])  # fmt: skip


def _flat_xavier(key: jax.Array, shape: tuple[int, ...]) -> Array:
    """Of a map to heads: their axes count as one."""
    return xavier(key, (shape[0], shape[1] * shape[2])).reshape(shape)


def _gated(gate: Float[Array, "batch dim"], y: Float[Array, "batch time dim"]) -> Float[Array, "batch time dim"]:
    return (gate[:, None] * y).astype(y.dtype)


def _masked(
    layer: Conv, x: Float[Array, "batch time inputs"], mask: Bool[Array, "batch time"], seam: int = 0
) -> Float[Array, "batch time outputs"]:
    """Applies a convolution that sees zeros at padding, and not across the seam."""
    if len(layer.kernel[...]) == 1:
        return layer(x)
    x = jnp.where(mask[..., None], x, 0)
    if not 0 < seam < x.shape[1]:
        return layer(x)
    return jnp.concatenate([layer(x[:, :seam]), layer(x[:, seam:])], axis=1)


def _rotate_first(
    x: Float[Array, "batch time heads head_dim"], rotary: Rotary, dims: int
) -> Float[Array, "batch time heads head_dim"]:
    if dims == x.shape[-1]:
        return rotate(x, *rotary)
    return jnp.concatenate([rotate(x[..., :dims], *rotary), x[..., dims:]], axis=-1)


def _attend(
    joined: list[Float[Array, "batch time heads head_dim"]],
    mask: Bool[Array, "batch time"],
    wanted: int,
    execution: Execution,
) -> Float[Array, "batch wanted heads head_dim"]:
    """Full attention among what is real; only the first `wanted` queries are answered."""
    query, key, value = joined
    backend = resolve_backend(execution.attention, 0.0)
    if backend == "reference":
        seen = jnp.broadcast_to(mask[:, None], (len(mask), wanted, mask.shape[1]))
        return attend(query[:, :wanted], key, value, seen)
    visibility = Visibility(segment_ids=mask.astype(jnp.int32), causal=False)
    return attend_packed(query, key, value, visibility, backend=backend)[:, :wanted]
