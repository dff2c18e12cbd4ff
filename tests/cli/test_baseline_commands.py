"""Rivals from training to a voice folder, by the commands that users type."""

import dataclasses
import importlib.util
import json
import re
import shutil
import subprocess
import sys
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
from voxinstruct_jax.cli.compare import _write_cost
from voxinstruct_jax.cli.latent_voices import latent_voice_config
from voxinstruct_jax.cli.main import main
from voxinstruct_jax.cli.samples import SENTENCES, make_sampler
from voxinstruct_jax.config import ConfigError, InputError
from voxinstruct_jax.data.code_batches import CodeData
from voxinstruct_jax.data.sound_batches import SoundData
from voxinstruct_jax.diffusion.masked import MaskingConfig
from voxinstruct_jax.diffusion.systems import SYSTEMS
from voxinstruct_jax.evaluation.compare import open_system
from voxinstruct_jax.evaluation.evaluate import write_whole
from voxinstruct_jax.evaluation.experiment import Speaking
from voxinstruct_jax.models.ar import ARModel
from voxinstruct_jax.models.codec_flow import CodecFlowConfig
from voxinstruct_jax.models.grad_tts import GradTTSConfig
from voxinstruct_jax.models.masked_latents import MaskedLatentsConfig
from voxinstruct_jax.models.mmdit import MMDiTConfig
from voxinstruct_jax.models.phone_encoder import PhoneEncoderConfig
from voxinstruct_jax.text.phones import NUM_PHONES
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
from voxinstruct_jax.training import small
from voxinstruct_jax.training.codec_flow import CodecFlowExperiment
from voxinstruct_jax.training.diffusion import DiffusionExperiment, diffusion_task
from voxinstruct_jax.training.experiment import build_task
from voxinstruct_jax.training.grad_tts import GradTTSExperiment
from voxinstruct_jax.training.loop import train
from voxinstruct_jax.training.masked_latents import MaskedLatentsExperiment
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.step import StepConfig
from voxinstruct_jax.training.task import TrainConfig
from voxinstruct_jax.voice_folder import embedded_release

ROOT = Path(__file__).parents[2]


def told_frame_by_frame(channels):
    network = MMDiTConfig.told_frame_by_frame(channels, PronunciationTokenizer().channel_sizes)
    encoder = dataclasses.replace(network.text_encoder, num_layers=1, ffn_dim=32)
    return dataclasses.replace(network, model_dim=32, rotary_dims=8, single_blocks=0, text_encoder=encoder)


