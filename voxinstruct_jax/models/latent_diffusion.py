"""A denoiser beside the latent space that it works in: what is trained, stored and sampled as one."""

from flax import nnx

from voxinstruct_jax.audio.latents import LatentConfig, LatentSpace
from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.layers.execution import Execution
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
        if config.latent_channels != latents.channels:
            raise ConfigError(
                f"model.latent_channels: {config.latent_channels}, but these latents have {latents.channels} channels"
            )
        self.network = MMDiT(config, execution=execution, rngs=rngs)
        self.latents = LatentSpace(latents, rngs=rngs)


def side_by_side(network: MMDiT, latents: LatentSpace) -> LatentDiffusion:
    """The same two, not copies of them, as one model: of several networks that share their latents."""
    return _Pair(network, latents)


class _Pair(LatentDiffusion):
    def __init__(self, network: MMDiT, latents: LatentSpace) -> None:
        self.network, self.latents = network, latents
