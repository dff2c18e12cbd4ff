"""A flow decoder and a bridge on synthetic tokens: what they know of clips that they were not shown, and say."""

import dataclasses
import functools
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from flax import nnx

from voxinstruct_jax.audio.codec import CodecConfig, MelCodec
from voxinstruct_jax.audio.quantizer import QuantizerConfig
from voxinstruct_jax.audio.vocos import VocosConfig
from voxinstruct_jax.checkpoints.weights import load_weights, save_weights
from voxinstruct_jax.config import ConfigError, InputError, from_dict, to_dict
from voxinstruct_jax.data.code_batches import CodeData, units_of_frames
from voxinstruct_jax.data.manifest import Row
from voxinstruct_jax.data.prepare import Encoders, prepare
from voxinstruct_jax.diffusion.codec_speech import codec_latents, speak_units
from voxinstruct_jax.diffusion.systems import SYSTEMS
from voxinstruct_jax.models.codec_flow import CodecFlow, CodecFlowConfig
from voxinstruct_jax.models.mmdit import MMDiTConfig
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
from voxinstruct_jax.training.codec_flow import CodecFlowExperiment, codec_flow_task, expected_latents
from voxinstruct_jax.training.experiment import build_task, program_of, rows_of, with_rows
from voxinstruct_jax.training.loop import train
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.task import TrainConfig

NUM_UNITS, HOP = 6, 40
CODEC = dataclasses.replace(
    CodecConfig.tiny(),
    quantizer=QuantizerConfig(latent_dim=8, num_codebooks=3, codebook_size=12),
    vocos=VocosConfig(dim=16, ffn_dim=32, num_layers=1),
)
CHANNELS = PronunciationTokenizer().channel_sizes


def spoken(number):
    """Units of a clip and how long each lasts; no unit follows itself."""
    random = np.random.default_rng(number)
    units = np.cumsum(random.integers(1, NUM_UNITS, 9)) % NUM_UNITS
    return units, random.integers(1, 4, 9)


