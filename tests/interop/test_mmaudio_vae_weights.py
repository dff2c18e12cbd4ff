"""MMAudio's VAE with its weights, against stored outputs of the original."""

from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from voxinstruct_jax.audio.latents import LatentConfig
from voxinstruct_jax.audio.mel_vae import MelVAE, MelVAEConfig
from voxinstruct_jax.config import InputError
from voxinstruct_jax.interop.keys import flat_weights
from voxinstruct_jax.interop.mmaudio_vae import export_mmaudio_vae, load_mmaudio_vae
from voxinstruct_jax.interop.pytorch_files import write_pytorch
from voxinstruct_jax.interop.tensors import read_tensors, write_safetensors

FILES = {"16k": "v1-16.pth", "44k": "v1-44.pth"}
LOGARITHM = {"16k": np.log(10), "44k": 1.0}
LIMIT = 1e-4


def drift(found, expected):
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parents[1] / "golden" / "mmaudio_vae_tiny.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module", params=list(FILES))
def form(request):
    return request.param


@pytest.fixture(scope="module")
def tensors(golden, form):
    start = f"{form}/w/"
    return {key.removeprefix(start): value for key, value in golden.items() if key.startswith(start)}


@pytest.fixture(scope="module")
def expected(golden, form):
    return {key.removeprefix(f"{form}/"): value for key, value in golden.items() if key.startswith(f"{form}/")}


@pytest.fixture(scope="module")
def vae(form, tensors, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    write_pytorch(folder / FILES[form], tensors)
    return load_mmaudio_vae(folder / FILES[form])


@pytest.fixture(autouse=True)
def _highest_precision():
    with jax.default_matmul_precision("highest"):
        yield


def test_sizes_follow_from_the_shapes(vae, form):
    published = MelVAEConfig.at_31_hz() if form == "16k" else MelVAEConfig.at_43_hz()
    assert vae.config.mel == published.mel
    assert (vae.config.latent_channels, vae.config.model_dim) == (3, 4)
    assert LatentConfig(vae=vae.config).hop_length == published.hop_length


@jax.jit
def run(vae, samples, latents):
    mel = vae.spectrogram(samples)
    log_variance = vae.posterior(vae.mel_statistics.standardised(mel)).log_variance
    return mel, log_variance, vae.encode(samples), vae.decode(latents)


def test_spectrogram_posterior_and_decoded_mel_equal_the_original(vae, form, expected):
    mel, log_variance, mean, decoded = run(vae, expected["wave"].astype(np.float32), expected["latents"])
    assert drift(mel, expected["mel"] * LOGARITHM[form]) < LIMIT
    assert drift(mean, expected["mean"]) < LIMIT
    assert drift(log_variance, expected["log_variance"]) < LIMIT
    assert drift(decoded, expected["decoded"] * LOGARITHM[form]) < LIMIT


def test_latents_of_unison_are_half_the_mean(form, tensors, expected, tmp_path):
    write_safetensors(tmp_path / "vae.safetensors", tensors)
    halved = load_mmaudio_vae(tmp_path / "vae.safetensors", scale=0.5)
    _, _, latents, decoded = run(halved, expected["wave"].astype(np.float32), 0.5 * expected["latents"])
    assert drift(latents, 0.5 * expected["mean"]) < LIMIT
    assert drift(decoded, expected["decoded"] * LOGARITHM[form]) < LIMIT


def test_what_is_exported_is_the_file_and_loads_as_the_same_vae(vae, form, tensors, tmp_path):
    export_mmaudio_vae(vae, tmp_path)
    found = read_tensors(tmp_path / FILES[form])
    assert found.keys() == tensors.keys()
    for key, array in tensors.items():
        assert found[key].shape == array.shape
        np.testing.assert_allclose(found[key], array.astype(np.float32), rtol=2e-7 * key.startswith("data_"))
    again = load_mmaudio_vae(tmp_path)
    assert again.config == vae.config
    for path, value in flat_weights(vae).items():
        rtol = 5e-7 if path.startswith("mel_statistics") else 0
        np.testing.assert_allclose(flat_weights(again)[path], value, rtol=rtol, err_msg=path)


@pytest.mark.parametrize("form", ["16k"], indirect=True)
def test_every_key_is_accounted_for(tensors, tmp_path):
    wrong = {**tensors, "quant_conv.weight": np.zeros((6, 6, 1), np.float32)}
    wrong["decoder.mid.attn_1.qkv.weight"] = wrong["decoder.mid.attn_1.qkv.weight"][:32]
    del wrong["encoder.down.1.block.0.nin_shortcut.weight"]
    write_pytorch(tmp_path / "wrong.pth", wrong)
    with pytest.raises(
        InputError,
        match=r"1 missing: encoder\.down\.1\.block\.0\.nin_shortcut\.weight; 1 left over: quant_conv\.weight; "
        r"1 of another shape: decoder\.mid\.attn_1\.qkv\.weight 32 x 16 x 1 instead of 48 x 16 x 1",
    ):
        load_mmaudio_vae(tmp_path / "wrong.pth")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"encoder.conv_in.weight": np.zeros((4, 64, 3), np.float32)}, "spectrograms of 64 bins; .* has 80 or 128"),
        ({"encoder.conv_in.weight": np.zeros(4, np.float32)}, "no weights of MMAudio's VAE here"),
        ({"encoder.learnable_gain": np.zeros(2, np.float32)}, "1 of another shape: encoder.learnable_gain 2 instead"),
    ],
)
@pytest.mark.parametrize("form", ["16k"], indirect=True)
def test_other_forms_are_refused(tensors, tmp_path, changed, message):
    write_pytorch(tmp_path / "other.pth", {**tensors, **changed})
    with pytest.raises(InputError, match=message):
        load_mmaudio_vae(tmp_path / "other.pth")


def test_a_folder_without_the_file_and_a_vae_without_such_a_form_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"give the file, or a folder with one of v1-16\.pth, v1-44\.pth"):
        load_mmaudio_vae(tmp_path)
    small = nnx.eval_shape(lambda: MelVAE(MelVAEConfig.small(), rngs=nnx.Rngs(0)))
    with pytest.raises(InputError, match=r"scale 0\.0 must be above 0"):
        load_mmaudio_vae(tmp_path, scale=0.0)
    with pytest.raises(InputError, match="has no such form"):
        export_mmaudio_vae(small, tmp_path)
