"""The published Vocos with its weights, against stored outputs of the original."""

import copy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from voxinstruct_jax.audio.published_vocos import CodeVocos, MelVocos
from voxinstruct_jax.audio.quantizer import decode_residual
from voxinstruct_jax.audio.spectrogram import htk_filters, istft
from voxinstruct_jax.config import InputError
from voxinstruct_jax.interop.keys import flat_weights
from voxinstruct_jax.interop.pytorch_files import write_pytorch
from voxinstruct_jax.interop.vocos import export_vocos, load_vocos

CODE_SETTINGS = {
    "feature_extractor": {
        "class_path": "vocos.feature_extractors.EncodecFeatures",
        "init_args": {"encodec_model": "encodec_24khz", "bandwidths": [1.5, 3.0, 6.0, 12.0]},
    },
    "backbone": {
        "class_path": "vocos.models.VocosBackbone",
        "init_args": {
            "input_channels": 16,
            "dim": 32,
            "intermediate_dim": 96,
            "num_layers": 3,
            "adanorm_num_embeddings": 4,
        },
    },
    "head": {
        "class_path": "vocos.heads.ISTFTHead",
        "init_args": {"dim": 32, "n_fft": 1280, "hop_length": 320, "padding": "same"},
    },
}
MEL_SETTINGS = {
    "feature_extractor": {
        "class_path": "vocos.feature_extractors.MelSpectrogramFeatures",
        "init_args": {"sample_rate": 24000, "n_fft": 256, "hop_length": 64, "n_mels": 20, "padding": "center"},
    },
    "backbone": {
        "class_path": "vocos.models.VocosBackbone",
        "init_args": {"input_channels": 20, "dim": 24, "intermediate_dim": 48, "num_layers": 2},
    },
    "head": {
        "class_path": "vocos.heads.ISTFTHead",
        "init_args": {"dim": 24, "n_fft": 256, "hop_length": 64, "padding": "center"},
    },
}
LIMIT = 1e-4


def drift(found, expected):
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()


def read_golden(name):
    with np.load(Path(__file__).parents[1] / "golden" / name) as arrays:
        return dict(arrays)


def weights_of(golden):
    return {key.removeprefix("w/"): value for key, value in golden.items() if key.startswith("w/")}


def write_folder(folder, settings, tensors):
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    write_pytorch(folder / "pytorch_model.bin", tensors)
    return folder


@pytest.fixture(scope="module")
def golden():
    return read_golden("vocos_tiny.npz")


@pytest.fixture(scope="module")
def vocos(golden, tmp_path_factory):
    return load_vocos(write_folder(tmp_path_factory.mktemp("vocos"), CODE_SETTINGS, weights_of(golden)))


@pytest.fixture(scope="module")
def mel_golden():
    return read_golden("vocos_mel_tiny.npz")


@pytest.fixture(scope="module")
def mel_vocos(mel_golden, tmp_path_factory):
    return load_vocos(write_folder(tmp_path_factory.mktemp("mel"), MEL_SETTINGS, weights_of(mel_golden)))


@pytest.fixture(autouse=True)
def _highest_precision():
    with jax.default_matmul_precision("highest"):
        yield


def test_sizes_follow_from_the_settings_and_the_table(vocos):
    assert isinstance(vocos, CodeVocos)
    assert (vocos.config.codebook_size, vocos.config.stack_size) == (32, 32)
    assert vocos.config.features.num_conditions == 4


def test_features_hidden_and_outputs_equal_the_original(vocos, golden):
    features = decode_residual(jnp.asarray(golden["codes"])[None], vocos.entries[...])
    assert drift(features, golden["features"].swapaxes(1, 2)) < LIMIT
    condition = jnp.asarray(2)
    assert drift(jax.jit(vocos.vocos.hidden)(features, condition), golden["backbone_out"]) < LIMIT
    outputs = jax.jit(vocos.vocos.outputs)(features, condition)
    assert drift(outputs, golden["head_out"]) < LIMIT
    assert np.exp(golden["head_out"][..., :641]).max() > 100  # the limit of magnitudes is reached


@pytest.mark.parametrize("bandwidth_id", [0, 2])
def test_waveforms_equal_the_original_for_each_bandwidth(vocos, golden, bandwidth_id):
    samples = vocos(golden["codes"][None], bandwidth_id=bandwidth_id)
    assert drift(samples, golden[f"wave_bandwidth_id{bandwidth_id}"]) < LIMIT
    assert drift(golden["wave_bandwidth_id0"], golden["wave_bandwidth_id2"]) > 0.1


def test_batches_of_codes_are_summed_row_by_row(vocos, golden):
    codes = golden["codes_batched"].swapaxes(0, 1)
    features = decode_residual(jnp.asarray(codes), vocos.entries[...])
    assert drift(features, golden["features_batched"].swapaxes(1, 2)) < LIMIT
    together = vocos(codes)
    assert together.shape == (2, 7360)
    assert drift(vocos(codes[1:]), np.asarray(together[1:])) < LIMIT


