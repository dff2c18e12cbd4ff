import json
from pathlib import Path

import make_speaker
import numpy as np
import pytest

from voxinstruct_jax.audio.waveform import read_audio
from voxinstruct_jax.judges.speaker import SAMPLE_RATE, embed_mels, embed_speaker, mel_power, similarity

CORPUS = Path(__file__).parents[1] / "corpus"


@pytest.fixture(scope="module")
def golden():
    return np.load(Path(make_speaker.__file__).with_name("speaker.npz"))


def test_the_network_agrees_with_the_original(golden):
    found = embed_mels(make_speaker.drawn_mels())
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, golden["embeddings"], atol=2e-3)  # weights are stored in half precision
    assert (found * golden["embeddings"]).sum(axis=1).min() > 0.99998


def test_mel_power_agrees_with_librosa(golden):
    np.testing.assert_allclose(mel_power(make_speaker.drawn_samples()), golden["mels"], rtol=1e-4, atol=1e-7)


def clips(corpus, speaker, count):
    lines = (CORPUS / corpus / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["speaker"].startswith(speaker)][:count]
    assert len(rows) == count
    return [read_audio(CORPUS / corpus / row["audio"], SAMPLE_RATE) for row in rows]


def test_clips_of_one_voice_are_nearer_than_those_of_two():
    allison = [embed_speaker(clip, SAMPLE_RATE) for clip in clips("asterisk", "allison", 4)]
    others = [embed_speaker(clip, SAMPLE_RATE) for clip in clips("generated", "am_", 3)]
    same = [similarity(one, other) for i, one in enumerate(allison) for other in allison[i + 1 :]]
    different = [similarity(one, other) for one in allison for other in others]
    assert min(same) > 0.78 > 0.7 > max(different)  # measured: .82 to .92, and .49 to .62
    assert similarity(allison[0], allison[0]) == pytest.approx(1.0, abs=1e-5)


def test_volume_padding_and_sample_rate_hardly_matter():
    clip = clips("asterisk", "allison", 1)[0]
    plain = embed_speaker(clip, SAMPLE_RATE)
    padded = np.concatenate([np.zeros(SAMPLE_RATE, np.float32), clip, np.zeros(SAMPLE_RATE, np.float32)])
    assert similarity(plain, embed_speaker(padded, SAMPLE_RATE)) > 0.97
    assert similarity(plain, embed_speaker(np.float32(0.1) * clip, SAMPLE_RATE)) > 0.999
    assert similarity(plain, embed_speaker(np.repeat(clip, 2), 2 * SAMPLE_RATE)) > 0.95


@pytest.mark.parametrize(
    "samples",
    [np.zeros(0, np.float32), np.zeros(SAMPLE_RATE, np.float32), np.ones(100, np.float32)],
    ids=["empty", "silent", "a scrap"],
)
def test_what_holds_no_speech_has_no_speaker(samples):
    assert embed_speaker(samples, SAMPLE_RATE) is None
