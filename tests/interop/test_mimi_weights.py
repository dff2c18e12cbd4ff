"""Mimi with its weights, against stored outputs of transformers."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from voxinstruct_jax.config import InputError
from voxinstruct_jax.interop.keys import flat_weights
from voxinstruct_jax.interop.mimi import export_mimi, load_mimi
from voxinstruct_jax.interop.tensors import read_tensors, write_safetensors

LENGTHS = (1, 2, 23, 24, 47, 48, 49, 240, 1501)
LIMIT = 1e-4


def drift(found, expected):
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()


def distance(found, expected):
    """Norm of the difference over that of what is expected."""
    return np.linalg.norm(np.asarray(found) - expected) / np.linalg.norm(expected)


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parents[1] / "golden" / "mimi_tiny.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def tensors(golden):
    return {key.removeprefix("w/"): value for key, value in golden.items() if key.startswith("w/")}


@pytest.fixture(scope="module")
def settings(golden):
    return json.loads(str(golden["config"]))


def write_folder(folder, settings, tensors):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


@pytest.fixture(scope="module")
def codec(settings, tensors, tmp_path_factory):
    return load_mimi(write_folder(tmp_path_factory.mktemp("mimi"), settings, tensors))


@pytest.fixture(autouse=True)
def _highest_precision():
    with jax.default_matmul_precision("highest"):
        yield


def test_sizes_follow_from_the_settings(codec):
    config = codec.config
    assert (config.hop_length, config.frame_rate, config.sample_rate) == (48, 500.0, 24_000)
    assert (config.num_codebooks, config.stack_size, config.codebook_size) == (6, 6, 32)
    assert (config.transformer.window, config.transformer.num_kv_heads, config.transformer.head_dim) == (10, 2, 6)


@jax.jit
def stages(codec, samples):
    """What each part of the encoder makes, by one program."""
    frames = codec.encoder(samples)
    return {"seanet": frames, "transformer": codec.encoder_transformer(frames), "latents": codec.latents(samples)}


@pytest.mark.parametrize("length", LENGTHS)
def test_latents_codes_and_waveform_equal_the_original(codec, golden, length):
    samples = golden[f"wave/{length}"]
    for name, found in stages(codec, samples).items():
        assert drift(found, golden[f"{name}/{length}"]) < LIMIT, name
    codes = codec.encode(samples)
    np.testing.assert_array_equal(codes, golden[f"codes/{length}"])
    assert drift(codec.decode(codes), golden[f"decoded/{length}"]) < LIMIT
    assert drift(codec.decode(codes[:, :3]), golden[f"decoded_3/{length}"]) < LIMIT


@pytest.mark.parametrize("count", [1, 2, 6])
def test_leading_codebooks_do_not_depend_on_how_many_are_asked_for(codec, golden, count):
    codes = codec.encode(golden["wave/240"], num_codebooks=count)
    np.testing.assert_array_equal(codes, golden["codes/240"][:, :count])
    assert codec.decode(codes).shape == (1, 240)


def test_bfloat16_stays_near_float32(settings, tensors, golden, tmp_path):
    low = load_mimi(write_folder(tmp_path / "low", settings, tensors), dtype=jnp.bfloat16)
    latents = np.asarray(jax.jit(type(low).latents)(low, golden["wave/1501"]))
    assert 1e-4 < distance(latents, golden["latents/1501"]) < 0.05
    assert 1e-4 < distance(low.decode(golden["codes/1501"]), golden["decoded/1501"]) < 0.05


def same_weights(one, other):
    one, other = flat_weights(one), flat_weights(other)
    assert one.keys() == other.keys()
    for path, value in one.items():
        np.testing.assert_array_equal(value, other[path], err_msg=path)


def test_what_is_exported_loads_as_the_same_codec_bit_for_bit(codec, tensors, tmp_path):
    export_mimi(codec, tmp_path)
    again = load_mimi(tmp_path)
    assert again.config == codec.config
    same_weights(again, codec)
    written = read_tensors(tmp_path / "model.safetensors")
    assert {key: array.shape for key, array in written.items()} == {key: a.shape for key, a in tensors.items()}
    for key, array in written.items():  # no weight norms in this form: all but the codebooks are as they were
        if "codebook" not in key:
            np.testing.assert_array_equal(array, tensors[key], err_msg=key)


@pytest.mark.parametrize(
    "names", [("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1")]
)
def test_weight_norms_are_folded_under_both_names(codec, settings, tensors, tmp_path, names):
    normed = {}
    for key, value in tensors.items():
        if not key.startswith(("encoder.", "decoder.")) or not key.endswith(".weight"):
            normed[key] = value
            continue
        root = key.removesuffix("weight")
        normed[root + names[0]] = np.sqrt((value**2).sum((1, 2), keepdims=True))
        normed[root + names[1]] = 3 * value
    again = load_mimi(write_folder(tmp_path / "normed", settings, normed))
    for path, value in flat_weights(codec).items():
        np.testing.assert_allclose(flat_weights(again)[path], value, rtol=1e-5, atol=1e-7, err_msg=path)


def test_every_key_is_accounted_for(settings, tensors, tmp_path):
    wrong = {**tensors, "upsample.conv.bias": np.zeros(16, np.float32)}
    del wrong["quantizer.acoustic_residual_vector_quantizer.layers.4.codebook.cluster_usage"]
    with pytest.raises(
        InputError, match=r"1 missing: quantizer.acoustic.*4.codebook.cluster_usage; 1 left over: upsample"
    ):
        load_mimi(write_folder(tmp_path / "wrong", settings, wrong))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"attention_bias": True}, "attention_bias"),
        ({"upsample_groups": 8}, "upsample_groups"),
        ({"vector_quantization_hidden_dimension": 4}, "vector_quantization_hidden_dimension"),
        ({"use_causal_conv": False}, "use_causal_conv"),
    ],
)
def test_other_forms_are_refused_by_name(settings, tensors, tmp_path, changed, named):
    with pytest.raises(InputError, match=f"only the form of kyutai/mimi .* another {named}"):
        load_mimi(write_folder(tmp_path / "other", {**settings, **changed}, tensors))
