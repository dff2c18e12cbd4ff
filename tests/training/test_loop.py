import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from voxinstruct_jax.checkpoints.weights import load_weights, save_weights
from voxinstruct_jax.cli.convert import export_run
from voxinstruct_jax.cli.main import main
from voxinstruct_jax.cli.train import _clock
from voxinstruct_jax.config import ConfigError, InputError, to_dict
from voxinstruct_jax.layers.execution import Execution
from voxinstruct_jax.sharding.mesh import MeshConfig
from voxinstruct_jax.training import experiment as experiment_module
from voxinstruct_jax.training.ar import ARObjective, ar_task
from voxinstruct_jax.training.events import read_events
from voxinstruct_jax.training.loop import train
from voxinstruct_jax.training.metrics import MetricsLog
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.step import Mean, StepConfig
from voxinstruct_jax.training.task import Program, Task, TrainConfig, identity

REPOSITORY = Path(__file__).parents[2]


class Slope(nnx.Module):
    def __init__(self, rngs):
        self.kernels = nnx.List([nnx.Param(jax.random.normal(rngs.params(), (3, 1))) for _ in range(2)])


class Points:
    """Batch of a step: three numbers a row that follow from the step."""

    def __getitem__(self, step):
        return np.random.default_rng((7, step)).standard_normal((4, 3)).astype(np.float32)


