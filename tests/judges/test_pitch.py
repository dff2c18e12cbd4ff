import numpy as np
import pytest

from voxinstruct_jax.judges.pitch import FLOOR_DBFS, active_level_dbfs, energy_track, pitch_track

RATE = 24_000


def saw(hertz, seconds=0.8, rate=RATE):
    phase = np.arange(int(seconds * rate)) * hertz / rate
    return (0.3 * (2 * (phase % 1) - 1)).astype(np.float32)


@pytest.mark.parametrize("hertz", [80, 120, 220, 440])
def test_pitch_of_a_saw_wave_is_found_within_one_percent(hertz):
    track = pitch_track(saw(hertz), RATE)
    assert track.median_hz == pytest.approx(hertz, rel=0.01)
    assert track.voiced.mean() > 0.9
    assert len(track.times_s) == len(track.f0_hz) == len(track.voiced)


@pytest.mark.parametrize("samples", [np.zeros(RATE, np.float32), np.zeros(100, np.float32), np.zeros(0, np.float32)])
def test_silence_and_scraps_have_no_pitch(samples):
    track = pitch_track(samples, RATE)
    assert not track.voiced.any()
    assert track.median_hz is None


def test_noise_is_unvoiced():
    noise = np.random.default_rng(0).normal(scale=0.1, size=RATE).astype(np.float32)
    assert pitch_track(noise, RATE).voiced.mean() < 0.05


def test_level_of_a_full_scale_square_wave_is_zero_decibels():
    square = np.where(np.arange(RATE) // 50 % 2, 1.0, -1.0)
    track = energy_track(square, RATE)
    assert len(track.level_dbfs) == 100
    assert track.level_dbfs[10:90] == pytest.approx(0.0, abs=1e-6)
    assert np.diff(track.times_s) == pytest.approx(0.01, abs=1e-6)


def test_halving_the_volume_costs_six_decibels_and_padding_nothing():
    speech = saw(150)
    level = active_level_dbfs(energy_track(speech, RATE))
    assert active_level_dbfs(energy_track(speech * 0.5, RATE)) == pytest.approx(level - 6.0206, abs=1e-3)
    padded = np.concatenate([np.zeros(RATE), speech, np.zeros(RATE)])
    assert active_level_dbfs(energy_track(padded, RATE)) == pytest.approx(level, abs=0.3)


def test_silence_is_at_the_floor():
    assert energy_track(np.zeros(RATE), RATE).level_dbfs == pytest.approx(FLOOR_DBFS)
    assert active_level_dbfs(energy_track(np.zeros(0), RATE)) == FLOOR_DBFS
