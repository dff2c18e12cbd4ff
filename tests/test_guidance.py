"""Guidance weights against the paper's equations, and the properties that mixing must keep."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxinstruct_jax.config import ConfigError, from_dict, to_dict
from voxinstruct_jax.guidance import Branch, Guidance, acoustic_weights, mix_logits, needed_branches, semantic_weights

strength = st.floats(0, 5, width=32)
NONE = Guidance(text_on_semantic=1.0, text_on_acoustic=1.0, semantic_on_acoustic=1.0)


def branch_logits(seed: int, *shape: int) -> jax.Array:
    return 4 * jax.random.normal(jax.random.key(seed), shape)


def test_weights_of_the_released_strengths():
    assert semantic_weights(Guidance()).tolist() == [1.5, -0.5, 0]
    assert acoustic_weights(Guidance()).tolist() == [4.5, -3.0, -0.5]


@settings(deadline=None, max_examples=30)
@given(strength, strength, strength)
def test_weights_sum_to_one(gamma, alpha, beta):
    guidance = Guidance(text_on_semantic=gamma, text_on_acoustic=alpha, semantic_on_acoustic=beta)
    assert math.isclose(float(semantic_weights(guidance).sum()), 1, abs_tol=1e-5)
    assert math.isclose(float(acoustic_weights(guidance).sum()), 1, abs_tol=1e-5)


@settings(deadline=None, max_examples=15)
@given(strength, strength, strength, st.integers(0, 1000))
def test_mix_equals_the_paper_equations(gamma, alpha, beta, seed):
    guidance = Guidance(text_on_semantic=gamma, text_on_acoustic=alpha, semantic_on_acoustic=beta)
    logits = np.asarray(branch_logits(seed, 3, 9), np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    cond, text_free, semantic_free = log_probs
    semantic = text_free + gamma * (cond - text_free)
    acoustic = text_free + alpha * (cond - text_free)
    acoustic = semantic_free + beta * (acoustic - semantic_free)
    for rule, expected in ((semantic_weights, semantic), (acoustic_weights, acoustic)):
        mixed = mix_logits(jnp.asarray(logits, jnp.float32), jnp.asarray(rule(guidance)))
        np.testing.assert_allclose(jax.nn.softmax(mixed), np.exp(expected) / np.exp(expected).sum(), atol=2e-4)


def test_logits_and_log_probabilities_give_one_distribution():
    logits = branch_logits(1, 2, 3, 11)
    weights = jnp.stack([semantic_weights(Guidance()), acoustic_weights(Guidance())])
    from_logits = jax.nn.softmax(mix_logits(logits, weights))
    from_log_probs = jax.nn.softmax(mix_logits(jax.nn.log_softmax(logits), weights))
    np.testing.assert_allclose(from_logits, from_log_probs, atol=1e-5)


def test_strength_one_is_no_guidance():
    logits = branch_logits(2, 3, 11)
    for rule in (semantic_weights, acoustic_weights):
        np.testing.assert_array_equal(mix_logits(logits, jnp.asarray(rule(NONE))), logits[Branch.COND])


def test_semantic_strength_zero_leaves_acoustic_tokens_without_semantic_tokens():
    logits = branch_logits(3, 3, 11)
    weights = jnp.asarray(acoustic_weights(Guidance(semantic_on_acoustic=0.0)))
    np.testing.assert_array_equal(mix_logits(logits, weights), logits[Branch.SEMANTIC_FREE])


def test_each_row_takes_its_own_weights():
    logits = branch_logits(4, 2, 3, 5)
    weights = jnp.stack([acoustic_weights(NONE), acoustic_weights(Guidance())])
    mixed = mix_logits(logits, weights)
    np.testing.assert_array_equal(mixed[0], logits[0, 0])
    np.testing.assert_allclose(
        mixed[1], 4.5 * logits[1, 0] - 3 * logits[1, 1] - 0.5 * logits[1, 2], rtol=1e-5, atol=1e-5
    )


def test_masks_put_on_branches_would_turn_around():
    logits = jnp.array([[0.0, -jnp.inf], [0.0, -jnp.inf]])
    assert jnp.isnan(mix_logits(logits, jnp.array([1.5, -0.5]))[1])
    assert mix_logits(logits.at[0, 1].set(0.0), jnp.array([1.5, -0.5]))[1] == jnp.inf


@pytest.mark.parametrize(
    ("strengths", "branches"),
    [
        ((1, 1, 1), (Branch.COND,)),
        ((1.5, 1, 1), (Branch.COND, Branch.TEXT_FREE)),
        ((1, 2, 1), (Branch.COND, Branch.TEXT_FREE)),
        ((1, 1, 1.5), (Branch.COND, Branch.SEMANTIC_FREE)),
        ((1, 2, 0), (Branch.COND, Branch.SEMANTIC_FREE)),
        ((1.5, 3, 1.5), tuple(Branch)),
    ],
)
def test_only_branches_with_a_weight_are_run(strengths, branches):
    names = ("text_on_semantic", "text_on_acoustic", "semantic_on_acoustic")
    guidance = from_dict(Guidance, dict(zip(names, strengths, strict=True)))
    assert needed_branches(guidance) == branches


def test_a_batch_runs_the_union_of_its_branches():
    only_text = Guidance(text_on_semantic=2.0, text_on_acoustic=1.0, semantic_on_acoustic=1.0)
    only_semantic = Guidance(text_on_semantic=1.0, text_on_acoustic=1.0, semantic_on_acoustic=2.0)
    assert needed_branches(only_text, only_semantic) == tuple(Branch)
    assert needed_branches(NONE, only_semantic) == (Branch.COND, Branch.SEMANTIC_FREE)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_strengths_that_are_negative_or_not_finite_are_refused(value):
    with pytest.raises(ConfigError, match="text_on_acoustic"):
        Guidance(text_on_acoustic=value)


def test_guidance_survives_its_json_form():
    guidance = Guidance(text_on_acoustic=2.5)
    assert from_dict(Guidance, to_dict(guidance)) == guidance
