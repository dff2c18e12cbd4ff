import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from voxinstruct_jax.vocabulary import PackedBatch, Vocabulary, build_layout

VOCABULARY = Vocabulary(num_semantic=9, codebook_size=6, num_codebooks=3)
CHANNEL_SIZES = (11, 7)
TEXT_WIDTH, TIME_WIDTH = 12, 40


@dataclasses.dataclass(frozen=True)
class Clip:
    """One clip and where it lies in a row."""

    text_tokens: np.ndarray
    tokens: np.ndarray
    part_ids: np.ndarray
    times: np.ndarray
    """When each slot is spoken; drawn, since only aligned models read them, and those take any."""

    @property
    def length(self):
        return len(self.text_tokens) + self.tokens.shape[1]


def make_clip(seed, *, num_text, num_units, num_frames):
    random = np.random.default_rng(seed)
    text_tokens = random.integers(1, 7, (num_text, len(CHANNEL_SIZES)))
    codes = random.integers(0, 6, (3, num_frames))
    layout = build_layout(VOCABULARY, "zh", random.integers(0, 9, num_units), codes)
    times = random.uniform(-2, 8, num_text + layout.tokens.shape[1]).astype(np.float32)
    return Clip(text_tokens, layout.tokens, layout.part_ids, times)


def put_in_rows(rows):
    """A `PackedBatch` of fixed widths from rows of clips, filled slot by slot."""
    shape, text_shape = (len(rows), TIME_WIDTH), (len(rows), TEXT_WIDTH)
    arrays = {name: np.zeros(shape, np.int32) for name in ("part_ids", "segment_ids", "positions", "text_index")}
    tokens = np.zeros((len(rows), 3, TIME_WIDTH), np.int32)
    text_tokens = np.zeros((*text_shape, len(CHANNEL_SIZES)), np.int32)
    text_segment_ids = np.zeros(text_shape, np.int32)
    times = np.zeros(shape, np.float32)
    for b, clips in enumerate(rows):
        start = text_start = 0
        for number, clip in enumerate(clips, start=1):
            num_text, end = len(clip.text_tokens), start + clip.length
            text_end, audio = text_start + num_text, start + num_text
            text_tokens[b, text_start:text_end] = clip.text_tokens
            text_segment_ids[b, text_start:text_end] = number
            tokens[b, :, audio:end] = clip.tokens
            arrays["part_ids"][b, audio:end] = clip.part_ids
            arrays["segment_ids"][b, start:end] = number
            arrays["positions"][b, start:end] = np.arange(clip.length)
            times[b, start:end] = clip.times
            arrays["text_index"][b, start:audio] = np.arange(text_start, text_end)
            start, text_start = end, text_end
    arrays |= {"tokens": tokens, "text_tokens": text_tokens, "text_segment_ids": text_segment_ids, "times": times}
    return PackedBatch(clip_ids=jnp.arange(len(rows)), **{name: jnp.asarray(x) for name, x in arrays.items()})


@pytest.fixture(scope="session")
def clips():
    """Two clips that fit into one row: 4 + 10 and 3 + 9 slots."""
    return [
        make_clip(1, num_text=4, num_units=3, num_frames=3),
        make_clip(2, num_text=3, num_units=1, num_frames=4),
    ]


@pytest.fixture(scope="session")
def separate(clips):
    """Each clip in a row of its own."""
    return put_in_rows([[clips[0]], [clips[1]]])


@pytest.fixture(scope="session")
def packed(clips):
    """Both clips in each row, in either order."""
    return put_in_rows([[clips[0], clips[1]], [clips[1], clips[0]]])


@pytest.fixture(scope="session")
def build():
    """Makes a model and fills it from NumPy: no program to compile, and weights large enough to show what is seen."""

    def build_model(cls, config):
        graph, state = nnx.split(nnx.eval_shape(lambda: cls(config, rngs=nnx.Rngs(0))))
        random = np.random.default_rng(0)

        def fill(leaf):
            return jnp.asarray(random.standard_normal(leaf.shape) * 0.2 + (leaf.ndim == 1), jnp.float32)

        return nnx.merge(graph, jax.tree.map(fill, state))

    return build_model


@pytest.fixture(scope="session")
def row_of():
    """A batch of one row: (number of clips, units, frames), each clip with four text slots."""

    def row_of(count, num_units, num_frames):
        return put_in_rows([[make_clip(3, num_text=4, num_units=num_units, num_frames=num_frames)] * count])

    return row_of
