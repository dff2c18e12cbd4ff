"""The encoder of what is spoken: conformer blocks without their macaron halves.

It stands where InstructAudio has a Zipformer, whose extras (bypass, balancers, its own optimiser) help training, not
what it can say.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.layers.attention import attend
from voxinstruct_jax.layers.convolution import DepthwiseConv
from voxinstruct_jax.layers.dense import Affine, TokenEmbedding
from voxinstruct_jax.layers.norms import RMSNorm
from voxinstruct_jax.layers.parameter import normal
from voxinstruct_jax.layers.rotary import rotary_tables, rotate

__all__ = ["PhoneEncoder", "PhoneEncoderConfig"]

STDDEV = 0.02
KERNEL_SIZE = 9


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhoneEncoderConfig:
    """Sizes of the encoder.

    Raises:
        ConfigError: A size is out of range.
    """

    num_phones: int = 360
    """Ids, 0 = padding."""
    model_dim: int = 192
    num_layers: int = 4
    num_heads: int = 4
    ffn_dim: int = 512

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ConfigError(f"phones.{field.name}: {getattr(self, field.name)} must be at least 1")
        if self.model_dim % (2 * self.num_heads):
            raise ConfigError(f"phones.model_dim: {self.model_dim} must be a multiple of 2 x num_heads")

    @classmethod
    def paper(cls) -> "PhoneEncoderConfig":
        """The sizes of InstructAudio's text encoder (those of ZipVoice)."""
        return cls()


class _Block(nnx.Module):
    def __init__(self, config: PhoneEncoderConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        dim, heads = config.model_dim, (config.num_heads, config.model_dim // config.num_heads)
        options: dict[str, Any] = {"init": normal(STDDEV), "dtype": dtype, "rngs": rngs}
        self.attention_norm, self.convolution_norm, self.ffn_norm = (RMSNorm(dim) for _ in range(3))
        self.query, self.key, self.value = (
            Affine((dim,), heads, ("embed", "heads", None), **options) for _ in range(3)
        )
        self.output = Affine(heads, (dim,), ("heads", None, "embed"), **options)
        self.convolution = DepthwiseConv(dim, KERNEL_SIZE, rngs=rngs)
        self.mix = Affine((dim,), (dim,), ("embed", None), **options)
        self.up = Affine((dim,), (config.ffn_dim,), ("embed", "mlp"), **options)
        self.down = Affine((config.ffn_dim,), (dim,), ("mlp", "embed"), **options)

    def __call__(
        self, x: Float[Array, "batch phone dim"], mask: Bool[Array, "batch phone"]
    ) -> Float[Array, "batch phone dim"]:
        y = self.attention_norm(x)
        query, key, value = self.query(y), self.key(y), self.value(y)
        rotary = rotary_tables(jnp.broadcast_to(jnp.arange(x.shape[1]), mask.shape), query.shape[-1], 10000.0)
        seen = jnp.broadcast_to(mask[:, None], (*mask.shape, mask.shape[1]))
        x += self.output(attend(rotate(query, *rotary), rotate(key, *rotary), value, seen))
        y = jnp.where(mask[..., None], self.convolution_norm(x), 0)
        x += self.mix(jax.nn.silu(self.convolution(y)))
        return x + self.down(jax.nn.silu(self.up(self.ffn_norm(x))))


class PhoneEncoder(nnx.Module):
    """Ids to vectors of the network's width.

    Source:
        Gulati et al. 2020 (Conformer), section 2, attention, convolution and feed-forward; InstructAudio, section 2.3.
    """

    def __init__(
        self, config: PhoneEncoderConfig, width: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        self.embedding = TokenEmbedding((config.num_phones,), config.model_dim, rngs=rngs)
        self.blocks = nnx.List([_Block(config, dtype=dtype, rngs=rngs) for _ in range(config.num_layers)])
        self.norm = RMSNorm(config.model_dim)
        init = normal(STDDEV)
        self.projection = Affine((config.model_dim,), (width,), (None, "embed"), init=init, dtype=dtype, rngs=rngs)
        self.dtype = dtype

    def __call__(
        self, phones: Int[Array, "batch phone"], mask: Bool[Array, "batch phone"]
    ) -> Float[Array, "batch phone width"]:
        """Encodes; undefined at padding.

        Args:
            phones: Ids, 0 = padding.
            mask: True = may be seen.
        """
        x = self.embedding(phones[..., None]).astype(self.dtype)
        for block in self.blocks:
            x = block(x, mask)
        return self.projection(self.norm(x))
