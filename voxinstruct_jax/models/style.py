"""Reads off a description which voice is asked for: gender, pitch, energy and speed as probabilities, and one vector.

A small model that has heard a few hours finds the words of its content in the instruction and ignores the description:
of some hundred bits that a clip's tokens hold, the description saves one or two, and the tokens before tell the same
from the second frame on. So it is told what each description means (`StyleReader`'s classes are known for every clip),
and is given that at every slot.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from voxinstruct_jax.attributes import STYLE_CLASSES
from voxinstruct_jax.layers.dense import Dense
from voxinstruct_jax.layers.norms import RMSNorm
from voxinstruct_jax.layers.parameter import make_param, normal, zeros
from voxinstruct_jax.text.tokenizer import CONCEPT_CHANNEL, OUTSIDE_QUOTES, QUOTE_CHANNEL

__all__ = [
    "NUM_CLASSES",
    "SURE",
    "Reading",
    "Style",
    "StyleReader",
    "class_places",
    "give_style",
    "style_losses",
    "surely_asked",
]

_SIZES = tuple(len(classes) for classes in STYLE_CLASSES.values())
NUM_CLASSES = sum(_SIZES)
"""Of all attributes."""
_BOUNDS = np.cumsum(_SIZES)[:-1].tolist()
SURE: Mapping[str, float] = {"gender": 0.6, "pitch": 0.5, "energy": 0.5, "speed": 0.5}
"""Probability above which a class counts as asked for; of gender's two classes one always has a half."""
NEIGHBOURS = 2
"""Characters on each side that a layer reads."""
REACHES = (1, 2, 4, 8, 16)
"""Distance of these characters, layer by layer: 62 on each side in all."""
MOST_EVIDENCE = 10.0
"""Of one word for a class, in nats: keeps sums of exponentials in range."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Style:
    """What was read, at each text slot that of its clip."""

    logits: Float[Array, "batch text class"]
    """Classes of all attributes, one attribute after another."""
    probabilities: Float[Array, "batch text class"]
    """The same, as they were read or are known."""
    vectors: Float[Array, "batch text dim"]
    """Mean of the classes' vectors under their probabilities, summed over attributes; 0 at padding."""


class StyleReader(nnx.Module):
    """Classes of the attributes from the words outside the quotes, by a small network of its own.

    Each character is evidence for each class, by the word and the phrase about it ("slow", "not slow", "slower than
    usual"): what a text encoder makes of it, which is taught by speech alone, did not tell these apart. A class has as
    logit the log of the sum of exponentials of its evidence, so that one clear phrase decides, wherever it stands. It
    starts without evidence: weights that lack it go on as they were.

    Source:
        A style encoder taught with the classes of its descriptions: PromptTTS (Guo et al. 2022), section 2.2. Widening
        convolutions: WaveNet (van den Oord et al. 2016), section 2.1, here not causal. Pooling by log-sum-exp: Pinheiro
        and Collobert 2015, "From Image-level to Pixel-level Labeling", equation 1.
    """

    def __init__(self, channel_sizes: Sequence[int], dim: int, reader_dim: int, *, rngs: nnx.Rngs) -> None:
        def table(size: int) -> nnx.Variable:
            return make_param(normal(1.0)(rngs.params(), (size, reader_dim)), (None, None))

        self.characters = table(channel_sizes[0])
        self.concepts = table(channel_sizes[CONCEPT_CHANNEL])
        self.quotes = table(channel_sizes[QUOTE_CHANNEL])
        self.phrases = nnx.List([_Phrases(reach, reader_dim, rngs=rngs) for reach in REACHES])
        self.evidence = Dense((reader_dim,), (NUM_CLASSES,), (None, None), init=zeros, rngs=rngs)
        self.table = make_param(zeros(rngs.params(), (NUM_CLASSES, dim)), (None, "embed"))

    def __call__(
        self,
        text_tokens: Int[Array, "batch text channel"],
        text_segment_ids: Int[Array, "batch text"],
        known: Int[Array, "batch text attribute"] | None = None,
    ) -> Style:
        """Reads packed texts.

        Args:
            text_tokens: By the tokenizer of this package; what is inside of the quotes is not looked at.
            text_segment_ids: Clip of each text slot, from 1; 0 = padding.
            known: Classes that count as read (`attributes.class_numbers`); 0 or less = as it reads them.
        """
        quotes = text_tokens[..., QUOTE_CHANNEL]
        described = quotes == OUTSIDE_QUOTES
        words = self.characters[...][text_tokens[..., 0]] + self.concepts[...][text_tokens[..., CONCEPT_CHANNEL]]
        x = jnp.where(described[..., None], words, self.quotes[...][quotes])
        for phrases in self.phrases:
            x += phrases(x, text_segment_ids)
        same = (text_segment_ids[:, :, None] == text_segment_ids[:, None, :]).astype(jnp.float32)
        weights = jnp.exp(MOST_EVIDENCE * jnp.tanh(self.evidence(x) / MOST_EVIDENCE))
        # A text without description, such as a bare transcript, asks for nothing: all classes alike.
        logits = jnp.log(same * described[:, None, :] @ weights + math.exp(-2 * MOST_EVIDENCE))
        probabilities = [jax.nn.softmax(part, axis=-1) for part in jnp.split(logits, _BOUNDS, axis=-1)]
        probabilities = probabilities if known is None else _with_known(probabilities, known)
        return self._style(logits, probabilities, text_segment_ids)

    def tell(
        self, style: Style, text_segment_ids: Int[Array, "batch text"], known: Int[Array, "batch text attribute"]
    ) -> Style:
        """The same with these classes as if read: numbers as of `attributes.class_numbers`, 0 or less = as it was."""
        read = jnp.split(style.probabilities, _BOUNDS, axis=-1)
        return self._style(style.logits, _with_known(read, known), text_segment_ids)

    def _style(
        self,
        logits: Float[Array, "batch text class"],
        probabilities: Sequence[Float[Array, "batch text _"]],
        text_segment_ids: Int[Array, "batch text"],
    ) -> Style:
        joined = jnp.concatenate(probabilities, axis=-1)
        vectors = jnp.where(text_segment_ids[..., None] > 0, joined @ self.table[...], 0)
        return Style(logits=logits, probabilities=joined, vectors=vectors)


