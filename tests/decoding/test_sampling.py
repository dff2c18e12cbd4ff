"""Masks, filters and draws: against the release's arrays, hand-worked cases and their own promises."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.decoding.sampling import (
    SamplingConfig,
    acoustic_mask,
    filter_logits,
    fold_keys,
    language_mask,
    mask_logits,
    repetition_share,
    sample_tokens,
    semantic_mask,
)
from voxinstruct_jax.vocabulary import Vocabulary

GOLDEN = Path(__file__).parents[1] / "golden" / "voxinstruct_tiny.npz"


sample = jax.jit(sample_tokens, static_argnames="config")


def draw(logits, config, *, recent=(0,), seeds=range(400), top_k=50):
    rows = len(seeds)
    return np.asarray(
        sample(
            jnp.stack([jax.random.key(seed) for seed in seeds]),
            jnp.tile(jnp.asarray(logits, jnp.float32), (rows, 1)),
            jnp.tile(jnp.asarray(recent, jnp.int32), (rows, 1)),
            jnp.full(rows, top_k),
            config,
        )
    )


@pytest.mark.parametrize(
    ("mask", "ids"),
    [(language_mask, {1, 2}), (semantic_mask, {*range(3, 503), 1528}), (acoustic_mask, {*range(503, 1527), 1529})],
)
def test_stages_allow_exactly_their_ids_at_paper_size(mask, ids):
    assert set(np.flatnonzero(mask(Vocabulary())).tolist()) == ids


@pytest.mark.parametrize("top_k", [5, 50])
def test_filters_agree_with_the_release(top_k):
    with np.load(GOLDEN) as golden:
        logits, expected = golden["filter/logits_in"], golden[f"filter/out_k{top_k}_p0.95_t0.8"]
    filtered = np.asarray(filter_logits(jnp.asarray(logits), top_k=top_k, top_p=0.95, temperature=0.8))
    kept = expected > -1e5  # the release writes -1e5 / 0.8 over what it drops
    np.testing.assert_array_equal(np.isfinite(filtered), kept)
    np.testing.assert_allclose(filtered[kept], expected[kept], rtol=1e-6)


def test_filters_of_a_hand_worked_case():
    # Probabilities .25 .0625 .5 .125 .0625: the fourth is tied, so all stay. .5 + .25 is not above .8, with .125 it is.
    logits = jnp.log2(jnp.array([4.0, 1.0, 8.0, 2.0, 1.0])) * jnp.log(2.0)
    tied = filter_logits(logits, top_k=4, top_p=1.0, temperature=1.0)
    assert jnp.isfinite(tied).tolist() == [True] * 5
    nucleus = filter_logits(logits, top_k=4, top_p=0.8, temperature=0.5)
    assert jnp.isfinite(nucleus).tolist() == [True, False, True, True, False]
    np.testing.assert_allclose(nucleus[2] - nucleus[0], 2 * np.log(2.0), rtol=1e-5)


def test_top_p_is_measured_after_top_k_and_before_the_temperature():
    logits = jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1]))
    # Of the two best alone the first holds 4/7 > .5; of all four it holds .4, and then the second would stay.
    assert jnp.isfinite(filter_logits(logits, top_k=2, top_p=0.5, temperature=1.0)).tolist() == [True] + [False] * 3
    assert jnp.isfinite(filter_logits(logits, top_k=4, top_p=0.5, temperature=9.0)).tolist() == [True] * 2 + [False] * 2


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.integers(1, 12), st.floats(0.01, 1), st.floats(0.1, 3))
def test_filters_keep_the_best_and_only_the_best(seed, top_k, top_p, temperature):
    logits = 3 * jax.random.normal(jax.random.key(seed), (12,))
    logits = mask_logits(logits, jnp.arange(12) != seed % 12)
    filtered = filter_logits(logits, top_k=top_k, top_p=top_p, temperature=temperature)
    kept = np.isfinite(filtered)
    assert 1 <= kept.sum() <= top_k
    assert kept[jnp.argmax(logits)]
    assert not kept[seed % 12]
    np.testing.assert_allclose(np.asarray(filtered)[kept], np.asarray(logits / temperature)[kept], rtol=1e-6)
    assert np.asarray(logits)[kept].min() >= np.where(kept, -np.inf, np.asarray(logits)).max()


def test_each_row_keeps_its_own_top_k():
    logits = jnp.tile(jnp.arange(6.0), (2, 1))
    kept = jnp.isfinite(filter_logits(logits, top_k=jnp.array([2, 5]), top_p=1.0, temperature=1.0))
    assert kept.sum(axis=-1).tolist() == [2, 5]


def test_draws_follow_the_filtered_distribution():
    logits = np.log([0.6, 0.3, 0.1])
    config = SamplingConfig(top_p=0.85, temperature=1.0, repetition_ratio=1.0)
    counts = np.bincount(draw(logits, config), minlength=3) / 400
    np.testing.assert_allclose(counts, [2 / 3, 1 / 3, 0], atol=0.08)  # more than 3 standard errors of 400 draws


def test_temperature_zero_takes_the_lowest_of_the_best_ids_even_if_repeated():
    config = SamplingConfig(temperature=0.0, repetition_ratio=0.0)
    assert set(draw([0.0, 2.0, 2.0], config, recent=(1, 1), seeds=range(20)).tolist()) == {1}


def test_a_repeated_token_is_drawn_again_without_filters():
    logits = np.log([0.5, 0.3, 0.2])
    config = SamplingConfig(temperature=1.0, repetition_window=4, repetition_ratio=0.5)
    held = draw(logits, config, recent=(2, 0, 2, 0), top_k=1)
    assert set(held.tolist()) == {0}  # half of the window does not exceed the ratio
    again = np.bincount(draw(logits, config, recent=(0, 0, 2, 0), top_k=1), minlength=3) / 400
    np.testing.assert_allclose(again, [0.5, 0.3, 0.2], atol=0.08)


def test_ratio_one_never_draws_again():
    config = SamplingConfig(repetition_window=2, repetition_ratio=1.0)
    assert set(draw([1.0, 0.9], config, recent=(0, 0), top_k=1).tolist()) == {0}


def test_repetition_share_counts_the_window():
    shares = repetition_share(jnp.array([7, 0]), jnp.array([[7, 1, 7, 2], [3, 4, 5, 6]]))
    assert shares.tolist() == [0.5, 0.0]


def test_a_row_draws_the_same_token_whatever_its_neighbours():
    logits = jax.random.normal(jax.random.key(0), (3, 9))
    keys = fold_keys(jax.random.split(jax.random.key(1), 3), jnp.array([2, 2, 1]), 5)
    recent, top_k = jnp.zeros((3, 2), jnp.int32), jnp.array([9, 3, 9])
    together = sample(keys, logits, recent, top_k, SamplingConfig(temperature=2.0))
    alone = [
        sample(keys[i : i + 1], logits[i : i + 1], recent[:1], top_k[i : i + 1], SamplingConfig(temperature=2.0))
        for i in range(3)
    ]
    assert together.tolist() == [int(tokens[0]) for tokens in alone]


def test_keys_differ_by_request_stage_and_position():
    keys = jnp.stack([jax.random.key(0), jax.random.key(0), jax.random.key(0), jax.random.key(1)])
    folded = fold_keys(keys, jnp.array([1, 2, 1, 1]), jnp.array([7, 7, 8, 7]))
    assert len({tuple(row) for row in jax.random.key_data(folded).tolist()}) == 4


@pytest.mark.parametrize(
    "setting",
    [
        {"semantic_top_k": 0},
        {"acoustic_top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"repetition_window": 0},
        {"repetition_ratio": 1.5},
    ],
)
def test_settings_out_of_range_are_refused_by_name(setting):
    with pytest.raises(ConfigError, match=f"sampling.{next(iter(setting))}"):
        SamplingConfig(**setting)
