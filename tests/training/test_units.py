import numpy as np
import pytest

from voxinstruct_jax.audio.phone_model import load_phone_model
from voxinstruct_jax.audio.semantic import load_units, pool
from voxinstruct_jax.config import ConfigError, InputError
from voxinstruct_jax.data.durations import character_durations
from voxinstruct_jax.data.manifest import Row, write_manifest
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
from voxinstruct_jax.training import units
from voxinstruct_jax.training.units import UnitsExperiment, clip_units, train_units


@pytest.fixture
def tones_for_whisper(monkeypatch, tone_speech):
    """Fits units on tones; gives the layers that were asked for."""
    layers = []
    monkeypatch.setattr(units, "load_whisper_encoder", lambda layer: layers.append(layer) or tone_speech.source)
    return layers


def test_units_of_discriminants_tell_phones_apart_and_bring_their_phone_model(tones_for_whisper, tone_speech, tmp_path):
    pytest.importorskip("sklearn", reason="fitting units needs the prepare extra")
    experiment = UnitsExperiment(manifest=str(tone_speech.manifest), num_units=16, layer=3, num_discriminants=8)
    made = train_units(experiment, tmp_path / "units")
    assert tones_for_whisper == [3]
    found = load_units(tmp_path / "units")
    assert found.centroids.shape == (16, 8)
    assert found.projection.matrix.shape == (161, 8)
    assert found.source == made.source == "tones-layer3"
    assert found.layer == 3

    chosen, spoken = [], []
    for samples, phones in zip(tone_speech.samples[:8], tone_speech.phones, strict=False):  # each length is a program
        frames = len(phones) // 2
        assigned = clip_units(found, tone_speech.source, samples, frames)
        np.testing.assert_array_equal(made.assign(pool(tone_speech.source.features(samples), 2, frames)), assigned)
        whole = phones[: 2 * frames : 2] == phones[1 : 2 * frames : 2]  # frames within one phone
        chosen += assigned[whole].tolist()
        spoken += phones[: 2 * frames : 2][whole].tolist()
    pairs, counts = np.unique(np.array([chosen, spoken]), axis=1, return_counts=True)
    commonest = [counts[pairs[0] == unit].max() for unit in np.unique(pairs[0])]
    assert sum(commonest) / len(spoken) > 0.95

    model = load_phone_model(tmp_path / "units")
    assert set(model.labels) == set(np.concatenate(tone_speech.phones))
    apart = []
    for row, samples, wanted in zip(tone_speech.rows, tone_speech.samples, tone_speech.durations, strict=True):
        features = tone_speech.source.features(samples)
        got = character_durations(model, PronunciationTokenizer(), features, row.transcript, len(features))
        got[-1] -= len(features)
        apart += np.abs(got - wanted).tolist()
    assert np.mean(np.array(apart) <= 1) > 0.9


def test_units_of_whole_features_have_no_phone_model(tones_for_whisper, tone_speech, tmp_path):
    pytest.importorskip("sklearn", reason="fitting units needs the prepare extra")
    train_units(UnitsExperiment(manifest=str(tone_speech.manifest), num_units=8), tmp_path / "units")
    assert load_phone_model(tmp_path / "units") is None
    found = load_units(tmp_path / "units")
    assert found.projection is None
    assert found.centroids.shape == (8, 161)


def test_a_manifest_without_words_has_no_phones_to_fit(tones_for_whisper, tone_speech, tmp_path):
    rows = [Row(id=row.id, audio=row.audio, language="en", transcript="...") for row in tone_speech.rows[:3]]
    write_manifest(tmp_path / "manifest.jsonl", rows)
    experiment = UnitsExperiment(manifest=str(tmp_path / "manifest.jsonl"), num_units=4, num_discriminants=4)
    with pytest.raises(InputError, match="no clip of the manifest has a transcript that fits its length"):
        train_units(experiment, tmp_path / "units")
    assert not (tmp_path / "units").exists()


@pytest.mark.parametrize("number", [-1, 121])
def test_impossible_numbers_of_discriminants_are_refused(number):
    with pytest.raises(ConfigError, match="num_discriminants from 0 to 120"):
        UnitsExperiment(num_discriminants=number)
