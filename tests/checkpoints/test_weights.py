import json

import jax.numpy as jnp
import numpy as np
import pytest

from voxinstruct_jax.checkpoints import weights as module
from voxinstruct_jax.checkpoints.weights import load_weights, read_settings, save_weights
from voxinstruct_jax.config import InputError

ARRAYS = {
    "blocks": {0: {"kernel": jnp.asarray([[1.0, 1 / 3], [-2.5, 1e-3]])}, 1: {"kernel": jnp.ones((2, 2))}},
    "shape": {"shape": jnp.asarray([1.0]), "dtype": jnp.asarray([2.0])},
    "count": jnp.asarray([7, 8], jnp.int32),
}
SETTINGS = {"kind": "ar", "model": {"num_layers": 2}}


@pytest.fixture
def folder(tmp_path):
    save_weights(tmp_path / "voice" / "ar", ARRAYS, SETTINGS, card="# A model\n")
    return tmp_path / "voice" / "ar"


def test_weights_and_settings_come_back(folder):
    settings, arrays = load_weights(folder)
    assert settings["kind"] == "ar"
    assert settings["model"] == {"num_layers": 2}
    np.testing.assert_array_equal(arrays["blocks"][0]["kernel"], ARRAYS["blocks"][0]["kernel"])
    np.testing.assert_array_equal(arrays["blocks"][1]["kernel"], ARRAYS["blocks"][1]["kernel"])
    np.testing.assert_array_equal(arrays["shape"]["shape"], [1.0])
    np.testing.assert_array_equal(arrays["count"], [7, 8])
    assert arrays["count"].dtype == jnp.int32
    assert (folder / "MODEL_CARD.md").read_text() == "# A model\n"


def test_the_folder_holds_nothing_that_runs_code(folder):
    suffixes = {path.suffix for path in folder.rglob("*")}
    assert not suffixes & {".pkl", ".pickle", ".pt", ".bin", ".joblib", ".py"}
    assert [path.name for path in folder.parent.iterdir()] == ["ar"]


def test_bfloat16_weights_keep_eight_bits_take_half_the_room_and_load_as_float32(tmp_path):
    values = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    for dtype in ("float32", "bfloat16"):
        save_weights(tmp_path / dtype, {"kernel": jnp.asarray(values)}, {}, card="", dtype=dtype)
    _, arrays = load_weights(tmp_path / "bfloat16")
    assert arrays["kernel"].dtype == jnp.float32
    np.testing.assert_allclose(arrays["kernel"], values, rtol=2**-8)
    assert not np.array_equal(arrays["kernel"], values)
    assert _stored_bytes(tmp_path / "bfloat16") < 0.7 * _stored_bytes(tmp_path / "float32")


def _stored_bytes(folder):
    return sum(path.stat().st_size for path in (folder / "weights").rglob("*") if path.is_file())


def test_int8_matrices_keep_to_half_a_step_take_half_the_room_of_bfloat16_and_load_as_float32(tmp_path):
    draw = np.random.default_rng(0).standard_normal
    rows = draw((256, 64)) * np.logspace(-3, 3, 256)[:, None]  # as of a table of embeddings: some long, some short
    arrays = {"columns": draw((64, 256)) * np.logspace(-3, 3, 256), "rows": rows, "none": np.zeros((3, 2))}
    weights = {"linear": {name: jnp.asarray(value, jnp.float32) for name, value in arrays.items()}}
    weights["linear"]["bias"] = jnp.asarray([1 / 3])
    for dtype in ("bfloat16", "int8"):
        save_weights(tmp_path / dtype, weights, {}, card="", dtype=dtype)
    found = load_weights(tmp_path / "int8")[1]["linear"]
    for name, axis in (("columns", 0), ("rows", 1)):
        step = np.abs(arrays[name]).max(axis, keepdims=True) / 127
        assert found[name].dtype == jnp.float32
        assert (np.abs(found[name] - arrays[name]) <= 0.501 * step).all()
    np.testing.assert_array_equal(found["none"], 0)
    np.testing.assert_allclose(found["bias"], 1 / 3, rtol=2**-8)
    assert _stored_bytes(tmp_path / "int8") < 0.7 * _stored_bytes(tmp_path / "bfloat16")


