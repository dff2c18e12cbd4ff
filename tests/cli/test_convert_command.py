"""`convert`: the release and single parts to weights folders, and all of it back."""

import dataclasses
import importlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from voxinstruct_jax.checkpoints.weights import load_weights, read_settings, save_weights
from voxinstruct_jax.cli.main import main
from voxinstruct_jax.config import InputError
from voxinstruct_jax.interop.folders import PARTS, open_part, open_voxinstruct
from voxinstruct_jax.interop.keys import fill, flat_weights
from voxinstruct_jax.interop.pytorch_files import write_pytorch
from voxinstruct_jax.interop.tensors import read_folder, read_tensors, write_safetensors
from voxinstruct_jax.interop.unison import export_unison
from voxinstruct_jax.models.mmdit import MMDiT, MMDiTConfig
from voxinstruct_jax.voice_folder import load_part

MT5_SETTINGS = {"model_type": "mt5", "vocab_size": 11, "d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 1}
MT5_SHAPES = {
    "shared.weight": (11, 8),
    **{f"encoder.block.0.layer.0.SelfAttention.{name}.weight": (8, 8) for name in "qkv"},
    "encoder.block.0.layer.0.SelfAttention.o.weight": (8, 8),
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (32, 2),
    "encoder.block.0.layer.0.layer_norm.weight": (8,),
    "encoder.block.0.layer.1.DenseReluDense.wi_0.weight": (12, 8),
    "encoder.block.0.layer.1.DenseReluDense.wi_1.weight": (12, 8),
    "encoder.block.0.layer.1.DenseReluDense.wo.weight": (8, 12),
    "encoder.block.0.layer.1.layer_norm.weight": (8,),
    "encoder.final_layer_norm.weight": (8,),
}
TINY_HUBERT = {
    "conv_dims": (8,) * 7,
    "model_dim": 16,
    "num_layers": 1,
    "num_heads": 2,
    "ffn_dim": 24,
    "position_kernel": 8,
    "position_groups": 2,
}
SIZES = ["--num-semantic", "20", "--num-heads", "4", "--lora-alpha", "8", "--text-slots", "12"]


@pytest.fixture(scope="module")
def voice(release_npz, tmp_path_factory):
    folder = tmp_path_factory.mktemp("voice")
    for name, tensors in release_npz.items():
        write_safetensors(folder / f"{name}.safetensors", tensors)
    files = ["--ar", str(folder / "ar.safetensors"), "--nar", str(folder / "nar.safetensors")]
    assert main(["convert", "voxinstruct", *files, *SIZES, "--out", str(folder / "voice")]) == 0
    return folder / "voice"


@pytest.fixture(scope="module")
def release_npz():
    with np.load(Path(__file__).parents[1] / "golden" / "voxinstruct_tiny.npz") as arrays:
        return {
            name: {key[len(name) + 3 :]: arrays[key] for key in arrays.files if key.startswith(f"{name}/w/")}
            for name in ("ar", "nar")
        }


def test_the_release_becomes_a_voice_folder_and_goes_back_exactly(voice, release_npz, tmp_path, capsys):
    for name in ("ar", "nar"):
        assert read_settings(voice / name)["kind"] == name
    about = json.loads((voice / "release.json").read_text())
    assert about["release"]["text_slots"] == 12
    assert all(about["rules"].values())
    assert main(["convert", str(voice), "--to", "release", "--out", str(tmp_path / "back")]) == 0
    assert "back: release" in capsys.readouterr().out
    for name, tensors in release_npz.items():
        found = read_tensors(tmp_path / "back" / f"{name}.pyt")
        assert found.keys() == tensors.keys()
        for key, array in tensors.items():
            np.testing.assert_array_equal(found[key], array, err_msg=key)


MT5 = "t5_model.base_model.model."


@pytest.fixture(scope="module")
def frozen_npz(release_npz):
    """The release with one frozen mT5 in both files, as it was trained; adapters differ."""
    frozen = {key: array for key, array in release_npz["ar"].items() if key.startswith(MT5) and ".lora_" not in key}
    return {"ar": release_npz["ar"], "nar": {**release_npz["nar"], **frozen}}


def convert_release(tensors, folder):
    for name, table in tensors.items():
        write_safetensors(folder / f"{name}.safetensors", table)
    files = [f"--{name}={folder / name}.safetensors" for name in ("ar", "nar")]
    assert main(["convert", "voxinstruct", *files, *SIZES, "--out", str(folder / "voice")]) == 0
    return folder / "voice"


def size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_frozen_encoder_that_both_networks_have_is_stored_once(voice, frozen_npz, tmp_path):
    shared = convert_release(frozen_npz, tmp_path)
    assert not (voice / "text_encoder").exists()
    for name in ("ar", "nar"):
        encoder = read_settings(shared / name)["arrays"]["text"]["encoder"]
        assert encoder["blocks"]["0"]["attention"].keys() == {"query", "value"}
        assert encoder["blocks"]["0"]["attention"]["query"].keys() == {"down", "up"}
        assert size_of(shared / name) < size_of(voice / name)
    assert main(["convert", str(shared), "--to", "release", "--out", str(tmp_path / "back")]) == 0
    for name, tensors in frozen_npz.items():
        found = read_tensors(tmp_path / "back" / f"{name}.pyt")
        assert found.keys() == tensors.keys()
        for key, array in tensors.items():
            np.testing.assert_array_equal(found[key], array, err_msg=key)
    assert main(["convert", str(shared / "nar"), "--to", "safetensors", "--out", str(tmp_path / "tensors")]) == 0
    assert main(["convert", str(tmp_path / "tensors"), "--out", str(tmp_path / "whole")]) == 0
    first, again = load_weights(shared / "nar")[1], load_weights(tmp_path / "whole")[1]
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, other)
    assert main(["convert", str(shared / "text_encoder"), "--to", "original", "--out", str(tmp_path / "mt5")]) == 0
    for key, array in read_folder(tmp_path / "mt5")[1].items():
        parts = key.replace(".q.weight", ".q.base_layer.weight").replace(".v.weight", ".v.base_layer.weight")
        np.testing.assert_array_equal(array, frozen_npz["ar"][MT5 + parts], err_msg=key)


