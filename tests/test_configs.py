import ast
import functools
import re
from pathlib import Path

import jax
import pytest
from flax import nnx

from voxinstruct_jax.audio.codec import CodecConfig, MelCodec
from voxinstruct_jax.audio.mel_vae import MelVAE, MelVAEConfig
from voxinstruct_jax.audio.vocos import MelVocoder, MelVocoderConfig
from voxinstruct_jax.cli.experiments import load_experiment, override
from voxinstruct_jax.cli.main import main
from voxinstruct_jax.config import ConfigError, from_dict, to_dict
from voxinstruct_jax.models.ar import ARConfig, ARModel
from voxinstruct_jax.models.codec_flow import CodecFlow, CodecFlowConfig
from voxinstruct_jax.models.grad_tts import GradTTS, GradTTSConfig
from voxinstruct_jax.models.masked_latents import MaskedLatents, MaskedLatentsConfig
from voxinstruct_jax.models.mmdit import MMDiT, MMDiTConfig
from voxinstruct_jax.models.nar import NARConfig, NARModel

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(CONFIGS.glob("*.py"))
PARTS = ["Run:", "Hardware:", "Cost:", "Expect:", "Measured:"]
MODELS = {
    CodecConfig: MelCodec, ARConfig: ARModel, NARConfig: NARModel, MMDiTConfig: MMDiT, MelVAEConfig: MelVAE,
    MelVocoderConfig: MelVocoder,
    CodecFlowConfig: CodecFlow, GradTTSConfig: GradTTS,
    MaskedLatentsConfig: MaskedLatents,
}  # fmt: skip


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def path(request):
    return request.param


def test_there_are_experiments():
    assert {"codec_small", "units_small", "smoke_codec"} <= {path.stem for path in FILES}


def test_an_experiment_says_how_to_run_it_and_what_to_expect(path):
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    found = [line.split()[0] for line in docstring.splitlines() if line.split() and line.split()[0] in PARTS]
    assert found == PARTS
    assert all(re.search(rf"^{part} \S", docstring, re.MULTILINE) for part in PARTS)
    assert f"configs/{path.name}" in docstring
    assert docstring.splitlines()[0].endswith(".")


def test_an_experiment_imports_nothing_but_the_package(path):
    imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]
    roots = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports}
    assert {root.split(".")[0] for root in roots} <= {"voxinstruct_jax", "dataclasses"}


def test_an_experiment_survives_storage_and_its_model_can_be_built(path):
    experiment = load_experiment(str(path))
    assert from_dict(type(experiment), to_dict(experiment)) == experiment
    config = getattr(experiment, "model", None)
    if config is not None:
        assert number_of_weights(config) > 0


@functools.cache
def number_of_weights(config):
    """Counted once a model: several experiments share one."""
    model = nnx.eval_shape(lambda: MODELS[type(config)](config, rngs=nnx.Rngs(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model)))


@pytest.fixture
def ar_file(tmp_path):
    (tmp_path / "ar.py").write_text(
        "from voxinstruct_jax.models.ar import ARConfig\n"
        "from voxinstruct_jax.training.ar import ARExperiment\n"
        "from voxinstruct_jax.vocabulary import Vocabulary\n"
        "experiment = ARExperiment(model=ARConfig.tiny(vocabulary=Vocabulary(), channel_sizes=(5, 7)))\n"
    )
    return tmp_path / "ar.py"


def test_block_sizes_of_a_language_model_are_reached_by_their_short_names(ar_file):
    arguments = ["--model.num-layers", "3", "--model.ffn-dim=96", "--train.steps", "7", "--mesh.fsdp", "2"]
    changed = override(load_experiment(str(ar_file)), arguments, program="train")
    assert (changed.model.backbone.num_layers, changed.model.backbone.ffn_dim) == (3, 96)
    assert changed.model.text_encoder.num_layers == 2
    assert (changed.train.steps, changed.mesh.fsdp) == (7, 2)


def test_full_names_and_other_fields_are_reached_as_they_stand(ar_file):
    arguments = [
        "--model.backbone.model-dim",
        "64",
        "--model.text-encoder.num-layers",
        "1",
        "--model.dtype",
        "bfloat16",
    ]
    changed = override(load_experiment(str(ar_file)), arguments, program="train")
    assert changed.model.backbone.model_dim == 64
    assert changed.model.text_encoder.num_layers == 1
    assert changed.model.dtype == "bfloat16"


def test_block_sizes_of_a_codec_are_its_own():
    experiment = load_experiment(str(CONFIGS / "smoke_codec.py"))
    assert override(experiment, ["--model.num-layers", "2"], program="train").model.num_layers == 2


@pytest.mark.parametrize(
    "arguments",
    [["--model.num-layrs", "3"], ["--train.steps", "many"], ["--train.steps", "0"], ["--optimizer.peak-lr=-1"]],
)
def test_an_override_that_does_not_fit_exits_with_2_and_starts_nothing(ar_file, tmp_path, capsys, arguments):
    try:
        code = main(["train", str(ar_file), "--out", str(tmp_path / "run"), *arguments])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_value_out_of_range_is_one_clear_line(ar_file, tmp_path, capsys):
    assert main(["train", str(ar_file), "--out", str(tmp_path / "run"), "--model.num-heads", "0"]) == 2
    assert capsys.readouterr().err == "voxinstruct train: backbone.num_heads: 0 must be at least 1\n"


def test_a_missing_configuration_names_its_neighbours(ar_file, tmp_path, capsys):
    assert main(["train", str(tmp_path / "arr.py")]) == 2
    assert "arr.py: no such configuration; this folder has ar.py" in capsys.readouterr().err
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ConfigError, match=r"empty\.py: defines no `experiment`"):
        load_experiment(str(tmp_path / "empty.py"))


def test_the_options_of_a_configuration_can_be_listed(ar_file, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", str(ar_file), "--options"])
    assert stop.value.code == 0
    listed = capsys.readouterr().out
    assert "--train.steps" in listed
    assert "--mesh.fsdp" in listed
