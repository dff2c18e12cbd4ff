import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from voxinstruct_jax.config import ConfigError, InputError
from voxinstruct_jax.models.nar import NARConfig, NARModel
from voxinstruct_jax.vocabulary import ACOUSTIC, SEMANTIC, TEXT, Vocabulary

VOCABULARY = Vocabulary(num_semantic=9, codebook_size=6, num_codebooks=3)
CONFIG = NARConfig.tiny(vocabulary=VOCABULARY, channel_sizes=(11, 7))


@functools.partial(jax.jit, static_argnums=0)
def run(graph, state, batch, codebook, drop_text, key):
    return nnx.merge(graph, state)(batch, codebook, drop_text, key=key)


@pytest.fixture(scope="module")
def model(build):
    return build(NARModel, CONFIG)


@pytest.fixture(scope="module")
def forward(model):
    def forward(batch, *, codebook=(2, 2), drop_text=False, key=None):
        drop_text = jnp.full(batch.segment_ids.shape, drop_text)
        return np.asarray(run(*nnx.split(model), batch, jnp.array(codebook), drop_text, key))

    return forward


def edit(batch, field, place, value):
    return dataclasses.replace(batch, **{field: getattr(batch, field).at[place].set(value)})


def test_paper_size():
    """The original trains 224,201,728 weights, 1530 x 1024 of them in a table that it never reads."""
    model = nnx.eval_shape(lambda: NARModel(NARConfig.paper(), rngs=nnx.Rngs(0)))
    trained = sum(math.prod(x.shape) for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert trained == 222_635_008 == 224_201_728 - 1530 * 1024
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        assert len(variable.get_metadata()["out_sharding"]) == len(variable.shape), path


def test_small_models_keep_to_the_release_limits():
    config = NARConfig.small(vocabulary=Vocabulary(), channel_sizes=(512, 128))
    model = nnx.eval_shape(lambda: NARModel(config, rngs=nnx.Rngs(0)))
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(nnx.state(model))) <= 20_000_000


def test_logits_cover_the_classes_of_a_head(forward, separate):
    assert forward(separate).shape == (2, 40, 6 + 3)


def test_late_edit_changes_an_early_output(forward, separate, clips):
    last = clips[0].length - 2
    edited = edit(separate, "tokens", (0, 0, last), VOCABULARY.acoustic_offset + 5)
    edited = edit(edited, "tokens", (0, 1, last), VOCABULARY.acoustic_offset + 1)
    moved = np.abs(forward(edited) - forward(separate)).max(axis=-1)
    assert (moved[0, : clips[0].length] > 1e-4).all()
    assert (moved[1] == 0).all()


def test_packed_clips_equal_separate_ones(forward, separate, packed, clips):
    alone, together = forward(separate), forward(packed)
    first, second = (clip.length for clip in clips)
    np.testing.assert_allclose(together[0, :first], alone[0, :first], atol=1e-4)
    np.testing.assert_allclose(together[0, first : first + second], alone[1, :second], atol=1e-4)
    np.testing.assert_allclose(together[1, second : first + second], alone[0, :first], atol=1e-4)


@pytest.fixture(scope="module")
def aligned_forward(build):
    model = build(NARModel, dataclasses.replace(CONFIG, timing="aligned"))

    def forward(batch):
        nowhere = jnp.zeros(batch.segment_ids.shape, bool)
        return np.asarray(run(*nnx.split(model), batch, jnp.array((2, 2)), nowhere, None))

    return forward


def test_aligned_models_go_by_times(aligned_forward, separate, packed, clips):
    with pytest.raises(InputError, match="an aligned model needs times"):
        aligned_forward(dataclasses.replace(separate, times=None))
    alone, together = aligned_forward(separate), aligned_forward(packed)
    first, second = (clip.length for clip in clips)
    np.testing.assert_allclose(together[0, :first], alone[0, :first], atol=1e-4)
    np.testing.assert_allclose(together[0, first : first + second], alone[1, :second], atol=1e-4)
    moved = aligned_forward(dataclasses.replace(separate, times=separate.times - 11.75))
    np.testing.assert_allclose(moved[0, :first], alone[0, :first], atol=1e-3)
    parted = aligned_forward(edit(separate, "times", (0, slice(0, 4)), separate.times[0, :4] + 1.5))
    assert np.abs(parted - alone)[0, :first].max(axis=-1).min() > 3e-3
    turned = aligned_forward(dataclasses.replace(separate, positions=separate.positions[:, ::-1]))
    np.testing.assert_array_equal(turned, alone)


NEARBY = dataclasses.replace(CONFIG, timing="aligned", nearby_frames=2)


@pytest.fixture(scope="module")
def nearby(build):
    """The module alone, with weights large enough to show."""
    model = build(NARModel, NEARBY)
    part = model.nearby
    for kernel in (part.up.kernel, part.down.kernel):
        kernel.set_value(20 * kernel[...])
    return lambda x, batch: np.asarray(part(x, batch.part_ids, batch.segment_ids))


