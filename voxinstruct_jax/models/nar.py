"""The NAR model: given all lower codebooks, predicts the hidden tokens of one codebook at once."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int

from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.layers.dense import Dense, TokenEmbedding
from voxinstruct_jax.layers.dropout import split_key
from voxinstruct_jax.layers.execution import Execution
from voxinstruct_jax.layers.norms import RMSNorm
from voxinstruct_jax.layers.packed_attention import Visibility
from voxinstruct_jax.layers.parameter import freeze, make_param, normal, uniform
from voxinstruct_jax.models.conditioning import TextCondition, Timing, check_text_form, place_text, slot_positions
from voxinstruct_jax.models.llama import STDDEV, ComputeType, Llama, LlamaConfig
from voxinstruct_jax.sharding.mesh import constrain
from voxinstruct_jax.text.encoder import TextEncoderConfig
from voxinstruct_jax.text.tokenizer import TextForm
from voxinstruct_jax.vocabulary import ACOUSTIC, NUM_PARTS, SEMANTIC, TEXT, PackedBatch, Vocabulary

__all__ = ["NARConfig", "NARModel", "nearby_weights"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NARConfig:
    """What the NAR model is built from.

    Raises:
        ConfigError: There is no codebook to predict, `text_form` or `dtype` is none of its choices, or the text cannot
            be told apart.
    """

    vocabulary: Vocabulary = dataclasses.field(default_factory=Vocabulary)
    backbone: LlamaConfig
    text_encoder: TextEncoderConfig
    timing: Timing = "sequence"
    """As that of the AR model it follows, like the two below."""
    text_form: TextForm = "instruction"
    semantic: bool = True
    nearby_frames: int = 0
    """Frames on each side that an acoustic slot reads besides by attention (`NearbyFrames`); 0 = by attention alone, as
    in the paper. For aligned models, whose semantic tokens stand at the frame rate."""
    dtype: ComputeType = "float32"
    """Of the computation."""

    def __post_init__(self) -> None:
        if self.vocabulary.num_codebooks < 2:
            raise ConfigError(
                f"vocabulary.num_codebooks: {self.vocabulary.num_codebooks}; the NAR model needs at least 2"
            )
        check_text_form(self.text_form, self.text_encoder)
        if self.nearby_frames < 0 or (self.nearby_frames and self.timing != "aligned"):
            raise ConfigError(f"nearby_frames: {self.nearby_frames}; give 0, or more with timing 'aligned'")
        if self.dtype not in ("float32", "bfloat16"):
            raise ConfigError(f"dtype: {self.dtype!r} is neither 'float32' nor 'bfloat16'")

    @classmethod
    def paper(cls) -> "NARConfig":
        """The model of the paper: 222,635,008 trainable weights beside the frozen mT5."""
        return cls(backbone=LlamaConfig.paper(), text_encoder=TextEncoderConfig.mt5_base())

    @classmethod
    def small(cls, *, vocabulary: Vocabulary, channel_sizes: tuple[int, ...]) -> "NARConfig":
        """The model of the embedded voice; the channels are those of its text tokenizer."""
        text_encoder = TextEncoderConfig.small(channel_sizes, num_layers=2)
        return cls(vocabulary=vocabulary, backbone=LlamaConfig.small(5), text_encoder=text_encoder)

    @classmethod
    def tiny(cls, *, vocabulary: Vocabulary, channel_sizes: tuple[int, ...]) -> "NARConfig":
        """For tests."""
        return cls(
            vocabulary=vocabulary, backbone=LlamaConfig.tiny(), text_encoder=TextEncoderConfig.tiny(channel_sizes)
        )


class NARModel(nnx.Module):
    """Embeds text rows and all codebooks, runs the blocks both ways, predicts one codebook.

    Source:
        VoxInstruct, section 4.2. Attention is bidirectional by an explicit mask: the release had it from one attention
        backend only, and was silently causal with others.
    """

    def __init__(self, config: NARConfig, *, execution: Execution = Execution(), rngs: nnx.Rngs) -> None:
        vocabulary, dim = config.vocabulary, config.backbone.model_dim
        predicted = vocabulary.num_codebooks - 1
        self.config, self.execution = config, execution
        self.text = TextCondition(
            config.text_encoder, dim, form=config.text_form, dtype=config.dtype, execution=execution, rngs=rngs
        )
        self.token_embedding = TokenEmbedding((vocabulary.size,) * vocabulary.num_codebooks, dim, rngs=rngs)
        # The release leaves these two tables at N(0, 1), 50 times the token rows, which then hardly show at first.
        self.part_embedding = make_param(normal(STDDEV)(rngs.params(), (NUM_PARTS, dim)), (None, "embed"))
        self.codebook_embedding = make_param(normal(STDDEV)(rngs.params(), (predicted, dim)), (None, "embed"))
        if config.nearby_frames:
            ffn_dim = config.backbone.ffn_dim
            self.nearby = NearbyFrames(config.nearby_frames, dim, ffn_dim, dtype=config.dtype, rngs=rngs)
        self.backbone = Llama(config.backbone, dtype=config.dtype, execution=execution, rngs=rngs)
        heads = uniform(dim**-0.5)(rngs.params(), (predicted, dim, vocabulary.nar_head_size))
        self.heads = make_param(heads, (None, "embed", "vocab"))
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

    def embed(
        self,
        tokens: Int[Array, "batch codebook time"],
        part_ids: Int[Array, "batch time"],
        text_rows: Float[Array, "batch time dim"],
        codebook: Int[Array, " batch"],
    ) -> Float[Array, "batch time dim"]:
        """Returns the input of the blocks: the sum over codebooks, the codebook asked for, and the part.

        Args:
            tokens: Ids; 0 = masked, or not there yet.
            part_ids: `TEXT`, `SEMANTIC` or `ACOUSTIC`.
            text_rows: At text slots, the row of `embed_text` (`place_text`); not read elsewhere.
            codebook: As in `__call__`.
        """
        audio_rows = (
            self.token_embedding(jnp.moveaxis(tokens, 1, -1)) + self.codebook_embedding[...][codebook - 1, None]
        )
        rows = jnp.where(part_ids[..., None] == TEXT, text_rows, audio_rows)
        return (rows + self.part_embedding[...][part_ids]).astype(self.config.dtype)

    def __call__(
        self,
        batch: PackedBatch,
        codebook: Int[Array, " batch"],
        drop_text: Bool[Array, "batch time"],
        *,
        key: jax.Array | None = None,
    ) -> Float32[Array, "batch time head"]:
        """Predicts one codebook for each row.

        Args:
            batch: Packed rows; its tokens are 0 where they are to be predicted and in codebooks above.
            codebook: The one to predict, from 1 to `num_codebooks` - 1; all clips of a row share it.
            drop_text: True where a clip goes without its instruction.
            key: Of dropout; None = no dropout.

        Returns:
            Logits over codes, BOS, EOS1, EOS2 (class = id - acoustic offset); undefined at padding.
        """
        text_key, backbone_key = split_key(key, 2)
        text_rows = self.embed_text(batch.text_tokens, batch.text_segment_ids, key=text_key)
        return self.predict(batch, place_text(text_rows, batch, drop_text), codebook, key=backbone_key)

    def predict(
        self,
        batch: PackedBatch,
        text_rows: Float[Array, "batch time dim"],
        codebook: Int[Array, " batch"],
        *,
        key: jax.Array | None = None,
        places: Int[Array, "batch target"] | None = None,
    ) -> Float32[Array, "batch time_or_target head"]:
        """As `__call__`, from text rows already in place: decoding encodes the text once for all its passes.

        With `places`, gives the logits of those alone, and takes no dropout in the last block.
        """
        return self.logits(self.hidden(batch, text_rows, codebook, key=key, places=places), codebook)

    def hidden(
        self,
        batch: PackedBatch,
        text_rows: Float[Array, "batch time dim"],
        codebook: Int[Array, " batch"],
        *,
        key: jax.Array | None = None,
        places: Int[Array, "batch target"] | None = None,
    ) -> Float[Array, "batch time_or_target dim"]:
        """What `predict` makes its logits from."""
        x = self.embed(batch.tokens, batch.part_ids, text_rows, codebook)
        if self.config.nearby_frames:
            x += self.nearby(x, batch.part_ids, batch.segment_ids)
        visibility = Visibility(segment_ids=batch.segment_ids, causal=False)
        return self.backbone(x, slot_positions(batch, self.config.timing), visibility, key=key, places=places)

    def logits(
        self, hidden: Float[Array, "batch time dim"], codebook: Int[Array, " batch"]
    ) -> Float32[Array, "batch time head"]:
        """Predicts each row's codebook from hidden states, in float32."""
        kernel = self.heads[...][codebook - 1].astype(hidden.dtype)
        logits = jnp.einsum("btd,bdv->btv", hidden, kernel, preferred_element_type=jnp.float32)
        return constrain(logits, "batch", None, "vocab")


