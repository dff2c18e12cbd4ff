import numpy as np
import pytest

from voxinstruct_jax.judges.pitch import PitchTrack
from voxinstruct_jax.judges.tones import NUM_CUES, TONES, expected_tones, load_tone_model, tone_cues

STEP_S = 0.016
SYLLABLE_S = 0.24
CONTOURS = {1: (4, 4, 4), 2: (-3, -2, 4), 3: (-3, -6, -4), 4: (6, 2, -5)}
"""Semitones at begin, middle and end, as textbooks draw them."""


def spoken(tones, *, base_hz=200.0, voiced=True):
    """A pitch track of syllables one after the other, and their times."""
    frames = round(SYLLABLE_S / STEP_S)
    semitones = np.concatenate([np.interp(np.linspace(0, 2, frames), range(3), CONTOURS[tone]) for tone in tones])
    track = PitchTrack(
        times_s=(np.arange(len(semitones)) * STEP_S).astype(np.float32),
        f0_hz=(base_hz * 2 ** (semitones / 12)).astype(np.float32),
        voiced=np.full(len(semitones), voiced),
    )
    return track, [(place * SYLLABLE_S, (place + 1) * SYLLABLE_S) for place in range(len(tones))]


def test_expected_tones_follow_sandhi_and_leave_out_neutral_syllables_and_marks():
    pytest.importorskip("pypinyin")
    assert expected_tones("我们的，") == [3, None, None, None]
    assert expected_tones("你好") == [2, 3]
    assert expected_tones("不是一个") == [2, 4, 2, 4]
    assert expected_tones("OK 吗") == [None, None, None, None]


def test_textbook_contours_are_heard_whoever_speaks():
    tones = [4, 1, 2, 4, 3, 1, 4, 2, 1, 3, 4, 2]
    heard = []
    for base_hz in (110.0, 220.0):
        likely = load_tone_model().probabilities(tone_cues(*spoken(tones, base_hz=base_hz)))
        heard.append([TONES[int(place)] for place in likely.argmax(axis=1)])
    assert heard[0] == heard[1]
    assert np.mean(np.array(heard[0]) == tones) > 0.6  # chance .25; voices glide where textbooks jump
    upside_down = load_tone_model().probabilities(-tone_cues(*spoken([4] * 6)))
    assert not (upside_down.argmax(axis=1) == TONES.index(4)).any()


def test_what_has_no_voice_has_no_cues_and_no_tone():
    cues = tone_cues(*spoken([1, 2], voiced=False))
    assert cues.shape == (2, NUM_CUES)
    assert np.isnan(cues).any(axis=1).all()
    assert np.isnan(load_tone_model().probabilities(cues)).all()
    assert tone_cues(spoken([1])[0], []).shape == (0, NUM_CUES)


def test_a_track_of_nothing_gives_no_cues():
    empty = PitchTrack(times_s=np.zeros(0, np.float32), f0_hz=np.zeros(0, np.float32), voiced=np.zeros(0, bool))
    assert np.isnan(tone_cues(empty, [(0.0, 0.2)])).any()