def _with_known(
    read: Sequence[Float[Array, "batch text _"]], known: Int[Array, "batch text attribute"]
) -> list[Float[Array, "batch text _"]]:
    """Probabilities of each attribute's classes, those that are known being certain."""
    return [
        jnp.where(known[..., index, None] > 0, jax.nn.one_hot(known[..., index] - 1, _SIZES[index]), part)
        for index, part in enumerate(read)
    ]


class _Phrases(nnx.Module):
    """What the characters about one say, `reach` apart; those of another clip say nothing."""

    def __init__(self, reach: int, dim: int, *, rngs: nnx.Rngs) -> None:
        init = normal((2 * NEIGHBOURS + 1) ** -0.5 * dim**-0.5)
        self.reach = reach
        self.norm = RMSNorm(dim)
        self.up = Dense((2 * NEIGHBOURS + 1, dim), (dim,), (None, None, None), init=init, rngs=rngs)
        self.down = Dense((dim,), (dim,), (None, None), init=zeros, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch text dim"], segment_ids: Int[Array, "batch text"]
    ) -> Float[Array, "batch text dim"]:
        width, margin = x.shape[1], self.reach * NEIGHBOURS
        rows = jnp.pad(self.norm(x), ((0, 0), (margin, margin), (0, 0)))
        ids = jnp.pad(segment_ids, ((0, 0), (margin, margin)))

        def neighbour(number: int) -> Float[Array, "batch text dim"]:
            place = slice(number * self.reach, number * self.reach + width)
            return jnp.where((ids[:, place] == segment_ids)[..., None], rows[:, place], 0)

        read = jnp.stack([neighbour(number) for number in range(2 * NEIGHBOURS + 1)], axis=-2)
        return self.down(jax.nn.gelu(self.up(read)))


def surely_asked(style: Style) -> Int[Array, "batch text attribute"]:
    """Numbers of the classes that were read surely enough (`SURE`); 0 = none of an attribute."""
    parts = zip(STYLE_CLASSES, jnp.split(style.probabilities, _BOUNDS, axis=-1), strict=True)
    return jnp.stack([jnp.where(part.max(-1) > SURE[name], part.argmax(-1) + 1, 0) for name, part in parts], axis=-1)


def class_places(attribute: str) -> slice:
    """Where the classes of an attribute stand among those of all."""
    index = list(STYLE_CLASSES).index(attribute)
    begin = sum(_SIZES[:index])
    return slice(begin, begin + _SIZES[index])


def give_style(
    vectors: Float[Array, "batch text dim"],
    text_segment_ids: Int[Array, "batch text"],
    segment_ids: Int[Array, "batch time"],
) -> Float[Array, "batch time dim"]:
    """Brings each clip's vector to all its slots in the sequence; 0 at padding."""
    own = jnp.argmax(text_segment_ids[:, None, :] == segment_ids[:, :, None], axis=-1)
    placed = jnp.take_along_axis(vectors, own[..., None], axis=1)
    return jnp.where(segment_ids[..., None] > 0, placed, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """How one attribute was read, at each text slot."""

    loss: Float[Array, "batch text"]
    """Cross-entropy."""
    hit: Bool[Array, "batch text"]
    """Whether the likeliest class is the right one."""
    known: Bool[Array, "batch text"]
    """Whether there is a right one."""
    told: Bool[Array, "batch text"]
    """Whether it is known what is asked for, be it nothing."""


def style_losses(
    logits: Float[Array, "batch text class"], attributes: Int[Array, "batch text attribute"]
) -> dict[str, Reading]:
    """Compares what was read with what is known, attribute by attribute.

    Args:
        logits: From a `StyleReader`.
        attributes: Numbers as of `attributes.class_numbers`; 0 = not known, -1 = not asked for: the loss is then that
            of all classes alike, and nothing is right.
    """
    readings = {}
    for index, (name, part) in enumerate(zip(STYLE_CLASSES, jnp.split(logits, _BOUNDS, axis=-1), strict=True)):
        own, size = attributes[..., index], part.shape[-1]
        right = jnp.where(own[..., None] < 0, 1 / size, jax.nn.one_hot(own - 1, size))
        readings[name] = Reading(
            loss=optax.softmax_cross_entropy(part, right),
            hit=part.argmax(axis=-1) == own - 1,
            known=own > 0,
            told=own != 0,
        )
    return readings
