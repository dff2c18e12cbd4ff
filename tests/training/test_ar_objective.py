import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from voxinstruct_jax.config import ConfigError, InputError
from voxinstruct_jax.data.packing import Clip, pack
from voxinstruct_jax.layers.execution import Execution
from voxinstruct_jax.models.ar import ARConfig, ARModel
from voxinstruct_jax.models.conditioning import NUM_DURATIONS
from voxinstruct_jax.training.ar import ARObjective, ar_loss, ar_targets, duration_loss
from voxinstruct_jax.training.language_model import clip_uniform, row_keys
from voxinstruct_jax.training.step import loss_of, weighted_mean
from voxinstruct_jax.vocabulary import ACOUSTIC, SEMANTIC, TEXT, Vocabulary, build_layout

TEXT_SLOTS = 2
SEQUENCE = [1527, 1, 20, 243, 502, 1528, 503, 504, 505, 506, 507, 1529]
TARGETS = SEQUENCE[1:]
NO_DROPS = ARObjective(drop_text=0.0, drop_semantic=0.0)


class Oracle(ARModel):
    """Sure of the acoustic targets of the worked example, which it was told; has no idea of the others.

    Where it is aligned, it is sure that every text token lasts four half frames.
    """

    def __init__(self, timing="sequence"):
        config = ARConfig.tiny(vocabulary=Vocabulary(), channel_sizes=(2,))
        self.config, self.execution = dataclasses.replace(config, timing=timing), Execution()

    drops: ClassVar[list] = []
    """What the last call was told to drop. Not on the instance: Flax lets no trace write there."""

    def embed_text(self, text_tokens, text_segment_ids, *, key=None):
        return jnp.zeros((*text_segment_ids.shape, 32))

    def duration_logits(self, text_rows, text_tokens, style=None):
        return jnp.zeros((*text_rows.shape[:2], NUM_DURATIONS)).at[..., 4].set(100.0)

    def hidden(self, batch, text_rows, drop_text, drop_semantic, *, key=None):
        self.drops[:] = drop_text, drop_semantic
        known = np.zeros((1, 16, 1530), np.float32)
        for place, target in enumerate(TARGETS[5:], start=TEXT_SLOTS + 5):
            known[0, place, target] = 100.0
        return jnp.asarray(known)

    def logits(self, hidden):
        return hidden


class Indifferent(Oracle):
    """Finds all of ten ids equally likely."""

    def hidden(self, batch, text_rows, drop_text, drop_semantic, *, key=None):
        self.drops[:] = drop_text, drop_semantic, batch.tokens
        return jnp.zeros((*drop_text.shape, 10))

    def duration_logits(self, text_rows, text_tokens, style=None):
        return jnp.zeros((*text_rows.shape[:2], NUM_DURATIONS))


def values(outcome):
    parts, metrics = outcome
    return loss_of(parts), {name: mean.value for name, mean in metrics.items()}


def evaluate(objective, model, batch):
    """Loss, metrics, and what the model was told to drop; compiled as one program, as in training."""

    @jax.jit
    def run(batch, key):
        return *values(ar_loss(objective, model, batch, key)), tuple(model.drops)

    return run(batch, jax.random.key(0))


def test_every_token_after_bos_is_predicted_from_the_one_before(worked_example):
    targets, parts = ar_targets(worked_example)
    counted = np.flatnonzero(parts[0] != TEXT)
    np.testing.assert_array_equal(counted, TEXT_SLOTS + np.arange(11))
    np.testing.assert_array_equal(targets[0, counted], TARGETS)
    np.testing.assert_array_equal(parts[0, counted], [SEMANTIC] * 5 + [ACOUSTIC] * 6)
    np.testing.assert_array_equal(worked_example.tokens[0, 0, counted], SEQUENCE[:-1])


def test_clips_in_a_row_do_not_predict_each_other_and_padding_predicts_nothing(make_batch):
    vocabulary = Vocabulary(num_semantic=8, codebook_size=8, num_codebooks=2)
    clips = [(np.array([1, 2]), np.array([[3, 4], [5, 6]])), (np.array([5]), np.array([[7], [0]]))]
    batch = make_batch(vocabulary, [clips])
    _, parts = ar_targets(batch)
    # 2 text slots, then BOS LANG ST ST EOS1 AT AT EOS2; then 2 text slots, BOS LANG ST EOS1 AT EOS2
    np.testing.assert_array_equal(np.flatnonzero(parts[0] != TEXT), [*range(2, 9), *range(12, 17)])


def test_frames_lent_by_another_clip_are_shown_and_never_predicted(make_batch):
    vocabulary = Vocabulary(num_semantic=8, codebook_size=8, num_codebooks=2)
    layout = build_layout(vocabulary, "en", np.array([1]), np.array([[3, 4, 5], [5, 6, 7]]))
    clip = Clip(text_tokens=np.ones((2, 1), np.int32), layout=layout, prompt_frames=2)
    batch = jax.tree.map(jnp.asarray, pack([[clip]], text_width=2, time_width=12, clip_ids=np.arange(1)))
    targets, parts = ar_targets(batch)
    # slots: text text BOS LANG ST EOS1 AT AT AT EOS2; the first two AT are lent
    counted = np.flatnonzero(parts[0] != TEXT)
    np.testing.assert_array_equal(counted, [2, 3, 4, 7, 8])
    assert targets[0, 7] == vocabulary.acoustic_offset + 5


