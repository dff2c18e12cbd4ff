"""Relatives of denoisers through the same loop: masked latents, and students of a frozen teacher."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from flax import nnx

from voxinstruct_jax.audio.latents import LatentConfig
from voxinstruct_jax.audio.spectrogram import MelConfig
from voxinstruct_jax.checkpoints.run import RunStore
from voxinstruct_jax.checkpoints.weights import load_weights, save_weights
from voxinstruct_jax.cli.convert import export_run
from voxinstruct_jax.cli.experiments import load_experiment
from voxinstruct_jax.config import ConfigError, InputError, from_dict, to_dict
from voxinstruct_jax.data.sound_batches import SoundData
from voxinstruct_jax.diffusion.guidance import single
from voxinstruct_jax.diffusion.masked import MaskingConfig
from voxinstruct_jax.diffusion.path import PathConfig
from voxinstruct_jax.diffusion.solvers import SamplerConfig
from voxinstruct_jax.diffusion.systems import SYSTEMS, DiffusionConfig
from voxinstruct_jax.diffusion.times import Grid
from voxinstruct_jax.models.masked_latents import MaskedLatentsConfig, TokenHeadConfig
from voxinstruct_jax.models.mmdit import MMDiT, MMDiTConfig
from voxinstruct_jax.sharding.mesh import MeshConfig, build_mesh
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
from voxinstruct_jax.training import loop
from voxinstruct_jax.training.distillation import (
    DistillationConfig,
    DistillationExperiment,
    Student,
    distillation_program,
    distillation_task,
)
from voxinstruct_jax.training.masked_latents import MaskedLatentsExperiment, masked_latents_task
from voxinstruct_jax.training.optimizer import OptimizerConfig, make_optimizer
from voxinstruct_jax.training.step import StepConfig, TrainState, build_trainer, loss_of
from voxinstruct_jax.training.task import StoredPart, TrainConfig

RATE = 16_000
LATENTS = LatentConfig(mel=MelConfig(sample_rate=RATE, num_mels=8, n_fft=1024, hop_length=512, f_max=8000.0))
ADAM = OptimizerConfig(
    peak_lr=5e-3, warmup_steps=5, decay="cosine", decay_steps=60, weight_decay=0.0, max_grad_norm=1.0
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four clips of half a second: words are tones."""
    folder, random = tmp_path_factory.mktemp("tones"), np.random.default_rng(0)
    rows = []
    for number, word in enumerate(("see", "two", "me", "tea")):
        seconds = np.arange(RATE // 2) / RATE
        tone = 0.2 * np.sin(2 * np.pi * (300 + 250 * number) * seconds) + 0.003 * random.standard_normal(len(seconds))
        soundfile.write(folder / f"{number}.wav", tone, RATE)
        rows.append({"id": str(number), "audio": f"{number}.wav", "language": "en", "transcript": word})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SoundData(
        manifest=str(folder / "manifest.jsonl"), tasks=("tts",), clip_s=0.6, rows=4, text_width=48, phone_width=0
    )


def network(channels, **settings):
    model = MMDiTConfig.unison_tiny(channels, PronunciationTokenizer().channel_sizes)
    assert model.text_encoder is not None
    encoder = dataclasses.replace(model.text_encoder, num_layers=1)
    sizes = {"joint_blocks": 1, "model_dim": 32, "num_heads": 2, "rotary_dims": 8, "source": False}
    return dataclasses.replace(model, text_encoder=encoder, **sizes, **settings)


@pytest.mark.slow
def test_masked_latents_are_learnt(data):
    """After 60 steps the loss is well below that of the predictor which has seen nothing."""
    experiment = MaskedLatentsExperiment(
        model=MaskedLatentsConfig(network=network(9, output_channels=16), head=TokenHeadConfig(model_dim=32)),
        latents=LATENTS,
        diffusion=SYSTEMS["impact"],
        masking=MaskingConfig(draws=2),
        data=data,
        optimizer=ADAM,
    )
    assert from_dict(MaskedLatentsExperiment, to_dict(experiment)) == experiment
    task = masked_latents_task(experiment)
    program, optimizer = task.program, make_optimizer(ADAM)
    trainer = build_trainer(program.build_model, program.objective, optimizer, build_mesh(MeshConfig()), seed=0)
    state, found = trainer.init(), []
    for step in range(60):
        state, metrics = trainer.step(state, jax.tree.map(jnp.asarray, task.batches[step]))
        found.append([float(metrics[name]) for name in ("loss", "loss_trivial", "masked")])
    losses, trivial, masked = np.array(found).T
    assert losses[0] == pytest.approx(trivial[0], rel=1e-4)  # a fresh head predicts nothing
    assert losses[-10:].mean() < 0.7 * trivial[-10:].mean()
    assert masked.mean() == pytest.approx(0.88, abs=0.03)  # .867, rounded up to whole frames


def test_masked_latents_that_do_not_fit_are_refused(data):
    model = MaskedLatentsConfig(network=network(8, output_channels=16))
    with pytest.raises(ConfigError, match="latent_channels: 8, but these latents and their mask have 9"):
        MaskedLatentsExperiment(model=model, latents=LATENTS, data=data)


PLAIN = DiffusionConfig(sampler=SamplerConfig(solver="consistency", grid=Grid(steps=2)))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Weights of a teacher that says something; nobody has trained it."""
    folder = tmp_path_factory.mktemp("weights") / "teacher"
    state = nnx.to_pure_dict(nnx.state(MMDiT(network(8), rngs=nnx.Rngs(3))))
    state = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(0), leaf.shape), state)
    settings = {"kind": "diffusion", "diffusion": to_dict(PLAIN)}
    save_weights(folder, {"network": state}, settings, card="# Teacher\n")
    return folder


def student(data, teacher, method, **settings):
    diffusion = PLAIN
    if method == "reflow":
        diffusion = dataclasses.replace(PLAIN, sampler=SamplerConfig(grid=Grid(steps=1)))
    return DistillationExperiment(
        model=network(8),
        latents=LATENTS,
        teacher_weights=str(teacher),
        diffusion=diffusion,
        distillation=DistillationConfig(method=method, grid=Grid(steps=4), **settings),
        data=data,
        optimizer=ADAM,
        train=TrainConfig(steps=3, log_every=1, save_every=3),  # the first one has a rate of 0
        step=StepConfig(ema_decay=0.5),
    )


def trained(experiment, out):
    """The saved state of a run of three steps, and what was logged at the first one."""
    result = loop.train(distillation_task(experiment), experiment, out, report=lambda *_: None)
    assert result.step == 3
    store = RunStore(out / "states")
    state = store.restore_arrays(3)
    store.close()
    return state, json.loads((out / "metrics.jsonl").read_text().splitlines()[0])


def distance(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)  # stored lists have numbers as keys, or not
    return max(np.abs(a - b).max() for a, b in pairs)


def test_a_consistent_student_begins_as_its_teacher_and_is_followed_by_its_mean(data, teacher, tmp_path):
    experiment = student(data, teacher, "consistency", guidance=single(2.0, ("text",)), target_decay=0.75)
    assert from_dict(DistillationExperiment, to_dict(experiment)) == experiment
    state, first = trained(experiment, tmp_path / "run")
    _, begun = load_weights(teacher)
    begun = begun["network"]
    assert distance(state["rest"]["teacher"], begun) == 0
    moved, followed = (distance(part, begun) for part in (state["params"]["network"], state["rest"]["target"]))
    assert 0 < moved < 0.05
    assert 0 < followed < moved
    assert np.isfinite(first["loss"])
    assert first["loss"] > 0
    export_run(tmp_path / "run", tmp_path / "weights", dtype="float32")
    settings, exported = load_weights(tmp_path / "weights")
    assert set(exported) <= {"network", "latents"}
    assert settings["diffusion"]["sampler"]["solver"] == "consistency"
    assert distance(exported["network"], state["ema"]["network"]) == 0


def test_matching_begins_where_teacher_and_fake_agree(data, teacher, tmp_path):
    state, first = trained(student(data, teacher, "distribution"), tmp_path / "run")
    assert first["matching"] == pytest.approx(0, abs=1e-9)  # both have the teacher's weights
    assert first["fake"] > 0
    _, begun = load_weights(teacher)
    assert distance(state["params"]["fake"], begun["network"]) > 0
    assert distance(state["rest"]["teacher"], begun["network"]) == 0


def test_a_student_takes_its_teacher_s_pairs(data, teacher):
    """Traced, not run: its arithmetic is that of `reflow_pairs` and of every denoiser's loss."""
    task = distillation_task(student(data, teacher, "reflow"))

    def first_loss(batch):
        model = task.program.build_model(nnx.Rngs(0))
        assert isinstance(model, Student)
        assert not hasattr(model, "fake")
        assert not hasattr(model, "target")
        return loss_of(task.program.objective(model, batch, jax.random.key(0))[0])

    assert jax.eval_shape(first_loss, jax.tree.map(jnp.asarray, task.batches[0])).shape == ()


@pytest.mark.parametrize(("method", "networks"), [("consistency", 3), ("distribution", 3), ("reflow", 2)])
def test_each_network_of_a_student_reads_the_text_once_a_step(data, teacher, method, networks, monkeypatch):
    task = distillation_task(student(data, teacher, method))
    read, calls = MMDiT.encode_text, []
    monkeypatch.setattr(MMDiT, "encode_text", lambda *given, **more: calls.append(1) or read(*given, **more))

    def first_loss(batch):
        return loss_of(task.program.objective(task.program.build_model(nnx.Rngs(0)), batch, jax.random.key(0))[0])

    jax.eval_shape(first_loss, jax.tree.map(jnp.asarray, task.batches[0]))
    assert len(calls) == networks


@pytest.mark.parametrize("name", ["consistency_small", "dmd_small"])
def test_of_a_configuration_s_parts_only_the_student_s_are_trained(name):
    experiment = load_experiment(str(Path(__file__).parents[2] / "configs" / f"{name}.py"))
    model = nnx.eval_shape(lambda: distillation_program(experiment).build_model(nnx.Rngs(0)))
    _, trained, frozen = nnx.split(model, nnx.Param, ...)
    assert set(trained) == ({"network"} if name == "consistency_small" else {"network", "fake"})
    assert set(frozen) == ({"teacher", "target"} if name == "consistency_small" else {"teacher"})


def test_teachers_that_do_not_fit_are_refused(data, teacher, tmp_path):
    experiment = student(data, teacher, "consistency")
    with pytest.raises(ConfigError, match="a student needs a teacher"):
        distillation_task(dataclasses.replace(experiment, teacher_weights=""))
    other = dataclasses.replace(PLAIN, path=PathConfig(prediction="data_velocity", data_at_one=True))
    with pytest.raises(InputError, match="trained on another path"):
        distillation_task(dataclasses.replace(experiment, diffusion=other))
    save_weights(tmp_path / "codec", {"x": np.ones(2, np.float32)}, {"kind": "codec"}, card="# Codec\n")
    with pytest.raises(InputError, match="weights of kind 'codec'"):
        distillation_task(dataclasses.replace(experiment, teacher_weights=str(tmp_path / "codec")))
    wide = TrainState(0, {"network": {"time": {"first": {"bias": jnp.zeros(7)}}}}, {}, {}, {})
    with pytest.raises(InputError, match="weights of another model"):
        loop._put_initial({"network": StoredPart(teacher, "network")}, wide)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"diffusion": dataclasses.replace(PLAIN, guidance=single(2.0))}, "has its teacher's baked in"),
        ({"diffusion": DiffusionConfig()}, "'euler' is not for students by 'consistency'"),
        ({"diffusion": dataclasses.replace(PLAIN, path=PathConfig(prediction="x0"))}, "would not be the identity"),
        ({"distillation": DistillationConfig(method="reflow")}, "'consistency' is not for students by 'reflow'"),
        ({"model": network(9)}, "these latents have 8"),
    ],
)
def test_settings_of_a_student_that_make_no_sense_are_refused(changed, message):
    with pytest.raises(ConfigError, match=message):
        DistillationExperiment(**{"model": network(8), "latents": LATENTS, "diffusion": PLAIN} | changed)


COUNT = """
import sys
from voxinstruct_jax.cli.experiments import load_experiment
from voxinstruct_jax.training.experiment import step_operations
print(*(step_operations(load_experiment(path)) for path in sys.argv[1:]))
"""


@pytest.mark.slow
def test_steps_are_counted_without_data_or_weights():
    """What `plan` and equal budgets are made of; a student's step runs more networks than its teacher's."""
    configs = Path(__file__).parents[2] / "configs"
    names = ("instructaudio_small", "consistency_small", "masked_latents_small")
    command = [sys.executable, "-c", COUNT, *(str(configs / f"{name}.py") for name in names)]
    done = subprocess.run(command, cwd=configs.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    teacher, student, masked = map(float, done.stdout.split())
    assert 1.5 * teacher < student < 4 * teacher
    assert masked > 0
