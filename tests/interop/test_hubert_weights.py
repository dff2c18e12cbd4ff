"""Files of HuBERT made by hand: the golden weights under every kind of names, whole and spoilt."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from voxinstruct_jax.audio.hubert import HubertConfig, HubertFeatures
from voxinstruct_jax.config import ConfigError, InputError
from voxinstruct_jax.interop.hubert import export_hubert, load_hubert, load_kmeans
from voxinstruct_jax.interop.keys import flat_weights
from voxinstruct_jax.interop.tensors import read_folder, write_safetensors

SETTINGS = {
    "model_type": "hubert",
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "conv_dim": [32] * 7,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 32,
}
NORM = "encoder.pos_conv_embed.conv.parametrizations.weight.original"


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parents[1] / "golden" / "hubert_tiny.npz") as arrays:
        return dict(arrays)


@pytest.fixture
def weights(golden):
    return {key.removeprefix("w/"): array for key, array in golden.items() if key.startswith("w/")}


def write_folder(folder, weights, **changes):
    write_safetensors(folder / "model.safetensors", weights)
    (folder / "config.json").write_text(json.dumps(SETTINGS | changes))
    return folder


def to_fairseq(key):
    """By hand, from the table of the two layouts."""
    parts = key.split(".")
    match parts:
        case ["masked_spec_embed"]:
            return "mask_emb"
        case ["feature_extractor", "conv_layers", number, kind, end]:
            return f"feature_extractor.conv_layers.{number}.{0 if kind == 'conv' else 2}.{end}"
        case ["feature_projection", "layer_norm", end]:
            return f"layer_norm.{end}"
        case ["feature_projection", "projection", end]:
            return f"post_extract_proj.{end}"
        case ["encoder", "pos_conv_embed", "conv", "parametrizations", "weight", end]:
            return f"encoder.pos_conv.0.{'weight_g' if end == 'original0' else 'weight_v'}"
        case ["encoder", "pos_conv_embed", "conv", "bias"]:
            return "encoder.pos_conv.0.bias"
        case ["encoder", "layers", number, "attention", *rest]:
            return ".".join(["encoder.layers", number, "self_attn", *rest])
        case ["encoder", "layers", number, "layer_norm", end]:
            return f"encoder.layers.{number}.self_attn_layer_norm.{end}"
        case ["encoder", "layers", number, "feed_forward", kind, end]:
            return f"encoder.layers.{number}.{'fc1' if kind == 'intermediate_dense' else 'fc2'}.{end}"
    return key


def fairseq_tensors(weights):
    heads = {"final_proj.weight": np.zeros((8, 48), np.float32), "final_proj.bias": np.zeros(8, np.float32)}
    return (
        {to_fairseq(key): array for key, array in weights.items()}
        | heads
        | {"label_embs_concat": np.zeros((504, 8), np.float32)}
    )


def check_same(found, expected):
    first, second = flat_weights(found), flat_weights(expected)
    assert first.keys() == second.keys()
    for path in first:
        np.testing.assert_array_equal(first[path], second[path], err_msg=path)


@pytest.fixture
def loaded(tmp_path, weights):
    return load_hubert(write_folder(tmp_path / "plain", weights))


def test_a_folder_gives_the_original_output(loaded, golden):
    assert loaded.config == HubertConfig(
        conv_dims=(32,) * 7, model_dim=48, num_layers=3, num_heads=4, ffn_dim=96, position_groups=4
    )
    found = nnx.jit(lambda model, samples: model(samples, 3))(loaded, jnp.asarray(golden["wave_16k"]))
    np.testing.assert_allclose(found, golden["hidden_3"], atol=1e-4 * np.abs(golden["hidden_3"]).max())


def test_older_names_of_the_weight_norm_give_the_same(tmp_path, loaded, weights):
    weights["encoder.pos_conv_embed.conv.weight_g"] = weights.pop(f"{NORM}0")
    weights["encoder.pos_conv_embed.conv.weight_v"] = weights.pop(f"{NORM}1")
    check_same(load_hubert(write_folder(tmp_path, weights)), loaded)


def test_weights_of_a_recogniser_give_the_same(tmp_path, loaded, weights):
    prefixed = {f"hubert.{key}": array for key, array in weights.items()}
    prefixed |= {"lm_head.weight": np.zeros((32, 48), np.float32), "lm_head.bias": np.zeros(32, np.float32)}
    check_same(load_hubert(write_folder(tmp_path, prefixed)), loaded)


def test_fairseq_names_give_the_same(tmp_path, loaded, weights):
    path = tmp_path / "hubert.safetensors"
    write_safetensors(path, fairseq_tensors(weights))
    check_same(load_hubert(path, config=loaded.config), loaded)


def test_sizes_of_a_single_file_come_from_its_shapes(tmp_path, weights):
    write_safetensors(tmp_path / "hubert.safetensors", fairseq_tensors(weights))
    found = load_hubert(tmp_path / "hubert.safetensors").config
    # 48 wide: one head of 64 at most.
    assert found == HubertConfig(
        conv_dims=(32,) * 7, model_dim=48, num_layers=3, num_heads=1, ffn_dim=96, position_groups=4
    )


def test_a_model_made_without_masking_needs_no_mask_embedding(tmp_path, weights):
    del weights["masked_spec_embed"]
    folder = write_folder(tmp_path, weights, mask_time_prob=0.0, mask_feature_prob=0.0)
    np.testing.assert_array_equal(load_hubert(folder).mask_embedding[...], np.zeros(48))
    with pytest.raises(InputError, match="1 missing: masked_spec_embed"):
        load_hubert(write_folder(tmp_path, weights, mask_time_prob=0.05, mask_feature_prob=0.0))


def test_keys_that_do_not_fit_are_all_named(tmp_path, weights):
    weights["encoder.layers.0.attention.q_proj.weight"] = np.zeros((48, 47), np.float32)
    weights["encoder.layers.3.final_layer_norm.bias"] = np.zeros(48, np.float32)
    del weights["encoder.layer_norm.bias"], weights[f"{NORM}0"]
    with pytest.raises(InputError) as refusal:
        load_hubert(write_folder(tmp_path, weights))
    message = str(refusal.value)
    assert "\n" not in message
    assert f"2 missing: encoder.layer_norm.bias, {NORM}0" in message
    assert "1 left over: encoder.layers.3.final_layer_norm.bias" in message
    assert "1 of another shape: encoder.layers.0.attention.q_proj.weight 48 x 47 instead of 48 x 48" in message


def test_keys_of_fairseq_are_named_as_they_stand_in_the_file(tmp_path, weights):
    tensors = fairseq_tensors(weights)
    tensors["encoder.layers.0.fc3.weight"] = tensors.pop("encoder.layers.0.fc1.bias")
    write_safetensors(tmp_path / "hubert.safetensors", tensors)
    with pytest.raises(InputError, match=r"1 missing: encoder\.layers\.0\.fc1\.bias; 1 left over: .*fc3\.weight"):
        load_hubert(tmp_path / "hubert.safetensors")


def test_another_form_is_refused(tmp_path, weights):
    with pytest.raises(InputError, match="HuBERT with conv_pos_batch_norm True is not supported"):
        load_hubert(write_folder(tmp_path, weights, conv_pos_batch_norm=True))


@pytest.fixture(scope="module")
def large():
    """Golden arrays of the large form: norms first, and one behind every convolution, which has a bias."""
    with np.load(Path(__file__).parents[1] / "golden" / "hubert_large_tiny.npz") as arrays:
        return dict(arrays)


def large_folder(folder, large):
    write_safetensors(folder / "model.safetensors", {k[2:]: a for k, a in large.items() if k.startswith("w/")})
    (folder / "config.json").write_text(str(large["config"]))
    return folder


def test_the_large_form_gives_the_original_output(tmp_path, large):
    hubert = load_hubert(large_folder(tmp_path, large))
    with jax.default_matmul_precision("highest"):
        for layer in range(3):
            expected = large[f"hidden_{layer}"]
            assert np.abs(hubert(large["wave_16k"], layer) - expected).max() <= 1e-4 * np.abs(expected).max()


def test_fairseq_names_of_the_large_form_give_the_same(tmp_path, large):
    expected = load_hubert(large_folder(tmp_path, large))
    tensors = fairseq_tensors({k[2:]: a for k, a in large.items() if k.startswith("w/")})
    deeper = {re.sub(r"(conv_layers\.\d+)\.2\.", r"\1.2.1.", key): array for key, array in tensors.items()}
    write_safetensors(tmp_path / "fairseq" / "hubert.safetensors", deeper)
    found = load_hubert(tmp_path / "fairseq" / "hubert.safetensors")
    assert found.config == dataclasses.replace(expected.config, num_heads=1)  # 16 wide: fewer than one head of 64
    check_same(found, expected)


def test_the_large_form_goes_there_and_back(tmp_path, large):
    first = load_hubert(large_folder(tmp_path, large))
    export_hubert(first, tmp_path / "out")
    again = load_hubert(tmp_path / "out")
    assert again.config == first.config
    check_same(again, first)


def test_features_of_the_large_form_do_not_depend_on_the_level(tmp_path, large):
    """It was trained on clips of zero mean and unit variance."""
    source = HubertFeatures(load_hubert(large_folder(tmp_path, large)), layer=2)
    wave = large["wave_16k"][0]
    np.testing.assert_allclose(source.features(wave), source.features(0.5 * wave + 0.1), atol=1e-3)


def test_a_file_of_something_else_is_refused(tmp_path):
    write_safetensors(tmp_path / "other.safetensors", {"linear.weight": np.zeros((2, 2), np.float32)})
    with pytest.raises(InputError, match="0 convolutions, HuBERT has 7"):
        load_hubert(tmp_path / "other.safetensors")


def test_export_and_import_give_the_same_bits(tmp_path, loaded, weights):
    export_hubert(loaded, tmp_path / "out")
    settings, tensors = read_folder(tmp_path / "out")
    check_same(load_hubert(tmp_path / "out"), loaded)
    assert load_hubert(tmp_path / "out").config == loaded.config
    assert settings["model_type"] == "hubert"
    assert tensors.keys() == weights.keys()
    for key, array in weights.items():
        if not key.startswith(NORM):
            np.testing.assert_array_equal(tensors[key], array, err_msg=key)
    # The direction is stored as long as its norm: the folded weight itself.
    np.testing.assert_allclose(tensors[f"{NORM}0"], weights[f"{NORM}0"], rtol=1e-6)
    np.testing.assert_array_equal(tensors[f"{NORM}1"].transpose(2, 1, 0), loaded.position.kernel[...])


def test_a_weight_norm_of_any_scale_is_folded(tmp_path, loaded, weights):
    """Tap by tap: g times v over the norm of v."""
    random = np.random.default_rng(0)
    stretch = random.uniform(0.1, 9, 128).astype(np.float32)
    weights[f"{NORM}1"] = weights[f"{NORM}1"] * stretch
    stretched = load_hubert(write_folder(tmp_path, weights))
    np.testing.assert_allclose(stretched.position.kernel[...], loaded.position.kernel[...], rtol=1e-5)
    weights[f"{NORM}0"] = weights[f"{NORM}0"] * stretch
    scaled = load_hubert(write_folder(tmp_path, weights))
    expected = np.asarray(loaded.position.kernel[...]) * stretch[:, None, None]
    np.testing.assert_allclose(scaled.position.kernel[...], expected, rtol=1e-5)


def test_an_unused_tap_survives_the_round_trip(tmp_path, loaded):
    quiet = nnx.clone(loaded)
    quiet.position.kernel[...] = quiet.position.kernel[...].at[5].set(0)
    export_hubert(quiet, tmp_path / "out")
    check_same(load_hubert(tmp_path / "out"), quiet)


def test_kmeans_of_a_joblib_file_gives_the_original_units(tmp_path, golden):
    joblib = pytest.importorskip("joblib", reason="writing a k-means file needs scikit-learn (the prepare extra)")
    cluster = pytest.importorskip("sklearn.cluster")
    model = cluster.MiniBatchKMeans(50, n_init=1, random_state=0)
    model.fit(golden["hidden_2"].reshape(-1, 48).repeat(2, axis=0))
    model.cluster_centers_ = golden["kmeans_centroids"]
    joblib.dump(model, tmp_path / "km.bin")
    units = load_kmeans(tmp_path / "km.bin", source="hubert-3x48-layer2")
    assert units.source == "hubert-3x48-layer2"
    found = [units.assign(row) for row in golden["hidden_2"]]
    np.testing.assert_array_equal(found, golden["kmeans_labels_hidden2"])


def test_impossible_settings_are_named(tmp_path, weights):
    with pytest.raises(ConfigError, match=r"settings of .*: hubert\.model_dim 48 must be a multiple of num_heads"):
        load_hubert(write_folder(tmp_path, weights, num_attention_heads=5))
