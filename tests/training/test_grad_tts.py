"""Grad-TTS on speech whose phones are tones: what it learns of clips that it was not shown, and how long it speaks."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from voxinstruct_jax.audio.latents import LatentConfig
from voxinstruct_jax.audio.spectrogram import MEL_MEAN, MEL_STD, MelConfig
from voxinstruct_jax.config import ConfigError, from_dict, to_dict
from voxinstruct_jax.data.manifest import write_manifest
from voxinstruct_jax.data.sound_batches import SoundData
from voxinstruct_jax.diffusion.alignment import gaussian_log_likelihood, monotonic_alignment
from voxinstruct_jax.diffusion.phone_speech import phone_durations, phone_latents
from voxinstruct_jax.diffusion.systems import SYSTEMS
from voxinstruct_jax.diffusion.times import Grid
from voxinstruct_jax.evaluation.reconstruction import compare_reconstruction
from voxinstruct_jax.models.grad_tts import GradTTSConfig
from voxinstruct_jax.models.mmdit import MMDiTConfig
from voxinstruct_jax.models.phone_encoder import PhoneEncoderConfig
from voxinstruct_jax.text.phones import NUM_PHONES
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
from voxinstruct_jax.training.experiment import build_task, program_of, rows_of
from voxinstruct_jax.training.grad_tts import GradTTSExperiment, grad_tts_loss
from voxinstruct_jax.training.loop import train
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.step import loss_of
from voxinstruct_jax.training.task import TrainConfig

LATENTS = LatentConfig(mel=MelConfig(sample_rate=16_000, num_mels=20, n_fft=640, hop_length=320, f_max=8000.0))
CHANNELS = PronunciationTokenizer().channel_sizes


def experiment_of(manifest):
    network = dataclasses.replace(
        MMDiTConfig.told_frame_by_frame(20, CHANNELS), model_dim=48, rotary_dims=12, single_blocks=0
    )
    encoder = dataclasses.replace(network.text_encoder, num_layers=1, ffn_dim=64)
    return GradTTSExperiment(
        model=GradTTSConfig(
            network=dataclasses.replace(network, text_encoder=encoder),
            phones=PhoneEncoderConfig(num_phones=NUM_PHONES, model_dim=48, num_layers=1, num_heads=4, ffn_dim=96),
            latents=LATENTS,
        ),
        data=SoundData(
            manifest=str(manifest), tasks=("tts",), clip_s=2.4, pad_is_silence=False, rows=8, text_width=112,
            phone_width=40,
        ),
        optimizer=OptimizerConfig(
            peak_lr=1e-2, warmup_steps=10, decay="cosine", decay_steps=120, weight_decay=0.0, max_grad_norm=1.0
        ),
        train=TrainConfig(steps=120, log_every=40, save_every=120),
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tone_speech, tmp_path_factory):
    """A model of 32 clips, and eight that it was not shown."""
    folder = tmp_path_factory.mktemp("grad_tts")
    for name, rows in (("train", tone_speech.rows[:32]), ("held", tone_speech.rows[32:])):
        (folder / name).mkdir()
        write_manifest(folder / name / "manifest.jsonl", rows)
    experiment = experiment_of(folder / "train/manifest.jsonl")
    task = build_task(experiment)
    state = train(task, experiment, folder / "run", report=lambda *_: None).state
    graph, params, rest = nnx.split(task.program.build_model(nnx.Rngs(0)), nnx.Param, ...)
    untrained = nnx.merge(graph, *jax.tree.map(jnp.copy, (params, rest)))
    nnx.replace_by_pure_dict(params, state.params)
    nnx.replace_by_pure_dict(rest, state.rest)
    held = build_task(experiment_of(folder / "held/manifest.jsonl"))
    model = nnx.merge(graph, params, rest)
    return SimpleNamespace(
        experiment=experiment,
        model=model,
        untrained=untrained,
        objective=jax.jit(functools.partial(grad_tts_loss, experiment.diffusion, model)),
        held=jax.tree.map(jnp.asarray, held.batches[0]),
        task=task,
    )


@pytest.mark.slow
def test_each_loss_falls_below_its_trivial_predictor_on_held_out_clips(trained):
    parts, metrics = trained.objective(trained.held, jax.random.key(0))
    found = {name: float(mean.value) for name, mean in metrics.items()}
    assert found["aligned"] == 1
    assert found["loss_diffusion"] < 0.6 * found["loss_trivial"]
    assert found["loss_prior"] < 0.9 * found["loss_prior_trivial"]
    assert found["loss_duration"] < 0.95 * found["loss_duration_trivial"]
    assert float(loss_of(parts)) == pytest.approx(
        found["loss_diffusion"] + found["loss_prior"] + found["loss_duration"], rel=1e-5
    )


@pytest.mark.slow
def test_speech_is_drawn_as_long_as_told(trained):
    """Durations follow the pace, each row its own key, and what lies behind the end is padding."""
    batch, keys = trained.held, jax.random.split(jax.random.key(0), 8)
    config = dataclasses.replace(
        SYSTEMS["grad_tts"], sampler=dataclasses.replace(SYSTEMS["grad_tts"].sampler, grid=Grid(steps=5))
    )
    phones = batch.phones[:, 1:]
    means, log_durations = jax.jit(trained.model.encode)(phones, phones > 0)
    durations = phone_durations(log_durations, phones > 0)
    draw = jax.jit(functools.partial(phone_latents, trained.model, config, num_frames=200))
    latents, real = draw(means, durations, batch.text_tokens, keys)
    assert np.isfinite(np.asarray(latents)).all()
    np.testing.assert_array_equal(real.sum(1), durations.sum(1))
    assert (durations[phones > 0] >= 1).all()
    assert not durations[phones == 0].any()
    assert (phone_durations(log_durations, phones > 0, 1.5).sum(1) > 1.2 * durations.sum(1)).all()
    turned, _ = draw(means[::-1], durations[::-1], batch.text_tokens[::-1], keys[::-1])
    np.testing.assert_allclose(turned[::-1], latents, atol=1e-3)


@pytest.mark.slow
def test_samples_beat_noise_by_the_metrics_of_the_evaluator(trained, heard):
    """Held-out clips at their own rhythm; the same model before training, and plain noise, stay behind."""
    pytest.importorskip("pystoi")
    batch, keys = trained.held, jax.random.split(jax.random.key(0), 8)
    x0, phones = trained.model.latents.encode(batch.target), batch.phones[:, 1:]
    num_frames = x0.shape[1]

    @jax.jit
    def speak(state):
        model = nnx.merge(nnx.graphdef(trained.model), state)
        means, _ = model.encode(phones, phones > 0)
        counts = (phones > 0).sum(1), batch.num_samples // LATENTS.hop_length
        durations = monotonic_alignment(gaussian_log_likelihood(means, x0), *counts)
        return phone_latents(
            model, SYSTEMS["grad_tts"], means, durations, batch.text_tokens, keys, num_frames=num_frames
        )[0]

    noise = np.random.default_rng(0).standard_normal(x0.shape)
    drawn = [speak(nnx.state(model)) for model in (trained.model, trained.untrained)]
    latents = np.stack([x0, *drawn, noise])
    sounds = heard(latents.reshape(-1, *x0.shape[1:]) * MEL_STD + MEL_MEAN, LATENTS.mel).reshape(4, 8, -1)
    scores = np.full((4, 8, 2), np.nan)
    for way, row in np.ndindex(4, 8):
        length = int(batch.num_samples[row])
        parts = compare_reconstruction(sounds[way, row, :length], np.asarray(batch.target[row, :length]))
        if isinstance(parts, dict):  # else there was too little sound to compare
            scores[way, row] = parts["mel_l1"], parts["lsd"]
    compared = np.isfinite(scores).all((0, 2))
    assert compared.sum() >= 3
    ceiling, samples, untrained, noisy = scores[:, compared].mean(1)
    assert (ceiling < samples).all(), scores
    assert (samples < 0.6 * noisy).all(), scores
    assert (noisy < 1.1 * untrained).all(), scores


def test_clips_with_more_phones_than_frames_count_for_nothing(trained):
    """A row whose sound is too short to align changes neither the encoder's losses nor the score's."""
    short = dataclasses.replace(trained.held, num_samples=trained.held.num_samples.at[0].set(640))
    other = dataclasses.replace(short, target=short.target.at[0].set(0.5))
    found = [trained.objective(batch, jax.random.key(0)) for batch in (short, other)]
    assert float(found[0][1]["aligned"].value) == pytest.approx(7 / 8)
    assert float(loss_of(found[0][0])) == pytest.approx(float(loss_of(found[1][0])), rel=1e-5)


def test_experiments_survive_storage(trained):
    experiment = trained.experiment
    assert from_dict(GradTTSExperiment, to_dict(experiment)) == experiment
    assert rows_of(experiment) == 8
    assert program_of(experiment).flops is None
    assert trained.task.identity["kind"] == "grad_tts"


def test_settings_that_do_not_fit_are_refused(trained):
    experiment, model = trained.experiment, trained.experiment.model
    with pytest.raises(ConfigError, match="these latents have 20"):
        dataclasses.replace(model, network=dataclasses.replace(model.network, latent_channels=9))
    with pytest.raises(ConfigError, match="must have `source`"):
        dataclasses.replace(model, network=dataclasses.replace(model.network, source=False))
    with pytest.raises(ConfigError, match=r"data\.phone_width: 0"):
        dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, phone_width=0))
    few = dataclasses.replace(model, phones=dataclasses.replace(model.phones, num_phones=9))
    with pytest.raises(ConfigError, match=r"model\.phones\.num_phones: 9"):
        build_task(dataclasses.replace(experiment, model=few))
