"""Reads known evidence off texts whose classes follow from it, and checks who gets what was read."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from voxinstruct_jax.attributes import STYLE_CLASSES, class_numbers
from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.models.ar import ARConfig, ARModel
from voxinstruct_jax.models.style import StyleReader, give_style, style_losses
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
from voxinstruct_jax.vocabulary import Vocabulary

DIM, CONCEPTS = 8, 5
TOKENIZER = PronunciationTokenizer()


def random_reader(seed=0):
    reader, random = StyleReader(CONCEPTS, DIM, rngs=nnx.Rngs(0)), np.random.default_rng(seed)
    for weight in (reader.evidence.kernel, reader.table):
        weight[...] = jnp.asarray(random.standard_normal(weight.shape), jnp.float32)
    return reader


def run(reader, rows, described, segments, concepts=None, known=None):
    concepts = np.zeros(described.shape, np.int32) if concepts is None else concepts
    batch = [jnp.asarray(part) for part in (rows, concepts, described, segments)]
    return jax.jit(lambda *batch: reader(*batch))(*batch, *([] if known is None else [jnp.asarray(known)]))


def test_classes_are_numbered_in_their_order_and_what_is_not_known_is_zero():
    assert class_numbers({"gender": "male", "speed": "slow", "emotion": "sad"}).tolist() == [2, 0, 0, 1]
    assert class_numbers({"pitch": "shrill", "energy": "high"}).tolist() == [0, 0, 3, 0]
    assert class_numbers({"gender": ["male"]}).tolist() == [0, 0, 0, 0]


def test_an_untrained_reader_says_nothing():
    rows = np.random.default_rng(0).standard_normal((1, 5, DIM), np.float32)
    style = run(StyleReader(CONCEPTS, DIM, rngs=nnx.Rngs(0)), rows, np.ones((1, 5), bool), np.ones((1, 5), np.int32))
    assert not np.asarray(style.vectors).any()
    np.testing.assert_allclose(np.ptp(style.logits, axis=-1), 0, atol=1e-5)


def test_a_clip_is_read_alike_alone_and_beside_another():
    random, reader = np.random.default_rng(1), random_reader()
    rows = random.standard_normal((1, 9, DIM)).astype(np.float32)
    described = random.random((1, 9)) < 0.6
    both = run(reader, rows, described, np.array([[1, 1, 1, 1, 2, 2, 2, 0, 0]], np.int32))
    one = run(reader, rows[:, 4:7], described[:, 4:7], np.ones((1, 3), np.int32))
    np.testing.assert_allclose(both.logits[:, 4:7], one.logits, atol=1e-4)
    np.testing.assert_allclose(both.vectors[:, 4:7], one.vectors, atol=1e-4)
    np.testing.assert_allclose(np.ptp(both.vectors[0, :4], axis=0), 0, atol=1e-5)  # one vector a clip
    assert np.abs(both.vectors[0, 0] - both.vectors[0, 4]).max() > 0.1
    assert not np.asarray(both.vectors[0, 7:]).any()


def test_content_is_no_evidence_and_a_bare_transcript_asks_for_nothing():
    random, reader = np.random.default_rng(2), random_reader()
    rows, ones = random.standard_normal((2, 6, DIM)).astype(np.float32), np.ones((2, 6), np.int32)
    described = np.array([[True] * 3 + [False] * 3, [False] * 6])
    style = run(reader, rows, described, ones)
    centred = rows - rows.mean(axis=1, keepdims=True)
    centred /= np.sqrt((centred**2).mean(axis=-1, keepdims=True))
    evidence = 10 * np.tanh(centred @ np.asarray(reader.evidence.kernel[...]) / 10)
    np.testing.assert_allclose(style.logits[0, 0], np.log(np.exp(evidence[0, :3]).sum(axis=0)), atol=1e-3)
    np.testing.assert_allclose(np.ptp(style.logits[1, 0]), 0, atol=1e-5)
    table = np.split(np.asarray(reader.table[...]), np.cumsum([len(c) for c in STYLE_CLASSES.values()])[:-1])
    np.testing.assert_allclose(style.vectors[1, 0], sum(part.mean(axis=0) for part in table), atol=1e-5)


def test_a_concept_is_evidence_wherever_it_stands():
    reader = StyleReader(CONCEPTS, DIM, rngs=nnx.Rngs(0))
    reader.concepts[...] = reader.concepts[...].at[3, 1].set(0.6)  # the second gender
    rows, ones = np.zeros((1, 12, DIM), np.float32), np.ones((1, 12), np.int32)
    for place in (0, 7, 11):
        concepts = np.where(np.arange(12) == place, 3, 1)[None].astype(np.int32)
        logits = run(reader, rows, ones > 0, ones, concepts).logits[0, 0]
        evidence = 10 * np.tanh(0.6)
        assert float(logits[1] - logits[0]) == pytest.approx(np.log((np.exp(evidence) + 11) / 12), rel=1e-4)
        assert np.ptp(logits[2:]) < 1e-5


def test_what_is_known_counts_as_read():
    reader, rows, ones = random_reader(), np.ones((1, 2, DIM), np.float32), np.ones((1, 2), np.int32)
    known = np.array([[[2, 0, 0, 1]] * 2], np.int32)
    free, told = (run(reader, rows, ones > 0, ones, known=numbers) for numbers in (0 * known, known))
    np.testing.assert_array_equal(free.logits, told.logits)
    table = np.asarray(reader.table[...])
    logits = np.split(np.asarray(free.logits[0, 0]), [2, 5, 8])
    expected = table[1] + sum(jax.nn.softmax(part) @ table[a : a + 3] for part, a in ((logits[1], 2), (logits[2], 5)))
    np.testing.assert_allclose(told.vectors[0, 0], expected + table[8], atol=1e-4)
    assert np.abs(free.vectors - told.vectors).max() > 0.1


def test_every_slot_gets_the_vector_of_its_clip():
    vectors = jnp.asarray([[[1.0], [1.0], [2.0], [0.0]]])
    given = give_style(vectors, jnp.asarray([[1, 1, 2, 0]]), jnp.asarray([[1, 1, 1, 2, 2, 0, 2, 0]]))
    assert given[0, :, 0].tolist() == [1, 1, 1, 2, 2, 0, 2, 0]


def test_losses_are_those_of_the_classes_and_count_where_these_are_known():
    logits = jnp.arange(11.0)[None, None]
    read = style_losses(logits, jnp.asarray([[[2, 0, 1, 3]]]))
    assert [name for name in read if read[name].known[0, 0]] == ["gender", "energy", "speed"]
    assert [name for name in read if read[name].hit[0, 0]] == ["gender", "speed"]
    expected = {"gender": np.log1p(np.exp(-1)), "energy": 2 + np.log(sum(np.exp([0, -1, -2])))}
    expected["speed"] = expected["energy"] - 2
    for name, loss in expected.items():
        assert float(read[name].loss[0, 0]) == pytest.approx(loss)


def test_what_instructions_ask_for_is_learnt_from_their_classes():
    texts = [
        (f'{person} {verb}: "Good morning"', {"gender": gender, "energy": energy})
        for person, gender in (("A man", "male"), ("A woman", "female"), ("My uncle", "male"), ("My aunt", "female"))
        for verb, energy in (("shouts", "high"), ("whispers", "low"), ("says", "normal"))
    ]
    model = ARModel(tiny(), rngs=nnx.Rngs(0))
    graph, params = nnx.split(model)
    rows = [TOKENIZER.encode(text) for text, _ in texts]
    width = max(map(len, rows))
    tokens = jnp.asarray([np.pad(row, ((0, width - len(row)), (0, 0))) for row in rows])
    segments = jnp.asarray([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    attributes = jnp.asarray([class_numbers(known) for _, known in texts])[:, None]
    optimizer = optax.adam(2e-2)

    def loss_of(params):
        model = nnx.merge(graph, params)
        style = model.read_style(model.embed_text(tokens, segments), tokens, segments)
        readings = style_losses(style.logits[:, :1], attributes).values()
        return sum(jnp.sum(reading.loss * reading.known) for reading in readings) / len(texts)

    @jax.jit
    def step(params, state):
        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, loss

    state, losses = optimizer.init(params), []
    for _ in range(60):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    assert losses[0] == pytest.approx(np.log(2) + np.log(3), rel=1e-3)
    assert losses[-1] < 0.1 * losses[0]


def test_attributes_and_the_mark_of_stress_shift_how_long_words_last():
    model, text = ARModel(tiny(timing="aligned"), rngs=nnx.Rngs(0)), 'Stress "not" slowly: "Do not go"'
    row = TOKENIZER.encode(text)
    start = text.rindex("not")
    model.duration_shift[8, 7] = 100.0  # slow speech: seven half frames
    model.duration_shift[-1, 20] = 300.0  # a stressed word: twenty
    tokens, segments = jnp.asarray(row)[None], jnp.ones((1, len(row)), jnp.int32)
    rows, none = model.embed_text(tokens, segments), jnp.zeros((1, len(row), len(STYLE_CLASSES)), jnp.int32)
    slow = none.at[..., list(STYLE_CLASSES).index("speed")].set(STYLE_CLASSES["speed"].index("slow") + 1)

    def lasts(known):
        style = model.read_style(rows, tokens, segments, known)
        return np.asarray(model.duration_logits(rows, tokens, style).argmax(-1))[0]

    stressed = (np.arange(len(row)) >= start) & (np.arange(len(row)) < start + 3)
    found = lasts(slow)
    assert (found[stressed] == 20).all()
    assert (found[~stressed] == 7).all()
    plain = np.asarray(model.duration_head(rows.astype(jnp.float32)).argmax(-1))[0]
    others = lasts(none.at[..., -1].set(2))
    np.testing.assert_array_equal(others[~stressed], plain[~stressed])


def tiny(**settings):
    config = ARConfig.tiny(vocabulary=Vocabulary(num_codebooks=2), channel_sizes=TOKENIZER.channel_sizes)
    return dataclasses.replace(config, style_reader=True, **settings)


def test_a_model_that_cannot_tell_quotes_has_no_reader():
    with pytest.raises(ConfigError, match="style_reader: needs text_form 'instruction', here 'content'"):
        tiny(text_form="content")
    subwords = ARConfig.tiny(vocabulary=Vocabulary(), channel_sizes=(250112,))
    with pytest.raises(ConfigError, match="which tells what is in quotes"):
        dataclasses.replace(subwords, style_reader=True)
