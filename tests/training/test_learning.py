"""Tiny models learn a synthetic language in seconds; the answers are checked against its rule, not against the loss."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from voxinstruct_jax.models.ar import ARModel
from voxinstruct_jax.models.nar import NARConfig, NARModel
from voxinstruct_jax.sharding.mesh import MeshConfig, build_mesh
from voxinstruct_jax.training.ar import ar_task
from voxinstruct_jax.training.nar import NARObjective, nar_loss
from voxinstruct_jax.training.optimizer import OptimizerConfig, make_optimizer
from voxinstruct_jax.training.step import build_trainer
from voxinstruct_jax.vocabulary import ACOUSTIC, SEMANTIC


def entropy(values):
    share = np.unique(values, return_counts=True)[1] / len(values)
    return -float(np.sum(share * np.log(share)))


@pytest.fixture(scope="module")
def host_batch(tiny_ar_experiment):
    return ar_task(tiny_ar_experiment).batches[1000]


def test_the_ar_model_learns_far_below_what_the_commonness_of_tokens_gives(tiny_ar_run, host_batch):
    rows = [json.loads(line) for line in (tiny_ar_run.folder / "metrics.jsonl").read_text().splitlines()]
    tokens = host_batch.tokens[:, 0][(host_batch.part_ids != 0)]
    assert entropy(tokens) > 2.5
    assert rows[0]["loss"] > entropy(tokens)
    assert np.mean([row["loss"] for row in rows[-5:]]) < 0.4 * entropy(tokens)


def test_the_ar_model_predicts_the_next_token_of_the_language(tiny_ar_run, tiny_ar_experiment, host_batch):
    # A shift of the targets by any other number of places would be learnt as well, but not give these answers.
    vocabulary = tiny_ar_experiment.model.vocabulary
    graph = nnx.graphdef(nnx.eval_shape(lambda: ARModel(tiny_ar_experiment.model, rngs=nnx.Rngs(0))))

    @jax.jit
    def predict(params, rest, batch):
        none = jnp.zeros(batch.segment_ids.shape, bool)
        state = nnx.State(params) if not rest else nnx.State({**params, **rest})
        return nnx.merge(graph, state)(batch, none, none).argmax(-1)

    state = tiny_ar_run.result.state
    found = np.asarray(predict(state.params, state.rest, jax.tree.map(jnp.asarray, host_batch)))
    tokens, part_ids = host_batch.tokens[:, 0], host_batch.part_ids
    inner = (part_ids == ACOUSTIC) & (np.roll(part_ids, -1, axis=1) == ACOUSTIC)
    inner &= np.roll(tokens, -1, axis=1) != vocabulary.eos2
    code = tokens[inner] - vocabulary.acoustic_offset
    right = found[inner] == vocabulary.acoustic_offset + (code + 3) % 8
    assert inner.sum() > 60
    assert right.mean() > 0.8  # the other answers are ends that come too early
    start = (part_ids == SEMANTIC) & (tokens == vocabulary.bos)
    language = np.roll(tokens, -1, axis=1)[start]
    assert np.mean(found[start] == language) > 0.8  # which the text alone tells


def test_the_nar_model_beats_the_commonest_code(tiny_ar_experiment):
    tiny = tiny_ar_experiment.model
    config = NARConfig(vocabulary=tiny.vocabulary, backbone=tiny.backbone, text_encoder=tiny.text_encoder)
    batches = ar_task(tiny_ar_experiment).batches
    optimizer = make_optimizer(OptimizerConfig(peak_lr=1e-2, warmup_steps=10, weight_decay=0.0))
    objective = functools.partial(nar_loss, NARObjective())
    mesh = build_mesh(MeshConfig())
    trainer = build_trainer(lambda rngs: NARModel(config, rngs=rngs), objective, optimizer, mesh, seed=0)
    state = trainer.init()
    rows = []
    for number in range(80):
        state, metrics = trainer.step(state, jax.tree.map(jnp.asarray, batches[number]))
        rows.append({name: float(value) for name, value in metrics.items()})
    batch = batches[0]
    classes = batch.tokens[:, 1][batch.part_ids == ACOUSTIC]
    commonest = np.unique(classes, return_counts=True)[1].max() / len(classes)
    assert commonest < 0.3
    assert np.mean([row["accuracy"] for row in rows[-10:]]) > 0.8
    assert np.mean([row["loss"] for row in rows[-10:]]) < 0.3 * math.log(config.vocabulary.nar_head_size)
    assert dataclasses.is_dataclass(state)