def codes_of(number):
    """The first codebook says the unit; the second how far it is from beginning and end; the third the unit before."""
    units, lengths = spoken(number)
    first = np.repeat(units, lengths)
    place = np.concatenate([np.arange(length) for length in lengths])
    left = np.concatenate([np.arange(length)[::-1] for length in lengths])
    before = np.repeat(np.r_[units[0], units[:-1]], lengths)
    return np.stack([2 * first, 3 * place + left, 6 + before])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Shards of forty clips to train on and eight held out, and the codec that stands behind their codes."""
    folder = tmp_path_factory.mktemp("codes")

    def number_of(samples):
        return round(float(samples[0]) * 64)

    encoders = Encoders(
        acoustic=lambda samples: codes_of(number_of(samples)),
        semantic=lambda samples: np.repeat(*spoken(number_of(samples))),
        tokenizer=PronunciationTokenizer(),
        sample_rate=1000,
        frame_rate=1000 / HOP,
        fingerprints={"codec": "synthetic", "units": "synthetic"},
    )
    for name, numbers in (("train", range(1, 41)), ("held", range(41, 49))):
        rows = []
        for number in numbers:
            path = folder / f"{number}.wav"
            soundfile.write(path, np.full(codes_of(number).shape[1] * HOP, number / 64, np.float32), 1000, "FLOAT")
            rows.append(Row(id=str(number), audio=str(path), language="en", transcript="see"))
        prepare(rows, folder / name, encoders, progress=False)
    random = np.random.default_rng(0)
    abstract = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: MelCodec(CODEC, rngs=nnx.Rngs(0)))))
    weights = jax.tree.map(lambda leaf: 0.2 * random.standard_normal(leaf.shape, np.float32), abstract)
    weights["quantizer"]["entries"] *= np.array([1.0, 0.6, 0.4], np.float32)[:, None, None]
    weights["quantizer"]["members"] = np.ones_like(weights["quantizer"]["members"])
    save_weights(folder / "codec", weights, {"kind": "codec", "model": to_dict(CODEC), "step": 0}, card="# Random\n")
    return SimpleNamespace(train=str(folder / "train"), held=str(folder / "held"), codec=str(folder / "codec"))


def experiment_of(folders, system, shards=None):
    network = dataclasses.replace(
        MMDiTConfig.told_frame_by_frame(8, CHANNELS), model_dim=48, rotary_dims=12, single_blocks=1
    )
    encoder = dataclasses.replace(network.text_encoder, num_layers=1, ffn_dim=64)
    return CodecFlowExperiment(
        model=CodecFlowConfig(
            network=dataclasses.replace(network, text_encoder=encoder),
            codec=CODEC,
            num_units=NUM_UNITS,
            first_codebook=system == "bridge",
        ),
        codec_weights=folders.codec,
        diffusion=SYSTEMS[system],
        data=CodeData(shards=shards or folders.train, frames=20, rows=8, text_width=16),
        optimizer=OptimizerConfig(
            peak_lr=1e-2, warmup_steps=10, decay="cosine", decay_steps=120, weight_decay=0.0, max_grad_norm=1.0
        ),
        train=TrainConfig(steps=120, log_every=40, save_every=120),
    )


@pytest.fixture(scope="module", params=["flow_decoder", "bridge"])
def trained(request, folders, tmp_path_factory):
    """A run of either system: its experiment, folder, logged metrics, and the model."""
    experiment = experiment_of(folders, request.param)
    folder = tmp_path_factory.mktemp("runs") / request.param
    task = build_task(experiment)
    result = train(task, experiment, folder, report=lambda *_: None)
    model = task.program.build_model(nnx.Rngs(0))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    nnx.replace_by_pure_dict(params, result.state.params)
    nnx.replace_by_pure_dict(rest, result.state.rest)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return SimpleNamespace(
        system=request.param, experiment=experiment, folder=folder, metrics=lines, model=nnx.merge(graph, params, rest)
    )


def masked_error(found, expected, mask):
    return float((np.square(np.asarray(found) - np.asarray(expected)).mean(-1) * mask).sum() / np.sum(mask))


@pytest.mark.slow
def test_held_out_latents_are_told_better_than_by_their_means(trained, folders):
    """Of clips that it was not shown a model knows more than any mean over those that it was."""
    experiment, model = trained.experiment, trained.model
    expect = jax.jit(functools.partial(expected_latents, experiment.diffusion, model))
    held = codec_flow_task(experiment_of(folders, trained.system, folders.held)).batches
    shown = codec_flow_task(experiment).batches
    latents, units = [], []
    for step in range(6):
        batch = shown[step]
        real = np.asarray(batch.units) > 0
        latents.append(np.asarray(model.latents(jnp.asarray(batch.codes)))[real])
        units.append(np.asarray(batch.units)[real])
    latents, units = np.concatenate(latents), np.concatenate(units)
    means = np.stack([latents[units == unit].mean(0) for unit in range(1, NUM_UNITS + 1)])
    found = []
    for step in range(3):
        batch = jax.tree.map(jnp.asarray, held[step])
        guess, x0, mask = expect(batch, jax.random.key(step))
        first = model.latents(batch.codes[:, :1])
        of_unit = means[np.maximum(np.asarray(batch.units) - 1, 0)]
        others = (latents.mean(0), of_unit, first)
        found.append([masked_error(guess, x0, mask), *(masked_error(other, x0, mask) for other in others)])
    error, of_mean, of_unit, of_first = np.mean(found, axis=0)
    assert error < 0.7 * of_unit < of_mean
    if trained.system == "bridge":
        assert error < 0.5 * of_first


def test_a_bridge_s_loss_begins_at_the_first_codebook_and_falls(trained):
    first, last = trained.metrics[0], trained.metrics[-1]
    assert last["loss"] < 0.6 * last["loss_trivial"]
    if trained.system == "bridge":
        assert last["loss"] < 0.5 * last["error_first_codebook"]
    else:
        assert "error_first_codebook" not in first


def test_a_fresh_bridge_predicts_the_first_codebook(folders):
    experiment = experiment_of(folders, "bridge")
    task = codec_flow_task(experiment)
    batch = jax.tree.map(jnp.asarray, task.batches[0])
    model = task.program.build_model(nnx.Rngs(0))
    (loss,), metrics = jax.jit(functools.partial(task.program.objective, model))(batch, jax.random.key(0))
    assert float(loss.value) == pytest.approx(float(metrics["error_first_codebook"].value), rel=1e-5)


@pytest.mark.slow
def test_drawn_latents_follow_the_units_and_padding_leaves_no_trace(trained, folders):
    batch = codec_flow_task(experiment_of(folders, trained.system, folders.held)).batches[0]
    batch, keys = jax.tree.map(jnp.asarray, batch), jax.random.split(jax.random.key(0), 8)
    draw = jax.jit(functools.partial(codec_latents, trained.model, trained.experiment.diffusion))

    def drawn(batch, frames):
        mask = jnp.arange(frames) < batch.num_frames[:, None]
        found = draw(batch.units[:, :frames], batch.codes[:, 0, :frames], batch.text_tokens, mask, keys)
        return np.asarray(found), np.asarray(mask)

    found, mask = drawn(batch, 20)
    x0 = trained.model.latents(batch.codes)
    assert masked_error(found, x0, mask) < 0.8 * masked_error(np.zeros_like(x0), x0, mask)
    other = dataclasses.replace(
        batch, units=jnp.where(batch.units == 0, 3, batch.units), codes=jnp.where(mask[:, None], batch.codes, 5)
    )
    np.testing.assert_allclose(drawn(other, 20)[0][mask], found[mask], atol=1e-4)


@pytest.mark.slow
def test_units_with_their_lengths_become_sound(trained):
    """What an AR model has said is enough: one hop of samples a frame, the same for the same seed."""
    units, lengths = spoken(50)
    text = PronunciationTokenizer().encode('"see"')
    first = codes_of(50)[0] if trained.system == "bridge" else None
    speak = functools.partial(speak_units, trained.model, trained.experiment.diffusion, units, lengths, text)
    found = speak(first_codes=first)
    assert found.shape == (lengths.sum() * CODEC.hop_length,)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found, speak(first_codes=first))
    assert not np.array_equal(found, speak(first_codes=first, seed=1))
    if trained.system == "bridge":
        with pytest.raises(InputError, match="begins at the first codebook; give its"):
            speak()
    with pytest.raises(InputError, match="semantic tokens run from 0 to 9; this model knows 6"):
        speak_units(trained.model, trained.experiment.diffusion, np.array([0, 9]), np.array([1, 1]), text)


def test_the_codec_stays_as_it_was(trained, folders):
    _, arrays = load_weights(Path(folders.codec))
    kept = trained.model.codec.quantizer
    np.testing.assert_array_equal(kept.entries[...], arrays["quantizer"]["entries"])
    np.testing.assert_array_equal(trained.model.codec.to_latent.kernel[...], arrays["to_latent"]["kernel"])


@pytest.mark.slow
def test_a_run_becomes_weights_that_hold_all_that_speaks(trained, tmp_path):
    from voxinstruct_jax.cli.convert import export_run
    from voxinstruct_jax.voice_folder import load_part

    export_run(trained.folder, tmp_path / "weights", dtype="float32")
    loaded = load_part(tmp_path / "weights", CodecFlowConfig, CodecFlow)
    assert loaded.config == trained.experiment.model
    again = nnx.merge(loaded.graph, jax.tree.map(jnp.asarray, loaded.state))
    codes = jnp.asarray(codes_of(60)[None])
    np.testing.assert_array_equal(again.latents(codes), trained.model.latents(codes))


def test_latents_of_real_speech_are_about_standard():
    """The embedded codec's own statistics, from how often training chose each entry, fit the bundled tokens."""
    from voxinstruct_jax.data.shards import ShardReader
    from voxinstruct_jax.voice_folder import embedded_release, load_codec

    codec = load_codec(embedded_release() / "codec")
    model, reader = nnx.merge(codec.graph, jax.tree.map(jnp.asarray, codec.state)), ShardReader("corpus/dev")
    quantizer = model.quantizer
    mean, std = quantizer.statistics()
    codes = np.concatenate([reader[record].codes for record in range(40)], axis=1)
    latents = (np.asarray(quantizer.decode(jnp.asarray(codes[None], jnp.int32)))[0] - mean) / std
    assert np.abs(latents.mean(0)).mean() < 0.15
    assert latents.std(0).min() > 0.8
    assert latents.std(0).max() < 1.25


