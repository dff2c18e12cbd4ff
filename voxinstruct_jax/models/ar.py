"""The AR model: instruction → language, semantic tokens, first-codebook acoustic tokens, one after another."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int, Num

from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.layers.attention import TextAttention
from voxinstruct_jax.layers.dense import Dense, TokenEmbedding
from voxinstruct_jax.layers.dropout import split_key
from voxinstruct_jax.layers.execution import Execution
from voxinstruct_jax.layers.packed_attention import TextRows, Visibility
from voxinstruct_jax.layers.parameter import freeze, make_param, normal, zeros
from voxinstruct_jax.models.conditioning import (
    NUM_DURATIONS,
    TextCondition,
    Timing,
    check_text_form,
    place_text,
    slot_positions,
    tells_quotes,
)
from voxinstruct_jax.models.llama import STDDEV, ComputeType, KVCache, Llama, LlamaConfig
from voxinstruct_jax.models.style import NUM_CLASSES, Style, StyleReader, give_style
from voxinstruct_jax.sharding.mesh import constrain
from voxinstruct_jax.text.encoder import TextEncoderConfig
from voxinstruct_jax.text.tokenizer import (
    CONCEPT_CHANNEL,
    INSIDE_QUOTES,
    QUOTE_CHANNEL,
    TextForm,
    stress_concept,
)
from voxinstruct_jax.vocabulary import NUM_PARTS, TEXT, PackedBatch, Vocabulary

__all__ = ["ARConfig", "ARModel"]


SHIFT_NEPERS = 8.0
"""Unit of `duration_shift`: the step of an optimiser that suits the other weights would move logits too slowly."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ARConfig:
    """What the AR model is built from.

    Raises:
        ConfigError: `text_attention`, `text_form` or `dtype` is none of its choices, or the text cannot be told apart.
    """

    vocabulary: Vocabulary = dataclasses.field(default_factory=Vocabulary)
    backbone: LlamaConfig
    text_encoder: TextEncoderConfig
    text_attention: TextAttention = "bidirectional"
    """"causal" is for the released weights."""
    timing: Timing = "sequence"
    text_form: TextForm = "instruction"
    """As `semantic`, for the baselines of the paper."""
    semantic: bool = True
    """False = no semantic tokens: the acoustic ones follow the language."""
    style_reader: bool = False
    """Whether the attributes that the instruction asks for are read off it and given to every slot (`StyleReader`)."""
    reader_dim: int = 24
    """Channels of that reader."""
    dtype: ComputeType = "float32"
    """Of the computation."""

    def __post_init__(self) -> None:
        if self.text_attention not in ("bidirectional", "causal"):
            raise ConfigError(f"text_attention: {self.text_attention!r} is neither 'bidirectional' nor 'causal'")
        check_text_form(self.text_form, self.text_encoder)
        if self.style_reader and (self.text_form != "instruction" or not tells_quotes(self.text_encoder)):
            raise ConfigError(
                f"style_reader: needs text_form 'instruction', here {self.text_form!r}, and the text tokenizer of this "
                "package, which tells what is in quotes"
            )
        if self.dtype not in ("float32", "bfloat16"):
            raise ConfigError(f"dtype: {self.dtype!r} is neither 'float32' nor 'bfloat16'")

    @classmethod
    def paper(cls) -> "ARConfig":
        """The model of the paper: 205,865,984 trainable weights beside the frozen mT5."""
        return cls(backbone=LlamaConfig.paper(), text_encoder=TextEncoderConfig.mt5_base())

    @classmethod
    def small(cls, *, vocabulary: Vocabulary, channel_sizes: tuple[int, ...]) -> "ARConfig":
        """The model of the embedded voice; the channels are those of its text tokenizer."""
        return cls(
            vocabulary=vocabulary, backbone=LlamaConfig.small(6), text_encoder=TextEncoderConfig.small(channel_sizes)
        )

    @classmethod
    def tiny(cls, *, vocabulary: Vocabulary, channel_sizes: tuple[int, ...]) -> "ARConfig":
        """For tests."""
        return cls(
            vocabulary=vocabulary, backbone=LlamaConfig.tiny(), text_encoder=TextEncoderConfig.tiny(channel_sizes)
        )