def test_the_loss_is_one_mean_over_all_targets(worked_example):
    loss, metrics, _ = evaluate(NO_DROPS, Oracle(), worked_example)
    # language, three units and EOS1 out of 1530 equally likely ids; five codes and EOS2 for sure
    assert float(metrics["loss_semantic"]) == pytest.approx(math.log(1530), rel=1e-5)
    assert float(metrics["loss_acoustic"]) == pytest.approx(0, abs=1e-5)
    assert float(loss) == pytest.approx(5 * math.log(1530) / 11, rel=1e-5)
    assert float(metrics["accuracy_acoustic"]) == 1
    assert "loss_duration" not in metrics


def test_dropped_semantic_tokens_are_no_targets(worked_example):
    objective = ARObjective(drop_text=0.0, drop_semantic=1.0)
    loss, metrics, (drop_text, drop_semantic) = evaluate(objective, Oracle(), worked_example)
    assert float(loss) == pytest.approx(0, abs=1e-5)
    assert float(metrics["loss_semantic"]) == 0
    assert not drop_text.any()
    assert drop_semantic.all()


def test_clips_lose_text_or_semantic_tokens_with_their_probability_and_never_both(make_batch):
    vocabulary = Vocabulary(num_semantic=8, codebook_size=8, num_codebooks=2)
    clip = (np.array([1]), np.array([[3], [5]]))
    batch = make_batch(vocabulary, [[clip, clip, clip]] * 400, time_width=24, text_width=6)

    _, _, drops = evaluate(ARObjective(drop_text=0.3, drop_semantic=0.1), Indifferent(), batch)
    np.testing.assert_array_equal(drops[2], batch.tokens)
    drop_text, drop_semantic = (np.asarray(drop) for drop in drops[:2])
    assert not (drop_text & drop_semantic).any()
    for drop, probability in ((drop_text, 0.3), (drop_semantic, 0.1)):
        rows = zip(drop, batch.segment_ids, strict=True)
        clips = np.stack([[row[ids == clip] for clip in (1, 2, 3)] for row, ids in rows])
        assert (clips == clips[..., :1]).all()  # all slots of a clip alike
        assert clips[..., 0].mean() == pytest.approx(probability, abs=0.05)  # 4 sigma of 1200 draws
        assert np.mean(clips[:, 0, 0] != clips[:, 1, 0]) > 0  # and clips of a row differ


def test_clips_lose_some_or_all_acoustic_tokens_and_are_asked_for_them_all_the_same(make_batch):
    vocabulary = Vocabulary(num_semantic=2, codebook_size=2, num_codebooks=2)
    clip = (np.array([1]), np.tile(np.arange(2), (2, 12)))
    batch = make_batch(vocabulary, [[clip, clip]] * 400, time_width=64, text_width=6)
    model = Indifferent()
    model.config = dataclasses.replace(model.config, vocabulary=vocabulary)
    loss, metrics, (*_, shown) = evaluate(dataclasses.replace(NO_DROPS, drop_acoustic=0.4), model, batch)
    assert float(loss) == pytest.approx(math.log(10), rel=1e-5)
    assert float(metrics["accuracy_acoustic"]) < 1
    shown, whole, clips = np.asarray(shown), np.asarray(batch.tokens), np.asarray(batch.segment_ids)
    np.testing.assert_array_equal(shown[:, 1], whole[:, 1])
    is_code = (np.asarray(batch.part_ids) == ACOUSTIC) & (whole[:, 0] != vocabulary.eos2)
    np.testing.assert_array_equal(shown[:, 0][~is_code], whole[:, 0][~is_code])
    hidden = is_code & (shown[:, 0] == vocabulary.pad)
    np.testing.assert_array_equal(shown[:, 0][~hidden], whole[:, 0][~hidden])
    shares = np.array([[hidden[row][is_code[row] & (clips[row] == c)].mean() for c in (1, 2)] for row in range(400)])
    assert np.mean(shares > 0) == pytest.approx(0.4, abs=0.06)
    assert np.mean(shares == 1) == pytest.approx(0.2, abs=0.06)
    some = shares[(shares > 0) & (shares < 1)]
    assert some.mean() == pytest.approx(0.5, abs=0.08)
    assert some.std() > 0.2
    assert np.mean((shares[:, 0] > 0) != (shares[:, 1] > 0)) > 0.2  # clips of a row differ


