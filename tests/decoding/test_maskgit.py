"""Iterative decoding: the schedule of the reference, the release's own runs, and a plain loop."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from voxinstruct_jax.config import ConfigError, InputError
from voxinstruct_jax.data.packing import Clip, pack, unpack
from voxinstruct_jax.decoding.maskgit import fill_codebooks, masked_layout, reveal
from voxinstruct_jax.models.unmasking import reveal_totals
from voxinstruct_jax.vocabulary import build_layout, parse_layout

GOLDEN = Path(__file__).parents[1] / "golden" / "voxinstruct_tiny.npz"
STEPS = (3, 2, 1)


@pytest.mark.parametrize(
    ("targets", "increments"),
    [
        (750, [15, 43, 69, 93, 114, 129, 141, 146]),
        (375, [8, 21, 35, 46, 57, 65, 70, 73]),
        (10, [1, 0, 1, 1, 2, 2, 2, 1]),
        (6, [1, 0, 1, 0, 1, 1, 1, 1]),
    ],
)
def test_schedule_reveals_as_many_as_the_release(targets, increments):
    assert np.diff(reveal_totals(8, 750)[:, targets], prepend=0).tolist() == increments


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 16), st.integers(0, 300))
def test_schedule_never_hides_again_and_ends_with_everything(num_steps, targets):
    totals = reveal_totals(num_steps, 300)[:, targets]
    assert (np.diff(totals, prepend=0) >= 0).all()
    assert totals[-1] == targets


def test_of_equal_confidences_the_first_places_are_revealed():
    confidence = jnp.array([[0.5, 0.9, 0.5, 0.5, 0.7], [0.2, 0.2, 0.2, 0.2, 0.2]])
    masked = jnp.array([[True, False, True, True, True], [False, True, True, True, True]])
    picked = reveal(confidence, masked, jnp.array([3, 2]))
    assert np.asarray(picked).astype(int).tolist() == [[1, 0, 1, 0, 1], [0, 1, 1, 0, 0]]


@pytest.mark.parametrize("run_number", [0, 1])
def test_revealing_follows_the_runs_of_the_release(run_number):
    with np.load(GOLDEN) as golden:
        recorded = {
            name: golden[f"nar/predict{run_number}/{name}"]
            for name in ("x_in", "prompt_len", "iter_step", "logits_all_calls", "x_after_each_codebook", "segment_ids")
        }
    num_steps, tokens = int(recorded["iter_step"]), recorded["x_in"][0].copy()
    start = int((recorded["segment_ids"] == 1).sum() + recorded["prompt_len"])
    target = np.arange(tokens.shape[1]) >= start
    for codebook in range(1, 8):
        for number in range(num_steps):
            logits = jnp.asarray(recorded["logits_all_calls"][(codebook - 1) * num_steps + number])
            masked = target & (tokens[codebook] == 0)
            count = reveal_totals(num_steps, 16)[number, target.sum()] - (target & ~masked).sum()
            picked = reveal(jax.nn.softmax(logits).max(-1)[None], jnp.asarray(masked)[None], jnp.array([count]))[0]
            # The first acoustic id is 23 there.
            tokens[codebook] = np.where(picked, logits.argmax(-1) + 23, tokens[codebook])
        np.testing.assert_array_equal(tokens, recorded["x_after_each_codebook"][codebook - 1])


@functools.partial(jax.jit, static_argnames=("graph", "num_steps", "temperature", "max_targets"))
def run(graph, state, batch, keys, num_steps, temperature, max_targets):
    options = {"num_steps": num_steps, "temperature": temperature, "max_targets": max_targets}
    return fill_codebooks(nnx.merge(graph, state), batch, keys, **options)


def pack_clips(clips, *, time_width=24):
    return pack([[clip] for clip in clips], text_width=5, time_width=time_width, clip_ids=np.arange(len(clips)))


def fill(model, clips, *, seeds=(0, 1), num_steps=STEPS, temperature=0.0, time_width=24, max_targets=None):
    batch = jax.tree.map(jnp.asarray, pack_clips(clips, time_width=time_width))
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    tokens = np.asarray(run(*nnx.split(model), batch, keys, num_steps, temperature, max_targets))
    return [row[0].layout for row in unpack(dataclasses.replace(batch, tokens=tokens))]


@pytest.fixture(scope="module")
def codes():
    return np.random.default_rng(2).integers(0, 9, (4, 9))


@pytest.fixture(scope="module")
def clips(vocabulary, codes):
    """One without, one with a voice prompt of two frames."""
    texts = [[[3, 1], [7, 2], [1, 0]], [[9, 4], [2, 2], [5, 0], [1, 0]]]
    layouts = [
        masked_layout(vocabulary, "en", np.array([1, 5, 2]), codes[0], codes[:, :0]),
        masked_layout(vocabulary, "zh", np.array([4, 0]), codes[0, 2:8], codes[:, :2]),
    ]
    return [
        Clip(text_tokens=np.array(text, np.int32), layout=layout) for text, layout in zip(texts, layouts, strict=True)
    ]


@functools.partial(jax.jit, static_argnames="graph")
def forward(graph, state, batch, codebook):
    return nnx.merge(graph, state)(batch, codebook, jnp.zeros(batch.part_ids.shape, bool))


def plain_fill(model, clip, num_steps):
    """The same rules one token at a time, over the forward pass of training."""
    batch = jax.tree.map(jnp.asarray, pack_clips([clip]))
    tokens, begin = np.array(batch.tokens), len(clip.text_tokens)
    end = begin + clip.layout.tokens.shape[1] - 1
    for codebook, steps in enumerate(num_steps, start=1):
        hidden = [place for place in range(begin, end + 1) if tokens[0, codebook, place] == 0]
        remaining = list(hidden)
        for number in range(steps):
            current = dataclasses.replace(batch, tokens=jnp.asarray(tokens))
            logits = np.asarray(forward(*nnx.split(model), current, jnp.array([codebook]))[0], np.float64)[:, :9]
            shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
            surest = sorted(remaining, key=lambda place: (-1.0 if place == end else -shares[place].max(), place))
            known = int(np.ceil(len(hidden) * (1 - np.cos(np.pi * (number + 1) / (2 * steps)))))
            for place in surest[: known - (len(hidden) - len(remaining))]:
                code = model.config.vocabulary.eos2 if place == end else 10 + shares[place].argmax()
                tokens[0, codebook, place] = code
                remaining.remove(place)
    return tokens[0, :, begin : end + 1]


def test_filling_equals_a_plain_loop(nar_model, clips, vocabulary):
    assert vocabulary.acoustic_offset == 10
    for filled, clip in zip(fill(nar_model, clips), clips, strict=True):
        np.testing.assert_array_equal(filled.tokens, plain_fill(nar_model, clip, STEPS))


@pytest.mark.parametrize("max_targets", [10, 13])
def test_slots_that_hide_nothing_need_no_work(nar_model, clips, max_targets):
    """The first clip hides nine frames and EOS2, the second two slots less."""
    everywhere, spared = (fill(nar_model, clips, temperature=1.0, max_targets=most) for most in (None, max_targets))
    for some, whole in zip(spared, everywhere, strict=True):
        np.testing.assert_array_equal(some.tokens, whole.tokens)


def test_filled_clips_are_whole_layouts_that_keep_what_was_known(nar_model, clips, vocabulary, codes):
    filled = fill(nar_model, clips, temperature=1.0)
    for layout, expected in zip(filled, [("en", [1, 5, 2], codes[0]), ("zh", [4, 0], codes[0, :8])], strict=True):
        language, semantic_tokens, filled_codes = parse_layout(vocabulary, layout)
        assert (language, semantic_tokens.tolist()) == expected[:2]
        np.testing.assert_array_equal(filled_codes[0], expected[2])
    np.testing.assert_array_equal(parse_layout(vocabulary, filled[1])[2][:, :2], codes[:, :2])


def test_known_tokens_are_a_fixed_point(nar_model, clips, vocabulary, codes):
    whole = build_layout(vocabulary, "zh", np.array([3, 1, 6]), codes)
    filled = fill(nar_model, [clips[0], dataclasses.replace(clips[1], layout=whole)])
    np.testing.assert_array_equal(filled[1].tokens, whole.tokens)


def test_neighbours_and_widths_change_nothing(nar_model, clips):
    first, second = fill(nar_model, clips, temperature=1.0)
    turned = fill(nar_model, clips[::-1], seeds=(1, 0), temperature=1.0)
    wide = fill(nar_model, clips, temperature=1.0, time_width=31)
    for others in (turned[::-1], wide):
        np.testing.assert_array_equal(first.tokens, others[0].tokens)
        np.testing.assert_array_equal(second.tokens, others[1].tokens)


def test_seeds_matter_only_above_temperature_zero(nar_model, clips):
    def rows(temperature, *seeds):
        return [layout.tokens.tolist() for layout in fill(nar_model, clips, seeds=seeds, temperature=temperature)]

    assert rows(0.0, 0, 1) == rows(0.0, 7, 8)
    assert rows(1.0, 0, 1) == rows(1.0, 0, 1)
    assert rows(1.0, 0, 1)[0] != rows(1.0, 7, 1)[0]


@pytest.mark.parametrize("num_steps", [(8, 8), (8, 0, 1)])
def test_steps_must_fit_the_codebooks(nar_model, clips, num_steps):
    with pytest.raises(ConfigError, match="num_steps"):
        fill(nar_model, clips, num_steps=num_steps)


def test_nothing_to_fill_is_refused(vocabulary, codes):
    with pytest.raises(InputError, match="no frames"):
        masked_layout(vocabulary, "en", np.array([1]), codes[0, :0], codes)
