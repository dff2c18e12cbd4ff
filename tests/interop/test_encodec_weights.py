"""EnCodec's weights under every name, and what it computes with them, against stored outputs of transformers."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401 - names bfloat16 for NumPy
import numpy as np
import pytest

from voxinstruct_jax.config import InputError
from voxinstruct_jax.interop.encodec import export_encodec, load_encodec
from voxinstruct_jax.interop.keys import flat_weights
from voxinstruct_jax.interop.pytorch_files import write_pytorch
from voxinstruct_jax.interop.tensors import read_tensors, write_safetensors

SETTINGS = {"num_filters": 4, "hidden_size": 16, "codebook_size": 32, "target_bandwidths": [1.5, 3.0, 6.0, 12.0]}
SHORT = (1, 2, 319, 320, 321, 640, 960, 1000)
LIMIT = 1e-4


def drift(found, expected):
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()


def distance(found, expected):
    """Norm of the difference over that of what is expected."""
    return np.linalg.norm(np.asarray(found) - expected) / np.linalg.norm(expected)


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parents[1] / "golden" / "encodec_tiny.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def tensors(golden):
    return {key.removeprefix("w_hf/"): value for key, value in golden.items() if key.startswith("w_hf/")}


def write_folder(folder, tensors, **settings):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**SETTINGS, **settings}))
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


@pytest.fixture(scope="module")
def folder(tensors, tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("encodec"), tensors)


@pytest.fixture(scope="module")
def codec(folder):
    return load_encodec(folder)


@pytest.fixture(autouse=True)
def _highest_precision():
    with jax.default_matmul_precision("highest"):
        yield


def test_sizes_follow_from_the_settings(codec):
    config = codec.config
    assert (config.sample_rate, config.hop_length, config.frame_rate) == (24_000, 320, 75.0)
    assert (config.num_codebooks, config.stack_size, config.codebook_size) == (8, 32, 32)


def test_encoder_codes_and_decoder_equal_the_original(codec, golden):
    samples = golden["wave_24k"][:, 0]
    latents = jax.jit(type(codec).latents)(codec, samples)
    assert drift(latents, golden["encoder_out"].swapaxes(1, 2)) < LIMIT
    codes = codec.encode(samples)
    np.testing.assert_array_equal(codes, golden["codes_bandwidth3"])
    assert drift(codec.decode(codes), golden["decoded"][:, 0]) < LIMIT


@pytest.mark.parametrize("length", SHORT)
def test_short_clips_are_padded_as_the_original_does(codec, golden, length):
    samples = golden[f"short/{length}/wave"][:, 0]
    latents = jax.jit(type(codec).latents)(codec, samples)
    assert drift(latents, golden[f"short/{length}/encoder_out"].swapaxes(1, 2)) < LIMIT
    np.testing.assert_array_equal(codec.encode(samples, num_codebooks=8), golden[f"short/{length}/codes"])


def test_weight_norms_are_folded_as_the_original_does(codec, golden):
    first = codec.encoder.first.kernel[...]
    np.testing.assert_allclose(first, golden["encoder_conv0_folded"].transpose(2, 1, 0), atol=1e-6)
    before, own = codec.decoder.stages[0].upsample.kernel[...].reshape(2, 64, 8, 32)
    folded = golden["decoder_convtr3_folded"].transpose(2, 0, 1)
    np.testing.assert_allclose(own.swapaxes(0, 1), folded[:8], atol=1e-6)
    np.testing.assert_allclose(before.swapaxes(0, 1), folded[8:], atol=1e-6)


def test_bfloat16_stays_near_float32(folder, golden):
    """Measured: see the limits; later codebooks code what is left over, so there agreement must fall."""
    low = load_encodec(folder, dtype=jnp.bfloat16)
    samples, codes = golden["wave_24k"][:, 0], golden["codes_bandwidth3"]
    latents = np.asarray(jax.jit(type(low).latents)(low, samples))
    assert 1e-4 < distance(latents, golden["encoder_out"].swapaxes(1, 2)) < 0.05
    assert 1e-4 < distance(low.decode(codes), golden["decoded"][:, 0]) < 0.05
    assert (np.asarray(low.encode(samples))[:, 0] == codes[:, 0]).mean() > 0.8


def same_weights(one, other):
    one, other = flat_weights(one), flat_weights(other)
    assert one.keys() == other.keys()
    for path, value in one.items():
        np.testing.assert_array_equal(value, other[path], err_msg=path)


def test_the_original_programs_file_gives_the_same_codec(codec, golden, tensors, tmp_path):
    original = dict(zip(golden["w_fb_names"].tolist(), tensors.values(), strict=True))
    for q in range(32):  # the published file holds the statistics of training too
        key = f"quantizer.vq.layers.{q}._codebook"
        original |= {
            f"{key}.inited": np.ones(1),
            f"{key}.cluster_size": np.ones(32),
            f"{key}.embed_avg": np.ones((32, 16)),
        }
    write_pytorch(tmp_path / "encodec_24khz-d7cc33bc.th", original)
    from_file = load_encodec(tmp_path / "encodec_24khz-d7cc33bc.th")
    assert from_file.config == codec.config
    same_weights(from_file, codec)
    same_weights(load_encodec(tmp_path), codec)


def test_names_of_older_transformers_are_read(codec, tensors, tmp_path):
    older = {
        key.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value
        for key, value in tensors.items()
    }
    same_weights(load_encodec(write_folder(tmp_path / "old", older)), codec)


def test_what_is_exported_loads_as_the_same_codec_bit_for_bit(codec, tmp_path):
    export_encodec(codec, tmp_path / "out")
    again = load_encodec(tmp_path / "out")
    assert again.config == codec.config
    same_weights(again, codec)
    export_encodec(again, tmp_path / "twice")
    first, second = (read_tensors(tmp_path / name / "model.safetensors") for name in ("out", "twice"))
    assert first.keys() == second.keys()
    for key in first:
        np.testing.assert_array_equal(first[key], second[key], err_msg=key)


def test_export_has_the_keys_and_shapes_of_transformers(codec, tensors, tmp_path):
    export_encodec(codec, tmp_path)
    written = read_tensors(tmp_path / "model.safetensors")
    statistics = {key for key in written if key.endswith((".embed_avg", ".cluster_size", ".inited"))}
    assert len(statistics) == 3 * 32
    assert {key: a.shape for key, a in written.items() if key not in statistics} == {
        k: a.shape for k, a in tensors.items()
    }


def test_every_key_is_accounted_for(tensors, tmp_path):
    wrong = dict(tensors)
    wrong["encoder.layers.0.conv.extra"] = wrong.pop("encoder.layers.0.conv.bias")
    wrong["decoder.layers.13.shortcut.conv.bias"] = np.zeros(5, np.float32)
    with pytest.raises(
        InputError, match=r"1 missing: encoder.layers.0.conv.bias; 1 left over: .*conv.extra; 1 of anoth"
    ):
        load_encodec(write_folder(tmp_path / "wrong", wrong))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"norm_type": "time_group_norm"}, "norm_type"),
        ({"audio_channels": 2}, "audio_channels"),
        ({"chunk_length_s": 1.0}, "chunk_length_s"),
        ({"codebook_dim": 8}, "codebook_dim"),
    ],
)
def test_other_forms_are_refused_by_name(tensors, tmp_path, settings, named):
    with pytest.raises(InputError, match=f"only the causal mono form .* another {named}"):
        load_encodec(write_folder(tmp_path / "other", tensors, **settings))


def test_a_file_of_something_else_is_refused(tmp_path):
    write_safetensors(tmp_path / "other.safetensors", {"table": np.zeros(3, np.float32)})
    with pytest.raises(InputError, match="no EnCodec weights here"):
        load_encodec(tmp_path / "other.safetensors")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_widened_before_norms_are_folded(tmp_path, tensors, dtype):
    """As the original does that computes in float32 with such a file."""
    half = {key: array.astype(dtype) if array.dtype.kind == "f" else array for key, array in tensors.items()}
    widened = {key: array.astype(np.float32) for key, array in half.items()}
    found = flat_weights(load_encodec(write_folder(tmp_path / "half", half)))
    for path, array in flat_weights(load_encodec(write_folder(tmp_path / "wide", widened))).items():
        assert found[path].dtype == jnp.float32
        np.testing.assert_array_equal(found[path], array, err_msg=path)
