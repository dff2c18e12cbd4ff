"""Denoisers of codec latents that are told of every frame what is said in it: a flow decoder, and a bridge.

The network is an MMDiT whose source is what is known frame by frame: semantic units, the first codebook, or both. Its
text stream reads the instruction. The codec is frozen, and kept with the network so that a checkpoint is whole.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from voxinstruct_jax.audio.codec import CodecConfig, MelCodec
from voxinstruct_jax.audio.latents import LatentConfig
from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.layers.dense import TokenEmbedding
from voxinstruct_jax.layers.execution import Execution
from voxinstruct_jax.layers.parameter import freeze, normal
from voxinstruct_jax.models.conditions import Conditions
from voxinstruct_jax.models.mmdit import MMDiT, MMDiTConfig

__all__ = ["CodecFlow", "CodecFlowConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodecFlowConfig:
    """The network, its codec, and what it is told of each frame.

    Raises:
        ConfigError: The parts do not fit one another, or nothing is told.
    """

    network: MMDiTConfig
    codec: CodecConfig
    num_units: int = 0
    """Semantic units that it knows; 0 = it is told none."""
    first_codebook: bool = False
    """Whether it is given the first codebook: a bridge, whose path begins at its entries."""

    def __post_init__(self) -> None:
        latents = LatentConfig(codec=self.codec)
        latents.check_channels("model.network.latent_channels", self.network.latent_channels)
        if not self.network.source:
            raise ConfigError("model.network.source: must be set, frames are told through it")
        if self.num_units < 0 or not (self.num_units or self.first_codebook):
            raise ConfigError(f"model.num_units: {self.num_units}; give units, or set first_codebook")

    @classmethod
    def small(
        cls, codec: CodecConfig, channel_sizes: tuple[int, ...], *, num_units: int, first_codebook: bool = False
    ) -> "CodecFlowConfig":
        """3.3M weights besides the codec; trains on a CPU in minutes."""
        network = MMDiTConfig.told_frame_by_frame(codec.quantizer.latent_dim, channel_sizes)
        return cls(network=network, codec=codec, num_units=num_units, first_codebook=first_codebook)


class CodecFlow(nnx.Module):
    """Network and codec."""

    def __init__(self, config: CodecFlowConfig, *, execution: Execution = Execution(), rngs: nnx.Rngs) -> None:
        self.config = config
        self.network = MMDiT(config.network, execution=execution, rngs=rngs)
        self.codec = MelCodec(config.codec, rngs=rngs)
        freeze(self.codec)
        if config.num_units:
            channels = config.network.latent_channels
            self.unit_embedding = TokenEmbedding((config.num_units + 1,), channels, init=normal(1.0), rngs=rngs)

    def latents(self, codes: Int[Array, "batch codebook time"]) -> Float[Array, "batch time channel"]:
        """What codes stand for, about standard in each channel; the leading codebooks alone give a coarser value."""
        mean, std = self.codec.quantizer.statistics()
        return (self.codec.quantizer.decode(codes) - mean) / std

    def waveform(self, latents: Float[Array, "batch time channel"]) -> Float[Array, "batch sample"]:
        """Decodes latents; `sample = time * hop_length`."""
        mean, std = self.codec.quantizer.statistics()
        return self.codec.waveform(latents * std + mean)

    def prior(self, first_codes: Int[Array, "batch time"]) -> Float[Array, "batch time channel"] | None:
        """What the path is drawn around; None where the model is not given the first codebook."""
        return self.latents(first_codes[:, None]) if self.config.first_codebook else None

    def predict(
        self,
        x: Float[Array, "batch time channel"],
        t: Float[Array, " batch"],
        conditions: Conditions,
        frame_mask: Bool[Array, "batch time"],
        prior: Float[Array, "rows time channel"] | None,
    ) -> Float[Array, "batch time channel"]:
        """The network's output; where there is a prior, what is to be added to it: a fresh network leaves it as it is.

        `x`, `t`, `conditions` and `frame_mask` are as of `MMDiT`; they may hold several branches of the prior's rows.
        """
        output = self.network(x, t, conditions, frame_mask)
        return output if prior is None else output + jnp.tile(prior, (len(x) // len(prior), 1, 1))

    def conditions(
        self,
        units: Int[Array, "batch time"],
        first_codes: Int[Array, "batch time"],
        text_tokens: Int[Array, "batch token feature"],
        *,
        key: jax.Array | None = None,
    ) -> Conditions:
        """What the network is told.

        Args:
            units: Of each frame, from 1; 0 = padding. Not read where the model knows none.
            first_codes: Of the first codebook. Not read where the model is not given it.
            text_tokens: Of the instruction; 0 in the first channel = padding.
            key: Of the text encoder's dropout; None = no dropout.
        """
        source = self.prior(first_codes)
        if self.config.num_units:
            told = self.unit_embedding(units[..., None])
            source = told if source is None else source + told
        encoder, mask = self.config.network.text_encoder, text_tokens[..., 0] > 0
        if encoder is None:
            return Conditions(source=source)
        text = self.network.encode_text(text_tokens, mask, key=key if encoder.dropout else None)
        return Conditions(source=source, text=text, text_mask=mask)