# --- units of frames --------------------------------------------------------------------------------------------------


def test_units_last_as_long_as_they_are_told():
    units = units_of_frames(np.array([4, 0, 4]), np.array([2, 1, 0]), 3)
    np.testing.assert_array_equal(units, [5, 5, 1])
    np.testing.assert_array_equal(units_of_frames(np.array([4, 0]), np.array([2, 1]), 5), [5, 5, 1, 1, 1])


def test_units_of_another_rate_are_read_at_the_middle_of_each_frame():
    """50 Hz units under 75 Hz frames: three frames see two units."""
    units = units_of_frames(np.arange(4), np.ones(4, int), 6, semantic_rate=50.0, frame_rate=75.0)
    np.testing.assert_array_equal(units, [1, 2, 2, 3, 4, 4])


@pytest.mark.parametrize("lengths", [[1], [1, -1], [0, 0]])
def test_lengths_that_make_no_sense_are_refused(lengths):
    with pytest.raises(InputError, match="2 semantic tokens with"):
        units_of_frames(np.array([1, 2]), np.array(lengths), 3)


# --- settings ---------------------------------------------------------------------------------------------------------


def test_experiments_survive_storage_and_change_their_rows(folders):
    experiment = experiment_of(folders, "bridge")
    assert from_dict(CodecFlowExperiment, to_dict(experiment)) == experiment
    option, fewer = with_rows(experiment, 4)
    assert (option, rows_of(fewer)) == ("--data.rows 4", 4)
    assert program_of(experiment).flops is None


