"""A denoiser from training to a voice folder, by the commands that users type."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

import voxinstruct_jax as vox
from voxinstruct_jax.audio.codec import CodecConfig, MelCodec
from voxinstruct_jax.audio.latents import LatentConfig
from voxinstruct_jax.checkpoints.run import RunStore
from voxinstruct_jax.checkpoints.weights import load_weights
from voxinstruct_jax.cli import samples
from voxinstruct_jax.cli.main import main
from voxinstruct_jax.cli.samples import SENTENCES, make_sampler
from voxinstruct_jax.config import ConfigError, InputError
from voxinstruct_jax.data.sound_batches import SoundData
from voxinstruct_jax.diffusion.systems import SYSTEMS
from voxinstruct_jax.evaluation.compare import open_system
from voxinstruct_jax.evaluation.evaluate import write_whole
from voxinstruct_jax.models.mmdit import MMDiTConfig
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
from voxinstruct_jax.training.diffusion import DiffusionExperiment, diffusion_task
from voxinstruct_jax.training.loop import train
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.step import StepConfig
from voxinstruct_jax.training.task import TrainConfig


@pytest.fixture(scope="module")
def experiment(random_part, tmp_path_factory):
    """Trains a tiny UNISON on the latents of a codec of random weights; clips last .3 s and .2 s a syllable."""
    folder, random = tmp_path_factory.mktemp("baseline"), np.random.default_rng(0)
    random_part(folder / "codec", "codec", CodecConfig.tiny(), MelCodec)
    rows = []
    for number, (words, count) in enumerate((("go", 1), ("we won", 2), ("not at all", 3))):
        soundfile.write(
            folder / f"{number}.wav", 0.1 * random.standard_normal(round(24_000 * (0.3 + 0.2 * count))), 24_000
        )
        rows.append({"id": str(number), "audio": f"{number}.wav", "language": "en", "transcript": words})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    latents = LatentConfig(codec=CodecConfig.tiny())
    model = MMDiTConfig.unison_tiny(latents.channels, PronunciationTokenizer().channel_sizes)
    encoder = dataclasses.replace(model.text_encoder, num_layers=1)
    diffusion = SYSTEMS["instructaudio"]
    grid = dataclasses.replace(diffusion.sampler.grid, steps=2)
    return DiffusionExperiment(
        model=dataclasses.replace(model, text_encoder=encoder, joint_blocks=1, model_dim=32, rotary_dims=8),
        latents=latents,
        latent_weights=str(folder / "codec"),
        diffusion=dataclasses.replace(diffusion, sampler=dataclasses.replace(diffusion.sampler, grid=grid)),
        data=SoundData(
            manifest=str(folder / "manifest.jsonl"),
            clip_s=1.0,
            rows=2,
            text_width=64,
            phone_width=0,
            pad_is_silence=False,
        ),
        optimizer=OptimizerConfig(peak_lr=1e-3, warmup_steps=1),
        train=TrainConfig(steps=2, log_every=1, save_every=2, sample_every=2),
        step=StepConfig(ema_decay=0.9),
    )


@pytest.fixture(scope="module")
def run(experiment, tmp_path_factory):
    """The run, which has spoken a sample on its way."""
    folder = tmp_path_factory.mktemp("runs") / "unison"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "SENTENCES", SENTENCES[:1])
        patch.setattr(samples, "load_asr", lambda: (_ for _ in ()).throw(InputError("no judge")))
        sampler = make_sampler(experiment, folder)
        train(diffusion_task(experiment), experiment, folder, report=lambda *_: None, sampler=sampler)
    return folder


def test_a_run_speaks_while_it_trains_and_then_becomes_a_voice(run, experiment, tmp_path, capsys):
    assert soundfile.info(run / "samples" / "step-0000002" / "0-en.wav").samplerate == 24_000
    assert main(["convert", str(run), "--out", str(tmp_path / "voice")]) == 0
    assert "voice of step 2" in capsys.readouterr().out
    voice = vox.load(tmp_path / "voice")
    assert voice.config.length == dataclasses.replace(voice.config.length, start_s=0.3, s_per_syllable=0.2)
    assert not voice.config.prompts
    frames = round(25 * (0.3 + 0.2 * 2))
    assert len(voice.synthesize('Say "we won"').samples) == frames * 960
    # the mean of the weights speaks, with the codec that training saw
    store = RunStore(run / "states")
    state = store.restore_arrays(store.whole_steps()[0])
    store.close()
    _, stored = load_weights(tmp_path / "voice" / "denoiser")
    head = stored["network"]["head"]["kernel"]
    np.testing.assert_array_equal(head, state["ema"]["network"]["head"]["kernel"])
    assert not np.array_equal(head, state["params"]["network"]["head"]["kernel"])
    _, codec = load_weights(Path(experiment.latent_weights))
    np.testing.assert_array_equal(stored["latents"]["codec"]["from_latent"]["kernel"], codec["from_latent"]["kernel"])


def test_a_run_whose_manifest_is_gone_says_what_to_do(run, tmp_path, capsys):
    settings = json.loads((run / "config.json").read_text())
    settings["data"]["manifest"] = str(tmp_path / "gone.jsonl")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(settings))
    (tmp_path / "run" / "run.json").write_text((run / "run.json").read_text())
    assert main(["convert", str(tmp_path / "run"), "--out", str(tmp_path / "voice")]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "lengths of speech are fitted on the training manifest" in line
    assert not (tmp_path / "voice").exists()


def test_spectrograms_are_not_sampled_without_a_vocoder(experiment, tmp_path):
    latents = LatentConfig()
    model = dataclasses.replace(experiment.model, latent_channels=latents.channels)
    mel = dataclasses.replace(experiment, model=model, latents=latents)
    with pytest.raises(InputError, match="name a folder that holds a vocoder/"):
        make_sampler(mel, tmp_path)
    with pytest.raises(ConfigError, match="need the weights of their codec"):
        diffusion_task(dataclasses.replace(experiment, latent_weights=""))


def test_a_comparison_names_the_voice_that_is_missing_and_how_to_train_it(tmp_path, monkeypatch, capsys):
    config = Path(__file__).parents[2] / "configs" / "compare_small.py"
    monkeypatch.chdir(tmp_path)
    assert main(["compare", str(config), "--out", "out"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "system 'instructaudio': no voice in voices/instructaudio_small; train configs/instructaudio_codec" in line


def test_costs_stand_beside_what_was_evaluated(tmp_path):
    for name, value in {"summary.json": {"rows": [], "system": "a"}, "judges.json": {"judges": {}}}.items():
        (tmp_path / name).write_text(json.dumps(value))
    (tmp_path / "items.jsonl").write_text("")
    assert open_system(tmp_path).cost == {}
    write_whole(tmp_path / "cost.json", json.dumps({"operations_per_s": 2e9, "evaluations": 64}))
    assert open_system(tmp_path).cost["evaluations"] == 64