def test_models_loaded_together_hold_a_shared_encoder_once(frozen_npz, tmp_path):
    shared, known = convert_release(frozen_npz, tmp_path), {}
    tables = [load_weights(shared / name, known)[1]["text"]["encoder"]["embedding"]["table"] for name in ("ar", "nar")]
    assert tables[0] is tables[1]
    assert len(known) == 1


def test_a_missing_or_other_shared_encoder_is_named(frozen_npz, tmp_path):
    shared = convert_release(frozen_npz, tmp_path)
    (shared / "text_encoder").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"ar: shares the weights of .*text_encoder, which are missing; copy them"):
        load_weights(shared / "ar")
    _, arrays = load_weights(tmp_path / "elsewhere")
    save_weights(shared / "text_encoder", arrays, {"kind": "mt5"}, card="# Another\n")
    with pytest.raises(InputError, match=r"ar: shares other weights than those of .*text_encoder"):
        load_weights(shared / "ar")


def test_a_voice_made_anew_without_a_common_encoder_leaves_no_old_one(frozen_npz, release_npz, tmp_path):
    convert_release(frozen_npz, tmp_path)
    again = convert_release(release_npz, tmp_path)
    assert not (again / "text_encoder").exists()
    assert load_weights(again / "nar")[1]["text"]["encoder"]["embedding"]["table"].shape[1] == 32


def test_a_weights_folder_goes_to_safetensors_and_back_exactly(voice, tmp_path):
    assert main(["convert", str(voice / "nar"), "--to", "safetensors", "--out", str(tmp_path / "tensors")]) == 0
    assert "backbone.blocks.0.attention.key.kernel" in read_tensors(tmp_path / "tensors" / "model.safetensors")
    assert main(["convert", str(tmp_path / "tensors"), "--out", str(tmp_path / "nar")]) == 0
    assert read_settings(tmp_path / "nar") == read_settings(voice / "nar")
    (tmp_path / "ar").symlink_to(voice / "ar")
    (tmp_path / "release.json").write_text((voice / "release.json").read_text())
    first, again = (flat_weights(open_voxinstruct(folder).nar.model) for folder in (voice, tmp_path))
    for path, array in first.items():
        np.testing.assert_array_equal(again[path], array)


