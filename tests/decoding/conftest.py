"""Tiny models whose predictions hang on everything they are given."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from voxinstruct_jax.models.ar import ARConfig, ARModel
from voxinstruct_jax.models.conditioning import NUM_DURATIONS
from voxinstruct_jax.models.nar import NARConfig, NARModel
from voxinstruct_jax.vocabulary import Vocabulary

CHANNELS = (13, 5)


@pytest.fixture(scope="session")
def vocabulary():
    return Vocabulary(num_semantic=7, codebook_size=9, num_codebooks=4)


def make_sharp(model_class, config, seed):
    """Makes a model with wide weights: fresh ones give nearly equal logits, in which no mistake would show.

    They are drawn by NumPy, since compiling the initialisers takes longer than all tests of the room.
    """
    graph, state = nnx.split(nnx.eval_shape(lambda: model_class(config, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(seed)

    def draw(x):
        return jnp.asarray(0.2 * rng.standard_normal(x.shape) + (x.ndim == 1), x.dtype)

    return nnx.merge(graph, jax.tree.map(draw, state))


@pytest.fixture(scope="session")
def ar_model(vocabulary):
    return make_sharp(ARModel, ARConfig.tiny(vocabulary=vocabulary, channel_sizes=CHANNELS), 0)


@pytest.fixture(scope="session")
def aligned_model(vocabulary):
    """Its text tokens last some half frames: of its durations the short ones are likelier, to a text of any kind."""
    return make_aligned(ARConfig.tiny(vocabulary=vocabulary, channel_sizes=CHANNELS))


@pytest.fixture(scope="session")
def reading_model(vocabulary):
    """As `aligned_model`, with a style reader; the last channel of its text tells what is in quotes."""
    config = ARConfig.tiny(vocabulary=vocabulary, channel_sizes=(*CHANNELS, 2, 2, 4))
    return make_aligned(dataclasses.replace(config, style_reader=True))


def make_aligned(config):
    model = make_sharp(ARModel, dataclasses.replace(config, timing="aligned"), 2)
    leaning = -0.02 * jnp.sign(model.text.bias[...])[:, None] * jnp.arange(NUM_DURATIONS)
    model.duration_head.kernel[...] = model.duration_head.kernel[...] + leaning
    return model


@pytest.fixture(scope="session")
def nar_model(vocabulary):
    return make_sharp(NARModel, NARConfig.tiny(vocabulary=vocabulary, channel_sizes=CHANNELS), 1)
