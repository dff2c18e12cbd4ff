"""Samples that a model in training speaks with the other parts of a voice."""

import dataclasses
import json

import numpy as np
import pytest
import soundfile

from voxinstruct_jax.checkpoints.weights import load_weights
from voxinstruct_jax.cli import samples
from voxinstruct_jax.cli.samples import SENTENCES, make_sampler
from voxinstruct_jax.config import ConfigError, InputError, from_dict
from voxinstruct_jax.models.ar import ARConfig
from voxinstruct_jax.training.ar import ARExperiment
from voxinstruct_jax.training.codec import CodecExperiment
from voxinstruct_jax.training.task import TrainConfig


@pytest.fixture
def experiment(tiny_voice_folder, monkeypatch):
    """Of the tiny voice's own AR model, so that it fits."""
    monkeypatch.setattr(samples, "load_asr", lambda: (_ for _ in ()).throw(InputError("no judge")))
    model = json.loads((tiny_voice_folder / "ar" / "config.json").read_text())["model"]
    train = TrainConfig(sample_every=5, sample_voice=str(tiny_voice_folder))
    return ARExperiment(model=from_dict(ARConfig, model), train=train)


def test_weights_in_training_speak_with_the_lent_parts(experiment, tiny_voice_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "SENTENCES", SENTENCES[:1])
    monkeypatch.setattr(samples, "LONGEST_S", 0.5)
    sample = make_sampler(experiment, tmp_path)
    _, weights = load_weights(tiny_voice_folder / "ar")
    [row] = sample(5, weights)
    assert row["file"] == "samples/step-0000005/0-en.wav"
    heard, rate = soundfile.read(tmp_path / row["file"])
    assert len(heard) / rate == pytest.approx(row["duration_s"], abs=0.01)
    assert row["finish_reason"] in ("stop", "max_semantic", "max_acoustic", "max_total")
    assert "error" not in row
    # another model speaks otherwise
    [other] = sample(10, {**weights, "head": np.array(weights["head"])[::-1]})
    again, _ = soundfile.read(tmp_path / other["file"])
    assert not np.array_equal(heard[: len(again)], again[: len(heard)])


def test_a_voice_that_does_not_fit_is_refused_at_the_start(experiment, tmp_path):
    vocabulary = dataclasses.replace(experiment.model.vocabulary, num_semantic=99)
    other = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, vocabulary=vocabulary))
    with pytest.raises(InputError, match=r"cannot lend its parts .* has vocabulary.num_semantic 12, the model 99"):
        make_sampler(other, tmp_path)
    aligned = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, timing="aligned"))
    with pytest.raises(InputError, match=r"it has timing sequence, the model aligned"):
        make_sampler(aligned, tmp_path)


def test_a_codec_speaks_no_samples(tmp_path):
    with pytest.raises(ConfigError, match="only AR, NAR and denoisers speak samples"):
        make_sampler(CodecExperiment(train=TrainConfig(sample_every=1)), tmp_path)