def test_parts_that_make_codes_are_not_rounded_to_whole_steps(tmp_path):
    kernel = jnp.asarray(np.random.default_rng(0).standard_normal((8, 8)), jnp.bfloat16).astype(jnp.float32)
    save_weights(
        tmp_path / "codec",
        {"encoder": {0: kernel}, "decoder": {0: kernel}},
        {},
        card="",
        dtype="int8",
        exact=("encoder",),
    )
    _, arrays = load_weights(tmp_path / "codec")
    np.testing.assert_array_equal(arrays["encoder"][0], kernel)
    assert not np.array_equal(arrays["decoder"][0], kernel)


def test_settings_that_were_read_can_be_written_with_other_arrays(folder, tmp_path):
    settings, _ = load_weights(folder)
    save_weights(tmp_path / "other", {"kernel": jnp.ones((2, 3))}, settings, card="", dtype="int8")
    _, arrays = load_weights(tmp_path / "other")
    assert arrays["kernel"].shape == (2, 3)


def test_a_new_version_replaces_the_old_one_whole(folder):
    save_weights(folder, {"other": jnp.zeros(3)}, {"kind": "nar"}, card="")
    settings, arrays = load_weights(folder)
    assert settings["kind"] == "nar"
    assert list(arrays) == ["other"]


@pytest.mark.parametrize("point", ["file_checksums", "_describe"])
def test_a_save_that_fails_half_way_leaves_the_old_version_as_it_was(folder, monkeypatch, point):
    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(module, point, full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_weights(folder, {"other": jnp.zeros(3)}, {"kind": "nar"}, card="")
    with pytest.raises(OSError, match="No space left"):
        save_weights(folder.parent / "new", {"other": jnp.zeros(3)}, {"kind": "nar"}, card="")
    monkeypatch.undo()
    assert load_weights(folder)[0]["kind"] == "ar"
    assert not (folder.parent / "new").exists()
    save_weights(folder, {"other": jnp.zeros(3)}, {"kind": "nar"}, card="")
    assert load_weights(folder)[0]["kind"] == "nar"


def test_a_kill_between_the_old_version_and_the_new_one_leaves_no_folder_rather_than_a_torn_one(folder, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module.Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_weights(folder, {"other": jnp.zeros(3)}, {"kind": "nar"}, card="")
    monkeypatch.undo()
    assert not folder.exists()
    with pytest.raises(InputError, match="no checkpoint here"):
        load_weights(folder)
    save_weights(folder, {"other": jnp.zeros(3)}, {"kind": "nar"}, card="")
    assert load_weights(folder)[0]["kind"] == "nar"
    assert [path.name for path in folder.parent.iterdir()] == ["ar"]


def array_file(folder):
    return max((path for path in (folder / "weights").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)


@pytest.mark.parametrize("name", ["config.json", "MODEL_CARD.md", "sha256.json", "an array"])
@pytest.mark.parametrize("how", ["flipped", "cut", "deleted"])
def test_a_damaged_folder_is_refused_and_the_file_named(folder, name, how):
    path = array_file(folder) if name == "an array" else folder / name
    data = bytearray(path.read_bytes())
    if how == "deleted":
        path.unlink()
    else:
        data[len(data) // 2] ^= 255
        path.write_bytes(data if how == "flipped" else data[:-3])
    with pytest.raises(InputError, match=path.name) as caught:
        load_weights(folder)
    assert "\n" not in str(caught.value)


def test_an_added_file_is_refused(folder):
    (folder / "weights" / "foreign").write_bytes(b"x")
    with pytest.raises(InputError, match="weights/foreign is not as it was saved; copy the checkpoint again"):
        load_weights(folder)


def test_a_folder_without_a_model_and_another_format_are_named(folder, tmp_path):
    with pytest.raises(InputError, match=r"nowhere: no checkpoint here \(it has no config.json\)"):
        load_weights(tmp_path / "nowhere")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "format_version": 99}))
    with pytest.raises(InputError, match="format version 99, this release reads 1"):
        read_settings(folder)