def test_rows_do_not_depend_on_the_host(folders):
    task = codec_flow_task(experiment_of(folders, "bridge"))
    whole, part = task.batches[3], None
    task.batches._host_rows = (2, 5)
    part = task.batches[3]
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(part), strict=True):
        np.testing.assert_array_equal(one[2:5], other)


def test_settings_that_do_not_fit_are_refused(folders):
    experiment = experiment_of(folders, "flow_decoder")
    model = experiment.model
    with pytest.raises(ConfigError, match="these latents have 8"):
        dataclasses.replace(model, network=dataclasses.replace(model.network, latent_channels=9))
    with pytest.raises(ConfigError, match="give units, or set first_codebook"):
        dataclasses.replace(model, num_units=0)
    with pytest.raises(ConfigError, match=r"a bridge and model\.first_codebook"):
        dataclasses.replace(experiment, diffusion=SYSTEMS["bridge"])
    with pytest.raises(InputError, match=r"semantic tokens reach 5, model\.num_units is 4"):
        codec_flow_task(dataclasses.replace(experiment, model=dataclasses.replace(model, num_units=4)))
    smaller = dataclasses.replace(CODEC, quantizer=dataclasses.replace(CODEC.quantizer, codebook_size=4))
    with pytest.raises(InputError, match="the codec has 3 of 4"):
        codec_flow_task(dataclasses.replace(experiment, model=dataclasses.replace(model, codec=smaller)))
