import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from voxinstruct_jax.audio.quantizer import QuantizerConfig, ResidualQuantizer, nearest
from voxinstruct_jax.config import ConfigError

CONFIG = QuantizerConfig(latent_dim=4, num_codebooks=3, codebook_size=8, decay=0.8, dropout=0.0)


GRAPH, ABSTRACT = nnx.split(nnx.eval_shape(lambda: ResidualQuantizer(CONFIG, rngs=nnx.Rngs(0))))
encode = jax.jit(lambda state, latents: nnx.merge(GRAPH, state).encode(latents))
decode = jax.jit(lambda state, codes: nnx.merge(GRAPH, state).decode(codes))


@pytest.fixture(scope="module")
def fresh():
    """Small entries that nothing uses yet, as at the start of training."""
    random = np.random.default_rng(0)
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), ABSTRACT)
    state["entries"][...] = jnp.asarray(0.02 * random.standard_normal((3, 8, 4)), jnp.float32)
    return state


@pytest.fixture(scope="module")
def separated(fresh):
    """Entries whose sums keep each codebook's choice unmistakable: every next codebook is ten times finer."""
    quantizer = nnx.merge(GRAPH, fresh, copy=True)
    random = np.random.default_rng(0)
    corners = np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1], [0]), -1).reshape(8, 4)
    entries = np.stack([random.permutation(corners) * 10.0**-q for q in range(3)]).astype(np.float32)
    quantizer.entries[...] = jnp.asarray(entries)
    return nnx.state(quantizer), entries


@pytest.fixture(scope="module")
def clusters():
    """Points in 24 tight clusters, as [batch frame latent]."""
    random = np.random.default_rng(1)
    centres = random.uniform(-1, 1, (24, 4))
    points = centres[random.integers(0, 24, (4, 64))] + 0.01 * random.standard_normal((4, 64, 4))
    return jnp.asarray(points, jnp.float32)


@pytest.fixture(scope="module")
def trained(fresh, clusters):
    """The state after 60 updates, and the perplexities of the last one."""

    @jax.jit
    def update(state, key):
        module = nnx.merge(GRAPH, state)
        found = module.train_step(clusters, key)
        return nnx.state(module), found.perplexity

    state = fresh
    for step in range(60):
        state, perplexity = update(state, jax.random.key(step))
    return state, perplexity


def test_sums_of_entries_are_coded_exactly(separated):
    state, entries = separated
    codes = np.random.default_rng(2).integers(0, 8, (2, 3, 5))
    sums = sum(entries[q][codes[:, q]] for q in range(3))
    np.testing.assert_array_equal(encode(state, jnp.asarray(sums)), codes)
    np.testing.assert_allclose(decode(state, jnp.asarray(codes)), sums, atol=1e-6)


def test_leading_codebooks_alone_give_the_coarse_part(separated):
    state, entries = separated
    codes = np.random.default_rng(3).integers(0, 8, (1, 1, 6))
    np.testing.assert_allclose(decode(state, jnp.asarray(codes)), entries[0][codes[:, 0]])


def test_codes_of_a_clip_do_not_depend_on_its_neighbours(trained, clusters):
    state, _ = trained
    together = encode(state, clusters)
    for row in range(len(clusters)):
        np.testing.assert_array_equal(encode(state, clusters[row : row + 1])[0], together[row])


def test_every_codebook_lowers_what_is_left_over(trained, clusters):
    state, _ = trained
    codes = encode(state, clusters)
    errors = [float(np.mean((clusters - decode(state, codes[:, : q + 1])) ** 2)) for q in range(3)]
    assert errors[0] < 0.5 * float(jnp.mean(clusters**2))
    assert errors[1] < 0.5 * errors[0]
    assert errors[2] < 0.8 * errors[1]


def test_training_returns_the_quantised_latents_with_the_gradient_of_the_latents(fresh, clusters):
    def total(latents):
        module = nnx.merge(GRAPH, fresh, copy=True)
        expected = module.decode(module.encode(latents))
        coarse = module.decode(module.encode(latents)[:, :1])
        found = module.train_step(latents, jax.random.key(0))
        parts = found.latents, found.first, found.commitment, found.perplexity
        return jnp.sum(found.latents * 3) + jnp.sum(found.first * 2), (*parts, expected, coarse)

    gradient, (quantised, first, commitment, perplexity, expected, coarse) = jax.jit(jax.grad(total, has_aux=True))(
        clusters
    )
    np.testing.assert_allclose(gradient, 5)
    np.testing.assert_allclose(quantised, expected, atol=1e-6)
    np.testing.assert_allclose(first, coarse, atol=1e-6)
    assert np.abs(np.asarray(first - quantised)).max() > 1e-3
    assert float(commitment) > 0
    assert perplexity.shape == (3,)


def test_the_first_codebook_is_given_alone_whatever_number_a_clip_draws(separated, clusters):
    state, entries = separated
    config = dataclasses.replace(CONFIG, dropout=1.0)
    graph = nnx.graphdef(nnx.eval_shape(lambda: ResidualQuantizer(config, rngs=nnx.Rngs(0))))

    @jax.jit
    def train(state):
        found = nnx.merge(graph, state).train_step(clusters, jax.random.key(0))
        return found.latents, found.first

    quantised, first = map(np.asarray, train(state))
    distances = np.linalg.norm(np.asarray(clusters)[..., None, :] - entries[0], axis=-1)
    np.testing.assert_allclose(first, entries[0][distances.argmin(axis=-1)], atol=1e-5)
    alone = np.array([np.allclose(a, b, atol=1e-5) for a, b in zip(quantised, first, strict=True)])
    assert 0 < alone.sum() < len(alone)  # one codebook was drawn for some clips, more for others


def test_all_codes_come_into_use_though_they_start_far_from_the_data(trained):
    # 24 clusters on 8 codes: an even use would have a perplexity of 8, a single living code 1
    _, perplexity = trained
    assert float(perplexity.min()) > 4


def test_a_code_that_nothing_chooses_is_moved_to_a_latent_of_the_batch():
    config = QuantizerConfig(latent_dim=2, num_codebooks=1, codebook_size=2, decay=0.5, dropout=0.0)
    latents = jnp.asarray([[[1.0, 1.2], [1.0, 0.8], [1.2, 1.0], [0.8, 1.0]]])

    @jax.jit
    def entries_after_a_step():
        quantizer = ResidualQuantizer(config, rngs=nnx.Rngs(0))
        quantizer.entries[...] = jnp.asarray([[[1.0, 1.0], [90.0, 90.0]]])
        quantizer.members[...] = jnp.asarray([[4.0, 0.0]])
        quantizer.train_step(latents, jax.random.key(0))
        return quantizer.entries[...][0]

    living, moved = np.asarray(entries_after_a_step())
    # half of the old sum of four members (1, 1) and half of the new one, over as many members
    np.testing.assert_allclose(living, [1.0, 1.0], atol=1e-6)
    assert np.abs(np.asarray(latents[0]) - moved).sum(axis=1).min() < 1e-6


def test_nearest_is_the_entry_of_least_distance():
    latents = jnp.asarray([[0.0, 0.0], [1.0, 0.4], [3.0, 3.0]])
    entries = jnp.asarray([[1.0, 1.0], [0.2, 0.0], [2.0, 2.0]])
    np.testing.assert_array_equal(nearest(latents, entries), [1, 0, 2])


def test_sizes_below_one_are_refused():
    with pytest.raises(ConfigError, match="must be at least 1"):
        QuantizerConfig(codebook_size=0)
