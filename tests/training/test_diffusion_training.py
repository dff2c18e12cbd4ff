"""Denoisers through the same trainer as the rest: what counts in the loss, and that small ones learn."""

import dataclasses
import functools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from flax import nnx

from voxinstruct_jax.audio.latents import LatentConfig, LatentSpace
from voxinstruct_jax.audio.mel_vae import MelVAE, MelVAEConfig
from voxinstruct_jax.audio.spectrogram import MelConfig
from voxinstruct_jax.audio.vocos import MelVocoder, MelVocoderConfig, VocosConfig
from voxinstruct_jax.checkpoints.weights import save_weights
from voxinstruct_jax.config import ConfigError, InputError, from_dict, to_dict
from voxinstruct_jax.data.segments import SegmentBatch
from voxinstruct_jax.data.sound_batches import SoundData
from voxinstruct_jax.diffusion.systems import SYSTEMS
from voxinstruct_jax.models.latent_diffusion import LatentDiffusion
from voxinstruct_jax.models.mmdit import MMDiTConfig
from voxinstruct_jax.sharding.mesh import MeshConfig, build_mesh
from voxinstruct_jax.text.phones import NUM_PHONES
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
from voxinstruct_jax.training import loop
from voxinstruct_jax.training.diffusion import (
    DiffusionExperiment,
    conditions_of,
    diffusion_task,
    frame_masks,
    latent_loss,
)
from voxinstruct_jax.training.mel_vae import MelVAEExperiment, MelVAEObjective, mel_vae_loss
from voxinstruct_jax.training.mel_vocoder import MelVocoderObjective, mel_vocoder_loss
from voxinstruct_jax.training.optimizer import OptimizerConfig, make_optimizer
from voxinstruct_jax.training.step import TrainState, build_trainer, loss_of

RATE = 16_000
LATENTS = LatentConfig(mel=MelConfig(sample_rate=RATE, num_mels=8, n_fft=1024, hop_length=512, f_max=8000.0))
CHANNELS = PronunciationTokenizer().channel_sizes