def test_frames_read_those_nearby_and_their_own_semantic_token(nearby, row_of):
    """Clips of 4 text, 6 semantic (BOS, LANG, 3 units, EOS1) and 4 acoustic slots (3 frames, EOS2)."""
    batch = row_of(2, 3, 3)
    x = jax.random.normal(jax.random.key(0), (1, batch.part_ids.shape[1], 32))
    before = nearby(x, batch)
    acoustic = np.asarray(batch.part_ids == ACOUSTIC)
    assert (before[~acoustic] == 0).all()
    assert (np.abs(before[acoustic]).max(-1) > 0).all()
    for slot, reached in {
        6: {10}, 7: {11}, 8: {12}, 9: {13},  # three units, then EOS1 with EOS2
        5: set(), 4: set(), 0: set(),  # language, BOS, text
        10: {10, 11, 12}, 13: {11, 12, 13}, 24: {24, 25, 26}, 20: {24},
    }.items():  # fmt: skip
        moved = np.abs(nearby(x.at[0, slot].add(1.0), batch) - before)[0].max(-1) > 1e-6
        assert set(np.flatnonzero(moved)) == reached, slot


def test_a_voice_prompt_without_semantic_tokens_does_not_shift_those_of_the_clip(nearby, row_of):
    """Two prompt frames ahead of three own ones: the units belong to the last three."""
    batch = row_of(1, 3, 5)
    x = jax.random.normal(jax.random.key(0), (1, batch.part_ids.shape[1], 32))
    for slot, reached in {6: {12}, 7: {13}, 8: {14}}.items():
        moved = np.abs(nearby(x.at[0, slot].add(1.0), batch) - nearby(x, batch))[0].max(-1) > 1e-6
        assert set(np.flatnonzero(moved)) == reached


def test_nearby_frames_hold_for_packed_clips_too(build, separate, packed, clips):
    model = build(NARModel, NEARBY)

    def forward(batch):
        nowhere = jnp.zeros(batch.segment_ids.shape, bool)
        return np.asarray(run(*nnx.split(model), batch, jnp.array((2, 2)), nowhere, None))

    alone, together = forward(separate), forward(packed)
    first, second = (clip.length for clip in clips)
    np.testing.assert_allclose(together[0, :first], alone[0, :first], atol=1e-4)
    np.testing.assert_allclose(together[0, first : first + second], alone[1, :second], atol=1e-4)


@pytest.mark.parametrize("changes", [{"timing": "sequence"}, {"nearby_frames": -1}])
def test_nearby_frames_need_aligned_timing(changes):
    with pytest.raises(ConfigError, match=r"nearby_frames: .*timing 'aligned'"):
        dataclasses.replace(NEARBY, **changes)


def test_every_codebook_is_read(forward, separate):
    for codebook in range(3):
        edited = edit(separate, "tokens", (0, codebook, 10), VOCABULARY.eos1)
        assert np.abs(forward(edited) - forward(separate))[0].max() > 1e-3, codebook


def test_rows_may_ask_for_different_codebooks(forward, separate):
    mixed, low, high = (forward(separate, codebook=c) for c in ((1, 2), (1, 1), (2, 2)))
    np.testing.assert_allclose(mixed[0], low[0], atol=1e-5)
    np.testing.assert_allclose(mixed[1], high[1], atol=1e-5)
    assert np.abs(low[0] - high[0]).max() > 1e-2


def test_without_text_its_content_does_not_matter(forward, separate):
    edited = edit(separate, "text_tokens", (0, 1), 5)
    np.testing.assert_array_equal(forward(separate, drop_text=True)[0], forward(edited, drop_text=True)[0])
    assert np.abs(forward(separate)[0] - forward(edited)[0]).max() > 1e-3


def test_embedding_is_the_sum_of_its_parts(model):
    """Codebook tables are summed; the codebook asked for is added to audio only; masked tokens add nothing."""
    tokens = jnp.array([[[0, 5, 11], [0, 5, 0], [0, 5, 0]]])
    parts = jnp.array([[TEXT, SEMANTIC, ACOUSTIC]])
    x = np.asarray(model.embed(tokens, parts, jnp.full((1, 3, 32), 7.0), jnp.array([2]))[0])
    tables = np.asarray(model.token_embedding.table[...]).reshape(3, VOCABULARY.size, 32)
    part_rows, asked = np.asarray(model.part_embedding[...]), np.asarray(model.codebook_embedding[...])[1]
    np.testing.assert_allclose(x[0], 7 + part_rows[TEXT], atol=1e-5)
    np.testing.assert_allclose(x[1], tables[:, 5].sum(axis=0) + asked + part_rows[SEMANTIC], atol=1e-5)
    np.testing.assert_allclose(x[2], tables[0, 11] + asked + part_rows[ACOUSTIC], atol=1e-5)


def test_dropout_follows_its_key(forward, separate):
    first, again, other = (forward(separate, key=jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_a_single_codebook_is_refused():
    with pytest.raises(ConfigError, match="num_codebooks: 1"):
        dataclasses.replace(CONFIG, vocabulary=Vocabulary(num_codebooks=1))
