"""The transformer of UNISON's release with its weights, against stored outputs of the released network."""

import dataclasses
from pathlib import Path as File

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from voxinstruct_jax.config import ConfigError, InputError
from voxinstruct_jax.diffusion.denoiser import make_denoiser
from voxinstruct_jax.diffusion.path import Path
from voxinstruct_jax.interop.keys import flat_weights
from voxinstruct_jax.interop.pytorch_files import write_pytorch
from voxinstruct_jax.interop.tensors import read_tensors, write_safetensors
from voxinstruct_jax.interop.unison import RELEASE, export_unison, load_unison, unison_keys
from voxinstruct_jax.models.conditions import Conditions
from voxinstruct_jax.models.mmdit import MMDiT, MMDiTConfig

CHANNELS, FRAMES = 3, 9
LIMIT = 1e-4


def drift(found, expected):
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()


@pytest.fixture(scope="module")
def golden():
    with np.load(File(__file__).parents[1] / "golden" / "unison_tiny.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def tensors(golden):
    return {key.removeprefix("w/"): value for key, value in golden.items() if key.startswith("w/")}


@pytest.fixture(scope="module")
def network(tensors, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unison")
    write_safetensors(folder / "model.safetensors", tensors)
    return load_unison(folder, rotary_dims=4)


@pytest.fixture(scope="module")
def told(golden):
    """Noisy latents, and what the network is told; the release has channels first, and layers of text in a list."""
    inputs = jnp.asarray(golden["inputs"]).swapaxes(1, 2)
    conditions = Conditions(
        text=jnp.asarray(golden["text"]).swapaxes(0, 1),
        text_mask=jnp.asarray(golden["mask"] > 0),
        source=inputs[..., CHANNELS : 2 * CHANNELS],
        task_tag=inputs[..., -1],
    )
    return inputs[..., :CHANNELS], conditions


@pytest.fixture(autouse=True)
def _highest_precision():
    with jax.default_matmul_precision("highest"):
        yield


def test_sizes_follow_from_the_shapes(network):
    usual = MMDiTConfig.unison(joint_blocks=3, latent_channels=CHANNELS)
    assert network.config == dataclasses.replace(usual, model_dim=12, num_heads=2, rotary_dims=4, text_dim=10)


def test_velocities_equal_the_released_network(network, told, golden):
    x, conditions = told
    mask = jnp.ones((len(x), FRAMES), bool)
    found = np.asarray(jax.jit(type(network).__call__)(network, x, jnp.asarray(golden["sigma"]), conditions, mask))
    expected = golden["velocity"].swapaxes(1, 2)
    for row in range(len(x)):  # part of a text, a whole one, none
        assert drift(found[row], expected[row]) < LIMIT


def test_guided_data_and_noise_follow_the_release_in_sign_and_time(network, told, golden):
    """Its rule: x_sigma = (1 - sigma) data + sigma noise, velocity = noise - data, strength 4.5."""
    x, conditions = told
    sigma, mask = jnp.asarray(golden["sigma"]), jnp.ones((len(x), FRAMES), bool)

    @jax.jit
    def denoise(network, x, sigma, conditions):
        return make_denoiser(network, Path(RELEASE.path), conditions, mask, RELEASE.guidance)(x, sigma)

    found = denoise(network, x, sigma, conditions)
    null, velocity = (golden[name].swapaxes(1, 2) for name in ("velocity_null", "velocity"))
    velocity, noisy = null + 4.5 * (velocity - null), golden["sigma"][:, None, None]
    assert drift(found.x0, x - noisy * velocity) < LIMIT
    assert drift(found.epsilon, x + (1 - noisy) * velocity) < LIMIT


def test_what_is_exported_is_the_file_bit_for_bit(network, tensors, tmp_path):
    export_unison(network, tmp_path)
    found = read_tensors(tmp_path / "model.safetensors")
    assert found.keys() == tensors.keys()
    for key, array in tensors.items():
        np.testing.assert_array_equal(found[key], array.astype(np.float32), err_msg=key)
    again = load_unison(tmp_path / "model.safetensors", rotary_dims=4)
    assert again.config == network.config
    for path, value in flat_weights(network).items():
        np.testing.assert_array_equal(flat_weights(again)[path], value, err_msg=path)


def test_the_table_names_every_weight_once():
    config = MMDiTConfig.unison(joint_blocks=2, latent_channels=40)
    weights = flat_weights(nnx.eval_shape(lambda: MMDiT(config, rngs=nnx.Rngs(0))))
    table = unison_keys(config)
    assert sorted(weight.path for weight in table) == sorted(weights)
    keys = [key for weight in table for key in weight.keys]
    assert len({*keys}) == len(keys) == 13 + 2 * 28


def test_every_key_is_accounted_for(tensors, tmp_path):
    wrong = {**tensors, "guidance_in.mlp.0.bias": np.zeros(12, np.float32)}
    wrong["double_blocks.1.txt_attn_k.weight"] = np.zeros((12, 6), np.float32)
    del wrong["double_blocks.2.txt_mod.linear.bias"]
    write_pytorch(tmp_path / "pytorch_model.bin", wrong)
    with pytest.raises(
        InputError,
        match=r"1 missing: double_blocks\.2\.txt_mod\.linear\.bias; 1 left over: guidance_in\.mlp\.0\.bias; "
        r"1 of another shape: double_blocks\.1\.txt_attn_k\.weight 12 x 6 instead of 12 x 12",
    ):
        load_unison(tmp_path / "pytorch_model.bin", rotary_dims=4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"single_blocks.0.linear1_q.weight": np.zeros((12, 12))}, "single-stream blocks; only the released form"),
        ({"img_in.proj.0.conv.weight": np.zeros((12, 7))}, "its settings make no sense"),
        ({"double_blocks.0.img_attn_q_norm.weight": np.zeros(0)}, "its settings make no sense"),
    ],
)
def test_other_forms_are_refused(tensors, tmp_path, changed, message):
    write_safetensors(tmp_path / "model.safetensors", {**tensors, **changed})
    with pytest.raises(InputError, match=message):
        load_unison(tmp_path, rotary_dims=4)


def test_files_of_other_models_and_dimensions_that_are_not_there_are_refused(network, tensors, tmp_path):
    write_safetensors(tmp_path / "other.safetensors", {"weight": np.zeros(3, np.float32)})
    with pytest.raises(InputError, match=r"no transformer of UNISON's release here \(it has no img_in"):
        load_unison(tmp_path / "other.safetensors")
    write_safetensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(ConfigError, match=r"model\.rotary_dims: 96 must be even and at most 6"):
        load_unison(tmp_path)
    lite = nnx.eval_shape(lambda: MMDiT(dataclasses.replace(network.config, embedder="lite"), rngs=nnx.Rngs(0)))
    with pytest.raises(InputError, match=r"no such form: another embedder \(lite\)"):
        export_unison(lite, tmp_path)
