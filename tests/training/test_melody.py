"""The melody of a codec, learnt from sounds whose pitch is what is said of them."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from flax import nnx

from voxinstruct_jax.audio.codec import CodecConfig, MelCodec
from voxinstruct_jax.audio.harmonics import pulse_train
from voxinstruct_jax.checkpoints.weights import load_weights, save_weights
from voxinstruct_jax.cli.convert import export_run
from voxinstruct_jax.config import ConfigError, to_dict
from voxinstruct_jax.data.segments import SegmentBatch
from voxinstruct_jax.training.codec import SegmentData
from voxinstruct_jax.training.loop import train
from voxinstruct_jax.training.melody import MelodyExperiment, MelodyObjective, melody_loss, melody_task
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.task import TrainConfig
from voxinstruct_jax.voice_folder import codes_fingerprint, load_codec

TINY = CodecConfig.tiny()
CONFIG = dataclasses.replace(
    TINY,
    feature_sizes=(5, 3, 4, 3, 4),
    vocos=dataclasses.replace(TINY.vocos, source_rate=TINY.sample_rate),
    melody_dim=16,
)
FRAMES, STEADY = 60, 10
HEIGHTS_HZ = np.array([110.0, 150.0, 205.0])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Clips of a buzz whose height is that of the phone, and a codec without a melody."""
    folder = tmp_path_factory.mktemp("melody")
    random, lines, told = np.random.default_rng(0), [], []
    for name in ("a", "b"):
        phones = np.repeat(random.permutation(np.arange(FRAMES // STEADY) % 3), STEADY)
        pitch = jnp.asarray(HEIGHTS_HZ[phones], jnp.float32)[None]
        buzz = np.asarray(pulse_train(pitch, CONFIG.hop_length, CONFIG.sample_rate))[0]
        soundfile.write(folder / f"{name}.wav", 0.3 * buzz / np.abs(buzz).max(), CONFIG.sample_rate)
        lines.append(json.dumps({"id": name, "audio": f"{name}.wav", "transcript": "x", "language": "en"}))
        told.append(np.stack([0 * phones, phones, 0 * phones, phones, 0 * phones], axis=1))
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    np.savez(
        folder / "codes.npz",
        ids=np.array(["a", "b"]),
        codes=np.zeros((CONFIG.num_codebooks, 2 * FRAMES), np.int16),
        features=np.concatenate(told).astype(np.int16),
        offsets=np.array([0, FRAMES, 2 * FRAMES]),
    )
    before = dataclasses.replace(CONFIG, melody_dim=0)
    arrays = nnx.to_pure_dict(nnx.state(MelCodec(before, rngs=nnx.Rngs(0))))
    save_weights(folder / "codec", arrays, {"kind": "codec", "model": to_dict(before)}, card="# Random\n")
    return folder


def experiment_of(folder, **changes):
    segments = SegmentData(
        manifest=str(folder / "manifest.jsonl"), cache=str(folder / "cache"), codes=str(folder / "codes.npz"),
        segment_s=1.6, rows=4, gain_db=0.0,
    )  # fmt: skip
    return MelodyExperiment(
        model=CONFIG,
        data=dataclasses.replace(segments, **changes),
        optimizer=OptimizerConfig(peak_lr=1e-2, warmup_steps=5, weight_decay=0.0),
        train=TrainConfig(steps=60, log_every=10, init_from=str(folder / "codec")),
    )


def test_a_melody_learns_which_height_a_phone_has_and_the_codec_stays_as_it_was(data, tmp_path):
    experiment = experiment_of(data)
    train(melody_task(experiment), experiment, tmp_path / "run", report=lambda *_: None)
    export_run(tmp_path / "run", tmp_path / "codec", dtype="float32")
    before, after = (load_weights(place)[1] for place in (data / "codec", tmp_path / "codec"))
    assert after.keys() - before.keys() == {"melody"}
    for name in before:
        jax.tree.map(np.testing.assert_array_equal, before[name], after[name])
    loaded = load_codec(tmp_path / "codec")
    assert codes_fingerprint(loaded) == codes_fingerprint(load_codec(data / "codec"))
    codec = nnx.merge(loaded.graph, loaded.state)
    phones = np.repeat([0, 2, 1], STEADY)
    features = np.stack([0 * phones, phones, 0 * phones, phones, 0 * phones], axis=1)[None].astype(np.int32)
    steps = STEADY * CONFIG.downsample
    found = np.asarray(codec.melody(jnp.asarray(features))).reshape(3, steps)[:, steps // 4 : -steps // 4].mean(1)
    wanted = 12 * np.log2(HEIGHTS_HZ[[0, 2, 1]])
    np.testing.assert_allclose(np.diff(found), np.diff(wanted), atol=1.5)


def test_loss_is_of_voiced_steps_about_their_own_means():
    model = MelCodec(CONFIG, rngs=nnx.Rngs(0))
    model.melody = lambda features, **_: jnp.array([[0.0, 4.0, 90.0, 8.0]])
    batch = SegmentBatch(
        samples=np.zeros((1, 0), np.float32),
        units=np.zeros((1, 0), np.int32),
        features=np.zeros((1, 1, 5), np.int32),
        codes=np.zeros((1, 0, 0), np.int32),
        pitch=np.array([[100.0, 100.0, 0.0, 200.0]], np.float32),
    )
    (loss,), metrics = melody_loss(MelodyObjective(), model, batch, jax.random.key(0))
    # differences 0, 4 and -4 semitones, of mean 0; without a course 0, 0 and -12, of mean -4
    np.testing.assert_allclose(loss.value, 8 / 3, rtol=1e-5)
    np.testing.assert_allclose(metrics["flat_distance"].value, 16 / 3, rtol=1e-5)


def test_what_a_melody_cannot_be_learnt_from_is_refused(data):
    with pytest.raises(ConfigError, match=r"data.codes: give the file that launch/predict_codes.py writes"):
        melody_task(experiment_of(data, codes=""))
    with pytest.raises(ConfigError, match=r"data.gain_db: must be 0"):
        experiment_of(data, gain_db=3.0)
    with pytest.raises(ConfigError, match=r"model.melody_dim: must be above 0"):
        MelodyExperiment(model=dataclasses.replace(CONFIG, melody_dim=0))
    with pytest.raises(ConfigError, match=r"objective.dropout: 1.0"):
        MelodyObjective(dropout=1.0)