class ARModel(nnx.Module):
    """Embeds text rows and tokens, runs the blocks, predicts the next token.

    Source:
        VoxInstruct, sections 4.1 and 4.2. Unlike in the release, text sees text both ways and padding is never seen,
        unless the config and the batch say otherwise.
    """

    def __init__(self, config: ARConfig, *, execution: Execution = Execution(), rngs: nnx.Rngs) -> None:
        vocabulary, dim = config.vocabulary, config.backbone.model_dim
        self.config, self.execution = config, execution
        self.text = TextCondition(
            config.text_encoder, dim, form=config.text_form, dtype=config.dtype, execution=execution, rngs=rngs
        )
        self.token_embedding = TokenEmbedding((vocabulary.size,), dim, rngs=rngs)
        # The release leaves this table at N(0, 1), 50 times the token rows, which then hardly show at first.
        self.part_embedding = make_param(normal(STDDEV)(rngs.params(), (NUM_PARTS, dim)), (None, "embed"))
        self.backbone = Llama(config.backbone, dtype=config.dtype, execution=execution, rngs=rngs)
        self.head = make_param(normal(STDDEV)(rngs.params(), (dim, vocabulary.size)), ("embed", "vocab"))
        if config.timing == "aligned":
            init = normal(STDDEV)
            self.duration_head = Dense((dim,), (NUM_DURATIONS,), ("embed", None), init=init, rngs=rngs)
        if config.style_reader:
            self.style_reader = StyleReader(config.text_encoder.channel_sizes, dim, config.reader_dim, rngs=rngs)
            if config.timing == "aligned":
                shift = zeros(rngs.params(), (NUM_CLASSES + 1, NUM_DURATIONS))
                self.duration_shift = make_param(shift, (None, None))
        if config.backbone.lora_rank:
            freeze(self)

    def embed_text(
        self,
        text_tokens: Int[Array, "batch text channel"],
        text_segment_ids: Int[Array, "batch text"],
        *,
        key: jax.Array | None = None,
    ) -> Float[Array, "batch text dim"]:
        """Encodes and projects instructions; rows of padding are zero."""
        return self.text(text_tokens, text_segment_ids, key=key)

    def read_style(
        self,
        text_tokens: Int[Array, "batch text channel"],
        text_segment_ids: Int[Array, "batch text"],
        known: Int[Array, "batch text attribute"] | None = None,
    ) -> Style | None:
        """Reads the attributes that are asked for (`StyleReader`); None without `style_reader`."""
        if not self.config.style_reader:
            return None
        return self.style_reader(text_tokens, text_segment_ids, known)

    def embed(
        self,
        tokens: Int[Array, "batch time"],
        part_ids: Int[Array, "batch time"],
        text_rows: Float[Array, "batch time dim"],
        style: Float[Array, "batch ... dim"] | None = None,
    ) -> Float[Array, "batch time dim"]:
        """Returns the input of the blocks.

        Args:
            tokens: Ids; 0 = empty.
            part_ids: `TEXT`, `SEMANTIC` or `ACOUSTIC`.
            text_rows: At text slots, the row of `embed_text` (`place_text`); not read elsewhere.
            style: Of each slot (`give_style`) or of the clip; not read at text slots.
        """
        audio_rows = self.token_embedding(tokens[..., None])
        if style is not None:
            audio_rows += style
        rows = jnp.where(part_ids[..., None] == TEXT, text_rows, audio_rows)
        return (rows + self.part_embedding[...][part_ids]).astype(self.config.dtype)

    def __call__(
        self,
        batch: PackedBatch,
        drop_text: Bool[Array, "batch time"],
        drop_semantic: Bool[Array, "batch time"],
        *,
        key: jax.Array | None = None,
    ) -> Float32[Array, "batch time vocab"]:
        """Predicts, at every place, the token that follows it.

        Args:
            batch: Packed rows.
            drop_text: True where a clip goes without its instruction.
            drop_semantic: True where a clip goes without its semantic tokens; BOS, LANG and EOS1 stay.
            key: Of dropout; None = no dropout.

        Returns:
            Logits; undefined at padding.
        """
        text_key, backbone_key = split_key(key, 2)
        text_rows = self.embed_text(batch.text_tokens, batch.text_segment_ids, key=text_key)
        return self.predict(batch, text_rows, drop_text, drop_semantic, key=backbone_key)

    def predict(
        self,
        batch: PackedBatch,
        text_rows: Float[Array, "batch text dim"],
        drop_text: Bool[Array, "batch time"],
        drop_semantic: Bool[Array, "batch time"],
        *,
        key: jax.Array | None = None,
    ) -> Float32[Array, "batch time vocab"]:
        """As `__call__`, from the rows of `embed_text`."""
        return self.logits(self.hidden(batch, text_rows, drop_text, drop_semantic, key=key))

    def hidden(
        self,
        batch: PackedBatch,
        text_rows: Float[Array, "batch text dim"],
        drop_text: Bool[Array, "batch time"],
        drop_semantic: Bool[Array, "batch time"],
        *,
        key: jax.Array | None = None,
    ) -> Float[Array, "batch time dim"]:
        """What `predict` makes its logits from: a loss in chunks never holds the logits of all slots."""
        vocabulary, tokens = self.config.vocabulary, batch.tokens[:, 0]
        tokens = jnp.where(drop_semantic & vocabulary.is_semantic(tokens), vocabulary.pad, tokens)
        read = self.read_style(batch.text_tokens, batch.text_segment_ids, batch.text_attributes)
        style = None
        if read is not None:
            style = give_style(read.vectors, batch.text_segment_ids, jnp.where(drop_text, 0, batch.segment_ids))
        x = self.embed(tokens, batch.part_ids, place_text(text_rows, batch, drop_text), style)
        return self.backbone(x, slot_positions(batch, self.config.timing), self.visibility(batch), key=key)

    def duration_logits(
        self,
        text_rows: Float[Array, "batch text dim"],
        text_tokens: Int[Array, "batch text channel"],
        style: Style | None = None,
    ) -> Float32[Array, "batch text duration"]:
        """Predicts how long each text token is spoken, in half frames; aligned models only.

        Attributes, and the mark of a word that is to be stressed, shift the logits of all tokens alike: what a head
        reads of them in the rows of some thousand clips is next to nothing.

        Args:
            text_rows: From `embed_text`.
            text_tokens: As there.
            style: From `read_style`.
        """
        logits = self.duration_head(text_rows.astype(jnp.float32))
        if style is None:
            return logits
        in_content = text_tokens[..., QUOTE_CHANNEL] == INSIDE_QUOTES
        stressed = in_content & (text_tokens[..., CONCEPT_CHANNEL] == stress_concept())
        told = jnp.concatenate([style.probabilities, stressed[..., None]], axis=-1)
        return logits + SHIFT_NEPERS * told @ self.duration_shift[...]

    def visibility(self, batch: PackedBatch) -> Visibility:
        """Audio sees the text and the audio before it; text sees text, both ways unless the config says causal."""
        is_text = (batch.part_ids == TEXT) & (batch.segment_ids > 0)
        text = TextRows(is_text=is_text, index=batch.text_index, segment_ids=batch.text_segment_ids)
        both_ways = self.config.text_attention == "bidirectional"
        return Visibility(segment_ids=batch.segment_ids, causal=True, text=text if both_ways else None)

    def decode(
        self,
        x: Float[Array, "batch time dim"],
        positions: Num[Array, "batch time"],
        cache: KVCache,
        slot: Int[Array, "*batch"],
        mask: Bool[Array, "batch time slot"] | None = None,
    ) -> tuple[Float[Array, "batch time dim"], KVCache]:
        """Runs new positions against the cache: see `Llama.decode`. Text needs its slots in one call to see itself."""
        return self.backbone.decode(x, positions, cache, slot, mask)

    def logits(self, hidden: Float[Array, "*batch dim"]) -> Float32[Array, "*batch vocab"]:
        """Predicts from hidden states, in float32."""
        kernel = self.head[...].astype(hidden.dtype)
        logits = jnp.einsum("...d,dv->...v", hidden, kernel, preferred_element_type=jnp.float32)
        return constrain(logits, "batch", *[None] * (logits.ndim - 2), "vocab")
