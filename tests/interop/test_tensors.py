"""Tensor files and model folders."""

import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from voxinstruct_jax.config import InputError
from voxinstruct_jax.interop.pytorch_files import write_pytorch
from voxinstruct_jax.interop.tensors import read_folder, read_settings, read_tensors, write_safetensors

TENSORS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.bias": np.array([1.5, -2], ml_dtypes.bfloat16),
    "count": np.array(7),
}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        assert found[key].dtype == array.dtype
        np.testing.assert_array_equal(found[key], array)


def test_safetensors_come_back_exact_whatever_their_order_in_memory(tmp_path):
    path = tmp_path / "new" / "model.safetensors"
    write_safetensors(path, {**TENSORS, "a.weight": np.asfortranarray(TENSORS["a.weight"])})
    assert_equal(read_tensors(path), TENSORS)
    write_safetensors(path, {"b": jnp.ones(2)})
    assert_equal(read_tensors(path), {"b": np.ones(2, np.float32)})
    assert [file.name for file in path.parent.iterdir()] == ["model.safetensors"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    import safetensors.numpy

    def full_disk(*_, **__):
        raise OSError("No space left on device")

    path = tmp_path / "model.safetensors"
    write_safetensors(path, TENSORS)
    monkeypatch.setattr(safetensors.numpy, "save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_safetensors(path, {"b": np.ones(2)})
    assert_equal(read_tensors(path), TENSORS)


@pytest.mark.parametrize("keep", [0, 5, 40, -1])
def test_damaged_safetensors_are_refused(tmp_path, keep):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, TENSORS)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"model\.safetensors: ") as caught:
        read_tensors(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("form", ["json", "yaml"])
@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_folders_give_settings_and_tensors(tmp_path, form, weights):
    text = json.dumps({"d_model": 8}) if form == "json" else "d_model: 8\n"
    (tmp_path / f"config.{form}").write_text(text)
    write = write_safetensors if weights.endswith("safetensors") else write_pytorch
    write(tmp_path / weights, TENSORS)
    settings, tensors = read_folder(tmp_path)
    assert settings == {"d_model": 8}
    assert_equal(tensors, TENSORS)


def write_shards(folder, placed):
    (folder / "config.json").write_text("{}")
    write_safetensors(folder / "model-1.safetensors", {"a.weight": TENSORS["a.weight"]})
    write_safetensors(folder / "model-2.safetensors", {key: TENSORS[key] for key in ("a.bias", "count")})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))


PLACED = {"a.weight": "model-1.safetensors", "a.bias": "model-2.safetensors", "count": "model-2.safetensors"}


def test_shards_are_put_together(tmp_path):
    write_shards(tmp_path, PLACED)
    assert_equal(read_folder(tmp_path)[1], TENSORS)


@pytest.mark.parametrize(
    ("placed", "message"),
    [
        ({**PLACED, "b": "model-1.safetensors"}, "do not hold the keys that it lists, b for one"),
        ({"a.weight": "model-1.safetensors", "a.bias": "model-2.safetensors"}, "count for one"),
        ({**PLACED, "b": "model-3.safetensors"}, r"model-3\.safetensors: no file"),
        ({**PLACED, "b": "../model.safetensors"}, "outside the folder"),
        ([], "no weight_map"),
        ({"a": 1}, "no weight_map"),
    ],
)
def test_shards_that_do_not_fit_their_index_are_refused(tmp_path, placed, message):
    write_shards(tmp_path, placed)
    with pytest.raises(InputError, match=message):
        read_folder(tmp_path)


def test_folders_without_their_parts_are_named(tmp_path):
    with pytest.raises(InputError, match=r"no model folder \(it has no config\.json or config\.yaml\)"):
        read_folder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"no weights here; expected model\.safetensors or pytorch_model\.bin"):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", "{"),
        ("config.json", "[1]"),
        ("config.yaml", "a: [1"),
        ("config.yaml", "!!python/object/apply:os.system ['true']"),
    ],
)
def test_damaged_settings_are_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=name):
        read_settings(tmp_path)