@pytest.fixture(scope="module")
def manifests(tmp_path_factory):
    """Clips of half a second: words are tones. Four to train on, two held out; two of each speaker."""
    folder, random = tmp_path_factory.mktemp("tones"), np.random.default_rng(0)
    rows = []
    for number, word in enumerate(("see", "two", "me", "tea", "moo", "do")):
        seconds = np.arange(RATE // 2) / RATE
        tone = 0.2 * np.sin(2 * np.pi * (300 + 250 * (number % 4)) * seconds) + 0.003 * random.standard_normal(
            len(seconds)
        )
        soundfile.write(folder / f"{number}.wav", tone, RATE)
        rows.append({"id": str(number), "audio": f"{number}.wav", "language": "en", "transcript": word,
                     "speaker": f"s{number % 2}", "attributes": {"gender": "female"}})  # fmt: skip
    for name, chosen in (("train", rows[:4]), ("held", rows[4:])):
        (folder / name).mkdir()
        lines = [json.dumps({**row, "audio": f"../{row['audio']}"}) + "\n" for row in chosen]
        (folder / name / "manifest.jsonl").write_text("".join(lines))
    return SimpleNamespace(train=str(folder / "train/manifest.jsonl"), held=str(folder / "held/manifest.jsonl"))


def unison(manifest, **data):
    model = MMDiTConfig.unison_tiny(8, CHANNELS)
    encoder = dataclasses.replace(model.text_encoder, num_layers=2)
    settings = {"tasks": ("tts",), "clip_s": 1.0, "rows": 8, "text_width": 48, "phone_width": 0} | data
    return DiffusionExperiment(
        model=dataclasses.replace(model, text_encoder=encoder, joint_blocks=2, model_dim=48, rotary_dims=12),
        latents=LATENTS,
        diffusion=SYSTEMS["unison"],
        data=SoundData(manifest=manifest, **settings),
        optimizer=OptimizerConfig(peak_lr=5e-3, warmup_steps=5, decay="cosine", decay_steps=60, max_grad_norm=1.0),
    )


def instruct_audio(manifest):
    plain = unison(manifest, phone_width=24, pad_is_silence=False)
    model = MMDiTConfig.instructaudio_tiny(8, CHANNELS, NUM_PHONES)
    model = dataclasses.replace(
        model,
        model_dim=48,
        rotary_dims=12,
        phones=dataclasses.replace(model.phones, num_layers=1),
        text_encoder=dataclasses.replace(model.text_encoder, num_layers=1),
    )
    return dataclasses.replace(plain, model=model, diffusion=SYSTEMS["instructaudio"])


@pytest.mark.slow
@pytest.mark.parametrize("make", [unison, instruct_audio])
def test_a_small_network_learns_what_it_was_not_shown(make, manifests):
    """After 60 steps the loss on held-out clips is well below that of the predictor that has seen nothing.

    It is also below that of the predictor that knows the mean of each channel, and no more.
    """
    experiment = make(manifests.train)
    assert from_dict(DiffusionExperiment, to_dict(experiment)) == experiment
    task, held = diffusion_task(experiment), diffusion_task(make(manifests.held))
    assert task.identity != held.identity
    trainer = build_trainer(
        task.program.build_model, task.program.objective, make_optimizer(experiment.optimizer),
        build_mesh(MeshConfig()), seed=0,
    )  # fmt: skip
    state, losses = trainer.init(), []
    for step in range(60):
        state, metrics = trainer.step(state, jax.tree.map(jnp.asarray, task.batches[step]))
        losses.append(float(metrics["loss"]))
        if step == 0:  # a fresh network predicts nothing
            assert losses[0] == pytest.approx(float(metrics["loss_trivial"]), rel=1e-5)
    assert np.isfinite(losses).all()
    found, frames = [], []
    for step in range(4):  # a step's loss is of the weights before it
        batch = jax.tree.map(jnp.asarray, held.batches[step])
        _, metrics = trainer.step(jax.tree.map(jnp.copy, state), batch)
        found.append((float(metrics["loss"]), float(metrics["loss_trivial"])))
        x0 = LatentSpace(LATENTS, rngs=nnx.Rngs(0)).encode(batch.target)
        frames.append(np.asarray(x0[frame_masks(batch, x0.shape[1], LATENTS.hop_length)[1]]))
    loss, trivial = np.mean(found, axis=0)
    assert loss < 0.6 * trivial
    knows_the_mean = 1 + np.concatenate(frames).var(0).mean()  # of noise less data
    assert loss < 0.8 * knows_the_mean < trivial


class Model(LatentDiffusion):
    """Any network beside log-mel latents."""

    def __init__(self, network):
        self.network, self.latents = network, LatentSpace(LATENTS, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def fed(manifests):
    """A step with references, and what a model of log-mel latents makes of it."""
    experiment = unison(manifests.train, tasks=("zeroshotts",), rows=4)
    batch = jax.tree.map(jnp.asarray, diffusion_task(experiment).batches[0])

    states = jnp.zeros((4, 2, 48, 64))
    network = SimpleNamespace(config=dataclasses.replace(experiment.model, text_encoder=None))
    return Model(network), dataclasses.replace(batch, text_states=states)


def test_a_reference_is_seen_in_its_prefix_alone(fed):
    model, batch = fed
    conditions = conditions_of(model, batch)
    frames = -(-int(batch.prefix_samples[0]) // LATENTS.hop_length)
    assert 0 < frames < conditions.source.shape[1]
    assert (conditions.task_tag[0, :frames] == 2).all()
    assert not conditions.task_tag[0, frames:].any()
    assert conditions.source[0, :frames].any()
    assert not conditions.source[0, frames:].any()


def test_a_reference_has_no_part_in_the_loss(fed):
    """A network that is right everywhere but in the prefix costs nothing."""
    model, batch = fed

    def cost(inside, outside):
        frames = jnp.arange(model.latents.encode(batch.target).shape[1])
        prefix = (frames < -(-batch.prefix_samples[:, None] // LATENTS.hop_length))[..., None]

        class Right:
            config = model.network.config

            def __call__(self, x, t, conditions, frame_mask):
                # At time t: the velocity towards the known data is (x - x0) / t.
                x0 = model.latents.encode(batch.target)
                exact = (x - x0) / (t / 1000)[:, None, None]
                return exact + jnp.where(prefix, inside, outside)

        return float(loss_of(latent_loss(SYSTEMS["unison"], Model(Right()), batch, jax.random.key(0))[0]))

    assert cost(5.0, 0.0) == pytest.approx(0, abs=1e-3)
    assert cost(0.0, 2.0) == pytest.approx(4, rel=1e-2)


def test_settings_that_do_not_fit_are_refused(manifests):
    experiment = unison(manifests.train)
    with pytest.raises(ConfigError, match=r"model\.latent_channels: 9, but these latents have 8"):
        dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, latent_channels=9))
    outside = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, text_encoder=None))
    with pytest.raises(ConfigError, match="can be planned and inspected"):
        diffusion_task(outside)
    vae = LatentConfig(vae=dataclasses.replace(MelVAEConfig.small(), latent_channels=8))
    with pytest.raises(ConfigError, match="need the weights of their Mel-VAE"):
        diffusion_task(dataclasses.replace(experiment, latents=vae))


def test_frozen_parts_start_with_weights_of_their_own(tmp_path):
    save_weights(tmp_path / "vae", {"kernel": np.ones((2, 2), np.float32)}, {"kind": "mel_vae"}, card="# Test\n")
    zeros = jnp.zeros((2, 2))
    state = TrainState(0, {}, {"latents": {"vae": {"kernel": zeros}}, "other": zeros}, {}, {})
    found = loop._put_frozen({"latents": {"vae": tmp_path / "vae"}}, state)
    assert found.rest["latents"]["vae"]["kernel"].sum() == 4
    assert not found.rest["other"].any()
    wrong = dataclasses.replace(state, rest={"latents": {"vae": {"kernel": jnp.zeros(3)}}})
    with pytest.raises(InputError, match="weights of another model"):
        loop._put_frozen({"latents": {"vae": tmp_path / "vae"}}, wrong)


@pytest.mark.slow
def test_a_mel_vae_learns_tones_and_knows_its_latents():
    config = dataclasses.replace(MelVAEConfig.small(), model_dim=12, encoder_multiples=(1, 2))
    seconds = np.arange(8192) / RATE
    tones = np.stack([0.3 * np.sin(2 * np.pi * hz * seconds) for hz in (220, 440, 880, 1760)]).astype(np.float32)
    batch = SegmentBatch(
        samples=jnp.asarray(tones),
        units=jnp.zeros((4, 0), jnp.int32),
        features=jnp.zeros((4, 0, 0), jnp.int32),
        codes=jnp.zeros((4, 0, 0), jnp.int32),
        pitch=jnp.zeros((4, 0), jnp.float32),
    )
    optimizer = make_optimizer(OptimizerConfig(peak_lr=1e-2, warmup_steps=5, weight_decay=0.0, max_grad_norm=1.0))

    objective = functools.partial(mel_vae_loss, MelVAEObjective())
    trainer = build_trainer(
        lambda rngs: MelVAE(config, rngs=rngs), objective, optimizer, build_mesh(MeshConfig()), seed=0
    )
    state = trainer.init()
    for _ in range(60):
        state, metrics = trainer.step(state, batch)
    assert float(metrics["mel_l1"]) < 0.9 * float(metrics["mel_l1_mean"])
    assert state.rest["latent_statistics"]["count"] == 60  # measured, not trained
    assert (state.rest["latent_statistics"]["variance"] > 0).all()
    assert MelVAEExperiment(model=config).model.frame_rate == 31.25


@pytest.mark.slow
def test_a_vocoder_learns_tones():
    mel = MelConfig(sample_rate=RATE, num_mels=16, n_fft=512, hop_length=256, f_max=8000.0)
    config = MelVocoderConfig(mel=mel, vocos=VocosConfig(dim=32, ffn_dim=64, num_layers=1, n_fft=512, hop_length=256))
    seconds = np.arange(8192) / RATE
    tones = np.stack([0.3 * np.sin(2 * np.pi * hz * seconds) for hz in (220, 440, 880, 1760)]).astype(np.float32)
    batch = SegmentBatch(
        samples=jnp.asarray(tones),
        units=jnp.zeros((4, 0), jnp.int32),
        features=jnp.zeros((4, 0, 0), jnp.int32),
        codes=jnp.zeros((4, 0, 0), jnp.int32),
        pitch=jnp.zeros((4, 0), jnp.float32),
    )
    trainer = build_trainer(
        lambda rngs: MelVocoder(config, rngs=rngs), functools.partial(mel_vocoder_loss, MelVocoderObjective()),
        make_optimizer(OptimizerConfig(peak_lr=5e-3, warmup_steps=5, weight_decay=0.0, max_grad_norm=1.0)),
        build_mesh(MeshConfig()), seed=0,
    )  # fmt: skip
    state, distances = trainer.init(), []
    for _ in range(60):
        state, metrics = trainer.step(state, batch)
        distances.append(float(metrics["mel_l1"]))
    assert distances[-1] < 0.7 * distances[0]
    with pytest.raises(ConfigError, match=r"must equal mel\.hop_length"):
        MelVocoderConfig(mel=mel, vocos=VocosConfig(hop_length=100))