class NearbyFrames(nnx.Module):
    """What the frames about an acoustic slot, and the semantic token of its own frame, say of it; 0 at other slots.

    A codebook is what the ones below left over, so the codes of the same and the next frames tell most of it. Attention
    finds these places after millions of frames; a convolution begins with them.

    Source:
        Convolution beside attention: Conformer (Gulati et al. 2020), section 2.2, here once ahead of the blocks.
    """

    def __init__(self, frames: int, dim: int, ffn_dim: int, *, dtype: ComputeType, rngs: nnx.Rngs) -> None:
        init = normal(STDDEV)
        self.frames = frames
        self.norm = RMSNorm(dim)
        inputs = (2 * frames + 2, dim)
        self.up = Dense(inputs, (ffn_dim,), (None, "embed", "mlp"), init=init, dtype=dtype, rngs=rngs)
        self.down = Dense((ffn_dim,), (dim,), ("mlp", "embed"), init=init, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch time dim"],
        part_ids: Int[Array, "batch time"],
        segment_ids: Int[Array, "batch time"],
    ) -> Float[Array, "batch time dim"]:
        """Reads embedded slots.

        Between the frames of two clips stand the text and the semantic tokens of the second, so that no clip reads
        another one's frames as long as these are more than `frames` slots.
        """
        rows, time = self.norm(x), x.shape[1]
        acoustic = (part_ids == ACOUSTIC)[..., None]
        own = jnp.where(acoustic, rows, 0)
        padded = jnp.pad(own, ((0, 0), (self.frames, self.frames), (0, 0)))
        neighbours = [padded[:, shift : shift + time] for shift in range(2 * self.frames + 1)]
        slots = _semantic_slots(part_ids, segment_ids)
        found = jnp.take_along_axis(jnp.stack([part_ids, segment_ids], axis=-1), slots[..., None], axis=1)
        known = (found[..., 0] == SEMANTIC) & (found[..., 1] == segment_ids)
        said = jnp.where(known[..., None], jnp.take_along_axis(rows, slots[..., None], axis=1), 0)
        read = jnp.stack([*neighbours, said], axis=-2)
        return jnp.where(acoustic, self.down(jax.nn.gelu(self.up(read))), 0)


def nearby_weights(frames: int, backbone: LlamaConfig) -> int:
    """Weights of `NearbyFrames` that a slot is multiplied with."""
    return (2 * frames + 3) * backbone.model_dim * backbone.ffn_dim


def _semantic_slots(
    part_ids: Int[Array, "batch time"], segment_ids: Int[Array, "batch time"]
) -> Int[Array, "batch time"]:
    """Slot of the semantic token of each acoustic slot's frame, as many slots before it as the clip has acoustic ones.

    For BOS LANG ST EOS1 AT EOS2 end alike; a voice prompt in front of AT may have no semantic tokens.
    """

    def one_row(parts: Int[Array, " time"], ids: Int[Array, " time"]) -> Int[Array, " time"]:
        counts = jax.ops.segment_sum((parts == ACOUSTIC).astype(jnp.int32), ids, num_segments=ids.shape[0] + 1)
        return jnp.maximum(jnp.arange(ids.shape[0]) - counts[ids], 0)

    return jax.vmap(one_row)(part_ids, segment_ids)
