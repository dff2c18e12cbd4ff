"""EnCodec at 24 kHz: the codec of the paper, 75 frames a second, up to 32 codebooks of 1024."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Num

from voxinstruct_jax.audio.quantizer import check_codebooks, check_codes, decode_residual, encode_residual
from voxinstruct_jax.audio.seanet import SeanetConfig, SeanetDecoder, SeanetEncoder
from voxinstruct_jax.audio.waveform import check_samples
from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.layers.parameter import make_param, normal

__all__ = ["Encodec", "EncodecConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodecConfig:
    """Sizes of the codec; the defaults are the published ones at 24 kHz, used at 6 kbit/s.

    Raises:
        ConfigError: `num_codebooks` is more than there are.
    """

    seanet: SeanetConfig = SeanetConfig()
    sample_rate: int = 24_000
    codebook_size: int = 1024
    stack_size: int = 32
    """Codebooks in the weights."""
    num_codebooks: int = 8
    """Leading codebooks that `encode` gives unless asked for another number."""

    def __post_init__(self) -> None:
        if not 1 <= self.num_codebooks <= self.stack_size:
            raise ConfigError(f"num_codebooks {self.num_codebooks} must be from 1 to stack_size {self.stack_size}")

    @property
    def hop_length(self) -> int:
        """Samples a frame."""
        return self.seanet.hop_length

    @property
    def frame_rate(self) -> float:
        """Frames a second, Hz."""
        return self.sample_rate / self.hop_length

    def codebooks_at(self, kbit_s: float) -> int:
        """Number of codebooks that fit into a bandwidth: 2, 4, 8, 16, 32 for 1.5, 3, 6, 12, 24 kbit/s.

        Raises:
            ConfigError: Not one codebook fits, or more than there are.
        """
        found = math.floor(kbit_s * 1000 / (math.log2(self.codebook_size) * self.frame_rate) + 1e-6)
        if not 1 <= found <= self.stack_size:
            raise ConfigError(f"{kbit_s} kbit/s would take {found} codebooks; there are 1 to {self.stack_size}")
        return found

    @classmethod
    def tiny(cls) -> "EncodecConfig":
        """A codec for tests: 320 samples a frame as the published one."""
        return cls(seanet=SeanetConfig(num_filters=4, latent_dim=16), codebook_size=32, stack_size=8)


class Encodec(nnx.Module):
    """Encodes speech to codes and back, causally; whole clips at once, levels as they are.

    Source:
        EnCodec (Défossez et al. 2022), sections 3.1 and 3.2, the causal model without chunks. Weights of its program
        and of transformers are read by `interop.encodec`.
    """

    def __init__(self, config: EncodecConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs) -> None:
        """Makes the weights; `dtype` is that of the convolutions, the search for codes is always in float32."""
        self.config = config
        self.encoder = SeanetEncoder(config.seanet, dtype=dtype, rngs=rngs)
        self.decoder = SeanetDecoder(config.seanet, dtype=dtype, rngs=rngs)
        shape = (config.stack_size, config.codebook_size, config.seanet.latent_dim)
        self.entries = make_param(normal(1.0)(rngs.params(), shape), (None, "vocab", "embed"))

    def encode(
        self, samples: Num[Array | np.ndarray, "batch sample"], num_codebooks: int | None = None
    ) -> Int[Array, "batch codebook frame"]:
        """Returns codes; `frame = ceil(sample / hop_length)`.

        Args:
            samples: At `config.sample_rate`, at least one.
            num_codebooks: Leading codebooks; by default `config.num_codebooks`.

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
        """Encodes up to the quantiser."""
        return self.encoder(samples).astype(jnp.float32)


@functools.partial(jax.jit, static_argnums=2)
def _encode(codec: Encodec, samples: Array, num_codebooks: int) -> Array:
    return encode_residual(codec.latents(samples), codec.entries[...][:num_codebooks])


@jax.jit
def _decode(codec: Encodec, codes: Array) -> Array:
    return codec.decoder(decode_residual(codes, codec.entries[...]))
