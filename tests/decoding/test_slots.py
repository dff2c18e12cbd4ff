"""Requests in slots: each row reads its own past, and neither neighbours nor the time of coming change a bit."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from voxinstruct_jax.decoding.autoregressive import decode_ar
from voxinstruct_jax.decoding.requests import ARRequest, Capacity, Limits, batch_requests
from voxinstruct_jax.decoding.rules import FIXED
from voxinstruct_jax.decoding.sampling import SamplingConfig
from voxinstruct_jax.decoding.slots import DONE, SlotSizes, advance, empty_slots, fill_slots
from voxinstruct_jax.guidance import Guidance, needed_branches
from voxinstruct_jax.layers.attention import PAST_BLOCK, attend_to_cache, attend_to_past
from voxinstruct_jax.vocabulary import build_prompt

NONE = Guidance(text_on_semantic=1.0, text_on_acoustic=1.0, semantic_on_acoustic=1.0)
NO_SEMANTIC = Guidance(semantic_on_acoustic=1.0)
SAMPLING = SamplingConfig(semantic_top_k=8, temperature=3.0, top_p=1.0)
WIDTHS = {"text_width": 6, "prefix_width": 5, "acoustic_prefix_width": 3}
SIZES = SlotSizes(
    slots=3, rows=7, context=2 * PAST_BLOCK, capacity=Capacity(semantic=6, acoustic=8), text=6, acoustic_prefix=3
)


@pytest.mark.parametrize("time", [1, 3])
def test_each_row_attends_to_its_own_past(time):
    random = np.random.default_rng(0)
    slots = 2 * PAST_BLOCK
    query = jnp.asarray(random.standard_normal((4, time, 4, 8)), jnp.float32)
    keys, values = (jnp.asarray(random.standard_normal((4, 2, slots, 8)), jnp.float32) for _ in range(2))
    start = jnp.array([0, PAST_BLOCK - 2, slots - time, slots])
    found = np.asarray(attend_to_past(query, keys, values, start))
    seen = np.arange(slots) <= (np.asarray(start)[:, None] + np.arange(time))[..., None]
    expected = np.asarray(attend_to_cache(query, keys, values, jnp.asarray(seen)))
    np.testing.assert_allclose(found[:3], expected[:3], atol=1e-5)
    assert not found[3].any(), "a row beyond the last slot sees nothing"
    # What lies behind, and how much of it, changes no bit.
    loud = [jnp.where(seen[:, -1][:, None, :, None], x, 1e6) for x in (keys, values)]
    wide = [jnp.pad(x, ((0, 0), (0, 0), (0, PAST_BLOCK), (0, 0))) for x in loud]
    np.testing.assert_array_equal(np.asarray(attend_to_past(query[:3], *(x[:3] for x in wide), start[:3])), found[:3])


@functools.partial(jax.jit, static_argnames=("graph", "branches"))
def fill(graph, weights, state, batch, slots, rows, branches):
    return fill_slots(nnx.merge(graph, weights), state, batch, slots, rows, branches=branches, rules=FIXED)


@functools.partial(jax.jit, static_argnames=("graph", "steps"))
def go(graph, weights, state, steps):
    return advance(nnx.merge(graph, weights), state, sampling=SAMPLING, rules=FIXED, steps=steps)


@pytest.fixture(scope="module")
def requests(vocabulary):
    """Three, two and one branch; a voice prompt in the second."""
    texts = [[[3, 1], [7, 2], [1, 0]], [[9, 4], [2, 2], [5, 0], [11, 3], [1, 0]], [[6, 1], [1, 0]]]
    random = np.random.default_rng(0)
    return [
        ARRequest(
            text_tokens=np.array(text, np.int32),
            prompt=build_prompt(vocabulary, None, np.array(units, int), random.integers(0, 9, (4, frames))),
            guidance=guidance,
            limits=Limits(min_semantic=2, max_semantic=5, min_acoustic=2, max_acoustic=7, max_total=100),
            seed=seed,
        )
        for seed, (text, units, frames, guidance) in enumerate(
            zip(texts, [[], [4, 0, 6], []], [0, 3, 2], [Guidance(), NO_SEMANTIC, NONE], strict=True)
        )
    ]


def decode_in_slots(model, arrivals, steps=4):
    """Puts (request, slot, rows) in, chunk by chunk, and runs to the end; returns what is in each slot."""
    split = nnx.split(model)
    state = empty_slots(model.config, SIZES, SAMPLING)
    for request, slot, rows in arrivals:
        branches = needed_branches(request.guidance)
        batch = batch_requests([request, request], branches, **WIDTHS)
        places = np.array([SIZES.slots, slot]), np.array([[SIZES.rows] * len(branches), rows])
        state = fill(*split, state, batch, *places, branches)
        state = go(*split, state, steps)
    while (np.asarray(state.stage) != DONE).any():
        state = go(*split, state, steps)
    return jax.device_get(state.result)


def bits_of(result, slot):
    return [np.asarray(leaf[slot]).tobytes() for leaf in jax.tree.leaves(result)]


@pytest.mark.parametrize("kind", ["ar_model", "aligned_model"])
def test_slot_neighbours_and_arrival_change_no_bit(request, requests, kind):
    model = request.getfixturevalue(kind)
    three, two, one = requests
    if kind == "aligned_model":
        two = dataclasses.replace(two, prompt=one.prompt)
    together = decode_in_slots(model, [(three, 0, [0, 1, 2]), (two, 1, [3, 4]), (one, 2, [5])])
    turned = decode_in_slots(model, [(one, 1, [3]), (three, 2, [6, 0, 4]), (two, 0, [5, 1])])
    again = decode_in_slots(model, [(one, 0, [6]), (two, 1, [2, 0]), (one, 0, [4]), (three, 2, [5, 3, 1])], steps=16)
    assert together.code_lengths.min() > 0
    for first, second, third in zip((0, 1, 2), (2, 0, 1), (2, 1, 0), strict=True):
        assert bits_of(together, first) == bits_of(turned, second) == bits_of(again, third)


def test_slots_give_what_one_request_alone_gives(ar_model, requests):
    together = decode_in_slots(ar_model, [(requests[0], 2, [4, 6, 1]), (requests[1], 0, [0, 3]), (requests[2], 1, [2])])
    for item, slot in ((requests[0], 2), (requests[1], 0)):
        branches = needed_branches(item.guidance)
        alone = jax.jit(functools.partial(decode_ar, branches=branches, sampling=SAMPLING, capacity=SIZES.capacity))(
            ar_model, batch_requests([item], branches, **WIDTHS)
        )
        assert bits_of(jax.device_get(alone), 0) == bits_of(together, slot)
