"""Judges against sound that was made with known pitch, level and rate."""

import numpy as np
import pytest

from voxinstruct_jax.judges.judge import Clip
from voxinstruct_jax.judges.pitch import energy_track, spoken_seconds
from voxinstruct_jax.judges.prosody import EnergyJudge, PitchJudge, SpeedJudge

RATE = 16_000


def syllables(count, *, hertz=120.0, length_s=0.15, gap_s=0.05, level=0.1):
    """Hummed syllables with short closures between them."""
    time = np.arange(int(length_s * RATE)) / RATE
    hum = sum(np.sin(2 * np.pi * hertz * k * time) / k for k in range(1, 9)) * np.hanning(len(time)) ** 0.25
    one = np.concatenate([level * hum, np.zeros(int(gap_s * RATE))])
    return np.tile(one, count).astype(np.float32)


def clip(samples, count=10.0):
    return Clip(samples=samples, sample_rate=RATE, language="en", transcript="x", syllables=count)


@pytest.mark.parametrize("hertz", [90.0, 140.0, 230.0, 350.0])
def test_pitch_is_the_one_that_was_hummed(hertz):
    found = PitchJudge().measure(clip(syllables(10, hertz=hertz)))
    assert found.value == pytest.approx(hertz, rel=0.02)
    assert found.error == pytest.approx(0.03 * hertz, rel=0.05)
    assert found.label is None


@pytest.mark.parametrize("gain_db", [-20.0, -6.0, 3.0])
def test_energy_moves_by_what_the_volume_was_turned(gain_db):
    sound = syllables(10)
    before, after = (EnergyJudge().measure(clip(x)).value for x in (sound, sound * np.float32(10 ** (gain_db / 20))))
    assert after - before == pytest.approx(gain_db, abs=0.02)


@pytest.mark.parametrize("gap_s", [0.03, 0.08, 0.15])
def test_speed_is_syllables_over_the_time_they_take(gap_s):
    found = SpeedJudge().measure(clip(syllables(10, gap_s=gap_s)))
    assert found.value == pytest.approx(10 / (10 * (0.15 + gap_s) - gap_s), rel=0.05)


def test_pauses_and_quiet_ends_do_not_slow_speech_down():
    sound = syllables(5)
    rest = np.zeros(RATE, np.float32)
    plain = SpeedJudge().measure(clip(np.concatenate([sound, sound])))
    paused = SpeedJudge().measure(clip(np.concatenate([rest, sound, rest, rest, sound, rest])))
    assert paused.value == pytest.approx(plain.value, rel=0.05)


def test_speech_at_double_speed_has_double_rate():
    slow = syllables(10)
    rates = [SpeedJudge().measure(clip(x)).value for x in (slow, slow[::2])]
    assert rates[1] / rates[0] == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize("judge", [PitchJudge(), EnergyJudge(), SpeedJudge()], ids=lambda judge: judge.attribute)
@pytest.mark.parametrize("samples", [np.zeros(0, np.float32), np.zeros(RATE, np.float32)], ids=["empty", "silent"])
def test_silence_is_not_judged(judge, samples):
    assert judge.measure(clip(samples)) is None


def test_noise_has_no_pitch():
    noise = np.random.default_rng(0).normal(scale=0.1, size=RATE).astype(np.float32)
    assert PitchJudge().measure(clip(noise)) is None


def test_a_rate_of_three_syllables_means_nothing():
    assert SpeedJudge().measure(clip(syllables(3), 3.0)) is None
    assert SpeedJudge().measure(clip(syllables(4), 4.0)) is not None


def test_spoken_time_leaves_out_what_is_longer_than_a_closure():
    assert spoken_seconds(energy_track(syllables(4, gap_s=0.19), RATE)) == pytest.approx(4 * 0.34 - 0.19, abs=0.04)
    assert spoken_seconds(energy_track(syllables(4, gap_s=0.5), RATE)) == pytest.approx(4 * 0.15, abs=0.08)
