"""Masked generation over continuous latents: a transformer that says of each frame what it knows, a head that draws it.

The transformer is an `MMDiT` at time 0 that reads frames, zero where they are masked, and the mask; the head is a small
denoiser of one frame, told what the transformer knows of it.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from voxinstruct_jax.audio.latents import LatentConfig, LatentSpace
from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.layers.dense import Affine
from voxinstruct_jax.layers.execution import Execution
from voxinstruct_jax.layers.norms import modulate
from voxinstruct_jax.layers.parameter import normal, xavier, zeros
from voxinstruct_jax.layers.timestep import timestep_embedding
from voxinstruct_jax.models.conditions import Conditions
from voxinstruct_jax.models.mmdit import MMDiT, MMDiTConfig

__all__ = ["MaskedLatentDiffusion", "MaskedLatents", "MaskedLatentsConfig", "TokenHead", "TokenHeadConfig"]

SINUSOIDS = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenHeadConfig:
    """Sizes of the head; the defaults are the paper's.

    Raises:
        ConfigError: A size is out of range.
    """

    model_dim: int = 1024
    num_layers: int = 3

    def __post_init__(self) -> None:
        if min(self.model_dim, self.num_layers) < 1:
            raise ConfigError(f"head: model_dim {self.model_dim} and num_layers {self.num_layers} must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedLatentsConfig:
    """Sizes of transformer and head.

    Raises:
        ConfigError: The transformer reads a source, or does not say how wide its output is.
    """

    network: MMDiTConfig
    """`latent_channels`: one more than the latents have, for the mask. `output_channels`: width of what the head is
    told."""
    head: TokenHeadConfig = TokenHeadConfig()

    def __post_init__(self) -> None:
        if self.network.source or not self.network.output_channels or self.network.latent_channels < 2:
            raise ConfigError(
                "model.network: it must read no source, have output_channels above 0, and one latent channel more than "
                "the latents, for the mask"
            )

    @property
    def channels(self) -> int:
        """Of the latents."""
        return self.network.latent_channels - 1


class _Block(nnx.Module):
    """Two layers, shifted, scaled and gated by what the head is told."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs) -> None:
        self.modulation = Affine((dim,), (3, dim), ("embed", None, None), init=zeros, rngs=rngs)
        self.up = Affine((dim,), (dim,), ("embed", "mlp"), init=xavier, rngs=rngs)
        self.down = Affine((dim,), (dim,), ("mlp", "embed"), init=xavier, rngs=rngs)

    def __call__(self, x: Float[Array, "row 1 dim"], told: Float[Array, "row dim"]) -> Float[Array, "row 1 dim"]:
        shift, scale, gate = jnp.moveaxis(self.modulation(told), 1, 0)
        return x + gate[:, None] * self.down(jax.nn.silu(self.up(modulate(x, shift, scale))))


class TokenHead(nnx.Module):
    """A denoiser of single frames.

    Source:
        Li et al. 2024 (MAR, arXiv 2406.11838), section 3.2: residual blocks with adaptive layer norm.
    """

    def __init__(self, config: TokenHeadConfig, channels: int, told_dim: int, *, rngs: nnx.Rngs) -> None:
        dim = config.model_dim
        options: dict[str, Any] = {"init": normal(0.02), "rngs": rngs}
        self.first = Affine((channels,), (dim,), (None, "embed"), init=xavier, rngs=rngs)
        self.told = Affine((told_dim,), (dim,), (None, "embed"), init=xavier, rngs=rngs)
        self.time_up = Affine((SINUSOIDS,), (dim,), (None, "mlp"), **options)
        self.time_down = Affine((dim,), (dim,), ("mlp", None), **options)
        self.blocks = nnx.List([_Block(dim, rngs=rngs) for _ in range(config.num_layers)])
        self.modulation = Affine((dim,), (2, dim), ("embed", None, None), init=zeros, rngs=rngs)
        self.last = Affine((dim,), (channels,), ("embed", None), init=zeros, rngs=rngs)

    def __call__(
        self, x: Float[Array, "row 1 channel"], t: Float[Array, " row"], told: Float[Array, "row told_dim"]
    ) -> Float[Array, "row 1 channel"]:
        """Predicts.

        Args:
            x: Noisy frames, from `Path.scale_input`.
            t: From `Path.time_input`.
            told: What the transformer knows of each frame.
        """
        time = self.time_down(jax.nn.silu(self.time_up(timestep_embedding(t, SINUSOIDS))))
        context = jax.nn.silu(time + self.told(told))
        y = self.first(x)
        for block in self.blocks:
            y = block(y, context)
        shift, scale = jnp.moveaxis(self.modulation(context), 1, 0)
        return self.last(modulate(y, shift, scale))


class MaskedLatents(nnx.Module):
    """Transformer and head.

    Source:
        Li et al. 2024 (MAR, arXiv 2406.11838); Huang et al. 2025 (IMPACT, arXiv 2506.00736), which brings it to audio.
    """

    def __init__(self, config: MaskedLatentsConfig, *, execution: Execution = Execution(), rngs: nnx.Rngs) -> None:
        self.network = MMDiT(config.network, execution=execution, rngs=rngs)
        self.head = TokenHead(config.head, config.channels, config.network.output_channels, rngs=rngs)

    def describe(
        self,
        latents: Float[Array, "batch time channel"],
        masked: Bool[Array, "batch time"],
        conditions: Conditions,
        frame_mask: Bool[Array, "batch time"],
    ) -> Float[Array, "batch time told_dim"]:
        """What is known of each frame from those that are not masked, and from the conditions.

        Args:
            latents: Values; of masked frames they are not read.
            masked: True = hidden.
            conditions: One row a row.
            frame_mask: True = a real frame.
        """
        hidden = masked[..., None]
        seen = jnp.concatenate([jnp.where(hidden, 0, latents), hidden.astype(latents.dtype)], axis=-1)
        return self.network(seen, jnp.zeros(len(seen)), conditions, frame_mask)


class MaskedLatentDiffusion(MaskedLatents):
    """Both beside the latents that they work in: what is trained, stored and sampled as one."""

    def __init__(
        self,
        config: MaskedLatentsConfig,
        latents: LatentConfig,
        *,
        execution: Execution = Execution(),
        rngs: nnx.Rngs,
    ) -> None:
        """Makes all three.

        Raises:
            ConfigError: The network reads another number of channels than the latents and the mask have.
        """
        latents.check_channels("model.network.latent_channels", config.network.latent_channels, masked=True)
        super().__init__(config, execution=execution, rngs=rngs)
        self.latents = LatentSpace(latents, rngs=rngs)
