"""Reads known evidence off texts whose classes follow from it, and checks who gets what was read."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from voxinstruct_jax.attributes import STYLE_CLASSES, class_numbers
from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.models.ar import ARConfig, ARModel
from voxinstruct_jax.models.style import Style, StyleReader, give_style, style_losses, surely_asked
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
from voxinstruct_jax.vocabulary import Vocabulary

DIM, CHANNELS = 8, (9, 5, 2, 6, 4)
"""Characters, two channels of phones, concepts, quotes."""
TOKENIZER = PronunciationTokenizer()


def random_reader(seed=0):
    """All weights drawn, those too that start as zero."""
    reader, random = StyleReader(CHANNELS, DIM, 24, rngs=nnx.Rngs(0)), np.random.default_rng(seed)
    for weight in (reader.evidence.kernel, reader.table, *(layer.down.kernel for layer in reader.phrases)):
        weight[...] = jnp.asarray(0.5 * random.standard_normal(weight.shape), jnp.float32)
    return reader


def random_text(*shape, seed=1):
    """Tokens, about half of them in quotes."""
    random = np.random.default_rng(seed)
    text = np.stack([random.integers(1, size, shape) for size in CHANNELS], axis=-1)
    text[..., 4] = np.where(random.random(shape) < 0.5, 1, 2)
    return text.astype(np.int32)


def run(reader, text, segments, known=None):
    batch = [jnp.asarray(part) for part in (text, segments)]
    return jax.jit(lambda *batch: reader(*batch))(*batch, *([] if known is None else [jnp.asarray(known)]))


def test_classes_are_numbered_in_their_order_and_what_is_not_known_is_zero():
    assert class_numbers({"gender": "male", "speed": "slow", "emotion": "sad"}).tolist() == [2, 0, 0, 1]
    assert class_numbers({"pitch": "shrill", "energy": "high"}).tolist() == [0, 0, 3, 0]
    assert class_numbers({"gender": ["male"]}).tolist() == [0, 0, 0, 0]


def test_an_untrained_reader_says_nothing():
    style = run(StyleReader(CHANNELS, DIM, 24, rngs=nnx.Rngs(0)), random_text(1, 5), np.ones((1, 5), np.int32))
    assert not np.asarray(style.vectors).any()
    np.testing.assert_allclose(np.ptp(style.logits, axis=-1), 0, atol=1e-5)


def test_a_clip_is_read_alike_alone_and_beside_another():
    reader, text = random_reader(), random_text(1, 9)
    both = run(reader, text, np.array([[1, 1, 1, 1, 2, 2, 2, 0, 0]], np.int32))
    one = run(reader, text[:, 4:7], np.ones((1, 3), np.int32))
    np.testing.assert_allclose(both.logits[:, 4:7], one.logits, atol=1e-4)
    np.testing.assert_allclose(both.vectors[:, 4:7], one.vectors, atol=1e-4)
    np.testing.assert_allclose(np.ptp(both.vectors[0, :4], axis=0), 0, atol=1e-5)  # one vector a clip
    assert np.abs(both.vectors[0, 0] - both.vectors[0, 4]).max() > 0.1
    assert not np.asarray(both.vectors[0, 7:]).any()


def test_content_is_no_evidence_and_a_bare_transcript_asks_for_nothing():
    reader, text, ones = random_reader(), random_text(2, 6), np.ones((2, 6), np.int32)
    text[..., 4] = [[1] * 3 + [2] * 3, [2] * 6]
    style = run(reader, text, ones)
    other = text.copy()
    other[0, 3:, :4] = random_text(3, seed=5)[:, :4]
    np.testing.assert_array_equal(run(reader, other, ones).logits, style.logits)
    np.testing.assert_allclose(np.ptp(style.logits[1, 0]), 0, atol=1e-5)
    table = np.split(np.asarray(reader.table[...]), np.cumsum([len(c) for c in STYLE_CLASSES.values()])[:-1])
    np.testing.assert_allclose(style.vectors[1, 0], sum(part.mean(axis=0) for part in table), atol=1e-5)


def test_a_concept_is_evidence_wherever_it_stands():
    """Without phrases: their last maps are still zero."""
    reader = StyleReader(CHANNELS, DIM, 24, rngs=nnx.Rngs(0))
    for part in (reader.characters, reader.concepts):
        part[...] = jnp.zeros_like(part[...])
    reader.concepts[...] = reader.concepts[...].at[3, 7].set(1.0)
    reader.evidence.kernel[...] = reader.evidence.kernel[...].at[7, 1].set(6.0)  # the second gender
    for place in (0, 7, 11):
        text = np.ones((1, 12, 5), np.int32)
        text[0, place, 3] = 3
        logits = run(reader, text, np.ones((1, 12), np.int32)).logits[0, 0]
        evidence = 10 * np.tanh(0.6)
        assert float(logits[1] - logits[0]) == pytest.approx(np.log((np.exp(evidence) + 11) / 12), rel=1e-4)
        assert np.ptp(logits[2:]) < 1e-5


def test_a_phrase_is_read_as_far_as_the_layers_reach():
    reader, text, ones = random_reader(), random_text(1, 200), np.ones((1, 200), np.int32)
    text[..., 4] = 2
    text[0, 100, 4] = 1  # one word outside of the quotes, whose evidence is all there is
    before = run(reader, text, ones).logits[0, 0]
    for place, heard in ((100 + 62, True), (100 - 62, True), (100 + 63, False), (100 - 63, False)):
        other = text.copy()
        other[0, place, 4] = 3  # a quote mark
        assert (np.abs(run(reader, other, ones).logits[0, 0] - before).max() > 1e-6) == heard


def test_what_is_known_counts_as_read():
    reader, text, ones = random_reader(), random_text(1, 2), np.ones((1, 2), np.int32)
    known = np.array([[[2, 0, -1, 1]] * 2], np.int32)
    free, told = (run(reader, text, ones, known=numbers) for numbers in (0 * known, known))
    np.testing.assert_array_equal(free.logits, told.logits)
    table = np.asarray(reader.table[...])
    logits = np.split(np.asarray(free.logits[0, 0]), [2, 5, 8])
    expected = table[1] + sum(jax.nn.softmax(part) @ table[a : a + 3] for part, a in ((logits[1], 2), (logits[2], 5)))
    np.testing.assert_allclose(told.vectors[0, 0], expected + table[8], atol=1e-4)
    assert np.abs(free.vectors - told.vectors).max() > 0.1


def test_only_what_is_read_surely_counts_as_asked():
    sizes = [len(classes) for classes in STYLE_CLASSES.values()]
    rows = [[0.55, 0.45], [0.2, 0.2, 0.6], [0.4, 0.3, 0.3], [0.51, 0.48, 0.01]]
    assert [len(row) for row in rows] == sizes
    probabilities = jnp.array(list(itertools.chain(*rows)))[None, None]
    style = Style(logits=jnp.log(probabilities), probabilities=probabilities, vectors=jnp.zeros((1, 1, DIM)))
    assert surely_asked(style)[0, 0].tolist() == [0, 3, 0, 1]


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


def test_what_is_not_asked_for_costs_least_where_no_class_is_read():
    asked = jnp.asarray([[[-1, 0, -1, 1]]])
    even, sure = (style_losses(logits[None, None], asked) for logits in (jnp.zeros(11), jnp.arange(11.0)))
    assert {name for name in even if even[name].told[0, 0]} == {"gender", "energy", "speed"}
    assert {name for name in even if even[name].known[0, 0]} == {"speed"}
    assert float(even["gender"].loss[0, 0]) == pytest.approx(np.log(2))
    assert float(even["energy"].loss[0, 0]) == pytest.approx(np.log(3))
    assert float(sure["energy"].loss[0, 0]) == pytest.approx(np.mean([2, 1, 0]) + np.log(sum(np.exp([0, -1, -2]))))
    assert not even["gender"].hit[0, 0]


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
        style = model.read_style(tokens, segments)
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
        style = model.read_style(tokens, segments, known)
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
