"""Attention, masks, norms, rotary positions, dropout, linear maps and token tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from voxinstruct_jax.layers import attention
from voxinstruct_jax.layers.attention import attend, segment_mask
from voxinstruct_jax.layers.dense import FEW_ROWS, Dense, TokenEmbedding, cast_kernels, put_outputs_first
from voxinstruct_jax.layers.dropout import dropout, split_key
from voxinstruct_jax.layers.norms import RMSNorm
from voxinstruct_jax.layers.packed_attention import TextRows, Visibility, visibility_mask
from voxinstruct_jax.layers.parameter import FrozenParam, freeze, normal
from voxinstruct_jax.layers.rotary import rotary_tables, rotate

RANDOM = np.random.default_rng(0)


def draw(*shape):
    return jnp.asarray(RANDOM.standard_normal(shape), jnp.float32)


def attend_by_loops(query, key, value, mask, bias=None):
    """The formula in float64, one query and head at a time."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    result = np.zeros_like(query)
    group = query.shape[2] // key.shape[2]
    for b, t, n in np.ndindex(query.shape[:3]):
        scores = key[b, :, n // group] @ query[b, t, n] / np.sqrt(query.shape[-1])
        scores = scores if bias is None else scores + np.asarray(bias)[0, n, t]
        weights = np.where(mask[b, t], np.exp(scores), 0)
        result[b, t, n] = weights / weights.sum() @ value[b, :, n // group]
    return result


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_equals_the_formula(kv_heads):
    query, key, value = draw(2, 3, 4, 8), draw(2, 5, kv_heads, 8), draw(2, 5, kv_heads, 8)
    mask = jnp.asarray(RANDOM.random((2, 3, 5)) < 0.6).at[:, :, 0].set(True)
    bias = draw(1, 4, 3, 5)
    np.testing.assert_allclose(attend(query, key, value, mask), attend_by_loops(query, key, value, mask), atol=1e-5)
    expected = attend_by_loops(query, key, value, mask, bias)
    np.testing.assert_allclose(attend(query, key, value, mask, bias=bias), expected, atol=1e-5)


def test_attention_head_by_head_equals_all_heads_at_once(monkeypatch):
    """What a CPU does with many scores; two query heads share a key head."""
    query, key, value = draw(2, 7, 4, 8), draw(2, 5, 2, 8), draw(2, 5, 2, 8)
    mask = jnp.asarray(RANDOM.random((2, 7, 5)) < 0.6).at[:, :, 0].set(True)
    at_once = attend(query, key, value, mask)
    monkeypatch.setattr(attention, "MANY_SCORES", 0)
    one_by_one = attend(query, key, value, mask)
    assert "while" in jax.jit(attend).lower(query, key, value, mask).as_text()
    np.testing.assert_allclose(one_by_one, at_once, atol=1e-6)
    np.testing.assert_allclose(one_by_one, attend_by_loops(query, key, value, mask), atol=1e-5)
    from_cache = attention.attend_to_cache(query, key.swapaxes(1, 2), value.swapaxes(1, 2), mask)
    np.testing.assert_array_equal(from_cache, one_by_one)


def test_hidden_keys_never_matter_even_when_not_finite_scores():
    query, key, value = draw(1, 2, 2, 4), draw(1, 3, 2, 4), draw(1, 3, 2, 4)
    mask = jnp.array([[[True, True, False], [False, False, False]]])
    loud = attend(query, key.at[:, 2].set(1e20), value.at[:, 2].set(7.0), mask)
    np.testing.assert_array_equal(loud[:, 0], attend(query, key, value, mask)[:, 0])
    assert jnp.isfinite(loud).all(), "a query that sees nothing must not give NaN"


def test_attention_keeps_its_softmax_in_float32():
    # Scores 40 and 40.1: bfloat16 rounds both to 40, and the weights would be equal.
    query = jnp.full((1, 1, 1, 4), 10.0, jnp.bfloat16)
    key = jnp.stack([jnp.full((1, 4), 2.0), jnp.array([[2.0, 2.0, 2.0, 2.0156250]])])[None].astype(jnp.bfloat16)
    value = jnp.array([[[[0.0] * 4], [[1.0] * 4]]], jnp.bfloat16)
    share = float(attend(query, key, value, jnp.ones((1, 1, 2), bool))[0, 0, 0, 0])
    assert share == pytest.approx(1 / (1 + np.exp(-0.078125)), abs=2e-3)


def test_dropout_of_attention_keeps_the_mean():
    value = jnp.ones((1, 400, 1, 2))
    query, key, mask = jnp.zeros((1, 50, 1, 2)), jnp.zeros((1, 400, 1, 2)), jnp.ones((1, 50, 400), bool)
    dropped = attend(query, key, value, mask, dropout_rate=0.25, dropout_key=jax.random.key(0))
    assert float(dropped.mean()) == pytest.approx(1, abs=0.02)
    assert float(dropped.std()) > 0.01


def test_segment_mask_by_hand():
    mask = segment_mask(jnp.array([[1, 1, 2, 0]]))[0].astype(int)
    assert mask.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_visibility_by_hand():
    """Two clips: text text audio, then text audio, then padding."""
    segments, is_text = jnp.array([[1, 1, 1, 2, 2, 0]]), jnp.array([[True, True, False, True, False, False]])
    text = TextRows(is_text=is_text, index=jnp.array([[0, 1, 0, 2, 0, 0]]), segment_ids=jnp.array([[1, 1, 2, 0]]))
    both = [[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, 1, 1, 0], [0] * 6]
    causal = [[1, 0, 0, 0, 0, 0], *both[1:]]
    seen = visibility_mask(Visibility(segment_ids=segments, causal=True, text=text))
    assert seen[0].astype(int).tolist() == both
    assert visibility_mask(Visibility(segment_ids=segments, causal=True))[0].astype(int).tolist() == causal
    assert text.slots()[0, :3].tolist() == [0, 1, 3]


def test_rms_norm_by_hand():
    norm = RMSNorm(2)
    norm.weight[...] = jnp.array([1.0, 2.0])
    # Mean square of (3, 4) is 12.5.
    np.testing.assert_allclose(norm(jnp.array([[3.0, 4.0]])), [[3 / 12.5**0.5, 8 / 12.5**0.5]], rtol=1e-6)
    np.testing.assert_allclose(norm(jnp.zeros((1, 2))), [[0, 0]])
    assert norm(jnp.ones((1, 2), jnp.bfloat16)).dtype == jnp.bfloat16


def test_rotary_by_hand():
    """Head of 4: pairs (0, 2) and (1, 3), turned by position x 1 and position x 1/100."""
    cos, sin = rotary_tables(jnp.array([[0, 3]]), 4, 10000.0)
    turned = rotate(jnp.tile(jnp.array([1.0, 2.0, 5.0, 7.0]), (1, 2, 1, 1)), cos, sin)
    np.testing.assert_allclose(turned[0, 0, 0], [1, 2, 5, 7])
    expected = [
        np.cos(3) - 5 * np.sin(3),
        2 * np.cos(0.03) - 7 * np.sin(0.03),
        5 * np.cos(3) + np.sin(3),
        7 * np.cos(0.03) + 2 * np.sin(0.03),
    ]
    np.testing.assert_allclose(turned[0, 1, 0], expected, rtol=1e-5)


def test_rotary_positions_may_lie_between_whole_ones():
    """A moment of an aligned model: the angle is the position times the frequency, rounded to nothing."""
    cos, sin = rotary_tables(jnp.array([[-1.5, 0.25, 7.75]]), 4, 10000.0)
    angles = np.outer([-1.5, 0.25, 7.75], [1, 0.01])
    np.testing.assert_allclose(cos[0], np.cos(angles), atol=1e-6)
    np.testing.assert_allclose(sin[0], np.sin(angles), atol=1e-6)


def test_rotary_products_depend_on_distance_only():
    query, key = draw(1, 1, 1, 8), draw(1, 1, 1, 8)

    def product(query_position, key_position):
        tables = [rotary_tables(jnp.array([[p]]), 8, 10000.0) for p in (query_position, key_position)]
        return float((rotate(query, *tables[0]) * rotate(key, *tables[1])).sum())

    assert product(7, 3) == pytest.approx(product(104, 100), abs=1e-4)
    assert product(7, 3) != pytest.approx(product(3, 7), abs=1e-2)


def test_dropout_needs_a_key():
    x = draw(1000)
    assert dropout(x, 0.5, None) is x
    dropped = dropout(x, 0.5, jax.random.key(1))
    assert 400 < int((dropped == 0).sum()) < 600
    np.testing.assert_allclose(dropped[dropped != 0], 2 * x[dropped != 0])
    assert split_key(None, 3) == [None] * 3
    assert len({tuple(jax.random.key_data(k).tolist()) for k in split_key(jax.random.key(0), 3)}) == 3


def test_dense_sums_over_its_input_axes():
    dense = Dense((2, 3), (4,), (None, None, "embed"), init=normal(1.0), rngs=nnx.Rngs(0))
    x = draw(5, 2, 3)
    expected = np.asarray(x).reshape(5, 6) @ np.asarray(dense.kernel[...]).reshape(6, 4)
    np.testing.assert_allclose(dense(x), expected, rtol=1e-5, atol=1e-6)


def test_token_tables_are_summed_and_their_padding_is_zero():
    embedding = TokenEmbedding((3, 5), 2, rngs=nnx.Rngs(0))
    table = jnp.arange(16.0).reshape(8, 2)
    embedding.table[...] = table  # row 0 of each table is not zero here: the lookup must not read it
    rows = embedding(jnp.array([[2, 4], [0, 1], [0, 0]]))
    np.testing.assert_array_equal(rows, [table[2] + table[3 + 4], table[3 + 1], [0, 0]])


def test_padding_rows_get_no_gradient():
    embedding = TokenEmbedding((3, 5), 2, rngs=nnx.Rngs(0))
    assert not embedding.table[...][jnp.array([0, 3])].any()
    tokens = jnp.array([[0, 4], [2, 0], [0, 0]])
    grads = nnx.grad(lambda module: (module(tokens) * draw(3, 2)).sum())(embedding)
    used = np.asarray(jnp.abs(jax.tree.leaves(grads)[0]).sum(axis=1) > 0)
    assert np.flatnonzero(used).tolist() == [2, 3 + 4]


def test_freezing_takes_weights_out_of_the_gradient_and_keeps_their_axes():
    module = nnx.List([Dense((2,), (3,), ("embed", "mlp"), init=normal(1.0), rngs=nnx.Rngs(0))])
    kernel = np.asarray(module[0].kernel[...])
    freeze(module)
    assert jax.tree.leaves(nnx.state(module, nnx.Param)) == []
    assert isinstance(module[0].kernel, FrozenParam)
    assert module[0].kernel.get_metadata()["out_sharding"] == ("embed", "mlp")
    np.testing.assert_array_equal(module[0].kernel[...], kernel)


@pytest.mark.parametrize("rows", [1, FEW_ROWS + 1])
@pytest.mark.parametrize(("inputs", "outputs"), [((6,), (2, 4)), ((2, 4), (6,)), ((6,), (5,))])
def test_outputs_first_changes_the_kernel_and_not_the_map(inputs, outputs, rows):
    dense = Dense(inputs, outputs, (None,) * (len(inputs) + len(outputs)), init=normal(1.0), rngs=nnx.Rngs(0))
    x = draw(rows, 1, *inputs)
    before = dense(x)
    put_outputs_first(dense)
    assert dense.kernel.shape == (*outputs, *inputs)
    np.testing.assert_allclose(dense(x), before, atol=1e-5)
    put_outputs_first(dense)
    assert dense.kernel.shape == (*outputs, *inputs), "it is turned once"


def test_kernels_can_be_kept_in_less_than_they_compute_in():
    dense = Dense((64,), (32,), ("embed", "mlp"), init=normal(1.0), rngs=nnx.Rngs(0))
    x, metadata = draw(3, 64), dense.kernel.get_metadata()
    before = dense(x)
    cast_kernels(dense, "bfloat16")
    assert dense.kernel.dtype == jnp.bfloat16
    assert dense.kernel.get_metadata() == metadata
    assert dense(x).dtype == jnp.float32
    drift = float(jnp.abs(dense(x) - before).max() / jnp.abs(before).max())
    assert 0 < drift < 2**-7
