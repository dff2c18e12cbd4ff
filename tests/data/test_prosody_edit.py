import numpy as np
import pytest

pytest.importorskip("pyworld", reason="the corpus extra is not installed")

from voxinstruct_jax.config import InputError
from voxinstruct_jax.data.prosody_edit import Emphasis, stress_words
from voxinstruct_jax.judges.pitch import energy_track, pitch_track

RATE = 24_000
WORDS = tuple((0.1 + 0.4 * number, 0.4 + 0.4 * number) for number in range(5))
STRONG = Emphasis(semitones=5.0, gain_db=4.0, stretch=1.4)


@pytest.fixture(scope="module")
def clip():
    """Five words of a buzzing vowel at 140 Hz, quiet between them."""
    times = np.arange(int(2.1 * RATE)) / RATE
    buzz = sum(np.cos(2 * np.pi * 140 * number * times) / number for number in range(1, 40))
    loudness = np.zeros(len(times))
    for start, end in WORDS:
        loudness += np.clip(np.minimum(times - start, end - times) / 0.02, 0, 1)
    noise = np.random.default_rng(0).normal(scale=1e-4, size=len(times))
    return (0.05 * buzz * loudness + noise).astype(np.float32)


def pitch_between(samples, start_s, end_s):
    track = pitch_track(samples, RATE)
    inside = (track.times_s > start_s) & (track.times_s < end_s) & track.voiced
    return float(np.median(track.f0_hz[inside]))


def level_between(samples, start_s, end_s):
    track = energy_track(samples, RATE)
    return float(track.level_dbfs[(track.times_s > start_s) & (track.times_s < end_s)].mean())


def test_the_word_gets_higher_louder_and_longer_and_its_neighbours_lower(clip):
    edited = stress_words(clip, RATE, WORDS, [2], STRONG)
    assert np.allclose(edited.word_times_s, [*WORDS[:2], (0.9, 1.32), (1.42, 1.72), (1.82, 2.12)])
    assert len(edited.samples) == pytest.approx(len(clip) + 0.12 * RATE, abs=2)
    raised, louder = [], []
    for (start, end), (old_start, old_end) in zip(edited.word_times_s, WORDS, strict=True):
        now, before = (start + 0.06, end - 0.06), (old_start + 0.06, old_end - 0.06)
        raised.append(12 * np.log2(pitch_between(edited.samples, *now) / pitch_between(clip, *before)))
        louder.append(level_between(edited.samples, *now) - level_between(clip, *before))
    assert raised[2] == pytest.approx(5.0, abs=0.3)
    assert louder[2] == pytest.approx(4.0, abs=1.0)
    assert [raised[0], raised[4]] == pytest.approx([0.0, 0.0], abs=0.05)
    for (start, end), moved in (((0.67, 0.78), 0.0), ((1.32, 1.43), 0.12)):  # next to the word
        now = (start + moved, end + moved)
        lower = 12 * np.log2(pitch_between(edited.samples, *now) / pitch_between(clip, start, end))
        assert -1.6 < lower < -0.4


def test_samples_away_from_the_word_are_the_same(clip):
    edited = stress_words(clip, RATE, WORDS, [2], STRONG).samples
    before, after = int((WORDS[2][0] - 0.365) * RATE), len(clip) - int((WORDS[2][1] + 0.365) * RATE)
    assert np.array_equal(edited[:before], clip[:before])
    assert np.array_equal(edited[-after:], clip[-after:])


def test_joins_do_not_click(clip):
    edited = stress_words(clip, RATE, WORDS, [2], Emphasis(semitones=5.0, gain_db=0.0, stretch=1.4)).samples
    assert np.abs(np.diff(edited)).max() < 1.5 * np.abs(np.diff(clip)).max()


def test_words_side_by_side_are_stressed_as_one(clip):
    edited = stress_words(clip, RATE, WORDS, [1, 2], STRONG)
    assert np.allclose(edited.word_times_s[0], WORDS[0])
    assert edited.word_times_s[2][1] == pytest.approx(0.5 + 0.7 * 1.4)


@pytest.mark.parametrize("word", [0, 4])
def test_a_word_at_the_edge_of_the_clip_can_be_stressed(clip, word):
    cut = clip[int(0.1 * RATE) : int(2.0 * RATE)]
    times = tuple((start - 0.1, end - 0.1) for start, end in WORDS)
    edited = stress_words(cut, RATE, times, [word], STRONG)
    assert edited.word_times_s[-1][1] == pytest.approx(len(edited.samples) / RATE, abs=0.001)
    start, end = edited.word_times_s[word]
    assert pitch_between(edited.samples, start + 0.06, end - 0.06) == pytest.approx(140 * 2 ** (5 / 12), rel=0.03)


def test_a_loud_clip_is_turned_down_rather_than_clipped(clip):
    loud = clip * (0.97 / np.abs(clip).max())
    edited = stress_words(loud, RATE, WORDS, [2], Emphasis(semitones=5.0, gain_db=12.0, stretch=1.4)).samples
    assert np.abs(edited).max() == pytest.approx(0.98, abs=1e-3)
    assert level_between(edited, 0.16, 0.34) < level_between(loud, 0.16, 0.34) - 0.5


@pytest.mark.parametrize(
    ("words", "chosen", "message"),
    [
        (WORDS, [0, 2], "side by side"),
        (WORDS, [], "side by side"),
        (WORDS, [5], "5 words"),
        (((0.1, 0.4), (0.4, 0.4)), [1], "not known"),
    ],
)
def test_words_that_cannot_be_stressed_are_refused(clip, words, chosen, message):
    with pytest.raises(InputError, match=message):
        stress_words(clip, RATE, words, chosen, STRONG)


@pytest.mark.parametrize("wrong", [{"stretch": 0.9}, {"semitones": 13.0}, {"gain_db": -1.0}])
def test_emphasis_out_of_range_is_refused(wrong):
    with pytest.raises(InputError, match="stretch must be"):
        Emphasis(**wrong)
