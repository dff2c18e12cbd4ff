"""The stage that teaches what descriptions ask for, on real instructions of clips held out from training."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.data.description_batches import DescriptionData
from voxinstruct_jax.models.ar import ARConfig
from voxinstruct_jax.sharding.mesh import MeshConfig, build_mesh
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
from voxinstruct_jax.training.experiment import build_task
from voxinstruct_jax.training.optimizer import OptimizerConfig, make_optimizer
from voxinstruct_jax.training.step import build_trainer
from voxinstruct_jax.training.style import StyleExperiment
from voxinstruct_jax.vocabulary import Vocabulary

SHARDS = str(Path(__file__).parents[2] / "corpus" / "dev")
MODEL = dataclasses.replace(
    ARConfig.tiny(
        vocabulary=Vocabulary(num_semantic=8, codebook_size=8, num_codebooks=2),
        channel_sizes=PronunciationTokenizer().channel_sizes,
    ),
    timing="aligned",
)


def test_descriptions_are_learnt_and_what_speaks_is_left_alone():
    experiment = StyleExperiment(
        model=dataclasses.replace(MODEL, style_reader=True),
        data=DescriptionData(shards=SHARDS, rows=32, text_width=96),
        optimizer=OptimizerConfig(peak_lr=2e-2, warmup_steps=5, weight_decay=0.0),
    )
    task = build_task(experiment)
    trainer = build_trainer(
        task.program.build_model,
        task.program.objective,
        make_optimizer(task.optimizer),
        build_mesh(MeshConfig()),
        seed=0,
    )
    state = trainer.init()
    before, found = jax.tree.map(np.asarray, state.params), []
    for number in range(40):
        state, metrics = trainer.step(state, jax.tree.map(jnp.asarray, task.batches[number]))
        found.append(
            {name: float(metrics[name]) for name in ("loss_gender", "loss_speed", "accuracy_gender", "loss_duration")}
        )
    assert found[0]["loss_gender"] == pytest.approx(np.log(2), rel=1e-3)
    assert found[0]["loss_speed"] == pytest.approx(np.log(3), rel=1e-3)
    assert np.mean([step["loss_gender"] for step in found[-10:]]) < 0.6
    assert np.mean([step["accuracy_gender"] for step in found[-10:]]) > 0.65
    assert found[0]["loss_duration"] == pytest.approx(np.log(64), rel=0.01)
    assert found[-1]["loss_duration"] < 2.5
    after = jax.tree.map(np.asarray, state.params)
    slow, normal, fast = np.asarray(after["duration_shift"])[-4:-1] @ np.arange(64)
    assert slow > normal > fast
    for part in before.keys() - {"style_reader", "duration_head", "duration_shift"}:
        jax.tree.map(np.testing.assert_array_equal, before[part], after[part])


def test_a_model_without_a_reader_has_nothing_to_learn_here():
    with pytest.raises(ConfigError, match=r"model\.style_reader: there is none to be taught"):
        StyleExperiment(model=MODEL)
