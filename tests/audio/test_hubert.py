import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from voxinstruct_jax.audio.hubert import Hubert, HubertConfig, HubertFeatures
from voxinstruct_jax.audio.semantic import FeatureSource, SemanticUnits
from voxinstruct_jax.config import ConfigError, InputError
from voxinstruct_jax.interop.hubert import hubert_keys
from voxinstruct_jax.interop.keys import import_module

TINY = HubertConfig(conv_dims=(32,) * 7, model_dim=48, num_layers=3, num_heads=4, ffn_dim=96, position_groups=4)
LIMIT = 1e-4


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parents[1] / "golden" / "hubert_tiny.npz") as arrays:
        return dict(arrays)


def build(golden, dtype="float32"):
    weights = {key.removeprefix("w/"): array for key, array in golden.items() if key.startswith("w/")}
    return import_module(
        lambda: Hubert(TINY, dtype=dtype, rngs=nnx.Rngs(0)), hubert_keys(TINY), weights, source="golden"
    )


@pytest.fixture(scope="module")
def hubert(golden):
    return build(golden)


@pytest.fixture(autouse=True)
def _exact_products():
    with jax.default_matmul_precision("highest"):
        yield


def encode(model, samples, layer, lengths=None):
    return np.asarray(model(samples, layer, lengths=lengths), np.float32)


def error(found, expected):
    """Largest difference, as a share of the largest value."""
    assert found.shape == expected.shape
    return np.abs(found - expected).max() / np.abs(expected).max()


def test_every_part_equals_the_original(golden, hubert):
    samples = jnp.asarray(golden["wave_16k"])
    frames = hubert.front_end(samples, jnp.full(2, samples.shape[1]))
    assert error(np.asarray(frames).transpose(0, 2, 1), golden["conv_features"]) < LIMIT
    projected = hubert.projection(hubert.channel_norm(frames))
    assert error(projected, golden["feature_projection"]) < LIMIT
    places = jax.nn.gelu(hubert.position(projected), approximate=False)
    assert error(places, golden["pos_conv"]) < LIMIT
    kernel = np.asarray(hubert.position.kernel[...]).transpose(2, 1, 0)
    assert error(kernel, golden["pos_conv_folded_weight"]) < 1e-6


@pytest.mark.parametrize("layer", range(4))
def test_each_layer_equals_the_original(golden, hubert, layer):
    assert error(encode(hubert, golden["wave_16k"], layer), golden[f"hidden_{layer}"]) < LIMIT


def test_units_of_a_layer_equal_the_original(golden, hubert):
    units = SemanticUnits(jnp.asarray(golden["kmeans_centroids"]), "golden")
    found = [units.assign(row) for row in encode(hubert, golden["wave_16k"], 2)]
    np.testing.assert_array_equal(found, golden["kmeans_labels_hidden2"])


def test_bfloat16_stays_near_float32(golden):
    """Measured of hidden 0 to 3: 1.3, 2.1, 2.1 and 1.5 % of the largest value; 8 bits a number, many roundings."""
    low = build(golden, "bfloat16")
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(nnx.state(low)))
    hidden = low(golden["wave_16k"], 3)
    assert hidden.dtype == jnp.bfloat16
    assert error(np.asarray(hidden, np.float32), golden["hidden_3"]) < 0.05


def test_samples_keep_float32_in_bfloat16(golden):
    """A constant far above the signal would round its detail away, and the first norm would blow up what is left."""
    low, samples = build(golden, "bfloat16"), golden["wave_16k"]
    shifted = encode(low, samples + 100 * np.abs(samples).max(), 0)
    assert error(shifted, golden["hidden_0"]) < 0.05


@pytest.mark.parametrize("lengths", [[6000, 5000], [400, 720]])
def test_rows_filled_up_give_what_they_give_alone(golden, hubert, lengths):
    samples = np.full((2, 6000), 7.0, np.float32)  # what stands behind a row must not matter
    for row, length in enumerate(lengths):
        samples[row, :length] = golden["wave_16k"][row, :length]
    together = encode(hubert, samples, 3, np.array(lengths))
    assert np.isfinite(together).all()
    for row, length in enumerate(lengths):
        frames = TINY.num_frames(length)
        alone = encode(hubert, samples[row : row + 1, :length], 3)
        assert alone.shape == (1, frames, 48)
        assert error(together[row : row + 1, :frames], alone) < 1e-5


def test_frames_are_counted_as_in_the_original():
    base = HubertConfig()
    counts = {399: 0, 400: 1, 719: 1, 720: 2, 16_000: 49, 80_000: 249, 1: 0, 0: 0}
    assert {samples: base.num_frames(samples) for samples in counts} == counts
    assert base.min_samples == 400


def test_too_little_sound_is_refused_with_what_is_needed(hubert):
    with pytest.raises(InputError, match="399 samples are too short for HuBERT; give at least 400"):
        hubert(jnp.zeros((1, 399)), 1)
    for samples in (0, 1, 399):
        with pytest.raises(InputError, match=f"{samples} samples are too short"):
            HubertFeatures(hubert, 1).features(np.zeros(samples, np.float32))


def test_silence_gives_finite_features(hubert):
    assert np.isfinite(HubertFeatures(hubert, 3).features(np.zeros(4000, np.float32))).all()


def test_features_of_any_length_equal_the_plain_call(golden, hubert):
    source, samples = HubertFeatures(hubert, 2), golden["wave_16k"][0]
    assert isinstance(source, FeatureSource)
    assert source.name == "hubert-3x48-layer2"
    for length in (400, 5999, 6000):
        found = source.features(samples[:length])
        assert found.dtype == np.float32
        assert error(found[None], encode(hubert, samples[None, :length], 2)) < 1e-5


def test_jax_arrays_are_taken_too(golden, hubert):
    assert error(np.asarray(hubert(jnp.asarray(golden["wave_16k"]), layer=1)), golden["hidden_1"]) < LIMIT


@pytest.mark.parametrize("layer", [-1, 4])
def test_a_layer_that_is_not_there_is_refused(hubert, layer):
    with pytest.raises(InputError, match=f"layers 0 to 3, not {layer}"):
        HubertFeatures(hubert, layer)


def test_blocks_above_the_layer_do_not_run(golden, hubert):
    broken = nnx.clone(hubert)
    broken.blocks[2].project.bias[...] = jnp.full(48, jnp.nan)
    assert np.isfinite(encode(broken, golden["wave_16k"], 2)).all()
    assert np.isnan(encode(broken, golden["wave_16k"], 3)).all()


@pytest.mark.parametrize(
    "change",
    [{"num_heads": 5}, {"conv_dims": (32,)}, {"num_layers": 0}, {"position_groups": 7}],
)
def test_impossible_sizes_are_refused(change):
    with pytest.raises(ConfigError, match="hubert"):
        dataclasses.replace(TINY, **change)
