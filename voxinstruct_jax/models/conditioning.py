"""The instruction as the language models see it: encoded, projected, put into their sequence, or left empty."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Num

from voxinstruct_jax.config import ConfigError, InputError
from voxinstruct_jax.layers.dense import Dense
from voxinstruct_jax.layers.execution import Execution
from voxinstruct_jax.layers.parameter import make_param, uniform
from voxinstruct_jax.text.encoder import TextEncoder, TextEncoderConfig
from voxinstruct_jax.text.tokenizer import OUTSIDE_QUOTES, QUOTE_CHANNEL, TextForm
from voxinstruct_jax.vocabulary import TEXT, PackedBatch

__all__ = [
    "NUM_DURATIONS",
    "TextCondition",
    "Timing",
    "check_text_form",
    "expected_durations",
    "place_text",
    "slot_positions",
    "tells_quotes",
]

Timing = Literal["sequence", "aligned"]
"""What a rotary position is. "sequence": the place in the sequence, semantic tokens de-duplicated, as in the paper.
"aligned": the moment when a slot is spoken; semantic tokens stand at the frame rate, and the AR model predicts how long
each character lasts."""
NUM_DURATIONS = 64
"""Durations of a text token that are told apart, in half frames from 0; the last one stands for longer ones too."""


class TextCondition(nnx.Module):
    """The text encoder and the projection to the width of the language model.

    Source:
        VoxInstruct, section 4.2 (`prompt_fc` of the release). The vector of style: PromptTTS (Guo et al. 2022),
        sections 2.2 and 2.3; there it is the state of one token, here the mean of all.
    """

    def __init__(
        self,
        config: TextEncoderConfig,
        model_dim: int,
        *,
        form: TextForm = "instruction",
        dtype: DTypeLike = jnp.float32,
        execution: Execution = Execution(),
        rngs: nnx.Rngs,
    ) -> None:
        self.form = form
        self.encoder = TextEncoder(config, dtype=dtype, execution=execution, rngs=rngs)
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
        if self.form == "style_vector_and_content":
            is_style = text_tokens[..., QUOTE_CHANNEL] == OUTSIDE_QUOTES
            x = self._project(text_tokens, jnp.where(text_segment_ids > 0, 2 * text_segment_ids - is_style, 0), key)
            x = _share_style(x, is_style, text_segment_ids)
        else:
            x = self._project(text_tokens, text_segment_ids, key)
        return jnp.where(text_segment_ids[..., None] > 0, x, 0)

    def _project(
        self,
        text_tokens: Int[Array, "batch text channel"],
        text_segment_ids: Int[Array, "batch text"],
        key: jax.Array | None,
    ) -> Float[Array, "batch text dim"]:
        x = self.projection(self.encoder(text_tokens, text_segment_ids, key=key))
        return x + self.bias[...].astype(x.dtype)


def _share_style(
    x: Float[Array, "batch text dim"], is_style: Bool[Array, "batch text"], text_segment_ids: Int[Array, "batch text"]
) -> Float[Array, "batch text dim"]:
    """Gives all rows of style their mean, and adds it to the content of the same clip."""
    same = text_segment_ids[:, :, None] == text_segment_ids[:, None, :]
    weights = (same & is_style[:, None, :]).astype(jnp.float32)
    weights /= jnp.maximum(weights.sum(axis=-1, keepdims=True), 1)
    vector = (weights @ x.astype(jnp.float32)).astype(x.dtype)
    return jnp.where(is_style[..., None], vector, x + vector)


def check_text_form(form: TextForm, config: TextEncoderConfig) -> None:
    """Checks that a model can read text of this form.

    Raises:
        ConfigError: There is no such form, or no channel of the text tells style from content.
    """
    if form not in get_args(TextForm):
        raise ConfigError(f"text_form: {form!r} is none of {', '.join(map(repr, get_args(TextForm)))}")
    if form != "instruction" and not tells_quotes(config):
        raise ConfigError(
            f"text_form: {form!r} needs the text tokenizer of this package, which tells what is in quotes and how it "
            "is pronounced; subwords can be read as 'instruction' alone"
        )


def tells_quotes(config: TextEncoderConfig) -> bool:
    """Whether a channel of the text tells what is in quotes."""
    return len(config.channel_sizes) > QUOTE_CHANNEL


def expected_durations(logits: Float[Array, "*batch duration"]) -> Float[Array, "*batch"]:
    """Mean duration under the predicted distribution, half frames."""
    return jax.nn.softmax(logits, axis=-1) @ jnp.arange(NUM_DURATIONS, dtype=jnp.float32)


def slot_positions(batch: PackedBatch, timing: Timing) -> Num[Array, "batch time"]:
    """Returns the rotary positions of a model with this timing.

    Raises:
        InputError: The model is aligned and the batch has no times.
    """
    if timing == "sequence":
        return batch.positions
    if batch.times is None:
        raise InputError("an aligned model needs times; prepare the data with units that know phones")
    return batch.times


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
