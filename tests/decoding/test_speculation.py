"""A draft that goes ahead changes how many passes there are, and no token."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from voxinstruct_jax.decoding.requests import ARRequest, Capacity, Limits, batch_requests
from voxinstruct_jax.decoding.rules import FIXED
from voxinstruct_jax.decoding.sampling import SamplingConfig
from voxinstruct_jax.decoding.slots import DONE, SlotSizes, advance, empty_slots, fill_slots
from voxinstruct_jax.decoding.speculation import DraftTable, advance_with_draft, count_draft
from voxinstruct_jax.guidance import Branch, Guidance
from voxinstruct_jax.layers.attention import PAST_BLOCK
from voxinstruct_jax.vocabulary import build_prompt

REQUESTS, COUNT = 96, 2
GREEDY = SamplingConfig(temperature=0.0)
RANDOM = SamplingConfig(semantic_top_k=4, acoustic_top_k=6, temperature=2.0, repetition_window=3, repetition_ratio=0.4)
SIZES = SlotSizes(
    slots=REQUESTS,
    rows=3 * REQUESTS,
    context=2 * PAST_BLOCK,
    capacity=Capacity(semantic=6, acoustic=8),
    text=6,
    acoustic_prefix=2,
)


def make_batch(vocabulary, first_seed):
    """One request under many seeds, with all guidance branches and a voice prompt of two frames."""
    request = ARRequest(
        text_tokens=np.array([[9, 4], [2, 2], [5, 0], [1, 0]], np.int32),
        prompt=build_prompt(vocabulary, "en", np.zeros(0, int), np.arange(8).reshape(4, 2)),
        guidance=Guidance(),
        limits=Limits(min_semantic=2, max_semantic=5, min_acoustic=2, max_acoustic=7, max_total=100),
        seed=0,
    )
    batch = batch_requests([request] * REQUESTS, tuple(Branch), text_width=6, prefix_width=2, acoustic_prefix_width=2)
    keys = jax.vmap(jax.random.key)(np.arange(first_seed, first_seed + REQUESTS))
    return dataclasses.replace(batch, keys=keys)


@functools.partial(jax.jit, static_argnames=("graph", "sampling"))
def begin(graph, weights, batch, sampling):
    model = nnx.merge(graph, weights)
    state = empty_slots(model.config, SIZES, sampling)
    places = jnp.arange(REQUESTS), jnp.arange(3 * REQUESTS).reshape(-1, 3)
    return fill_slots(model, state, batch, *places, branches=tuple(Branch), rules=FIXED)


@functools.partial(jax.jit, static_argnames=("graph", "sampling", "steps"))
def plain(graph, weights, state, sampling, steps=None):
    return advance(nnx.merge(graph, weights), state, sampling=sampling, rules=FIXED, steps=steps)


@functools.partial(jax.jit, static_argnames=("graph", "sampling", "steps"))
def drafted(graph, weights, state, table, sampling, steps=None):
    model = nnx.merge(graph, weights)
    return advance_with_draft(model, state, table, count=COUNT, sampling=sampling, rules=FIXED, steps=steps)


def tokens_of(state):
    result = jax.device_get(state.result)
    return np.concatenate(
        [result.semantic_tokens, result.codes, np.stack([result.semantic_lengths, result.code_lengths], 1)], axis=1
    )


@pytest.fixture(scope="module")
def table(vocabulary):
    """Right now and then."""
    random = np.random.default_rng(0)
    return DraftTable(
        next_unit=random.integers(0, vocabulary.num_semantic, vocabulary.num_semantic).astype(np.int32),
        next_code=random.integers(0, 9, (vocabulary.num_semantic, vocabulary.codebook_size)).astype(np.int32),
    )


@pytest.mark.parametrize(("kind", "sampling"), [("ar_model", RANDOM), ("aligned_model", GREEDY)])
def test_tokens_are_those_of_plain_decoding_in_fewer_passes(request, vocabulary, table, kind, sampling):
    split = nnx.split(request.getfixturevalue(kind))
    state = begin(*split, make_batch(vocabulary, 0), sampling)
    expected = plain(*split, state, sampling)
    if sampling == GREEDY:  # all requests are one: a table from elsewhere may never be right
        result = jax.device_get(expected.result)
        table = count_draft(zip(result.semantic_tokens, result.codes, strict=True), vocabulary)
    found = drafted(*split, state, table, sampling)
    np.testing.assert_array_equal(tokens_of(found), tokens_of(expected))
    assert not (np.asarray(found.stage) != DONE).any()
    halted = drafted(*split, state, table, sampling, 7)
    slow = plain(*split, state, sampling, 7)
    assert np.asarray(halted.index).mean() > np.asarray(slow.index).mean() + 0.2, "no proposal was ever kept"


def test_a_draft_draws_from_the_distribution_of_the_model(ar_model, vocabulary, table):
    """Other seeds with the draft than without: the same frequencies of what comes first, second and third."""
    split = nnx.split(ar_model)
    by_draft = tokens_of(drafted(*split, begin(*split, make_batch(vocabulary, 1000), RANDOM), table, RANDOM))
    by_model = tokens_of(plain(*split, begin(*split, make_batch(vocabulary, 0), RANDOM), RANDOM))
    assert (by_draft != by_model).any()
    for place in (0, 1, 2, 6, 7):
        counts = np.stack([np.bincount(tokens[:, place], minlength=9) for tokens in (by_draft, by_model)])
        counts = counts[:, counts.sum(axis=0) > 0]
        expected = counts.sum(axis=0) / 2
        statistic, freedom = ((counts - expected) ** 2 / expected).sum(), counts.shape[1] - 1
        assert freedom > 0
        # The .999 quantile of chi-square, by Wilson and Hilferty.
        assert statistic < freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3


def test_the_table_holds_what_follows_most_often(vocabulary):
    clips = [(np.array([1, 2, 2, 3]), np.array([5, 6, 7, 8])), (np.array([1, 2, 3]), np.array([5, 6, 0]))]
    table = count_draft(clips, vocabulary)
    assert table.next_unit[1] == 2
    assert table.next_unit[2] == 3
    assert table.next_code[2, 5] == 6
    assert table.next_code[3, 7] == 8
    assert table.next_code[0, 4] == 4, "after what was never seen, the same again"
