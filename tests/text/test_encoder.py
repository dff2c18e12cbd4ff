import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.layers.parameter import LoRAParam
from voxinstruct_jax.text.encoder import LoRADense, TextEncoder, TextEncoderConfig, relative_buckets

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = TextEncoderConfig.tiny((11, 7))


encode = nnx.jit(lambda encoder, tokens, segments, key=None: encoder(tokens, segments, key=key))


def build(config, dtype="float32"):
    """Filled from NumPy: no program to compile."""
    graph, state = nnx.split(nnx.eval_shape(lambda: TextEncoder(config, dtype=dtype, rngs=nnx.Rngs(0))))
    random = np.random.default_rng(0)

    def fill(leaf):
        return jnp.asarray(random.standard_normal(leaf.shape) * 0.2 + (leaf.ndim == 1), jnp.float32)

    return nnx.merge(graph, jax.tree.map(fill, state))


@pytest.fixture(scope="module")
def encoder():
    return build(TINY)


@pytest.fixture(scope="module")
def original():
    with np.load(GOLDEN / "mt5_tiny.npz") as arrays:
        return dict(arrays)


def encoder_from_original(arrays):
    """Our encoder with the weights of a small mT5 (48 wide, 3 layers, 4 heads of 8)."""
    config = TextEncoderConfig(channel_sizes=(60,), model_dim=48, num_layers=3, num_heads=4, head_dim=8, ffn_dim=96)
    encoder = build(config)
    pairs = [
        (encoder.embedding.table, arrays["w/shared.weight"]),
        (encoder.norm.weight, arrays["w/encoder.final_layer_norm.weight"]),
        (encoder.relative_bias, arrays["w/encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]),
    ]
    for i, block in enumerate(encoder.blocks):
        prefix = f"w/encoder.block.{i}.layer"
        heads = {name: arrays[f"{prefix}.0.SelfAttention.{name}.weight"].T for name in "qkvo"}
        pairs += [
            (block.attention_norm.weight, arrays[f"{prefix}.0.layer_norm.weight"]),
            (block.ffn_norm.weight, arrays[f"{prefix}.1.layer_norm.weight"]),
            (block.attention.query.base.kernel, heads["q"].reshape(48, 4, 8)),
            (block.attention.key.kernel, heads["k"].reshape(48, 4, 8)),
            (block.attention.value.base.kernel, heads["v"].reshape(48, 4, 8)),
            (block.attention.output.kernel, heads["o"].reshape(4, 8, 48)),
            (block.ffn.gate.kernel, arrays[f"{prefix}.1.DenseReluDense.wi_0.weight"].T),
            (block.ffn.up.kernel, arrays[f"{prefix}.1.DenseReluDense.wi_1.weight"].T),
            (block.ffn.output.kernel, arrays[f"{prefix}.1.DenseReluDense.wo.weight"].T),
        ]
    for param, value in pairs:
        assert param.shape == value.shape
        param[...] = jnp.asarray(value)
    return encoder


def test_encoder_equals_mt5(original):
    """200 tokens, the second row 37: far buckets and padding both count."""
    ids, valid = original["input_ids"], original["attention_mask"].astype(bool)
    encoded = encode(encoder_from_original(original), jnp.asarray(ids)[..., None], jnp.asarray(valid, jnp.int32))
    np.testing.assert_allclose(np.asarray(encoded)[valid], original["last_hidden_state"][valid], atol=1e-4)


def test_relative_buckets_equal_mt5(original):
    distances, expected = original["relative_positions"], original["relative_buckets"]
    buckets = relative_buckets(201, 32, 128)
    ours = [buckets[200, 200 + r] if r <= 0 else buckets[0, r] for r in distances]
    np.testing.assert_array_equal(ours, expected)


def test_packed_texts_do_not_see_one_another(encoder):
    random = np.random.default_rng(0)
    first, second = random.integers(1, 7, (1, 5, 2)), random.integers(1, 7, (1, 4, 2))
    packed_tokens = np.concatenate([first, second, np.zeros((1, 3, 2), int)], axis=1)
    packed = encode(encoder, jnp.asarray(packed_tokens), jnp.array([[1] * 5 + [2] * 4 + [0] * 3]))
    alone = [encode(encoder, jnp.asarray(tokens), jnp.ones(tokens.shape[:2], jnp.int32)) for tokens in (first, second)]
    np.testing.assert_allclose(packed[:, :5], alone[0], atol=1e-5)
    np.testing.assert_allclose(packed[:, 5:9], alone[1], atol=1e-5)
    assert jnp.isfinite(packed).all()


def test_an_empty_channel_adds_nothing(encoder):
    """With id 0 throughout, what the second channel's table holds never shows."""
    tokens, segments = jnp.array([[[3, 0], [9, 0]]]), jnp.ones((1, 2), jnp.int32)
    other = nnx.clone(encoder)
    other.embedding.table[...] = other.embedding.table[...].at[11:].add(1.0)
    np.testing.assert_array_equal(encode(other, tokens, segments), encode(encoder, tokens, segments))
    spoken = tokens.at[0, 1, 1].set(5)
    assert float(jnp.abs(encode(other, spoken, segments) - encode(encoder, spoken, segments)).max()) > 1e-3


def test_only_adapters_train_where_there_are_any():
    config = dataclasses.replace(TINY, lora_rank=2)
    encoder = nnx.eval_shape(lambda: TextEncoder(config, rngs=nnx.Rngs(0)))
    trained = nnx.state(encoder, nnx.Param)
    # Two layers, queries and values: A is 32 x 2, B is 2 x 4 x 8.
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(trained)) == 2 * 2 * (32 * 2 + 2 * 32)
    assert jax.tree.structure(trained) == jax.tree.structure(nnx.state(encoder, LoRAParam))


def test_adapters_start_at_the_base_and_then_add_their_product():
    config = dataclasses.replace(TINY, lora_rank=2, lora_alpha=8.0)
    query = LoRADense(config, (4, 8), stddev=1.0, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 3, 32)), jnp.float32)
    np.testing.assert_array_equal(query(x, None), query.base(x))
    query.up[...] = jnp.ones((2, 4, 8))
    expected = query.base(x) + 4 * (x @ query.down[...]).sum(axis=-1)[..., None, None]
    np.testing.assert_allclose(query(x, None), expected, rtol=1e-4, atol=1e-5)


def test_dropout_follows_its_key(encoder):
    tokens, segments = jnp.full((1, 4, 2), 3), jnp.ones((1, 4), jnp.int32)
    first, again, other = (encode(encoder, tokens, segments, jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert float(jnp.abs(first - other).max()) > 1e-3


def test_bfloat16_stays_near_float32(encoder):
    low = build(TINY, dtype="bfloat16")
    tokens, segments = jnp.array([[[3, 1], [9, 2], [4, 4]]]), jnp.ones((1, 3), jnp.int32)
    encoded = encode(low, tokens, segments)
    assert encoded.dtype == jnp.bfloat16
    expected = encode(encoder, tokens, segments)
    # bfloat16 keeps 8 bits; errors of some ten roundings add up.
    assert float(jnp.abs(encoded - expected).mean()) < 0.05 * float(jnp.abs(expected).mean())
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(nnx.state(low)))


@pytest.mark.parametrize(
    "change", [{"num_heads": 0}, {"channel_sizes": ()}, {"num_buckets": 30}, {"dropout": 1.0}, {"lora_rank": -1}]
)
def test_impossible_sizes_are_refused(change):
    with pytest.raises(ConfigError, match="text_encoder"):
        dataclasses.replace(TINY, **change)