def test_center_padding_cuts_half_a_window_at_both_ends(golden, tmp_path):
    settings = copy.deepcopy(CODE_SETTINGS)
    settings["head"]["init_args"]["padding"] = "center"
    centred = load_vocos(write_folder(tmp_path / "center", settings, weights_of(golden)))
    samples = centred(golden["codes"][None])
    assert samples.shape == (1, 7040)
    assert drift(samples, golden["wave_center"]) < LIMIT


@pytest.mark.parametrize("padding", ["same", "center"])
def test_the_inverse_transform_alone_equals_the_original(golden, padding):
    spectra = (golden["istft_in_real"] + 1j * golden["istft_in_imag"]).swapaxes(1, 2)
    assert drift(istft(jnp.asarray(spectra), 1280, 320, padding), golden[f"istft_{padding}_out"]) < LIMIT


def test_mel_spectrogram_and_waveform_equal_the_original(mel_vocos, mel_golden):
    assert isinstance(mel_vocos, MelVocos)
    mel = mel_golden["mel"].swapaxes(1, 2)
    found = mel_vocos.mel(mel_golden["wave"])
    assert found.shape == mel.shape == (2, 16, 20)
    assert drift(found, mel) < LIMIT
    samples = mel_vocos(mel)
    assert samples.shape == (2, 15 * 64)
    assert drift(samples, mel_golden["decoded"]) < LIMIT


def test_our_filters_are_those_stored_with_the_original(mel_golden):
    stored = weights_of(mel_golden)["feature_extractor.mel_spec.mel_scale.fb"]
    np.testing.assert_allclose(htk_filters(24_000, 256, 20), stored, atol=1e-4)


def test_bfloat16_stays_near_float32(golden, tmp_path):
    folder = write_folder(tmp_path / "low", CODE_SETTINGS, weights_of(golden))
    samples = np.asarray(load_vocos(folder, dtype=jnp.bfloat16)(golden["codes"][None]))
    expected = golden["wave_bandwidth_id2"]
    assert 1e-4 < np.linalg.norm(samples - expected) / np.linalg.norm(expected) < 0.05


def same_weights(one, other):
    one, other = flat_weights(one), flat_weights(other)
    assert one.keys() == other.keys()
    for path, value in one.items():
        np.testing.assert_array_equal(value, other[path], err_msg=path)


@pytest.mark.parametrize("kind", ["vocos", "mel_vocos"])
def test_what_is_exported_loads_as_the_same_model_bit_for_bit(kind, request, tmp_path):
    model = request.getfixturevalue(kind)
    export_vocos(model, tmp_path)
    again = load_vocos(tmp_path)
    assert again.config == model.config
    same_weights(again, model)


def test_an_embedded_codec_is_passed_over_but_nothing_else(vocos, golden, tmp_path):
    tensors = {**weights_of(golden), "feature_extractor.encodec.encoder.model.0.conv.conv.bias": np.zeros(4)}
    same_weights(load_vocos(write_folder(tmp_path / "embedded", CODE_SETTINGS, tensors)), vocos)
    tensors["feature_extractor.other"] = np.zeros(1)
    del tensors["head.out.bias"]
    with pytest.raises(InputError, match=r"1 missing: head.out.bias; 1 left over: feature_extractor.other"):
        load_vocos(write_folder(tmp_path / "other", CODE_SETTINGS, tensors))


def test_another_window_is_refused(golden, tmp_path):
    tensors = {**weights_of(golden), "head.istft.window": np.ones(1280, np.float32)}
    with pytest.raises(InputError, match=r"head\.istft\.window is not the Hann window"):
        load_vocos(write_folder(tmp_path / "window", CODE_SETTINGS, tensors))


@pytest.mark.parametrize(
    ("part", "class_path", "message"),
    [
        ("head", "vocos.heads.IMDCTCosHead", "only VocosBackbone with ISTFTHead"),
        ("feature_extractor", "os.system", "features by system are not supported"),
        ("backbone", 3, "has no backbone with a class_path"),
    ],
)
def test_other_parts_are_refused_by_name(golden, tmp_path, part, class_path, message):
    settings = copy.deepcopy(CODE_SETTINGS)
    settings[part]["class_path"] = class_path
    with pytest.raises(InputError, match=message):
        load_vocos(write_folder(tmp_path / "part", settings, weights_of(golden)))


def test_a_table_that_fits_no_bandwidth_needs_the_size_of_a_codebook(golden, tmp_path):
    settings = copy.deepcopy(CODE_SETTINGS)
    settings["feature_extractor"]["init_args"]["bandwidths"] = [1.5, 3.0]
    folder = write_folder(tmp_path / "odd", settings, weights_of(golden))
    assert load_vocos(folder, codebook_size=32).config.stack_size == 32
    with pytest.raises(InputError, match="a table of 1024 rows does not hold codebooks of 33"):
        load_vocos(folder, codebook_size=33)


def test_codes_and_bandwidths_that_do_not_exist_are_refused(vocos):
    with pytest.raises(InputError, match="bandwidth_id 4 must be from 0 to 3"):
        vocos(np.zeros((1, 8, 3), np.int32), bandwidth_id=4)
    with pytest.raises(InputError, match="33 codebooks are asked for"):
        vocos(np.zeros((1, 33, 3), np.int32))
