import dataclasses
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
from voxinstruct_jax.data.plan import BatchConfig
from voxinstruct_jax.layers.operations import jaxpr_operations
from voxinstruct_jax.sharding.chips import CHIPS, chip_of
from voxinstruct_jax.sharding.topology import described_devices, device_count
from voxinstruct_jax.training.hlo import traffic
from voxinstruct_jax.training.language_model import TokenData
from voxinstruct_jax.training.plan import suggestions

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
    model=dataclasses.replace(
        tiny, backbone=backbone, text_encoder=dataclasses.replace(tiny.text_encoder, num_layers=1), dtype="bfloat16"
    ),
    data=TokenData(batch=BatchConfig(text_width=128, time_width=256, rows=8)),
)
"""


RUNNER = """
import contextlib, io, json, sys
from voxinstruct_jax.cli.main import main

found = {}
for name, arguments in json.loads(sys.argv[1]).items():
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = main(["plan", *arguments, "--json"])
    found[name] = code, json.loads(printed.getvalue()) if printed.getvalue() else None
print(json.dumps(found))
"""


def run_plans(commands):
    """Runs the command as its users do: shapes are no arrays, which the checks of these tests' own process refuse."""
    command = [sys.executable, "-c", RUNNER, json.dumps(commands)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("plans") / "tiny.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def planned(config):
    """All plans of this file: exit code and what is printed; those of TPUs where their compiler is."""
    wide = ["--topology", "H100:16", "--mesh.fsdp", "4", "--data.batch.rows", "16", "--requests", "0", "--formula"]
    plans = {
        "known": [str(config), *wide],
        "unknown": [str(config), "--topology", "G7000:8", "--requests", "0"],
        "rows": [str(config), "--topology", "H100:8", "--data.batch.rows", "12"],
    }
    if util.find_spec("libtpu") is None:
        return run_plans(plans)
    small = ["--data.batch.time-width", "128", "--topology", "v5e:2x2", "--mesh.fsdp", "2"]
    page = str(config.parent / "plan.html")
    crowded = ["--topology", "v5e:1x1", "--data.batch.rows", "512", "--data.batch.time-width", "2048"]
    return run_plans(
        plans
        | {
            "small": [str(config), *small, "--quick", "--price", "2", "--requests", "2", "--html", page],
            "formula": [str(config), *small, "--formula", "--requests", "2"],
            "crowded": [str(config), *crowded, "--execution.attention", "reference", "--quick", "--requests", "0"],
        }
    )


@needs_tpu_compiler
@pytest.mark.slow
def test_a_step_is_compiled_for_a_pod_that_is_not_here(config, planned):
    code, found = planned["small"]
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
    page = (config.parent / "plan.html").read_text()
    assert "It fits." in page
    assert "Decoding on one device" in page


@needs_tpu_compiler
def test_decoding_is_compiled_too_and_bound_by_what_a_step_reads(planned):
    found = planned["small"][1]["decode"]
    assert found["fits"]
    assert found["derived"] == []
    layers, rows, slots, width, vocabulary = 1, 2 * 3, found["slots"], 128, 1531
    assert found["cache_bytes"] == 2 * layers * rows * slots * width * 2  # keys and values, bfloat16
    kernels = 4 * width * width + 3 * width * 256
    assert found["weight_bytes"] == pytest.approx(2 * kernels + 4 * width * vocabulary, rel=0.02)
    assert found["peak_bytes"] >= found["weight_bytes"] + found["cache_bytes"]
    assert found["flops"] >= 2 * rows * (kernels + width * vocabulary)
    assert found["step_s"] == max(found["bounds_s"].values())
    assert found["bounds_s"]["hbm"] * CHIPS["v5e"].bandwidth == found["weight_bytes"] + found["cache_bytes"]


@needs_tpu_compiler
def test_the_formula_is_near_what_the_compiler_says(planned):
    (_, exact), (_, derived) = planned["small"], planned["formula"]
    assert any("by formula" in what for what in derived["derived"])
    for name in ("mesh", "flops", "useful_flops", "state_bytes"):
        assert derived[name] == exact[name], name
    sent = {
        name: sum(item["sent_bytes"] for item in plan["collectives"])
        for name, plan in (("exact", exact), ("derived", derived))
    }
    assert sent["derived"] == pytest.approx(sent["exact"], rel=0.6)
    assert derived["hbm_bytes"] == pytest.approx(exact["hbm_bytes"], rel=0.6)


@needs_tpu_compiler
def test_a_step_that_does_not_fit_says_so_and_finds_one_that_does(planned):
    code, found = planned["crowded"]
    assert code == 1
    assert not found["fits"]
    assert "exceeds available HBM" in found["why_not"] or "memory" in found["why_not"]
    assert found["peak_bytes"] > CHIPS["v5e"].memory
    assert found["suggestion"]["peak_bytes"] < CHIPS["v5e"].memory
    assert "--step.accumulate" in found["suggestion"]["options"]


def test_gpus_are_planned_by_formula_and_unknown_ones_get_memory_only(planned):
    code, known = planned["known"]
    assert (code, known["fits"], known["devices"]) == (0, True, 16)
    links = {item["kind"]: item["link"] for item in known["collectives"]}
    assert links == {"all-gather": "ici", "reduce-scatter": "ici", "all-reduce": "dcn"}  # hosts of eight
    assert known["step_s"][1] >= known["step_s"][0] > 0
    code, unknown = planned["unknown"]
    assert (code, unknown["fits"], unknown["step_s"], unknown["memory_bytes"]) == (0, None, None, None)
    assert unknown["peak_bytes"] > unknown["state_bytes"] > 0
    assert planned["rows"] == [2, None]


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("v5e", "expected CHIP:SHAPE such as v5e:16x16"),
        ("v5e:16x32", "there is no such slice; v5e has 1x1, 2x2"),
        ("v5p:4x4", "there is no such slice; v5p has .* or blocks of 4x4x4 up to 6144 chips"),
        ("tpu7x:4x4x6", "there is no such slice"),
        ("H100:some", "expected the number of GPUs, such as H100:8"),
        ("H100:12", "12 GPUs are no whole hosts of 8"),
        ("v9:4x4", "expected CHIP:SHAPE"),
    ],
)
def test_pods_that_do_not_exist_are_refused(topology, message):
    with pytest.raises(ConfigError, match=message):
        described_devices(topology)


