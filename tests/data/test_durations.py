import json
from pathlib import Path

import numpy as np
import pytest

from voxinstruct_jax.audio.phone_model import PhoneModel
from voxinstruct_jax.audio.waveform import read_audio, resample
from voxinstruct_jax.data.durations import character_durations, quoted
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer

TOKENIZER = PronunciationTokenizer()
CORPUS = Path(__file__).parents[1] / "corpus" / "generated"


def make_model(labels, means) -> PhoneModel:
    """Sees features as they are."""
    num_features = means.shape[1]
    return PhoneModel(
        labels=tuple(labels),
        mean=np.zeros(num_features, np.float32),
        projection=np.eye(num_features, dtype=np.float32),
        means=means.astype(np.float32),
        variances=np.ones_like(means, np.float32),
    )


@pytest.fixture(scope="module")
def features(tone_speech):
    return [tone_speech.source.features(samples) for samples in tone_speech.samples]


@pytest.fixture(scope="module")
def model(tone_speech, features):
    """Knows the mean of every phone, from where it is known to be spoken."""
    frames, phones = np.concatenate(features), np.concatenate(tone_speech.phones)
    labels = np.unique(phones).tolist()
    return make_model(labels, np.stack([frames[phones == label].mean(axis=0) for label in labels]))


def test_characters_last_as_long_as_their_phones(tone_speech, features, model):
    apart = []
    for row, clip, wanted in zip(tone_speech.rows, features, tone_speech.durations, strict=True):
        num_frames = -(-len(clip) // 2)
        found = character_durations(model, TOKENIZER, clip, row.transcript, num_frames)
        assert found.sum() == 2 * num_frames
        assert len(found) == len(row.transcript) + 2
        found[-1] -= 2 * num_frames - len(clip)  # the half frame that fills up the last one is silence
        apart += np.abs(found - wanted).tolist()
    assert np.mean(np.array(apart) <= 1) > 0.98


def test_phones_that_the_model_does_not_know_last_no_time(features, model):
    known = [number for number, label in enumerate(model.labels) if not label.startswith("zh")]
    english = make_model([model.labels[number] for number in known], model.means[known])
    clip = features[0]
    found = character_durations(english, TOKENIZER, clip, "see妈 me", len(clip))
    assert found[1 + "see妈 me".index("妈")] == 0
    assert found.sum() == 2 * len(clip)
    assert found[1:4].sum() > 0
    assert found[6:8].sum() > 0


@pytest.mark.parametrize("transcript", ["...", "", "妈 拿 妈 拿 妈 拿"])
def test_a_transcript_without_phones_or_with_too_many_has_no_durations(features, model, transcript):
    assert character_durations(model, TOKENIZER, features[0][:11], transcript, 6) is None


def test_the_last_silence_takes_up_what_frames_and_features_differ_by(model):
    """S, IY and silence of four, four and three 20 ms; less silence than there is cannot be left."""
    means = [model.means[model.labels.index(label)] for label in ("en S", "en IY", "silence")]
    clip = np.repeat(np.stack(means), (4, 4, 3), axis=0)
    by_frames = {frames: character_durations(model, TOKENIZER, clip, "see", frames) for frames in (3, 4, 5, 6)}
    assert [by_frames[frames][-1] for frames in (4, 5, 6)] == [0, 2, 4]
    assert by_frames[3] is None


@pytest.mark.parametrize("number", [0, 1, 7])
def test_durations_of_a_generated_clip_fill_its_frames(tone_speech, number):
    """Whatever a model says, here of random phones."""
    row = json.loads((CORPUS / "manifest.jsonl").read_text().splitlines()[number])
    samples = read_audio(CORPUS / row["audio"], 24_000)
    features = tone_speech.source.features(resample(samples, 24_000, 16_000))
    labels = sorted({phone.base_label for phone in TOKENIZER.spoken_phones(quoted(row["transcript"]))})
    means = features.mean(axis=0) + np.random.default_rng(0).standard_normal((len(labels), features.shape[1]))
    num_frames = -(-len(samples) // 960)
    found = character_durations(make_model(labels, means), TOKENIZER, features, row["transcript"], num_frames)
    assert found.sum() == 2 * num_frames
    assert (found >= 0).all()
    rows = TOKENIZER.encode(quoted(row["transcript"]))
    spoken = (rows[: len(found), 1:3] > 1).any(axis=1)
    assert len(found) == len(rows) - 1
    assert (found[spoken] > 0).all()
