"""What a decoder makes of the linguistic features of frames: a word beside their codes, and the tune of a clip."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from voxinstruct_jax.layers.convolution import ConvNeXtBlock
from voxinstruct_jax.layers.dropout import dropout

__all__ = ["MELODY_SPREAD", "NUM_FEATURES", "FeatureReader", "Melody", "follow_melody"]

NUM_FEATURES = 5
"""Linguistic features of a frame: its semantic unit, then the first and the second phone of the character that is
spoken in its first half, and those of its second half (`text.tokenizer.phones_in_frames`); -1 = unknown."""

FEATURE_DIM, MELODY_FEATURE_DIM = 64, 24
MELODY_LAYERS = 5
MELODY_SPREAD = 1.1
"""What is expected moves less than what is: the melody of the embedded voice by 3.4 semitones (standard deviation) in
English and 3.5 in Mandarin, unseen speech by 3.7 and 3.9."""


class FeatureReader(nnx.Module):
    """What the linguistic features of a frame add to what its codes say; nothing at first.

    Latents are forty times as large as rows that start as zeros become in a thousand steps, so each feature starts as a
    random vector, and only the way from there to the latents as zeros.
    """

    def __init__(self, sizes: tuple[int, ...], dim: int, *, rngs: nnx.Rngs) -> None:
        self.begins = _begins(sizes)
        self.vectors = _feature_vectors(sizes, FEATURE_DIM, rngs)
        self.hidden = nnx.Linear(len(sizes) * FEATURE_DIM, dim, rngs=rngs)
        self.output = nnx.Linear(dim, dim, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)

    def __call__(self, features: Int[Array, "batch frame feature"]) -> Float[Array, "batch frame dim"]:
        """Reads features; -1 = unknown."""
        return self.output(jax.nn.gelu(self.hidden(_look_up(self.vectors, features, self.begins))))


class Melody(nnx.Module):
    """Tells the course of pitch from what is said.

    Codes were made for sound as a whole, and those of the first codebook hardly hold pitch; which tone or stress a
    phone has does follow from the text. Frames of which nothing is known are not read.

    Source:
        FastSpeech 2 (Ren et al. 2021), section 2.3: a pitch predictor of convolutions over phones in time, trained on
        measured pitch; here it is relative to the clip, whose height other things decide.
    """

    def __init__(self, sizes: tuple[int, ...], dim: int, steps: int, *, rngs: nnx.Rngs) -> None:
        """Makes the network.

        Args:
            sizes: Values of each feature.
            dim: Channels.
            steps: Pitches a frame.
            rngs: Draws the weights.
        """
        self.begins = _begins(sizes)
        self.vectors = _feature_vectors(sizes, MELODY_FEATURE_DIM, rngs)
        self.first = nnx.Linear(len(sizes) * MELODY_FEATURE_DIM, dim, rngs=rngs)
        scale = MELODY_LAYERS**-0.5
        self.blocks = nnx.List([ConvNeXtBlock(dim, 2 * dim, scale=scale, rngs=rngs) for _ in range(MELODY_LAYERS)])
        self.norm = nnx.LayerNorm(dim, rngs=rngs)
        self.last = nnx.Linear(dim, steps, rngs=rngs)

    def __call__(
        self,
        features: Int[Array, "batch frame feature"],
        *,
        dropout_rate: float = 0.0,
        key: jax.Array | None = None,
    ) -> Float[Array, "batch step"]:
        """Returns semitones, of which only differences within a clip mean anything; `step = frame * steps`.

        Args:
            features: -1 = unknown.
            dropout_rate: Of what is known of frames, in training.
            key: Of the dropout; None = no dropout.
        """
        known = _known(features)[..., None]
        x = self.first(dropout(_look_up(self.vectors, features, self.begins), dropout_rate, key)) * known
        for block in self.blocks:
            x = block(x) * known
        return self.last(self.norm(x)).reshape(len(features), -1)


def follow_melody(
    pitch: Float[Array, "batch step"],
    semitones: Float[Array, "batch step"],
    features: Int[Array, "batch frame feature"],
) -> Float[Array, "batch step"]:
    """Gives voiced steps of which something is known the course of a melody, about the median that they have.

    Args:
        pitch: Hz; 0 = unvoiced.
        semitones: From `Melody`.
        features: What it was told from.
    """
    counted = (pitch > 0) & jnp.repeat(_known(features), pitch.shape[1] // features.shape[1], axis=1)

    def median_of(octaves: Float[Array, "batch step"]) -> Float[Array, "batch 1"]:
        return jnp.nanmedian(jnp.where(counted, octaves, jnp.nan), axis=1, keepdims=True)

    octaves, course = jnp.log2(jnp.where(counted, pitch, 1.0)), MELODY_SPREAD * semitones / 12
    return jnp.where(counted, 2 ** (course - median_of(course) + median_of(octaves)), pitch)


def _known(features: Int[Array, "batch frame feature"]) -> Bool[Array, "batch frame"]:
    return (features >= 0).any(-1)


def _begins(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Row of the first value of each feature."""
    return tuple(np.cumsum((0, *sizes[:-1])).tolist())


def _feature_vectors(sizes: tuple[int, ...], dim: int, rngs: nnx.Rngs) -> nnx.Embed:
    return nnx.Embed(sum(sizes), dim, embedding_init=nnx.initializers.normal(1.0), rngs=rngs)


def _look_up(
    vectors: nnx.Embed, features: Int[Array, "batch frame feature"], begins: tuple[int, ...]
) -> Float[Array, "batch frame vectors"]:
    """Vectors of a frame's features, one after another; zeros of those that are unknown."""
    found = vectors(jnp.maximum(features, 0) + jnp.asarray(begins))
    return jnp.where((features >= 0)[..., None], found, 0.0).reshape(*features.shape[:2], -1)
