"""Tiny models whose predictions hang on everything they are given."""

import jax
import pytest
from flax import nnx

from voxinstruct_jax.models.ar import ARConfig, ARModel
from voxinstruct_jax.models.nar import NARConfig, NARModel
from voxinstruct_jax.vocabulary import Vocabulary

CHANNELS = (13, 5)


@pytest.fixture(scope="session")
def vocabulary():
    return Vocabulary(num_semantic=7, codebook_size=9, num_codebooks=4)


def make_sharp(model_class, config, seed):
    """Makes a model with enlarged weights: fresh ones give nearly equal logits, in which no mistake would show."""

    @nnx.jit
    def make():
        graph, state = nnx.split(model_class(config, rngs=nnx.Rngs(seed)))
        return nnx.merge(graph, jax.tree.map(lambda x: 8 * x if x.ndim > 1 else x, state))

    return make()


@pytest.fixture(scope="session")
def ar_model(vocabulary):
    return make_sharp(ARModel, ARConfig.tiny(vocabulary=vocabulary, channel_sizes=CHANNELS), 0)


@pytest.fixture(scope="session")
def nar_model(vocabulary):
    return make_sharp(NARModel, NARConfig.tiny(vocabulary=vocabulary, channel_sizes=CHANNELS), 1)
