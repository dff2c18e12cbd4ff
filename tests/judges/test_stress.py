import numpy as np
import pytest

from voxinstruct_jax.judges.pitch import energy_track, pitch_track
from voxinstruct_jax.judges.stress import (
    CUES,
    ExpectedProsody,
    fit_stress_model,
    stress_cues,
    stressed_words,
    unit_deviations,
    word_prosody,
)

RATE = 24_000
WORDS = tuple((0.1 + 0.35 * number, 0.4 + 0.35 * number) for number in range(6))


def alike(count, semitones=None):
    """Nothing is known of the words."""
    heights = tuple(semitones or [0.0] * count)
    return ExpectedProsody(duration_s=(0.3,) * count, semitones=heights, level_db=(0.0,) * count)


def sentence(*, stressed=None, semitones=5.0, gain=1.8, words=WORDS, seed=0):
    """Buzzes of about 130 Hz that fall by three semitones, one of them higher and louder."""
    random = np.random.default_rng(seed)
    samples = random.normal(scale=1e-4, size=int((words[-1][1] + 0.2) * RATE))
    for number, (start, end) in enumerate(words):
        times = np.arange(int((end - start) * RATE)) / RATE
        chosen = number == stressed
        height = random.normal(scale=0.3) - 3 * number / len(words) + semitones * chosen
        phase = 130 * 2 ** (height / 12) * times
        buzz = sum(np.cos(2 * np.pi * overtone * phase) / overtone for overtone in range(1, 25))
        fade = np.clip(np.minimum(times, times[-1] - times) / 0.02, 0, 1)
        at = int(start * RATE)
        samples[at : at + len(buzz)] += 0.03 * buzz * fade * (gain if chosen else 1.0)
    return samples.astype(np.float32)


@pytest.mark.parametrize("stressed", [0, 2, 5])
def test_the_high_loud_long_word_is_found(stressed):
    stretched, now = [], 0.1
    for number in range(6):
        length = 0.42 if number == stressed else 0.3
        stretched.append((now, now + length))
        now += length + 0.05
    clip = sentence(stressed=stressed, words=stretched)
    finding = stressed_words(clip, RATE, stretched, expected=alike(6))
    assert finding.indices == (stressed,)
    assert int(np.argmax(finding.probabilities)) == stressed
    assert finding.confidence == pytest.approx(finding.probabilities[stressed])


def test_a_level_sentence_has_no_stress():
    finding = stressed_words(sentence(), RATE, WORDS, expected=alike(6))
    assert finding.indices == ()
    assert finding.confidence == pytest.approx(1 - max(finding.probabilities))


def test_a_word_that_is_expected_to_stand_out_is_not_stressed():
    """A long word of a high tone, as its phones say."""
    clip = sentence(stressed=2, gain=1.0)
    heard = stressed_words(clip, RATE, WORDS, expected=alike(6))
    known = stressed_words(clip, RATE, WORDS, expected=alike(6, [0.0, 0.0, 5.0, 0.0, 0.0, 0.0]))
    assert known.probabilities[2] < heard.probabilities[2]


@pytest.mark.parametrize("words", [(), WORDS[:1]])
def test_less_than_two_words_have_nothing_to_stand_out_from(words):
    finding = stressed_words(sentence(), RATE, words, expected=alike(len(words)))
    assert finding.indices == ()
    assert finding.probabilities == (0.0,) * len(words)
    assert finding.confidence == 0.0


@pytest.mark.parametrize("samples", [np.zeros(RATE * 3, np.float32), np.zeros(0, np.float32)])
def test_silence_has_no_stress(samples):
    finding = stressed_words(samples, RATE, [*WORDS, (2.2, 2.2)], expected=alike(7))
    assert finding.indices == ()
    assert np.isfinite(finding.probabilities).all()


def test_prosody_of_a_word_is_that_of_its_time():
    clip = sentence(stressed=3, gain=2.0)
    measured = word_prosody(pitch_track(clip, RATE), energy_track(clip, RATE), WORDS)
    others = np.delete(measured, 3, axis=0)
    assert measured[3, 0] - others[:, 0].mean() == pytest.approx(5.0, abs=1.0)
    assert measured[3, 1] - others[:, 1].mean() == pytest.approx(20 * np.log10(2.0), abs=0.7)
    assert measured[:, 2] == pytest.approx(np.log(0.3))


def test_cues_compare_with_the_others_the_highest_of_them_and_the_neighbours():
    cues = stress_cues(np.array([[0.0, 1.0, 0.0], [4.0, np.nan, 0.0], [2.0, 3.0, 0.0]]))
    columns = dict(zip(CUES, cues.T, strict=True))
    assert columns["semitones_others"] == pytest.approx([-3.0, 3.0, 0.0])
    assert columns["semitones_highest"] == pytest.approx([-4.0, 2.0, -2.0])
    assert columns["semitones_neighbours"] == pytest.approx([-4.0, 3.0, -2.0])
    assert columns["level_db_others"] == pytest.approx([-1.5, 0.0, 1.5])  # what is not known counts as the mean
    assert not cues[:, 6:].any()


def test_a_unit_deviates_by_the_mean_of_its_words_and_by_its_whole_duration():
    measured = np.array([[1.0, 2.0, np.log(0.2)], [3.0, np.nan, np.log(0.4)], [np.nan, np.nan, np.nan]])
    expected = np.array([[0.0, 1.0, np.log(0.1)], [0.0, 0.0, np.log(0.1)], [0.0, 0.0, np.log(0.1)]])
    found = unit_deviations(measured, expected, [[0, 1], [2]])
    assert found[0] == pytest.approx([2.0, 1.0, np.log(3.0)])
    assert np.isnan(found[1]).all()


def test_words_of_a_unit_share_its_probability():
    finding = stressed_words(sentence(stressed=2), RATE, WORDS, expected=alike(6), units=[[0, 1], [2, 3], [4], [5]])
    assert finding.probabilities[2] == finding.probabilities[3] == max(finding.probabilities)


def test_fit_finds_the_weights_that_labels_were_drawn_by():
    random = np.random.default_rng(0)
    cues = random.normal(size=(20_000, len(CUES)))
    weights = random.normal(size=len(CUES))
    drawn = random.random(len(cues)) < 1 / (1 + np.exp(-(cues @ weights - 1.0)))
    model = fit_stress_model(cues, drawn)
    assert model.weights == pytest.approx(weights, abs=0.15)
    assert model.bias == pytest.approx(-1.0, abs=0.1)