def test_int8_weights_go_to_safetensors_as_they_are_computed_with_and_back(tmp_path, capsys):
    kernel = jax.numpy.asarray(np.random.default_rng(0).standard_normal((6, 4)), "float32")
    save_weights(tmp_path / "small", {"linear": {"kernel": kernel}}, {"kind": "nar"}, card="", dtype="int8")
    _, arrays = load_weights(tmp_path / "small")
    assert main(["convert", str(tmp_path / "small"), "--to", "safetensors", "--out", str(tmp_path / "tensors")]) == 0
    assert main(["convert", str(tmp_path / "tensors"), "--out", str(tmp_path / "back")]) == 0
    _, again = load_weights(tmp_path / "back")
    np.testing.assert_array_equal(again["linear"]["kernel"], arrays["linear"]["kernel"])
    capsys.readouterr()
    assert main(["convert", str(tmp_path / "tensors"), "--dtype", "int8", "--out", str(tmp_path / "x")]) == 2
    assert "--dtype int8 is for runs" in capsys.readouterr().err


def test_a_part_goes_there_and_back(tmp_path):
    random = np.random.default_rng(0)
    tensors = {key: random.standard_normal(shape).astype(np.float32) for key, shape in MT5_SHAPES.items()}
    source = tmp_path / "source"
    write_safetensors(source / "model.safetensors", tensors)
    (source / "config.json").write_text(json.dumps({**MT5_SETTINGS, "num_heads": 2}))
    assert main(["convert", "mt5", str(source), "--out", str(tmp_path / "mt5")]) == 0
    kind, encoder = open_part(tmp_path / "mt5")
    assert kind == "mt5"
    assert encoder.config.num_heads == 2
    assert main(["convert", str(tmp_path / "mt5"), "--to", "original", "--out", str(tmp_path / "back")]) == 0
    settings, found = read_folder(tmp_path / "back")
    assert settings["d_ff"] == 12
    assert found.keys() == tensors.keys()
    for key, array in tensors.items():
        np.testing.assert_array_equal(found[key], array)


def draw(module_class, config):
    """A module with random weights."""

    def build():
        return module_class(config, rngs=nnx.Rngs(0))

    random = np.random.default_rng(0)
    shapes = {path: leaf.shape for path, leaf in flat_weights(nnx.eval_shape(build)).items()}
    table = {path: random.standard_normal(shape).astype(np.float32) for path, shape in shapes.items()}
    return fill(build, table, source="random")


def test_encodec_and_vocos_become_one_codec(tmp_path):
    codecs = importlib.import_module("voxinstruct_jax.audio.codecs")
    encodec, vocos = (importlib.import_module(f"voxinstruct_jax.interop.{name}") for name in ("encodec", "vocos"))
    pair = draw(codecs.EncodecVocos, codecs.EncodecVocosConfig.tiny())
    encodec.export_encodec(pair.encodec, tmp_path / "encodec")
    vocos.export_vocos(pair.vocos, tmp_path / "vocos")
    sources = [str(tmp_path / "encodec"), "--vocos", str(tmp_path / "vocos")]
    assert main(["convert", "encodec", *sources, "--out", str(tmp_path / "codec")]) == 0
    assert read_settings(tmp_path / "codec")["kind"] == "encodec_vocos"
    part = load_part(tmp_path / "codec", codecs.EncodecVocosConfig, codecs.EncodecVocos)
    again = flat_weights(nnx.merge(part.graph, part.state))
    # A weight is exported as direction and norm: their product may differ in the last bit.
    for path, array in flat_weights(pair).items():
        np.testing.assert_allclose(again[path], array, rtol=1e-6, err_msg=path)


