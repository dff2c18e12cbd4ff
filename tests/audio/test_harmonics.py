"""Harmonic sources against sums of cosines, and pitch through its classes and back."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from voxinstruct_jax.audio.harmonics import (
    NUM_PITCH_CLASSES,
    Intonation,
    intone,
    likely_pitch,
    no_intonation,
    pitch_loss,
    pulse_train,
)

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


def intonation(frames, *, lift=0.0, lowest=30.0, highest=1000.0, centres=(173.0,)):
    groups = np.ones((1, len(centres)), np.float32)
    return Intonation(
        lift=np.full((1, frames), lift, np.float32),
        own=np.ones((1, frames), bool),
        prompt=np.zeros((1, frames), bool),
        centres=np.array([centres], np.float32),
        lowest=lowest * groups,
        highest=highest * groups,
    )


def clip_of_pitch():
    """Ten frames of four mel frames, the last quarter unvoiced; median 150 Hz."""
    pitch = np.full((1, 40), 150.0, np.float32)
    pitch[:, :10] = 120.0
    pitch[:, 30:] = 0.0
    return jnp.asarray(pitch)


def test_nothing_to_be_changed_changes_nothing():
    np.testing.assert_allclose(intone(clip_of_pitch(), no_intonation(1, 10)), clip_of_pitch(), rtol=1e-5)
    silence = jnp.zeros((1, 40))
    np.testing.assert_array_equal(intone(silence, intonation(10, lowest=200.0)), silence)


def test_a_median_is_brought_to_the_nearest_end_of_its_range():
    for lowest, highest, factor in ((180.0, 300.0, 1.2), (60.0, 120.0, 0.8), (140.0, 160.0, 1.0)):
        moved = intone(clip_of_pitch(), intonation(10, lowest=lowest, highest=highest))
        np.testing.assert_allclose(moved, factor * clip_of_pitch(), rtol=1e-4)


def test_a_clip_moves_by_seven_semitones_at_most():
    moved = intone(clip_of_pitch(), intonation(10, lowest=900.0))
    np.testing.assert_allclose(moved, 2 ** (7 / 12) * clip_of_pitch(), rtol=1e-4)


def test_the_range_is_that_of_the_group_that_is_nearest():
    asked = intonation(10, centres=(220.0, 115.0))
    asked = dataclasses.replace(asked, lowest=np.array([[240.0, 170.0]], np.float32))
    moved = intone(clip_of_pitch() * 0.8, asked)  # a median of 120 Hz
    np.testing.assert_allclose(moved, 170 / 120 * 0.8 * clip_of_pitch(), rtol=1e-4)


def test_lifted_frames_rise_over_the_others_and_a_prompt_does_not_count():
    asked = intonation(10)
    lift = np.zeros((1, 10), np.float32)
    lift[:, 4] = 6.0
    moved = np.asarray(intone(clip_of_pitch(), dataclasses.replace(asked, lift=lift)))[0]
    assert moved[17:19] == pytest.approx(150 * 2**0.5, rel=0.1)
    assert moved[:10] == pytest.approx(120.0)
    assert moved[24:30] == pytest.approx(150.0)
    own = np.arange(10)[None] < 2  # 120 Hz
    moved = intone(clip_of_pitch(), dataclasses.replace(intonation(10, lowest=132.0), own=own))
    np.testing.assert_allclose(moved, 1.1 * clip_of_pitch(), rtol=1e-4)


def test_what_follows_a_voice_prompt_comes_within_a_semitone_of_it_or_as_near_as_asked():
    """A prompt at 120 Hz, in front of a clip at 150 Hz."""
    in_prompt = np.arange(10)[None] < 2
    asked = dataclasses.replace(intonation(10), own=~in_prompt, prompt=in_prompt)
    factor = 120 * 2 ** (1 / 12) / 150
    np.testing.assert_allclose(intone(clip_of_pitch(), asked), factor * clip_of_pitch(), rtol=1e-4)
    lower = dataclasses.replace(intonation(10, highest=110.0), own=~in_prompt, prompt=in_prompt)
    np.testing.assert_allclose(intone(clip_of_pitch(), lower), 110 / 150 * clip_of_pitch(), rtol=1e-4)