def slope_loss(model, batch, key):
    noise = jax.random.normal(key, (4, 1))
    kernel = model.kernels[0][...] + model.kernels[1][...]
    loss = jnp.mean((batch @ kernel - batch.sum(axis=1, keepdims=True) + 0.1 * noise) ** 2)
    one = jnp.ones(())
    return [Mean(loss, one)], {"noise": Mean(noise[0, 0], one)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy:
    """An experiment that compiles in no time."""

    model: str = "slope"
    data: str = "points"
    optimizer: OptimizerConfig = OptimizerConfig(peak_lr=0.1, warmup_steps=2)
    train: TrainConfig = TrainConfig(steps=12, log_every=1, save_every=4)
    mesh: MeshConfig = MeshConfig()


TIMED = ("tokens_per_s", "audio_hours_per_hour", "data_wait")


def toy_task(toy):
    return Task(
        program=Program(build_model=Slope, objective=slope_loss),
        batches=Points(),
        count_tokens=lambda batch: batch.size,
        count_audio_s=lambda batch: 1.0,
        count_flops=None,
        rows=4,
        step=StepConfig(),
        optimizer=toy.optimizer,
        train=toy.train,
        mesh=toy.mesh,
        identity=identity("toy", toy.data, toy.train, optimizer=toy.optimizer),
    )


def run(toy, folder, report=lambda *_: None):
    return train(toy_task(toy), toy, folder, report=report)


def at_step(wanted, action):
    def report(step, steps, values):
        if step == wanted:
            action()

    return report


def metrics(folder, *, timed=False):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return rows if timed else [{k: v for k, v in row.items() if k not in TIMED} for row in rows]


def states(folder):
    return sorted(int(path.name) for path in (folder / "states").iterdir() if path.name.isdigit())


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    return folder, run(Toy(), folder)


@pytest.fixture
def copied(unbroken, tmp_path):
    return shutil.copytree(unbroken[0], tmp_path / "run")


def test_a_run_leaves_its_settings_identity_metrics_and_newest_states(unbroken):
    folder, result = unbroken
    assert (result.step, result.stopped, int(result.state.step)) == (12, False, 12)
    assert json.loads((folder / "config.json").read_text()) == to_dict(Toy())
    assert json.loads((folder / "run.json").read_text())["kind"] == "toy"
    rows = metrics(folder, timed=True)
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert {"loss", "grad_norm", "noise", "learning_rate", "tokens_per_s", "mfu"} < set(rows[0])
    assert all(row["tokens_per_s"] > 0 for row in rows)
    assert rows[11]["loss"] < rows[0]["loss"]
    assert states(folder) == [8, 12]
    assert list((folder / "tensorboard").iterdir())


def test_every_step_draws_anew(unbroken):
    assert len({row["noise"] for row in metrics(unbroken[0])}) == 12


def test_only_every_nth_step_and_the_last_are_logged(tmp_path):
    run(dataclasses.replace(Toy(), train=TrainConfig(steps=5, log_every=3, save_every=100)), tmp_path)
    assert [row["step"] for row in metrics(tmp_path)] == [3, 5]
    assert states(tmp_path) == [5]


def test_a_stop_signal_ends_the_run_between_steps_with_its_state_saved(unbroken, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    result = run(Toy(), tmp_path, at_step(5, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert (result.step, result.stopped) == (6, signal.SIGTERM)
    assert states(tmp_path) == [4, 6]
    assert signal.getsignal(signal.SIGTERM) is before
    assert run(Toy(), tmp_path).step == 12
    assert metrics(tmp_path) == metrics(unbroken[0])


def test_the_run_goes_on_from_the_state_before_a_damaged_one(unbroken, copied):
    damaged = max((copied / "states" / "12").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    damaged.write_bytes(damaged.read_bytes()[:-1])
    result = run(Toy(), copied)
    assert (result.step, result.stopped) == (12, 0)
    assert metrics(copied) == metrics(unbroken[0])
    assert states(copied) == [8, 12]


def test_a_run_whose_states_are_all_damaged_begins_anew(unbroken, copied):
    for path in (copied / "states").glob("checksums-*.json"):
        path.unlink()
    run(Toy(), copied)
    assert metrics(copied) == metrics(unbroken[0])


def test_a_finished_run_can_be_given_more_steps(unbroken, copied):
    longer = dataclasses.replace(Toy(), train=TrainConfig(steps=14, log_every=1, save_every=7))
    assert run(longer, copied).step == 14
    assert metrics(copied)[:12] == metrics(unbroken[0])
    assert [row["step"] for row in metrics(copied)] == list(range(1, 15))
    assert json.loads((copied / "config.json").read_text())["train"]["steps"] == 14


@pytest.mark.parametrize("steps", [12, 9])
def test_a_run_that_is_far_enough_does_nothing(unbroken, copied, steps):
    result = run(dataclasses.replace(Toy(), train=TrainConfig(steps=steps, log_every=1)), copied)
    assert (result.step, result.stopped) == (12, 0)
    assert metrics(copied) == metrics(unbroken[0])
    assert states(copied) == [8, 12]


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"train": TrainConfig(steps=12, seed=1)}, "seed"),
        ({"optimizer": OptimizerConfig(peak_lr=0.2, warmup_steps=2)}, "optimizer"),
        ({"data": "others"}, "data"),
        ({"data": "others", "train": TrainConfig(steps=12, seed=1)}, "data, seed"),
    ],
)
def test_a_folder_of_another_run_is_refused_untouched(unbroken, change, differs):
    folder = unbroken[0]
    before = (folder / "config.json").read_bytes(), (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(InputError, match=rf"holds another run \(its {differs} differs\); give another --out"):
        run(dataclasses.replace(Toy(), **change), folder)
    assert ((folder / "config.json").read_bytes(), (folder / "metrics.jsonl").read_bytes()) == before


def test_a_run_starts_from_the_weights_of_another_one(unbroken, tmp_path):
    export_run(unbroken[0], tmp_path / "weights", dtype="float32")
    train_config = TrainConfig(steps=1, log_every=1, init_from=str(tmp_path / "weights"))
    run(dataclasses.replace(Toy(), train=train_config), tmp_path / "run")
    # the first batch again, after twelve steps of learning
    assert metrics(tmp_path / "run")[0]["loss"] < 0.5 * metrics(unbroken[0])[0]["loss"]
    with pytest.raises(InputError, match=r"holds another run \(its init_from differs\)"):
        run(dataclasses.replace(Toy(), train=TrainConfig(steps=1)), tmp_path / "run")


def test_samples_are_spoken_when_due_and_a_failed_one_stops_nothing(tmp_path):
    given = []

    def sampler(step, weights):
        if step == 4:
            raise InputError("no voice today")
        given.append(weights)
        return [
            {"file": "0.wav", "duration_s": 1.0, "finish_reason": "stop", "error": 0.5},
            {"file": "1.wav", "duration_s": 3.0, "finish_reason": "max_acoustic"},
        ]

    toy = dataclasses.replace(Toy(), train=TrainConfig(steps=6, log_every=5, save_every=6, sample_every=2))
    result = train(toy_task(toy), toy, tmp_path / "run", report=lambda *_: None, sampler=sampler)
    rows = {row["step"]: row for row in metrics(tmp_path / "run")}
    assert sorted(rows) == [2, 4, 5, 6]
    assert (rows[2]["sample_duration_s"], rows[2]["sample_stopped"], rows[2]["sample_error"]) == (2.0, 0.5, 0.5)
    assert (rows[4]["sample_error"], "sample_error" in rows[5]) == (None, False)
    events = read_events(tmp_path / "run")
    assert [(e["step"], e["file"]) for e in events if e["event"] == "sample"] == [
        (step, file) for step in (2, 6) for file in ("0.wav", "1.wav")
    ]
    assert [e["reason"] for e in events if e["event"] == "sample_failed"] == ["no voice today"]
    assert all("sampling_seconds" in e for e in events if e["event"] == "steps")
    jax.tree.map(np.testing.assert_array_equal, given[-1], jax.device_get(result.state.params))


def test_metrics_go_to_weights_and_biases_too(tmp_path):
    pytest.importorskip("wandb")
    program = (
        "import sys; from pathlib import Path; from voxinstruct_jax.training.metrics import MetricsLog\n"
        "log = MetricsLog(Path(sys.argv[1]), 0, wandb_project='demo'); log.write(1, {'loss': 2.0}); log.close()"
    )
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    command = [sys.executable, "-c", program, str(tmp_path)]
    subprocess.run(command, cwd=REPOSITORY, env=environment, check=True, capture_output=True)
    [kept] = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert kept.stat().st_size


def test_without_weights_and_biases_installed_it_says_how(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"wandb is missing; run with `uv run --extra wandb`"):
        MetricsLog(tmp_path, 0, wandb_project="demo")


def test_weights_of_another_model_are_refused(tmp_path):
    save_weights(tmp_path / "weights", {"kernels": {0: jnp.zeros((3, 2)), 1: jnp.zeros((3, 1))}}, {}, card="")
    train_config = TrainConfig(steps=1, init_from=str(tmp_path / "weights"))
    with pytest.raises(InputError, match=r"weights of another model \(an array is \(3, 2\), here \(3, 1\)\)"):
        run(dataclasses.replace(Toy(), train=train_config), tmp_path / "run")


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/run: cannot be written .*; give another --out"):
        run(Toy(), tmp_path / "file" / "run")


def test_rows_of_steps_to_be_done_again_and_a_torn_line_are_dropped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "lo')
    log = MetricsLog(tmp_path, 2)
    log.write(3, {"loss": 0.5, "mfu": None})
    log.close()
    assert metrics(tmp_path) == [{"step": 1}, {"step": 2}, {"step": 3, "loss": 0.5, "mfu": None}]


def test_settings_that_make_no_run_are_refused():
    with pytest.raises(ConfigError, match="must be at least 1"):
        TrainConfig(save_every=0)


def test_model_data_batch_objective_optimiser_and_seed_make_a_run_and_nothing_else_does(tiny_ar_experiment):
    base = tiny_ar_experiment
    own = ar_task(base).identity

    def changed(**fields):
        other = ar_task(dataclasses.replace(base, **fields)).identity
        return sorted(name for name in other if other[name] != own[name])

    wider = dataclasses.replace(base.model, dtype="bfloat16")
    rows = dataclasses.replace(base.data, batch=dataclasses.replace(base.data.batch, rows=4))
    assert changed(model=wider) == ["model"]
    assert changed(data=rows) == ["data"]
    assert changed(objective=ARObjective(drop_text=0.2)) == ["objective"]
    assert changed(optimizer=dataclasses.replace(base.optimizer, peak_lr=1.0)) == ["optimizer"]
    assert "seed" in changed(train=dataclasses.replace(base.train, seed=5))
    longer = TrainConfig(steps=10**6, log_every=7, save_every=9, keep=5)
    execution = Execution(remat="full", scan=True, loss_chunk=8)
    assert changed(train=longer, mesh=MeshConfig(data=1), execution=execution, step=StepConfig(accumulate=2)) == []


class Poisoned(Points):
    """No number at all in the batches of some steps."""

    def __init__(self, steps):
        self.steps = steps

    def __getitem__(self, step):
        return np.full((4, 3), np.nan, np.float32) if step in self.steps else super().__getitem__(step)


def run_poisoned(folder, steps, **settings):
    toy = Toy(train=TrainConfig(steps=20, log_every=1, save_every=4, **settings))
    task = dataclasses.replace(toy_task(toy), batches=Poisoned(steps))
    return train(task, toy, folder, report=lambda *_: None)


def test_a_batch_that_is_no_number_is_skipped_and_told(unbroken, tmp_path):
    result = run_poisoned(tmp_path, {5})
    rows = metrics(tmp_path)
    assert rows[:5] == metrics(unbroken[0])[:5]
    assert (rows[5]["loss"], rows[5]["skipped"], rows[5]["skipped_in_a_row"]) == (None, 1, 1)
    assert rows[5]["param_norm"] == rows[4]["param_norm"]
    assert (rows[6]["skipped"], rows[6]["skipped_in_a_row"]) == (1, 0)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert result.step == 20
    assert [event["step"] for event in read_events(tmp_path) if event["event"] == "skipped"] == [6]


def test_after_many_skipped_steps_the_run_goes_back_to_saved_weights_and_on_with_the_data(tmp_path):
    run_poisoned(tmp_path, {9, 10, 11, 12}, max_skipped=2)
    [back] = [event for event in read_events(tmp_path) if event["event"] == "rollback"]
    assert (back["step"], back["restored_step"]) == (12, 8)
    rows = metrics(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert (rows[-1]["skipped"], rows[-1]["skipped_in_a_row"]) == (4, 0)
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_a_run_that_only_skips_stops_with_one_clear_line(tmp_path):
    with pytest.raises(InputError, match=r"steps up to 16 were skipped over and over .*; lower the learning rate"):
        run_poisoned(tmp_path, set(range(7, 100)), max_skipped=2, max_rollbacks=2)


def test_a_spike_is_skipped_where_a_limit_is_set(tmp_path):
    class Spiked(Points):
        def __getitem__(self, step):
            return super().__getitem__(step) * (1000 if step == 6 else 1)

    toy = Toy(train=TrainConfig(steps=9, log_every=1))
    task = dataclasses.replace(toy_task(toy), batches=Spiked(), step=StepConfig(spike_ratio=20.0))
    train(task, toy, tmp_path, report=lambda *_: None)
    assert [row["skipped"] for row in metrics(tmp_path)] == [0] * 6 + [1] * 3


def test_a_state_that_cannot_be_written_ends_the_run_and_the_one_before_it_counts(unbroken, tmp_path, monkeypatch):
    run(dataclasses.replace(Toy(), train=TrainConfig(steps=4, log_every=1, save_every=4)), tmp_path)
    with monkeypatch.context() as patch:
        full = OSError(28, "No space left on device")
        patch.setattr("orbax.checkpoint.CheckpointManager.save", lambda *_, **__: (_ for _ in ()).throw(full))
        with pytest.raises(InputError, match=r"state of step 8 could not be written .*No space left.*; make room"):
            run(Toy(), tmp_path)
    assert run(Toy(), tmp_path).step == 12
    assert metrics(tmp_path) == metrics(unbroken[0])


def test_a_running_mean_of_the_weights_is_what_is_exported(tmp_path):
    toy = Toy()
    task = dataclasses.replace(toy_task(toy), step=StepConfig(ema_decay=0.9))
    result = train(task, toy, tmp_path / "run", report=lambda *_: None)
    export_run(tmp_path / "run", tmp_path / "weights", dtype="float32")
    _, arrays = load_weights(tmp_path / "weights")
    for place in (0, 1):
        np.testing.assert_array_equal(arrays["kernels"][place], result.state.ema["kernels"][place])
        assert np.abs(arrays["kernels"][place] - result.state.params["kernels"][place]).max() > 1e-3


def test_the_best_state_is_kept_beside_the_newest(tmp_path):
    toy = Toy(train=TrainConfig(steps=12, log_every=1, save_every=2, keep=1, best_of="noise"))
    run(toy, tmp_path)
    noise = {row["step"]: row["noise"] for row in metrics(tmp_path) if row["step"] % 2 == 0}
    assert states(tmp_path) == sorted({12, min(noise, key=noise.get)})


KILLED = """
import json, os, signal, sys
from pathlib import Path
from voxinstruct_jax.config import from_dict
from voxinstruct_jax.training.ar import ARExperiment, ar_task
from voxinstruct_jax.training.loop import train

experiment = from_dict(ARExperiment, json.loads(Path(sys.argv[1]).read_text()))

def report(step, steps, values):
    if step == 57:
        os.kill(os.getpid(), signal.SIGKILL)

train(ar_task(experiment), experiment, Path(sys.argv[2]), report=report)
"""


@pytest.mark.slow
def test_a_run_killed_in_the_middle_ends_as_if_it_had_never_stopped(tiny_ar_experiment, tiny_ar_run, tmp_path):
    settings = tmp_path / "experiment.json"
    settings.write_text(json.dumps(to_dict(tiny_ar_experiment)))
    command = [sys.executable, "-c", KILLED, str(settings), str(tmp_path / "run")]
    killed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [row["step"] for row in metrics(tmp_path / "run")][-1] == 57
    assert states(tmp_path / "run") == [40]
    train(ar_task(tiny_ar_experiment), tiny_ar_experiment, tmp_path / "run", report=lambda *_: None)
    assert metrics(tmp_path / "run") == metrics(tiny_ar_run.folder)


CONFIG = """
from voxinstruct_jax.models.ar import ARConfig
from voxinstruct_jax.training.ar import ARExperiment
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.task import TrainConfig
from voxinstruct_jax.vocabulary import Vocabulary

experiment = ARExperiment(
    model=ARConfig.tiny(vocabulary=Vocabulary(), channel_sizes=(5,)),
    optimizer=OptimizerConfig(peak_lr=0.1, warmup_steps=2),
    train=TrainConfig(steps=8, log_every=2, save_every=4),
)
"""


def test_the_command_stops_on_a_signal_with_exit_code_75_and_goes_on_when_run_again(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(experiment_module, "build_task", toy_task_of)
    (tmp_path / "toy.py").write_text(CONFIG)
    command = ["train", str(tmp_path / "toy.py"), "--out", str(tmp_path / "run"), "--optimizer.peak-lr", "0.05"]
    with monkeypatch.context() as patch:
        patch.setattr(Points, "__getitem__", stop_at_step_three(Points.__getitem__))
        assert main(command) == 75
    told = capsys.readouterr()
    assert told.err.startswith("stopped at step ")
    assert "saved; the same command goes on from there" in told.err
    assert main([*command, "--train.log-every", "1"]) == 0
    told = capsys.readouterr()
    assert "step 8/8 loss " in told.out
    assert f"{tmp_path / 'run'}: step 8 saved" in told.out
    assert main([*command[:-1], "0.06"]) == 1
    assert "holds another run (its optimizer differs)" in capsys.readouterr().err


def toy_task_of(experiment):
    return toy_task(Toy(optimizer=experiment.optimizer, train=experiment.train))


def stop_at_step_three(read):
    def reading(self, step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return read(self, step)

    return reading


def test_the_time_to_the_end_is_shown_as_hours_minutes_seconds():
    assert _clock(3725.4) == "1:02:05"