def test_only_language_models_can_be_planned(capsys):
    codec = Path(__file__).parents[2] / "configs" / "smoke_codec.py"
    assert main(["plan", str(codec), "--topology", "v5e:2x2"]) == 2
    assert (
        "a CodecExperiment cannot be planned; training of AR, NAR and models of latents can" in capsys.readouterr().err
    )


def test_operations_of_loops_count_as_often_as_they_run():
    weights = jnp.ones((5, 4, 4))

    def looped(x):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, weights)[0]

    assert jaxpr_operations(jax.make_jaxpr(looped)(jnp.ones((3, 4))).jaxpr) == 5 * 2 * 3 * 4 * 4


def test_of_the_programs_of_several_platforms_one_counts():
    def chosen(x):
        return jax.lax.platform_dependent(x, cpu=lambda x: x @ x, default=lambda x: x @ x.T)

    assert jaxpr_operations(jax.make_jaxpr(chosen)(jnp.ones((4, 4))).jaxpr) == 2 * 4**3


def test_devices_of_a_pod_are_counted_as_jax_sees_them():
    assert device_count("v5p:4x4x8") == 128
    assert device_count("tpu7x:4x4x4") == 128  # two a chip
    assert device_count("v5e:16x16", slices=2) == 512


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
    assert chip_of("NVIDIA A100-SXM4-40GB") == CHIPS["A100-40"]
    assert chip_of("NVIDIA A100-SXM4-80GB") == CHIPS["A100"]
    assert chip_of("cpu") is None


def test_suggestions_are_mildest_first_and_fewer_rows_come_last():
    from voxinstruct_jax.cli.experiments import load_experiment

    experiment = load_experiment(str(Path(__file__).parents[2] / "configs" / "pretrain_ar.py"))
    experiment = dataclasses.replace(experiment, data=TokenData(batch=BatchConfig(rows=64)))
    found = list(suggestions(experiment, 16))
    assert found[0][0] == "--execution.remat full --execution.loss-chunk 512"
    fewer = [number for number, (options, _) in enumerate(found) if "--data.batch.rows" in options]
    assert fewer == [len(found) - 2, len(found) - 1]
    assert [found[number][1].data.batch.rows for number in fewer] == [32, 16]
    assert any("--mesh.fsdp 16" in options for options, _ in found)