def test_draws_follow_from_the_number_of_the_row_whatever_its_place(make_batch):
    vocabulary = Vocabulary(num_semantic=8, codebook_size=8, num_codebooks=2)
    batch = make_batch(vocabulary, [[(np.array([1]), np.array([[3], [5]]))]] * 6, time_width=10)

    @jax.jit
    def draw(batch):
        return clip_uniform(row_keys(jax.random.key(1), batch), batch.segment_ids)

    draws = draw(batch)
    half = jax.tree.map(lambda array: array[3:], batch)
    np.testing.assert_array_equal(draw(half), draws[3:])
    assert len(np.unique(np.asarray(draws)[:, 2])) == 6


def test_a_mean_over_nothing_is_zero():
    values = jnp.asarray([[1.0, 2.0, 6.0]])
    assert float(weighted_mean(values, jnp.asarray([[True, False, True]])).value) == 3.5
    assert float(weighted_mean(values, jnp.zeros((1, 3), bool)).value) == 0


def test_probabilities_that_leave_nothing_whole_are_refused():
    with pytest.raises(ConfigError, match=r"drop_acoustic: 1\.2 is not within \[0, 1\]"):
        ARObjective(drop_acoustic=1.2)
    with pytest.raises(ConfigError, match=r"drop_text 0\.6 and drop_semantic 0\.6 must sum to at most 1"):
        ARObjective(drop_text=0.6, drop_semantic=0.6)


def timed(batch, durations):
    """The worked example with durations of its two text tokens."""
    assert batch.text_segment_ids.tolist() == [[1, 1]]
    return dataclasses.replace(batch, text_durations=jnp.asarray([durations], jnp.int32))


def test_aligned_models_are_taught_durations_beside_the_tokens(worked_example):
    objective = dataclasses.replace(NO_DROPS, duration_weight=0.3)
    loss, metrics, _ = evaluate(objective, Oracle("aligned"), timed(worked_example, (4, 5)))
    # sure of the first; 100 too little in the logits of the second
    assert float(metrics["loss_duration"]) == pytest.approx(50.0, rel=1e-5)
    assert float(loss) == pytest.approx(5 * math.log(1530) / 11 + 0.3 * 50.0, rel=1e-5)
    with pytest.raises(InputError, match="needs durations; prepare the data with units that know phones"):
        evaluate(objective, Oracle("aligned"), worked_example)


def test_the_duration_loss_is_a_mean_over_text_and_its_last_class_takes_all_that_is_longer(worked_example):
    text_rows = jnp.zeros((1, 4, 32))
    batch = dataclasses.replace(
        worked_example,
        text_tokens=jnp.ones((1, 4, 1), jnp.int32),
        text_segment_ids=jnp.asarray([[1, 1, 0, 0]]),
        text_durations=jnp.asarray([[0, 1000, 7, 7]], jnp.int32),
    )
    assert float(duration_loss(Indifferent("aligned"), batch, text_rows).value) == pytest.approx(math.log(64), rel=1e-5)

    class Long(Indifferent):
        def duration_logits(self, text_rows, text_tokens, style=None):
            return (
                super().duration_logits(text_rows, text_tokens).at[..., 63].set(math.log(63))
            )  # half of all probability

    found = float(duration_loss(Long("aligned"), batch, text_rows).value)
    assert found == pytest.approx((math.log(2) + math.log(126)) / 2, rel=1e-5)


def test_a_tiny_model_learns_how_long_its_text_lasts():
    config = ARConfig.tiny(vocabulary=Vocabulary(num_semantic=4, codebook_size=4, num_codebooks=1), channel_sizes=(9,))
    encoder = dataclasses.replace(config.text_encoder, num_layers=1)
    config = dataclasses.replace(config, text_encoder=encoder, timing="aligned")
    layout = build_layout(config.vocabulary, "en", np.zeros(3, int), np.zeros((1, 3), int))
    clips = [
        Clip(text_tokens=np.array(text, np.int32)[:, None], layout=layout, durations=np.array(lasting, np.int32))
        for text, lasting in (((1, 2, 3), (0, 6, 0)), ((4, 5), (1, 5)), ((8, 8), (3, 3)))
    ]
    batch = jax.tree.map(jnp.asarray, pack([clips], text_width=8, time_width=48, clip_ids=np.arange(1)))
    graph, params, rest = nnx.split(nnx.eval_shape(lambda: ARModel(config, rngs=nnx.Rngs(0))), nnx.Param, ...)
    random = np.random.default_rng(0)  # initialisers would take longer to compile than the rest

    def fill(leaf):
        return jnp.asarray(0.1 * random.standard_normal(leaf.shape) + (leaf.ndim == 1), leaf.dtype)

    params, rest = jax.tree.map(fill, params), jax.tree.map(fill, rest)

    def loss_fn(params):
        model = nnx.merge(graph, params, rest)
        return duration_loss(model, batch, model.embed_text(batch.text_tokens, batch.text_segment_ids)).value

    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, state):
        loss, gradient = jax.value_and_grad(loss_fn)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    state, losses = optimizer.init(params), []
    for _ in range(60):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    assert losses[0] > 3
    assert losses[-1] < 0.3
