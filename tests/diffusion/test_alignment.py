"""Monotonic alignment against every path there is, and against sequences whose alignment is known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from voxinstruct_jax.config import InputError
from voxinstruct_jax.diffusion.alignment import gaussian_log_likelihood, monotonic_alignment, stretch

align = jax.jit(monotonic_alignment)


def best_by_enumeration(scores):
    """Durations of the likeliest path, by looking at all of them."""
    tokens, frames = scores.shape
    every = []
    for cuts in itertools.combinations(range(1, frames), tokens - 1):
        ends = [0, *cuts, frames]
        total = sum(scores[token, ends[token] : ends[token + 1]].sum() for token in range(tokens))
        every.append((total, np.diff(ends)))
    return max(every, key=lambda found: found[0])[1]


def test_alignment_is_the_best_of_all_paths():
    """120 rows of random sizes, padding of any value around them."""
    random = np.random.default_rng(0)
    tokens = random.integers(1, 6, 120)
    frames = tokens + random.integers(0, 4, 120)
    scores = 50 * random.standard_normal((120, 5, 8))
    found = np.asarray(align(jnp.asarray(scores, jnp.float32), jnp.asarray(tokens), jnp.asarray(frames)))
    for row in range(120):
        expected = best_by_enumeration(scores[row, : tokens[row], : frames[row]])
        np.testing.assert_array_equal(found[row], np.pad(expected, (0, 5 - tokens[row])))


def test_a_staircase_is_found_again():
    """Tokens that last 1 to 9 frames, seen through noise."""
    random = np.random.default_rng(1)
    durations = random.integers(1, 10, (3, 12))
    means = 3 * random.standard_normal((3, 12, 16))
    width = int(durations.sum(1).max()) + 5
    frames, real = stretch(jnp.asarray(means, jnp.float32), jnp.asarray(durations), width)
    np.testing.assert_array_equal(real.sum(1), durations.sum(1))
    heard = frames + random.standard_normal(frames.shape).astype(np.float32)
    scores = gaussian_log_likelihood(jnp.asarray(means, jnp.float32), heard)
    found = align(scores, jnp.full(3, 12), jnp.asarray(durations.sum(1)))
    np.testing.assert_array_equal(found, durations)


def test_equal_tokens_share_what_there_is_and_each_gets_a_frame():
    found = np.asarray(align(jnp.zeros((2, 4, 9)), jnp.array([4, 3]), jnp.array([4, 9])))
    np.testing.assert_array_equal(found[0], [1, 1, 1, 1])
    assert found[1].sum() == 9
    assert (found[1, :3] >= 1).all()
    assert found[1, 3] == 0


def test_one_token_or_one_frame():
    np.testing.assert_array_equal(align(jnp.zeros((1, 1, 5)), jnp.array([1]), jnp.array([5])), [[5]])
    np.testing.assert_array_equal(align(jnp.zeros((1, 3, 1)), jnp.array([1]), jnp.array([1])), [[1, 0, 0]])


def test_more_tokens_than_frames_are_refused():
    with pytest.raises(InputError, match="row 1: 4 tokens cannot share 3 frames"):
        monotonic_alignment(jnp.zeros((2, 4, 6)), jnp.array([4, 4]), jnp.array([6, 3]))


def test_likelihoods_are_those_of_unit_gaussians():
    random = np.random.default_rng(0)
    means, frames = random.standard_normal((2, 3, 4)), random.standard_normal((2, 5, 4))
    expected = -0.5 * np.square(means[:, :, None] - frames[:, None]).sum(-1)
    found = gaussian_log_likelihood(jnp.asarray(means, jnp.float32), jnp.asarray(frames, jnp.float32))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_no_gradient_passes_through_the_search():
    gradient = jax.grad(lambda scores: monotonic_alignment(scores, np.array([2]), np.array([3])).sum().astype(float))
    np.testing.assert_array_equal(gradient(jnp.ones((1, 2, 3))), 0)


def test_stretched_values_are_followed_by_zeros():
    values = jnp.array([[[1.0], [2.0], [3.0]]])
    frames, real = stretch(values, jnp.array([[2, 0, 1]]), 5)
    np.testing.assert_array_equal(frames[0, :, 0], [1, 1, 3, 0, 0])
    np.testing.assert_array_equal(real[0], [True, True, True, False, False])
