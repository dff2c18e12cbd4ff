"""A denoiser beside the latent space that it works in: what is trained, stored and sampled as one."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from voxinstruct_jax.audio.latents import LatentConfig, LatentSpace
from voxinstruct_jax.layers.execution import Execution
from voxinstruct_jax.models.conditions import Conditions
from voxinstruct_jax.models.mmdit import MMDiT, MMDiTConfig

__all__ = ["LatentDiffusion", "side_by_side"]


class LatentDiffusion(nnx.Module):
    """The network is trained; the latent space is frozen, and kept with it so that a checkpoint is whole."""

    def __init__(
        self, config: MMDiTConfig, latents: LatentConfig, *, execution: Execution = Execution(), rngs: nnx.Rngs
    ) -> None:
        """Makes both.

        Raises:
            ConfigError: The network reads another number of channels than the latents have.
        """
        latents.check_channels("model.latent_channels", config.latent_channels)
        self.network = MMDiT(config, execution=execution, rngs=rngs)
        self.latents = LatentSpace(latents, rngs=rngs)

    def conditions(
        self,
        text_tokens: Int[Array, "batch token channel"],
        phones: Int[Array, "batch phone"],
        *,
        text_states: Float[Array, "batch layer token dim"] | None = None,
        key: jax.Array | None = None,
    ) -> Conditions:
        """What text tells the network.

        Args:
            text_tokens: Of the instruction; 0 in the first channel = padding.
            phones: Of what is spoken, 0 = padding; left out where the network reads none.
            text_states: Of a text encoder that was run apart, in place of the network's own.
            key: Of the text encoder's dropout; None = no dropout.
        """
        network = self.network
        text_mask = text_tokens[..., 0] > 0
        dropout = network.config.text_encoder.dropout if network.config.text_encoder else 0.0
        if text_states is None:
            text_states = network.encode_text(text_tokens, text_mask, key=key if dropout else None)
        conditions = Conditions(text=text_states, text_mask=text_mask)
        if network.config.phones is None:
            return conditions
        return dataclasses.replace(conditions, content=phones, content_mask=phones > 0)

    def add_source(
        self,
        conditions: Conditions,
        samples: Float[Array, "batch sample"],
        tags: Int[Array, " batch"],
        prefix_samples: Int[Array, " batch"],
    ) -> Conditions:
        """Adds what is edited, or whose voice it is.

        Args:
            conditions: Of text.
            samples: The source, as long as the target.
            tags: 0 generation, 1 editing, 2 reference of a voice, which is seen in its prefix alone.
            prefix_samples: Length of the reference.
        """
        source = jax.lax.stop_gradient(self.latents.encode(samples))
        frames = jnp.arange(source.shape[1])
        prefix = frames < -(-prefix_samples[:, None] // self.latents.config.hop_length)
        # without a source there are zeros, not the latents of silence
        shown = (tags[:, None] == 1) | ((tags[:, None] == 2) & prefix)
        return dataclasses.replace(
            conditions,
            source=jnp.where(shown[..., None], source, 0),
            task_tag=jnp.where(shown, tags[:, None], 0).astype(jnp.float32),
        )


def side_by_side(network: MMDiT, latents: LatentSpace) -> LatentDiffusion:
    """The same two, not copies of them, as one model: of several networks that share their latents."""
    return _Pair(network, latents)


class _Pair(LatentDiffusion):
    def __init__(self, network: MMDiT, latents: LatentSpace) -> None:
        self.network, self.latents = network, latents
