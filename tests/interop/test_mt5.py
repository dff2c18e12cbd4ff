"""mT5 from a folder, against stored outputs of the original."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from voxinstruct_jax import interop
from voxinstruct_jax.config import InputError
from voxinstruct_jax.interop.keys import flat_weights
from voxinstruct_jax.interop.mt5 import export_mt5
from voxinstruct_jax.interop.pytorch_files import write_pytorch
from voxinstruct_jax.interop.tensors import read_folder, write_safetensors

SETTINGS = {
    "model_type": "mt5",
    "vocab_size": 60,
    "d_model": 48,
    "d_kv": 8,
    "d_ff": 96,
    "num_layers": 3,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
    "layer_norm_epsilon": 1e-6,
}
TIED = "encoder.embed_tokens.weight"


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parents[1] / "golden" / "mt5_tiny.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def weights(golden):
    return {key.removeprefix("w/"): array for key, array in golden.items() if key.startswith("w/")}


def write_folder(folder, weights, settings=SETTINGS, name="model.safetensors"):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))
    (write_safetensors if name.endswith("safetensors") else write_pytorch)(folder / name, weights)
    return folder


@pytest.fixture(scope="module")
def mt5(weights, tmp_path_factory):
    return interop.load_mt5(write_folder(tmp_path_factory.mktemp("mt5"), weights))


def error_of(found, expected):
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()


def test_hidden_states_equal_the_original_padding_included(golden, mt5):
    with jax.default_matmul_precision("highest"):
        states = mt5.hidden_states(golden["input_ids"], golden["attention_mask"])
    assert len(states) == 4
    for number, state in enumerate(states):
        assert error_of(state, golden[f"hidden_{number}"]) < 1e-5
    assert error_of(mt5(golden["input_ids"], golden["attention_mask"]), golden["last_hidden_state"]) < 1e-5


@pytest.mark.parametrize("length", [1, 2, 37])
def test_length_and_padding_change_nothing_at_real_tokens(golden, mt5, length):
    ids, mask = golden["input_ids"][1:, :37], np.arange(37)[None] < length
    padded = mt5(jnp.asarray(ids), jnp.asarray(mask))
    alone = mt5(ids[:, :length], np.ones((1, length), np.int32))
    np.testing.assert_allclose(padded[:, :length], alone, atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("dropped", [None, TIED, "shared.weight"])
def test_all_forms_of_a_folder_give_the_same(golden, weights, mt5, tmp_path, prefix, name, dropped):
    """Either name of the embedding, the keys of a wrapper, the decoder of a whole model beside."""
    whole = {f"{prefix}{key}": array for key, array in weights.items() if key != dropped}
    whole |= {f"{prefix}decoder.block.0.x": np.ones(2, np.float32), f"{prefix}lm_head.weight": np.ones(3, np.float32)}
    again = interop.load_mt5(write_folder(tmp_path, whole, name=name))
    first, second = (flat_weights(model.encoder) for model in (mt5, again))
    for path, array in first.items():
        np.testing.assert_array_equal(second[path], array)


def test_an_exported_folder_has_the_original_s_keys_and_loads_again_exactly(weights, mt5, tmp_path):
    export_mt5(mt5, tmp_path)
    settings, tensors = read_folder(tmp_path)
    assert settings.items() >= SETTINGS.items()
    assert tensors.keys() == weights.keys() - {TIED}
    for key, array in tensors.items():
        np.testing.assert_array_equal(array, weights[key])
    again = interop.load_mt5(tmp_path)
    assert again.encoder.config == mt5.encoder.config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.pop("encoder.block.1.layer.0.SelfAttention.k.weight"),
            r"1 missing: encoder\.block\.1\..*k\.weight",
        ),
        (lambda w: w.update(extra=np.ones(2)), "1 left over: extra"),
        (lambda w: w.update({TIED: np.ones((60, 48), np.float32)}), "one tensor in the model, but differ"),
        (
            lambda w: w.update({"encoder.block.0.layer.1.DenseReluDense.wo.weight": np.ones((48, 95))}),
            "48 x 95 instead",
        ),
    ],
)
def test_keys_that_do_not_fit_are_named(weights, tmp_path, change, message):
    weights = dict(weights)
    change(weights)
    with pytest.raises(InputError, match=message):
        interop.load_mt5(write_folder(tmp_path, weights))


@pytest.mark.parametrize(
    "change", [{"feed_forward_proj": "relu"}, {"model_type": "bert"}, {"layer_norm_epsilon": 1e-5}, {"num_layers": 2}]
)
def test_models_of_another_kind_are_refused(weights, tmp_path, change):
    with pytest.raises(InputError, match=next(iter(change)) if "num_layers" not in change else "left over"):
        interop.load_mt5(write_folder(tmp_path, weights, SETTINGS | change))


def test_id_zero_has_a_row_like_any_other(mt5):
    ids, mask = np.zeros((1, 3), np.int32), np.ones((1, 3), np.int32)
    rows = mt5.hidden_states(ids, mask)[0]
    np.testing.assert_array_equal(rows[0, 1], mt5.encoder.embedding.table[...][0])
    assert np.abs(rows).max() > 0