def in_two_steps(system):
    diffusion = SYSTEMS[system]
    grid = dataclasses.replace(diffusion.sampler.grid, steps=2)
    return dataclasses.replace(diffusion, sampler=dataclasses.replace(diffusion.sampler, grid=grid))


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
    return DiffusionExperiment(
        model=dataclasses.replace(model, text_encoder=encoder, joint_blocks=1, model_dim=32, rotary_dims=8),
        latents=latents,
        latent_weights=str(folder / "codec"),
        diffusion=in_two_steps("instructaudio"),
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


def test_a_run_of_grad_tts_becomes_a_voice_that_knows_its_lengths(experiment, tmp_path, monkeypatch):
    latents = experiment.latents
    phones = PhoneEncoderConfig(num_phones=NUM_PHONES, model_dim=32, num_layers=1, num_heads=4, ffn_dim=32)
    model = GradTTSConfig(network=told_frame_by_frame(latents.channels), phones=phones, latents=latents)
    grad_tts = GradTTSExperiment(
        model=model,
        latent_weights=experiment.latent_weights,
        diffusion=in_two_steps("grad_tts"),
        data=dataclasses.replace(experiment.data, phone_width=32),
        optimizer=experiment.optimizer,
        train=TrainConfig(steps=1, log_every=1, save_every=1, sample_every=1),
    )
    monkeypatch.setattr(samples, "SENTENCES", SENTENCES[:1])
    monkeypatch.setattr(samples, "load_asr", lambda: (_ for _ in ()).throw(InputError("no judge")))
    out = tmp_path / "run"
    train(build_task(grad_tts), grad_tts, out, report=lambda *_: None, sampler=make_sampler(grad_tts, out))
    assert soundfile.info(out / "samples" / "step-0000001" / "0-en.wav").frames
    assert main(["convert", str(out), "--out", str(tmp_path / "voice")]) == 0
    voice = vox.load(tmp_path / "voice")
    assert voice.model.config == model
    assert not voice.config.pad_is_silence
    found = voice.synthesize('Say "we won"')
    assert len(found.samples) >= 6 * 960  # silence and five phones
    assert np.isfinite(found.samples).all()


def test_a_voice_of_masked_latents_takes_the_rounds_of_its_run(experiment):
    latents, tokenizer = experiment.latents, PronunciationTokenizer()
    network = MMDiTConfig.instructaudio_tiny(latents.channels + 1, tokenizer.channel_sizes, NUM_PHONES)
    masked = MaskedLatentsExperiment(
        model=MaskedLatentsConfig(network=dataclasses.replace(network, output_channels=8)),
        latents=latents,
        diffusion=SYSTEMS["impact"],
        masking=MaskingConfig(rounds=7),
        data=experiment.data,
    )
    config = latent_voice_config(masked)
    assert (config.rounds, config.prompts, config.length.s_per_syllable) == (7, False, 0.2)


def test_a_run_of_a_flow_becomes_a_voice_with_a_lent_ar_model(
    random_part, tiny_aligned_voice, tiny_shards, tmp_path, capsys
):
    lender, other, codec, ar = tmp_path / "lender", tmp_path / "other", CodecConfig.tiny(), tiny_aligned_voice.ar.config
    codec = dataclasses.replace(codec, quantizer=dataclasses.replace(codec.quantizer, num_codebooks=3))
    ar = dataclasses.replace(ar, vocabulary=dataclasses.replace(ar.vocabulary, num_codebooks=3))  # as the shards have
    shutil.copytree(tiny_aligned_voice.folder, lender)
    random_part(lender / "codec", "codec", codec, MelCodec)
    random_part(lender / "ar", "ar", ar, ARModel)
    shutil.copytree(lender, other)
    random_part(other / "codec", "codec", dataclasses.replace(codec, num_layers=2), MelCodec)
    flow = CodecFlowExperiment(
        model=CodecFlowConfig(network=told_frame_by_frame(codec.quantizer.latent_dim), codec=codec, num_units=12),
        codec_weights=str(lender / "codec"),
        diffusion=in_two_steps("flow_decoder"),
        data=CodeData(shards=str(tiny_shards), frames=8, rows=2, text_width=32),
        optimizer=OptimizerConfig(peak_lr=1e-3, warmup_steps=1),
        train=TrainConfig(steps=1, log_every=1, save_every=1),
    )
    train(build_task(flow), flow, tmp_path / "run", report=lambda *_: None)
    convert = ["convert", str(tmp_path / "run"), "--out", str(tmp_path / "voice")]
    assert main([*convert, "--voice", str(other)]) == 1
    assert "trained on latents of another codec than that of" in capsys.readouterr().err
    assert main(convert) == 1
    assert "the AR model has semantic units: 256, the flow 12" in capsys.readouterr().err
    assert not (tmp_path / "voice").exists()
    assert main([*convert, "--voice", str(lender)]) == 0
    voice = vox.load(tmp_path / "voice")
    found = voice.synthesize('Say "two"', seed=2, max_duration_s=0.4)
    assert found.samples.shape == (len(found.semantic) * codec.hop_length,)
    assert np.isfinite(found.samples).all()
    again = [*convert[:2], "--out", str(tmp_path / "again"), "--voice", str(tmp_path / "voice")]
    assert main(again) == 1
    assert "a voice of kind 'codec_flow' lends no AR model" in capsys.readouterr().err


def test_only_a_flow_takes_a_lent_ar_model(run, tmp_path, capsys):
    assert main(["convert", str(run), "--out", str(tmp_path / "voice"), "--voice", str(embedded_release())]) == 2
    assert "--voice lends an AR model to a flow" in capsys.readouterr().err


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
    config = ROOT / "configs" / "compare_small.py"
    monkeypatch.chdir(tmp_path)
    assert main(["compare", str(config), "--out", "out"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert (
        "system 'codec-lm': no voice in voices/codec_lm_small; train configs/instruct_ar_small.py and configs" in line
    )


def test_costs_stand_beside_what_was_evaluated(tmp_path):
    for name, value in {"summary.json": {"rows": [], "system": "a"}, "judges.json": {"judges": {}}}.items():
        (tmp_path / name).write_text(json.dumps(value))
    (tmp_path / "items.jsonl").write_text("")
    assert open_system(tmp_path).cost == {}
    write_whole(tmp_path / "cost.json", json.dumps({"operations_per_s": 2e9, "evaluations": 64}))
    assert open_system(tmp_path).cost["evaluations"] == 64


# --- equal budgets ----------------------------------------------------------------------------------------------------


def load_script():
    spec = importlib.util.spec_from_file_location("baselines", ROOT / "benchmarks" / "train_baselines.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


COUNT = """
import json, sys
from voxinstruct_jax.cli.experiments import load_experiment, override
from voxinstruct_jax.training.experiment import step_operations
for config, options in json.loads(sys.argv[1]):
    print(step_operations(override(load_experiment(config), options, program="train")))
"""


@pytest.mark.slow
def test_the_embedded_voice_took_what_its_configurations_count():
    told = json.loads((embedded_release() / "training.json").read_text())
    parts = told["parts"]
    assert told["operations"] == sum(part["operations"] for part in parts.values())
    # a process of its own: run-time checks let no batch of mere shapes be made
    runs = [(part["config"], part["options"]) for part in parts.values()]
    command = [sys.executable, "-c", COUNT, json.dumps(runs)]
    counted = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for part, a_step in zip(parts.values(), map(float, counted), strict=True):
        assert part["options"][:2] == ["--train.steps", str(part["steps"])]
        assert part["operations"] == pytest.approx(part["steps"] * a_step, rel=0.01)
    last = {name.partition(".")[0]: part["steps"] for name, part in parts.items()}
    for name, steps in last.items():
        assert steps == json.loads((embedded_release() / name / "config.json").read_text())["step"]


def test_a_comparison_tells_what_the_embedded_voice_took(tmp_path):
    _write_cost(Speaking(name="codec-lm"), tmp_path)
    told = json.loads((embedded_release() / "training.json").read_text())
    assert json.loads((tmp_path / "cost.json").read_text())["training_operations"] == told["operations"]


@pytest.fixture
def counted(monkeypatch):
    """The script, the experiments whose steps it counted, 1e10 operations each, and the commands it ran."""
    monkeypatch.chdir(ROOT)
    script, experiments, commands = load_script(), [], []
    monkeypatch.setattr(script, "step_operations", lambda experiment: experiments.append(experiment) or 1e10)
    monkeypatch.setattr(script, "voxinstruct", lambda command: commands.append(command) or 0)
    return script, experiments, commands


def run_script(script, monkeypatch, *options, comparison="configs/compare_small.py"):
    monkeypatch.setattr(sys, "argv", ["train_baselines.py", str(comparison), "--manifest", "M.jsonl", *options])
    return script.main()


def test_every_system_gets_its_budget_and_its_data(counted, monkeypatch, capsys):
    script, experiments, _ = counted
    assert run_script(script, monkeypatch, "--budget", "1e13", "--shards", "S", "--dry") == 0
    told = re.findall(r"^(\S+): configs/\S+: 1e\+10 operations a step, (\d+) steps", capsys.readouterr().out, re.M)
    alone = [("instructaudio", "1000"), ("unison", "1000"), ("grad-tts", "1000")]
    assert told == [("codec-lm", "500"), ("codec-lm", "500"), ("lm-flow", "500"), *alone]
    assert [experiment.data.shards for experiment in experiments[:3]] == ["S"] * 3
    assert [experiment.data.manifest for experiment in experiments[3:]] == ["M.jsonl"] * 3
    assert run_script(script, monkeypatch, "--only", "codec-lm", "--dry") == 0
    assert experiments[-1].data.shards == small.SHARDS
    assert run_script(script, monkeypatch, "--budget", "1e9", "--only", "grad-tts") == 1
    assert "grad-tts: the budget pays for no step" in capsys.readouterr().err


HYBRID = """
from voxinstruct_jax.evaluation.experiment import CompareExperiment, Speaking

mixed = Speaking(name="mixed", voice="FOLDER/v", trained_by=("configs/flow_decoder_small.py",), ar_of="FOLDER/lent")
experiment = CompareExperiment(systems=(mixed, Speaking(name="other")), requests="R")
"""


def test_a_hybrid_s_flow_gets_what_its_ar_model_leaves_of_the_budget(counted, monkeypatch, capsys, tmp_path):
    script, _, commands = counted
    comparison = tmp_path / "compare.py"
    comparison.write_text(HYBRID.replace("FOLDER", str(tmp_path)))
    options = ("--budget", "1e13", "--runs", str(tmp_path))
    assert run_script(script, monkeypatch, *options, comparison=comparison) == 1
    assert f"{tmp_path / 'lent'}: no training.json; train the system" in capsys.readouterr().err
    for name in ("lent", "v"):
        (tmp_path / name).mkdir()
    (tmp_path / "lent" / "training.json").write_text(json.dumps({"parts": {"ar": {"operations": 8e12}}}))
    assert run_script(script, monkeypatch, *options, comparison=comparison) == 0
    assert [command[0] for command in commands] == ["train", "convert"]
    assert commands[0][-4:] == ["--train.steps", "200", "--optimizer.decay-steps", "200"]
    assert commands[1][-2:] == ["--voice", str(tmp_path / "lent")]
    told = json.loads((tmp_path / "v" / "training.json").read_text())
    assert told["operations"] == 1e13
    assert told["parts"]["flow"]["steps"] == 200
