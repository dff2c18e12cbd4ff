"""Against voices whose gender is known: bundled synthetic ones and a real woman."""

import json
from pathlib import Path

import numpy as np
import pytest

from voxinstruct_jax.audio.waveform import read_audio
from voxinstruct_jax.judges.gender import GenderJudge
from voxinstruct_jax.judges.judge import Clip

CORPUS = Path(__file__).parents[1] / "corpus"


def judged(corpus, step):
    """Pairs of known and judged gender."""
    lines = (CORPUS / corpus / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    for row in map(json.loads, lines[::step]):
        samples = read_audio(CORPUS / corpus / row["audio"], 16_000)
        clip = Clip(samples=samples, sample_rate=16_000, language="", transcript="", syllables=0.0)
        yield row["attributes"]["gender"], GenderJudge().measure(clip)


def test_a_real_voice_is_judged_right():
    found = [measurement for _, measurement in judged("asterisk", 4)]
    assert sum(measurement.label == "female" for measurement in found) >= len(found) - 1
    assert np.mean([measurement.confidence for measurement in found]) > 0.8


def test_generated_voices_are_judged_right_nine_times_in_ten():
    found = list(judged("generated", 2))
    right = [truth == measurement.label for truth, measurement in found]
    assert {truth for truth, _ in found} == {"female", "male"}
    assert np.mean(right) >= 0.9
    assert all(0.5 <= measurement.confidence <= 1 for _, measurement in found)


def test_silence_has_no_gender():
    clip = Clip(samples=np.zeros(16_000, np.float32), sample_rate=16_000, language="", transcript="", syllables=0.0)
    assert GenderJudge().measure(clip) is None


@pytest.mark.parametrize("gain", [0.1, 3.0])
def test_volume_does_not_count(gain):
    samples = np.random.default_rng(0).normal(scale=0.05, size=16_000).astype(np.float32)
    clips = [
        Clip(samples=x, sample_rate=16_000, language="", transcript="", syllables=0.0)
        for x in (samples, samples * np.float32(gain))
    ]
    one, other = (GenderJudge().measure(clip) for clip in clips)
    assert one.confidence == pytest.approx(other.confidence, abs=0.01)