@pytest.mark.parametrize("kind", ["hubert", "encodec", "mimi", "vocos"])
def test_every_port_goes_there_and_back(tmp_path, kind):
    """From a folder of the original's form, with random weights, to ours, and to such a folder again."""
    home, name = PARTS[kind]
    module = importlib.import_module(f"voxinstruct_jax.{home}")
    port = importlib.import_module(f"voxinstruct_jax.interop.{kind}")
    config = module.HubertConfig(**TINY_HUBERT) if kind == "hubert" else getattr(module, f"{name}Config").tiny()
    getattr(port, f"export_{kind}")(draw(getattr(module, name), config), tmp_path / "source")
    assert main(["convert", kind, str(tmp_path / "source"), "--out", str(tmp_path / "ours")]) == 0
    found, part = open_part(tmp_path / "ours")
    assert found == kind
    assert main(["convert", str(tmp_path / "ours"), "--to", "original", "--out", str(tmp_path / "back")]) == 0
    again = getattr(port, f"load_{kind}")(tmp_path / "back")
    first, second = flat_weights(part), flat_weights(again)
    assert first.keys() == second.keys()
    for path, array in first.items():
        np.testing.assert_array_equal(second[path], array, err_msg=path)


def golden_weights(name, start):
    with np.load(Path(__file__).parents[1] / "golden" / f"{name}_tiny.npz") as arrays:
        return {key.removeprefix(start): arrays[key].astype(np.float32) for key in arrays if key.startswith(start)}


@pytest.mark.parametrize(
    ("port", "kind", "file", "start", "options"),
    [("mmaudio_vae", "mel_vae", "v1-44.pth", "44k/w/", ["--scale", "0.5"]), ("unison", "mmdit", "", "", [])],
)
def test_parts_of_the_diffusion_baselines_go_there_and_back(tmp_path, port, kind, file, start, options):
    source = tmp_path / "source"
    if port == "unison":
        config = dataclasses.replace(
            MMDiTConfig.unison(joint_blocks=1, latent_channels=2), model_dim=96, num_heads=1, text_dim=3
        )
        export_unison(draw(MMDiT, config), source)
    else:
        source.mkdir()
        write_pytorch(source / file, golden_weights(port, start))
    assert main(["convert", port, str(source / file), *options, "--out", str(tmp_path / "ours")]) == 0
    found, part = open_part(tmp_path / "ours")
    assert found == kind
    if kind == "mel_vae":
        np.testing.assert_allclose(part.latent_statistics.variance[...], 2.0**2 - 1e-4)
    assert main(["convert", str(tmp_path / "ours"), "--to", "original", "--out", str(tmp_path / "back")]) == 0
    name = file or "model.safetensors"
    first, second = read_tensors(source / name), read_tensors(tmp_path / "back" / name)
    assert first.keys() == second.keys()
    for key, array in first.items():
        np.testing.assert_allclose(second[key], array, rtol=2e-7, err_msg=key)


def test_units_of_a_joblib_file(tmp_path):
    source = Path(__file__).parents[1] / "golden" / "kmeans.bin"
    assert main(["convert", "kmeans", str(source), "--out", str(tmp_path / "units")]) == 0
    settings, arrays = load_weights(tmp_path / "units")
    assert settings["kind"] == "units"
    assert arrays["centroids"].shape == (3, 4)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere", "--out", "x"], 1, "no training run here"),
        (["voxinstruct", "--ar", "a.pyt", "--out", "x"], 2, "--nar"),
        (["voxinstruct", "--ar", "a.pyt", "--nar", "b.pyt", "--out", "x"], 1, "a.pyt: no file to read"),
        (["voxinstruct", "--ar", "a", "--nar", "b", "--vocos", "c", "--out", "x"], 2, "give --encodec, too"),
        (["mt5", "nowhere", "--out", "x"], 1, "no model folder"),
        (["unison", "nowhere", "--out", "x"], 1, "nowhere: no file to read"),
        (["mmaudio_vae", "nowhere", "--scale", "-1", "--out", "x"], 1, "scale -1.0 must be above 0"),
        (["nowhere", "--to", "original", "--out", "x"], 1, "no checkpoint here"),
        (["nowhere", "--to", "else", "--out", "x"], 2, "--to"),
    ],
)
def test_wrong_use_gets_one_line(tmp_path, monkeypatch, capsys, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", *arguments]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("kind", [[], ["voxinstruct"], ["mt5"], ["kmeans"]])
def test_help_has_examples(kind, capsys):
    with pytest.raises(SystemExit):
        main(["convert", *kind, "--help"])
    assert "voxinstruct convert voxinstruct --ar ar_1800k.pyt" in capsys.readouterr().out
