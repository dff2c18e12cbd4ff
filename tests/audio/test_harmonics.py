"""Harmonic sources against sums of cosines, and pitch through its classes and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from voxinstruct_jax.audio.harmonics import NUM_PITCH_CLASSES, likely_pitch, pitch_loss, pulse_train

RATE, HOP = 24_000, 240


def test_a_steady_pulse_train_is_the_sum_of_its_cosines():
    """187.5 Hz has a period of 128 samples, and 64 harmonics up to 12 kHz."""
    found = np.asarray(pulse_train(jnp.full((1, 50), 187.5), HOP, RATE))[0]
    cycles = 187.5 * np.arange(1, 50 * HOP + 1) / RATE
    expected = np.sum([np.cos(2 * np.pi * k * cycles) for k in range(1, 65)], axis=0)
    np.testing.assert_allclose(found, expected, atol=0.05)


def test_the_phase_of_a_gliding_pitch_holds_for_half_a_minute():
    pitch = np.geomspace(80, 400, 3000)[None]
    found = np.asarray(pulse_train(jnp.asarray(pitch, jnp.float32), HOP, RATE))[0]
    # the fundamental alone, by its phase in float64
    between = np.interp(np.arange(3000 * HOP), (np.arange(3000) + 0.5) * HOP, pitch[0])
    cycles = np.cumsum(between) / RATE
    last = slice(2900 * HOP, 3000 * HOP)
    pulses = np.flatnonzero(found[last] > 0.7 * found[last].max())
    assert len(pulses) > 300
    distance = np.abs((cycles[last][pulses] + 0.5) % 1 - 0.5)
    assert distance.max() < 0.03


def test_unvoiced_frames_are_silent_and_the_pulses_before_do_not_change_with_what_follows():
    pitch = np.zeros((2, 40), np.float32)
    pitch[:, 10:20] = 150.0
    pitch[1, 30:] = 220.0
    first, second = np.asarray(pulse_train(jnp.asarray(pitch), HOP, RATE))
    assert np.abs(first[: 9 * HOP]).max() == 0
    assert np.abs(first[21 * HOP :]).max() == 0
    assert np.abs(first[11 * HOP : 19 * HOP]).max() > 50
    np.testing.assert_array_equal(first[: 29 * HOP], second[: 29 * HOP])
    assert np.isfinite(np.asarray(pulse_train(jnp.zeros((1, 5)), HOP, RATE))).all()


@pytest.mark.parametrize("hz", [60.0, 97.3, 143.0, 262.0, 499.0])
def test_a_pitch_that_the_classes_share_is_told_back(hz):
    """What minimises the loss of one pitch, found by gradient, tells that pitch."""
    pitch = jnp.asarray([[hz]])
    logits = jnp.zeros((1, 1, NUM_PITCH_CLASSES))
    step = jax.jit(lambda x: x - 5.0 * jax.grad(lambda y: pitch_loss(y, pitch).sum())(x))
    for _ in range(200):
        logits = step(logits)
    assert float(likely_pitch(logits)[0, 0]) == pytest.approx(hz, rel=0.01)


def test_what_is_likelier_unvoiced_has_no_pitch():
    logits = jnp.zeros((1, 2, NUM_PITCH_CLASSES)).at[0, 0, 0].set(9.0).at[0, 1, 40].set(9.0)
    found = np.asarray(likely_pitch(logits))[0]
    assert found[0] == 0
    assert found[1] == pytest.approx(60 * 2 ** (39 / 36), rel=1e-3)
    np.testing.assert_allclose(pitch_loss(logits, jnp.asarray([[0.0, 60 * 2 ** (39 / 36)]])), 0.014, atol=0.02)
