"""The instruction as the language models see it: encoded, projected, put into their sequence, or left empty."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from voxinstruct_jax.layers.dense import Dense
from voxinstruct_jax.layers.parameter import make_param, uniform
from voxinstruct_jax.text.encoder import TextEncoder, TextEncoderConfig
from voxinstruct_jax.vocabulary import TEXT, PackedBatch

__all__ = ["TextCondition", "place_text"]


class TextCondition(nnx.Module):
    """The text encoder and the projection to the width of the language model.

    Source:
        VoxInstruct, section 4.2 (`prompt_fc` of the release).
    """

    def __init__(
        self, config: TextEncoderConfig, model_dim: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        self.encoder = TextEncoder(config, dtype=dtype, rngs=rngs)
        init = uniform(config.model_dim**-0.5)  # torch's default for a linear layer
        self.projection = Dense((config.model_dim,), (model_dim,), (None, "embed"), init=init, dtype=dtype, rngs=rngs)
        self.bias = make_param(init(rngs.params(), (model_dim,)), ("embed",))

    def __call__(
        self,
        text_tokens: Int[Array, "batch text channel"],
        text_segment_ids: Int[Array, "batch text"],
        *,
        key: jax.Array | None = None,
    ) -> Float[Array, "batch text dim"]:
        """Returns one row a text token; rows of padding are zero."""
        x = self.projection(self.encoder(text_tokens, text_segment_ids, key=key))
        return jnp.where(text_segment_ids[..., None] > 0, x + self.bias[...].astype(x.dtype), 0)


def place_text(
    text_rows: Float[Array, "batch text dim"], batch: PackedBatch, drop_text: Bool[Array, "batch time"]
) -> Float[Array, "batch time dim"]:
    """Brings the text rows to their slots in the sequence.

    Args:
        text_rows: From `embed_text`.
        batch: Says where each text slot finds its row.
        drop_text: True = empty text: the slot stays, its row is zero.
    """
    placed = jnp.take_along_axis(text_rows, batch.text_index[..., None], axis=1)
    keep = (batch.part_ids == TEXT) & (batch.segment_ids > 0) & ~drop_text
    return jnp.where(keep[..., None], placed, 0)
