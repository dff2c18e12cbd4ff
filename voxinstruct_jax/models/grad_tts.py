"""Grad-TTS: an encoder that says what each phone sounds like and how long it lasts, and a network that refines it.

The network is an MMDiT whose source is the encoder's guess, frame by frame; it is what its path is drawn around.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from voxinstruct_jax.audio.latents import LatentConfig, LatentSpace
from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.layers.convolution import Conv
from voxinstruct_jax.layers.dense import Affine
from voxinstruct_jax.layers.execution import Execution
from voxinstruct_jax.layers.norms import layer_norm
from voxinstruct_jax.layers.parameter import normal, xavier
from voxinstruct_jax.models.conditions import Conditions
from voxinstruct_jax.models.mmdit import MMDiT, MMDiTConfig
from voxinstruct_jax.models.phone_encoder import PhoneEncoder, PhoneEncoderConfig

__all__ = ["GradTTS", "GradTTSConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradTTSConfig:
    """Encoder, network and latents.

    Raises:
        ConfigError: They do not fit one another.
    """

    network: MMDiTConfig
    phones: PhoneEncoderConfig
    latents: LatentConfig = LatentConfig()

    def __post_init__(self) -> None:
        self.latents.check_channels("model.network.latent_channels", self.network.latent_channels)
        if not self.network.source or self.network.phones is not None:
            raise ConfigError(
                "model.network: must have `source`, through which it reads the encoder's guess, and no phones"
            )

    @classmethod
    def small(cls, latents: LatentConfig, channel_sizes: tuple[int, ...], num_phones: int) -> "GradTTSConfig":
        """3.9M weights; trains on a CPU in minutes."""
        return cls(
            network=MMDiTConfig.told_frame_by_frame(latents.channels, channel_sizes),
            phones=PhoneEncoderConfig(num_phones=num_phones, model_dim=128, num_layers=3, num_heads=4, ffn_dim=256),
            latents=latents,
        )


class GradTTS(nnx.Module):
    """Encoder, durations, network, and the latents that all of them are about.

    Source:
        Grad-TTS (arXiv 2105.06337).
    """

    def __init__(self, config: GradTTSConfig, *, execution: Execution = Execution(), rngs: nnx.Rngs) -> None:
        self.config, width = config, config.phones.model_dim
        self.network = MMDiT(config.network, execution=execution, rngs=rngs)
        self.phone_encoder = PhoneEncoder(config.phones, width, rngs=rngs)
        options: dict[str, Any] = {"init": normal(0.02), "rngs": rngs}
        self.mean = Affine((width,), (config.latents.channels,), ("embed", None), **options)
        self.duration_layers = nnx.List(
            [Conv((3, width, width), ("embed", None), init=xavier, rngs=rngs) for _ in range(2)]
        )
        self.duration = Affine((width,), (1,), ("embed", None), **options)
        self.latents = LatentSpace(config.latents, rngs=rngs)

    def encode(
        self, phones: Int[Array, "batch phone"], mask: Bool[Array, "batch phone"]
    ) -> tuple[Float[Array, "batch phone channel"], Float[Array, "batch phone"]]:
        """Mean latents of each phone, and the logarithm of the frames it lasts; undefined at padding.

        What the durations are predicted from is not trained for them.

        Args:
            phones: Ids, 0 = padding.
            mask: True = a real phone.
        """
        encoded = self.phone_encoder(phones, mask)
        x = jax.lax.stop_gradient(encoded)
        for layer in self.duration_layers:
            x = layer_norm(jax.nn.relu(layer(jnp.where(mask[..., None], x, 0))))
        return self.mean(encoded), self.duration(x)[..., 0]

    def conditions(
        self,
        prior: Float[Array, "batch time channel"],
        text_tokens: Int[Array, "batch token feature"],
        *,
        key: jax.Array | None = None,
    ) -> Conditions:
        """What the network is told.

        Args:
            prior: The encoder's means, as long as each lasts.
            text_tokens: Of the instruction; 0 in the first channel = padding.
            key: Of the text encoder's dropout; None = no dropout.
        """
        encoder, mask = self.config.network.text_encoder, text_tokens[..., 0] > 0
        if encoder is None:
            return Conditions(source=prior)
        text = self.network.encode_text(text_tokens, mask, key=key if encoder.dropout else None)
        return Conditions(source=prior, text=text, text_mask=mask)
