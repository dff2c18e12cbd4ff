import json
import subprocess
import sys
from importlib import util
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from voxinstruct_jax.cli.main import main
from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.sharding.chips import CHIPS, chip_of
from voxinstruct_jax.sharding.topology import described_devices
from voxinstruct_jax.training.hlo import traffic
from voxinstruct_jax.training.plan import jaxpr_flops, suggestions

needs_tpu_compiler = pytest.mark.skipif(util.find_spec("libtpu") is None, reason="the extra `plan` is not installed")

CONFIG = """
import dataclasses
from voxinstruct_jax.data.batches import BatchConfig
from voxinstruct_jax.models.ar import ARConfig
from voxinstruct_jax.models.llama import LlamaConfig
from voxinstruct_jax.training.ar import ARExperiment
from voxinstruct_jax.training.language_model import TokenData
from voxinstruct_jax.vocabulary import Vocabulary

tiny = ARConfig.tiny(vocabulary=Vocabulary(), channel_sizes=(5,))
backbone = LlamaConfig(num_layers=1, model_dim=128, num_heads=2, num_kv_heads=2, head_dim=64, ffn_dim=256, dropout=0.0)
experiment = ARExperiment(
    model=dataclasses.replace(tiny, backbone=backbone, dtype="bfloat16"),
    data=TokenData(batch=BatchConfig(text_width=128, time_width=256, rows=8)),
)
"""


@pytest.fixture
def config(tmp_path):
    (tmp_path / "tiny.py").write_text(CONFIG)
    return tmp_path / "tiny.py"


def plan(*arguments):
    """Runs the command as its users do: shapes are no arrays, which the checks of these tests' own process refuse."""
    program = "import sys; from voxinstruct_jax.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "plan", *arguments, "--json", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr[-2000:]
    return done.returncode, json.loads(done.stdout)


@needs_tpu_compiler
def test_a_step_is_compiled_for_a_pod_that_is_not_here(config, tmp_path):
    page = tmp_path / "plan.html"
    code, found = plan(str(config), "--topology", "v5e:2x2", "--mesh.fsdp", "2", "--price", "2", "--html", str(page))
    assert code == 0
    assert (found["fits"], found["devices"], found["mesh"]) == (True, 4, {"data": 2, "fsdp": 2, "tensor": 1})
    assert 0 < found["state_bytes"] <= found["donated_bytes"] * 1.01  # nothing of the state is copied
    assert 0 < found["peak_bytes"] < 2**31
    assert {item["kind"] for item in found["collectives"]} & {"all-gather", "reduce-scatter", "all-reduce"}
    assert 0 < found["useful_flops"] < found["flops"]
    low, high = found["step_s"]
    assert 0 < low <= high
    assert 0 < found["mfu"][0] <= found["mfu"][1] < 1
    assert found["hours"] == [pytest.approx(time * 1000 / 3600) for time in found["step_s"]]
    assert found["cost"] == [pytest.approx(2 * 4 * hours) for hours in found["hours"]]
    assert "It fits." in page.read_text()


@needs_tpu_compiler
def test_a_step_that_does_not_fit_says_so_and_finds_one_that_does(config):
    rows = ["--data.batch.rows", "2048", "--data.batch.time-width", "2048", "--execution.attention", "reference"]
    code, found = plan(str(config), "--topology", "v5e:2x2", *rows)
    assert code == 1
    assert not found["fits"]
    assert "exceeds available HBM" in found["why_not"] or "memory" in found["why_not"]
    assert found["peak_bytes"] > CHIPS["v5e"].memory
    assert found["suggestion"] is None or found["suggestion"]["peak_bytes"] < CHIPS["v5e"].memory


@pytest.mark.parametrize(
    ("topology", "message"),
    [("v5e", "expected CHIP:SHAPE such as v5e:16x16"), ("H100:some", "expected the number of GPUs, such as H100:8")],
)
def test_pods_that_do_not_exist_are_refused(topology, message):
    with pytest.raises(ConfigError, match=message):
        described_devices(topology)


def test_only_language_models_can_be_planned(capsys):
    codec = Path(__file__).parents[2] / "configs" / "smoke_codec.py"
    assert main(["plan", str(codec), "--topology", "v5e:2x2"]) == 2
    assert "only AR and NAR experiments can be planned" in capsys.readouterr().err


def test_operations_of_loops_count_as_often_as_they_run():
    weights = jnp.ones((5, 4, 4))

    def looped(x):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, weights)[0]

    assert jaxpr_flops(jax.make_jaxpr(looped)(jnp.ones((3, 4))).jaxpr) == 5 * 2 * 3 * 4 * 4


PROGRAM = """HloModule step

%body (p: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %p = (s32[], f32[8,16]) parameter(0)
  %x = f32[8,16] get-tuple-element(%p), index=1
  %sum = f32[8,16] all-reduce(%x), replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %t = (s32[], f32[8,16]) tuple(%i, %sum)
}

%condition (p: (s32[], f32[8,16])) -> pred[] {
  %n = s32[] constant(6)
}

ENTRY %main (a: f32[8,16]) -> f32[8,16] {
  %a = f32[8,16] parameter(0)
  %loop = (s32[], f32[8,16]) while(%start), condition=%condition, body=%body
  %g = f32[32,16] all-gather(%a), replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
  ROOT %r = f32[8,16] get-tuple-element(%loop), index=1
}
"""


def test_collectives_in_loops_and_over_far_links_are_found():
    found = {item.kind: item for item in traffic(PROGRAM, num_devices=8, near=4).collectives}
    summed, gathered = found["all-reduce"], found["all-gather"]
    assert (summed.runs, summed.group, summed.link) == (6, 4, "ici")
    assert summed.sent_bytes == pytest.approx(6 * 8 * 16 * 4 * 2 * 3 / 4)
    assert (gathered.runs, gathered.group, gathered.link) == (1, 4, "dcn")  # devices 0, 2, 4, 6: two slices of four
    assert gathered.sent_bytes == pytest.approx(32 * 16 * 4 * 3 / 4)


def test_chips_are_known_by_what_jax_calls_them():
    assert chip_of("TPU v5 lite") == CHIPS["v5e"]
    assert chip_of("NVIDIA H100 80GB HBM3") == CHIPS["H100"]
    assert chip_of("cpu") is None


def test_suggestions_are_mildest_first_and_keep_the_rows():
    from voxinstruct_jax.cli.experiments import load_experiment

    experiment = load_experiment(str(Path(__file__).parents[2] / "configs" / "pretrain_ar.py"))
    found = list(suggestions(experiment, 16))
    assert found[0][0] == "--execution.remat full --execution.loss-chunk 512"
    assert all(changed.data == experiment.data for _, changed in found)
    assert any("--mesh.fsdp 16" in options for options, _ in found)
