"""What is asked of speed, pitch and level, and stressed words: ranges, frames and samples."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from flax import nnx

from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.decoding.prefill import prefill
from voxinstruct_jax.decoding.prosody import Prosody, StressLift, asked_class, limit_peaks, stressed_frames
from voxinstruct_jax.decoding.requests import ARRequest, Limits, batch_requests
from voxinstruct_jax.decoding.rules import FIXED
from voxinstruct_jax.guidance import Branch, Guidance
from voxinstruct_jax.judges.bins import AttributeBins, Bins, Bounds, classify
from voxinstruct_jax.judges.pitch import active_level_dbfs, energy_track
from voxinstruct_jax.models.style import NUM_CLASSES, class_places
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
from voxinstruct_jax.vocabulary import build_prompt

RATE = 24_000
LEVELS = ("low", "normal", "high")


def bounds(lower, upper):
    return Bounds(lower=lower, upper=upper, count=0)


BINS = Bins(
    corpus="by hand",
    attributes={
        "pitch": AttributeBins(
            judge="j", unit="Hz", groups={"en/female": bounds(170.0, 200.0), "en/male": bounds(105.0, 130.0)}
        ),
        "energy": AttributeBins(judge="j", unit="dBFS", groups={"en": bounds(-34.0, -26.0)}),
        "speed": AttributeBins(judge="j", unit="syllables/s", groups={"en": bounds(4.0, 5.0)}),
    },
)
KEPT = Prosody(bins=BINS)


def told(**classes):
    """Probabilities of an instruction that surely asks for these classes, and for nothing else."""
    found = np.full(NUM_CLASSES, 0.4, np.float32)
    order = {"gender": ("female", "male"), "pitch": LEVELS, "energy": LEVELS, "speed": ("slow", "normal", "fast")}
    for name, value in classes.items():
        found[class_places(name)] = 0.1
        found[class_places(name).start + order[name].index(value)] = 0.8
    return found


def test_only_what_is_surely_told_counts_as_asked():
    assert asked_class(told(pitch="high"), "pitch") == "high"
    assert asked_class(told(pitch="high"), "speed") is None
    assert asked_class(np.zeros(NUM_CLASSES, np.float32), "gender") is None


@pytest.mark.parametrize("speed", ["slow", "normal", "fast"])
def test_words_that_last_as_long_as_they_may_are_of_their_class(speed):
    least, most = KEPT.tempo(12.0, "en", 25.0)[("slow", "normal", "fast").index(speed)]
    for half_frames in (least, most, math.sqrt(max(least, 1.0) * min(most, 1e4))):
        rate = 12.0 / (half_frames / 50) if half_frames else math.inf
        if math.isfinite(rate) and rate > 0:
            assert classify(BINS, "speed", "en", rate, 0.01)[0] == speed


def test_a_narrow_class_is_aimed_at_in_its_middle():
    narrow = dataclasses.replace(BINS.attributes["speed"], groups={"en": bounds(4.0, 4.1)})
    kept = Prosody(bins=dataclasses.replace(BINS, attributes={"speed": narrow}))
    least, most = kept.tempo(10.0, "en", 25.0)[1]
    assert least == most == pytest.approx(500 / 4.05)


def test_a_language_without_boundaries_is_left_alone():
    assert KEPT.tempo(12.0, "zh", 25.0) == Prosody().tempo(12.0, "en", 25.0)
    _, lowest, highest = KEPT.pitch_ranges(told(pitch="low"), "zh")
    assert (lowest < 31).all()
    assert (highest > 999).all()


@pytest.mark.parametrize("gender", ["female", "male"])
@pytest.mark.parametrize("pitch", LEVELS)
def test_pitch_ranges_are_of_the_class_and_the_gender(gender, pitch):
    centres, lowest, highest = KEPT.pitch_ranges(told(gender=gender, pitch=pitch), "en")
    assert centres[0] == centres[1]
    middle = math.sqrt(max(float(lowest[0]), 40.0) * min(float(highest[0]), 800.0))
    assert classify(BINS, "pitch", f"en/{gender}", middle, 0.1)[0] == pitch
    unknown = KEPT.pitch_ranges(told(pitch=pitch), "en")
    assert unknown[0][0] > unknown[0][1]  # women's and men's
    free = KEPT.pitch_ranges(told(gender=gender), "en")
    assert (free[1] < 31).all()


def speech_like(level_db):
    """A second and a half of noise with a pause."""
    samples = np.random.default_rng(0).normal(size=RATE * 3 // 2) * 10 ** (level_db / 20)
    samples[RATE // 2 : RATE // 2 + 6000] = 0
    return samples.astype(np.float32)


def level_of(samples):
    return active_level_dbfs(energy_track(samples, RATE))


@pytest.mark.parametrize(("energy", "aim"), [("low", -35.5), ("normal", -32.5), ("high", -24.5)])
def test_a_clip_is_brought_just_into_the_level_that_is_asked_for(energy, aim):
    start = -50.0 if energy != "low" else -20.0
    assert level_of(KEPT.set_level(speech_like(start), RATE, told(energy=energy), "en")) == pytest.approx(aim, abs=0.2)


def test_levels_stay_where_they_are_in_range_or_not_asked_for_or_silent():
    for classes, level in ((told(energy="normal"), -30.0), (told(speed="fast"), -60.0)):
        samples = speech_like(level)
        np.testing.assert_array_equal(KEPT.set_level(samples, RATE, classes, "en"), samples)
    silence = np.zeros(RATE, np.float32)
    np.testing.assert_array_equal(KEPT.set_level(silence, RATE, told(energy="high"), "en"), silence)


def test_peaks_are_not_clipped_for_a_level():
    samples = 0.01 * speech_like(0.0)
    samples[100] = 0.5
    raised = KEPT.set_level(samples, RATE, told(energy="high"), "en")
    assert np.abs(raised).max() == pytest.approx(0.99, abs=1e-3)


def test_a_spike_is_bent_and_the_rest_of_the_clip_stays():
    samples = (0.3 * np.sin(np.arange(RATE) / 20)).astype(np.float32)
    spiked = samples.copy()
    spiked[500:503] = (1.2, -1.45, 0.9)
    limited = limit_peaks(spiked)
    assert np.abs(limited).max() < 1.0
    assert np.all(np.sign(limited) == np.sign(spiked))
    assert limited[501] < -0.9
    assert limited[500] > limited[502] > 0.79
    np.testing.assert_array_equal(np.delete(limited, range(500, 503)), np.delete(samples, range(500, 503)))
    assert limit_peaks(samples) is samples
    assert limit_peaks(samples[:0]).size == 0


def test_a_stressed_word_is_louder_and_the_rest_is_as_it_was():
    samples = speech_like(-40.0)
    stressed = np.zeros(38, bool)
    stressed[25:30] = True
    raised = Prosody(stress=StressLift(gain_db=6.0)).raise_words(samples, RATE, stressed)
    inside, outside = slice(25 * 960 + 960, 29 * 960), slice(0, 24 * 960)
    np.testing.assert_allclose(raised[inside], samples[inside] * 10**0.3, rtol=1e-3)
    np.testing.assert_array_equal(raised[outside], samples[outside])
    assert Prosody().raise_words(samples, RATE, stressed) is samples


def test_frames_of_a_stressed_word_follow_from_the_durations():
    tokenizer = PronunciationTokenizer()
    text = 'A man stresses the word "late": "You are late today."'
    tokens = tokenizer.encode(text)
    durations = np.zeros(len(tokens), np.float32)
    start = text.rindex('"', 0, -1) + 1
    durations[start : start + len("You are late today.")] = 4.0  # two frames a character
    found = stressed_frames(tokens, durations, 40)
    np.testing.assert_array_equal(np.flatnonzero(found), np.arange(16, 24))
    assert not stressed_frames(tokens, np.zeros(len(tokens)), 40).any()
    assert not stressed_frames(np.ones((3, 1), np.int32), np.ones(3), 5).any()
    factors = Prosody(stress=StressLift(stretch=1.5)).stretches(tokens)
    assert (factors == 1.5).sum() == len("late")


def test_a_lift_that_lowers_is_refused():
    with pytest.raises(ConfigError, match=r"stretch .* at least 1"):
        StressLift(stretch=0.5)


TEXT = np.array([[3, 1, 0, 0, 2], [7, 2, 0, 0, 3], [2, 2, 0, 0, 2], [5, 3, 0, 0, 1], [1, 0, 0, 0, 1]], np.int32)
"""The third channel but last tells of quotes: the first and the third token are spoken."""


@pytest.fixture(scope="module")
def filled(reading_model, vocabulary):
    """Durations of requests, prefilled together."""
    none = np.zeros((4, 0), np.int32)
    limits = Limits(min_semantic=1, max_semantic=400, min_acoustic=1, max_acoustic=400, max_total=1000)

    def run(requests):
        made = [
            ARRequest(
                text_tokens=TEXT,
                prompt=build_prompt(vocabulary, "en", none[0], none),
                guidance=Guidance(),
                limits=limits,
                seed=0,
                **options,
            )
            for options in requests
        ]
        graph, state = nnx.split(reading_model)
        batch = batch_requests(made, (Branch.COND,), text_width=7)
        program = jax.jit(lambda state: prefill(nnx.merge(graph, state), batch, (Branch.COND,), FIXED))
        found = program(state)
        return np.asarray(found.durations), np.asarray(found.classes)

    return run


def test_words_are_stretched_into_the_speed_that_is_asked_for_and_no_further(filled):
    (plain,), (classes,) = filled([{}])
    speed = int(classes[class_places("speed")].argmax())
    assert classes[class_places("speed")].max() > 0.6, "the fixture must be sure"
    spoken = TEXT[:, 4] == 2
    words = float(plain[: len(TEXT)][spoken].sum())

    def tempo(least, most):
        found = [(0.0, math.inf)] * 3
        found[speed] = (least, most)
        return {"tempo": found}

    other = [(3 * words, math.inf)] * 3
    other[speed] = (0.0, math.inf)
    longer, free, unasked, stretched = filled(
        [
            tempo(2 * words, math.inf),
            tempo(0.5 * words, 2 * words),
            {"tempo": other},
            {"stretch": np.full(5, 2.0, np.float32)},
        ]
    )[0]
    np.testing.assert_allclose(free, plain, rtol=1e-5)
    np.testing.assert_allclose(unasked, plain, rtol=1e-5)
    assert longer[: len(TEXT)][spoken].sum() == pytest.approx(2 * words, rel=0.1)  # whole frames are given
    assert longer[: len(TEXT)][~spoken].sum() == pytest.approx(plain[: len(TEXT)][~spoken].sum(), rel=0.1)
    assert stretched.sum() == pytest.approx(2 * plain.sum(), rel=0.1)
