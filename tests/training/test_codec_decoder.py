"""The codec's decoder alone, trained on codes that a voice predicts."""

import dataclasses
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from flax import nnx

from voxinstruct_jax.audio.codec import CodecConfig, MelCodec
from voxinstruct_jax.audio.linguistic import NUM_FEATURES
from voxinstruct_jax.checkpoints.weights import load_weights, save_weights
from voxinstruct_jax.cli.convert import export_run
from voxinstruct_jax.config import ConfigError, InputError, to_dict
from voxinstruct_jax.data.predicted_codes import PredictedClip, read_codes, write_codes
from voxinstruct_jax.data.shards import Example
from voxinstruct_jax.training import codec as codec_training
from voxinstruct_jax.training.codec import (
    CodecExperiment,
    CodecObjective,
    SegmentData,
    codec_loss,
    codec_task,
    open_coded_clips,
)
from voxinstruct_jax.training.loop import train
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.task import TrainConfig
from voxinstruct_jax.voice_folder import Loaded, codes_fingerprint, load_codec

ROOT = Path(__file__).parents[2]
CONFIG = dataclasses.replace(CodecConfig.tiny(), num_units=5, feature_sizes=(5, 3, 4, 3, 4))
FRAMES = 20


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three clips, codes of two of them, and a codec."""
    folder = tmp_path_factory.mktemp("decoder")
    random, lines = np.random.default_rng(0), []
    for name in ("a", "b", "c"):
        soundfile.write(folder / f"{name}.wav", 0.1 * random.standard_normal(FRAMES * CONFIG.hop_length), 24000)
        lines.append(f'{{"id": "{name}", "audio": "{name}.wav", "transcript": "x", "language": "en"}}\n')
    (folder / "manifest.jsonl").write_text("".join(lines))
    codes = random.integers(0, CONFIG.codebook_size, (CONFIG.num_codebooks, 2 * FRAMES)).astype(np.int16)
    features = np.stack([codes[0] % size for size in CONFIG.feature_sizes], axis=1).astype(np.int16)
    offsets = np.array([0, FRAMES, 2 * FRAMES])
    np.savez(folder / "codes.npz", ids=np.array(["c", "a"]), codes=codes, features=features, offsets=offsets)
    before = dataclasses.replace(CONFIG, feature_sizes=())  # as codecs are that were trained without these
    arrays = nnx.to_pure_dict(nnx.state(MelCodec(before, rngs=nnx.Rngs(0))))
    save_weights(folder / "codec", arrays, {"kind": "codec", "model": to_dict(before)}, card="# Random\n")
    return folder, codes


def experiment_of(folder, **changes):
    segments = SegmentData(
        manifest=str(folder / "manifest.jsonl"), cache=str(folder / "cache"), codes=str(folder / "codes.npz"),
        segment_s=0.32, rows=2, gain_db=0.0,
    )  # fmt: skip
    return CodecExperiment(
        model=CONFIG,
        objective=CodecObjective(stft_windows=(256,)),
        data=dataclasses.replace(segments, **changes),
        optimizer=OptimizerConfig(peak_lr=1e-2, warmup_steps=1, weight_decay=0.1),
        train=TrainConfig(steps=3, log_every=1, init_from=str(folder / "codec")),
    )


def test_a_batch_has_the_codes_of_its_crops_and_clips_without_codes_are_left_out(data):
    folder, codes = data
    batch = codec_task(experiment_of(folder)).batches[0]
    assert batch.codes.shape == (2, CONFIG.num_codebooks, 8)
    windows = [codes[:, at : at + 8] for clip in (0, FRAMES) for at in range(clip, clip + FRAMES - 7)]
    assert all(any(np.array_equal(found, window) for window in windows) for found in batch.codes)
    for number, size in enumerate(CONFIG.feature_sizes):
        np.testing.assert_array_equal(batch.features[..., number], batch.codes[:, 0] % size)


def test_the_decoder_learns_and_what_codes_depend_on_stays_as_it_was(data, tmp_path):
    folder, _ = data
    experiment = experiment_of(folder)
    train(codec_task(experiment), experiment, tmp_path / "run", report=lambda *_: None)
    export_run(tmp_path / "run", tmp_path / "codec", dtype="float32")
    before, after = (load_weights(place)[1] for place in (folder / "codec", tmp_path / "codec"))
    assert after.keys() - before.keys() == {"features"}
    changed = {name for name in before if not jax.tree.all(jax.tree.map(np.array_equal, before[name], after[name]))}
    assert changed == {"from_latent", "decoder", "upsample", "vocos"}
    assert np.abs(after["features"]["output"]["kernel"]).max() > 0
    assert codes_fingerprint(load_codec(folder / "codec")) == codes_fingerprint(load_codec(tmp_path / "codec"))
    for dtype in ("bfloat16", "int8"):
        export_run(tmp_path / "run", tmp_path / dtype, dtype=dtype)
    assert codes_fingerprint(load_codec(tmp_path / "int8")) == codes_fingerprint(load_codec(tmp_path / "bfloat16"))


def test_some_crops_have_their_true_codes_and_some_the_predicted_ones(data, monkeypatch):
    monkeypatch.setattr(codec_training, "WRONG_SHARE", 0.0)
    batch = jax.tree.map(jnp.asarray, codec_task(experiment_of(data[0], rows=12)).batches[0])
    model, heard = MelCodec(CONFIG, rngs=nnx.Rngs(0)), []
    decode, sound = model.quantizer.decode, model.sound
    model.quantizer.decode = lambda codes: heard.append(np.asarray(codes)) or decode(codes)
    model.sound = lambda latents, told, pitch: heard.append(np.asarray(told)) or sound(latents, told, pitch)
    codec_loss(CodecObjective(stft_windows=(256,)), model, batch, jax.random.key(0))
    true = np.asarray(model.encode(batch.samples))
    of_true, of_predicted = ((heard[0] == codes).all((1, 2)) for codes in (true, batch.codes))
    assert (of_true | of_predicted).all()
    np.testing.assert_array_equal(heard[1], np.where(of_true[:, None, None], -1, batch.features))
    assert 0 < of_true.sum() < 12
    assert 0 < of_predicted.sum() < 12


def test_some_predicted_frames_have_the_codes_of_another_moment_and_keep_what_is_said(data):
    batch = jax.tree.map(jnp.asarray, codec_task(experiment_of(data[0], rows=24)).batches[0])
    model, heard = MelCodec(CONFIG, rngs=nnx.Rngs(0)), []
    decode, sound = model.quantizer.decode, model.sound
    model.quantizer.decode = lambda codes: heard.append(np.asarray(codes)) or decode(codes)
    model.sound = lambda latents, told, pitch: heard.append(np.asarray(told)) or sound(latents, told, pitch)
    codec_loss(CodecObjective(stft_windows=(256,)), model, batch, jax.random.key(1))
    told = (heard[1] >= 0).any((1, 2))  # the others have their true codes
    codes, predicted = heard[0][told], np.asarray(batch.codes)[told]
    np.testing.assert_array_equal(heard[1][told], np.asarray(batch.features)[told])
    wrong = (codes != predicted).any(1)
    assert 0.1 < wrong.mean() < 0.3
    for crop, before, frames in zip(codes, predicted, wrong, strict=True):
        assert all((crop[:, place][:, None] == before).all(0).any() for place in np.flatnonzero(frames))


def test_other_codes_have_another_fingerprint():
    one, other = (nnx.split(MelCodec(CONFIG, rngs=nnx.Rngs(seed))) for seed in (0, 1))
    assert codes_fingerprint(Loaded(*one, CONFIG)) != codes_fingerprint(Loaded(*other, CONFIG))


def file_of(path, **changes):
    arrays = {
        "ids": np.array(["a"]),
        "codes": np.zeros((4, 6), np.int16),
        "features": np.zeros((6, NUM_FEATURES), np.int16),
    }
    arrays |= {"offsets": np.array([0, 6])} | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return str(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": None}, "no file of codes"),
        ({"codes": np.zeros((9, 6), np.int16)}, "another codec; this one has 4 x 32 and features of"),
        ({"codes": np.full((4, 6), 999)}, "another codec"),
        ({"features": np.full((6, NUM_FEATURES), 4)}, "another codec"),
        ({"features": np.zeros((6, 2), np.int16)}, "another codec"),
        ({"offsets": np.array([0, 3, 6])}, "no file of codes"),
    ],
)
def test_codes_that_cannot_be_are_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        read_codes(file_of(tmp_path / "codes.npz", **changes), CONFIG)


def test_damaged_files_are_refused(data, tmp_path):
    whole = (data[0] / "codes.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cut\.npz: no file of codes"):
        read_codes(str(tmp_path / "cut.npz"), CONFIG)


def test_codes_of_another_length_than_the_sound_are_refused(data):
    folder, codes = data
    short = file_of(folder / "short.npz", codes=codes[:, :6])
    with pytest.raises(InputError, match=r"short\.npz: 6 frames of a, its sound has 20"):
        codec_task(experiment_of(folder, codes=short, cache=str(folder / "cache-short")))


def test_a_last_frame_that_a_rounded_duration_left_out_is_that_before_it(data):
    folder, codes = data
    features = np.arange(19)[:, None] % 2 * np.ones(NUM_FEATURES, np.int16)
    changes = {"codes": codes[:, :19], "features": features, "offsets": np.array([0, 19])}
    short = file_of(folder / "rounded.npz", **changes)
    config = experiment_of(folder, codes=short, cache=str(folder / "cache-rounded"))
    _, _, tokens = open_coded_clips(config.data, config.model)
    np.testing.assert_array_equal(tokens.codes[0], codes[:, [*range(19), 18]])
    np.testing.assert_array_equal(tokens.features[0], features[[*range(19), 18]])


def test_gains_are_refused_with_codes(data):
    with pytest.raises(ConfigError, match="set gain_db and unit_weight to 0"):
        codec_task(experiment_of(data[0], gain_db=6.0))


def test_codes_of_other_clips_are_refused(data):
    folder, _ = data
    others = file_of(folder / "others.npz", ids=np.array(["z"]))
    with pytest.raises(InputError, match=r"others\.npz: no codes of any clip"):
        codec_task(experiment_of(folder, codes=others))


@pytest.mark.parametrize("number", range(NUM_FEATURES))
def test_a_decoder_reads_features_once_it_has_learnt_to(number):
    """Each feature has vectors of its own; what is unknown changes nothing."""
    model = MelCodec(CONFIG, rngs=nnx.Rngs(0))
    codes, features = np.zeros((1, CONFIG.num_codebooks, 3), np.int32), np.full((1, 3, NUM_FEATURES), -1)
    features[0, 1, number] = 2
    untold = model.decode(codes)
    np.testing.assert_array_equal(model.decode(codes, features), untold)
    model.features.output.kernel[...] += jax.random.normal(jax.random.key(0), model.features.output.kernel.shape)
    told = np.asarray(model.decode(codes, features))
    assert (told != np.asarray(model.decode(codes))).any()
    row = 2 + sum(CONFIG.feature_sizes[:number])
    model.features.vectors.embedding[...] = model.features.vectors.embedding[...].at[row].add(1.0)
    assert (told != np.asarray(model.decode(codes, features))).any()
    np.testing.assert_array_equal(model.decode(codes), model.decode(codes, np.full((1, 3, NUM_FEATURES), -1)))


def test_predicted_codes_are_one_a_frame_and_the_same_for_one_seed(tiny_aligned_voice):
    spec = importlib.util.spec_from_file_location("predict_codes", ROOT / "launch/predict_codes.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    vocabulary = tiny_aligned_voice.ar.config.vocabulary
    text = '"Hi"'
    example = Example(
        id="x",
        language="en",
        transcript="Hi",
        instructions=(text,),
        semantic_tokens=np.array([1, 2], np.int16),
        run_lengths=np.array([3, 4], np.int16),
        codes=np.zeros((vocabulary.num_codebooks, 7), np.int16),
        durations=np.array([2, 4, 6, 2], np.int16),
    )
    first, again = (script.predict(tiny_aligned_voice, example, (0, 0)) for _ in range(2))
    assert first.codes.shape == example.codes.shape
    assert first.codes.min() >= 0
    assert first.codes.max() < vocabulary.codebook_size
    np.testing.assert_array_equal(first.codes, again.codes)
    np.testing.assert_array_equal(first.codes[0], example.codes[0])
    np.testing.assert_array_equal(first.features[:, 0], [1, 1, 1, 2, 2, 2, 2])
    h, i = tiny_aligned_voice.tokenizer.encode(text)[1:3, 1]
    np.testing.assert_array_equal(first.features[1:6, [1, 3]], [[h, h], [h, h], [i, i], [i, i], [i, i]])
    too_long = dataclasses.replace(example, instructions=('A man says "' + 600 * "a " + '"',))
    assert script.predict(tiny_aligned_voice, too_long, (0, 0)).codes.shape == (vocabulary.num_codebooks, 0)


def test_written_codes_are_read_again(tmp_path):
    random = np.random.default_rng(0)
    clips = [
        (
            name,
            PredictedClip(
                codes=random.integers(0, 32, (4, frames)), features=random.integers(-1, 3, (frames, NUM_FEATURES))
            ),
        )
        for name, frames in (("a", 3), ("b", 0), ("c", 5))
    ]
    write_codes(tmp_path / "codes.npz", clips)
    found = read_codes(str(tmp_path / "codes.npz"), CONFIG)
    assert list(found) == ["a", "b", "c"]
    for name, clip in clips:
        np.testing.assert_array_equal(found[name].codes, clip.codes)
        np.testing.assert_array_equal(found[name].features, clip.features)
