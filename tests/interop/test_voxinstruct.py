"""The release's files: logits, decoding and whole runs against stored outputs of the original, and the way back."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from voxinstruct_jax.config import ConfigError, InputError
from voxinstruct_jax.decoding.autoregressive import decode_ar
from voxinstruct_jax.decoding.requests import ARRequest, Capacity, Limits, batch_requests
from voxinstruct_jax.decoding.rules import DecodingRules
from voxinstruct_jax.decoding.sampling import SamplingConfig
from voxinstruct_jax.guidance import Branch, Guidance
from voxinstruct_jax.interop import ReleaseConfig, export_voxinstruct, load_voxinstruct
from voxinstruct_jax.interop.pytorch_files import write_pytorch
from voxinstruct_jax.interop.tensors import read_tensors, write_safetensors
from voxinstruct_jax.vocabulary import build_prompt

LIMIT = 1e-4
FAITHFUL = DecodingRules.faithful()
VARIANTS = {"cond": {}, "text_free": {"text_free": True}, "st_free": {"semantic_free": True}}


def relative_error(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


def data(golden, *names):
    return [golden[f"data/{name}"] for name in names]


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_ar_logits_and_loss(release_golden, release, variant):
    text_ids, mask, seqs, segments = data(release_golden, "text_ids", "text_attn_mask", "seqs", "segment_ids")
    logits = release.ar.logits(text_ids, mask, seqs, segments, **VARIANTS[variant])
    valid = segments > 0
    assert relative_error(logits[valid], release_golden[f"ar/{variant}/logits"][valid]) < LIMIT
    likelihood = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits[:, :-1])), seqs[:, 1:, None], -1)[..., 0]
    counted = valid[:, 1:]
    loss = -(likelihood * counted).sum() / counted.sum()
    assert loss == pytest.approx(float(release_golden[f"ar/{variant}/loss"]), abs=1e-5)


def test_rows_may_differ_in_what_they_go_without(release_golden, release):
    arrays = data(release_golden, "text_ids", "text_attn_mask", "seqs", "segment_ids")
    mixed = release.ar.logits(*arrays, text_free=np.array([True, False]), semantic_free=np.array([False, True]))
    valid = arrays[-1] > 0
    for row, variant in enumerate(("text_free", "st_free")):
        expected = release_golden[f"ar/{variant}/logits"][row]
        assert relative_error(mixed[row][valid[row]], expected[valid[row]]) < LIMIT


@pytest.mark.parametrize("variant", ["base", "text_free", "st_free"])
def test_ar_logits_of_prefixes_equal_cached_decoding(release_golden, release, variant):
    row = int(release_golden["ar/decode/row"])
    arrays = [
        array[row : row + 1] for array in data(release_golden, "text_ids", "text_attn_mask", "seqs", "segment_ids")
    ]
    logits = release.ar.logits(*arrays, **VARIANTS.get(variant, {}))[0]
    places = release_golden["ar/decode/prefix_lengths"] - 1
    assert relative_error(logits[places], release_golden[f"ar/decode_{variant}/logits"]) < LIMIT


@pytest.mark.parametrize("draw", [0, 1, 2])
def test_nar_training_logits(release_golden, release, draw):
    """The original hides the whole of the predicted codebook beyond the prompt, and all codebooks above it."""
    recorded = {name: release_golden[f"nar/train{draw}/{name}"] for name in ("layer_index", "prompt_mask", "logits")}
    text_ids, mask, rows, segments = data(release_golden, "text_ids", "text_attn_mask", "full_seqs", "segment_ids")
    below = np.arange(8)[None, :, None] < recorded["layer_index"][:, None, None]
    visible = np.where(below | recorded["prompt_mask"][:, None], np.moveaxis(rows, -1, 1), 0)
    logits = release.nar.logits(text_ids, mask, visible, segments, recorded["layer_index"])
    assert relative_error(logits[segments > 0], recorded["logits"][segments > 0]) < LIMIT


@pytest.mark.parametrize("case", [0, 1])
def test_nar_prediction(release_golden, release, case):
    recorded = {key.split("/")[-1]: v for key, v in release_golden.items() if key.startswith(f"nar/predict{case}/")}
    row, steps = int(recorded["row"]), int(recorded["iter_step"])
    text_ids, mask = (array[row : row + 1] for array in data(release_golden, "text_ids", "text_attn_mask"))
    filled = release.nar.fill(
        text_ids, mask, recorded["x_in"], recorded["segment_ids"], num_steps=steps, rules=FAITHFUL
    )
    np.testing.assert_array_equal(filled[0], recorded["x_after_each_codebook"][-1])
    rows = np.concatenate([recorded["x_in"], recorded["x_after_each_codebook"][:-1]])
    logits = release.nar.logits(
        np.tile(text_ids, (7, 1)),
        np.tile(mask, (7, 1)),
        rows,
        np.tile(recorded["segment_ids"], (7, 1)),
        np.arange(1, 8),
    )
    assert relative_error(logits, recorded["logits_all_calls"][::steps]) < LIMIT


@dataclasses.dataclass(frozen=True)
class Run:
    """A recorded run of the inference program."""

    text_ids: np.ndarray
    prefix: np.ndarray
    prompt_units: np.ndarray
    prompt_codes: np.ndarray
    guidance: Guidance
    arrays: dict


def recorded_run(golden, number):
    arrays = {key.split("/")[-1]: value for key, value in golden.items() if key.startswith(f"loop{number}/")}
    gamma, alpha, beta = map(float, arrays["guidance_gamma_alpha_beta"])
    units = arrays.get("prompt_semantic_raw", np.zeros(0, np.int32))
    return Run(
        text_ids=arrays["text_ids"],
        prefix=np.r_[55, 1 + arrays["lang_id_raw"], 3 + units],
        prompt_units=units,
        prompt_codes=arrays.get("prompt_acoustic_raw", np.zeros((8, 0), np.int32)),
        guidance=Guidance(text_on_semantic=gamma, text_on_acoustic=alpha, semantic_on_acoustic=beta),
        arrays=arrays,
    )


def probabilities(release, run, sampled, rules=FAITHFUL):
    return release.ar.probabilities(
        run.text_ids,
        run.prefix,
        sampled,
        guidance=run.guidance,
        sampling=SamplingConfig.release(),
        rules=rules,
        prompt_codes=23 + run.prompt_codes[0],
    )


@pytest.mark.parametrize("number", [0, 1])
def test_a_whole_run_of_the_inference_program(release_golden, release, number):
    """Each token's distribution, then the NAR rows and the codes; ids out of range were drawn and are kept."""
    run = recorded_run(release_golden, number)
    arrays, sampled = run.arrays, run.arrays["sampled"]
    np.testing.assert_allclose(probabilities(release, run, sampled), arrays["probs"], atol=1e-5)
    ids, mask = run.text_ids[None], np.ones((1, len(run.text_ids)))
    steps = int(arrays["nar_iter_steps"])
    filled = release.nar.fill(ids, mask, arrays["nar_in"], arrays["segment_ids"], num_steps=steps, rules=FAITHFUL)
    np.testing.assert_array_equal(filled, arrays["nar_out"])
    start = int((arrays["segment_ids"] == 1).sum()) + run.prompt_codes.shape[1]
    codes = np.clip(filled[0, :, start:-1] - 23, 0, 1023)  # the original clips at 1023 whatever the codebook
    np.testing.assert_array_equal(codes, arrays["codes_to_vocoder"])


def test_the_mended_ranges_give_no_weight_to_ids_that_are_no_tokens(release_golden, release):
    run = recorded_run(release_golden, 0)
    faithful = probabilities(release, run, run.arrays["sampled"])
    fixed = probabilities(release, run, run.arrays["sampled"], DecodingRules.fixed())
    (ends,) = np.nonzero(run.arrays["sampled"] == 56)
    semantic, acoustic = slice(0, int(ends[0]) + 1), slice(int(ends[0]) + 1, None)
    assert faithful[semantic, :3].any()
    assert not fixed[semantic, :3].any()
    assert not fixed[acoustic, 21:23].any()
    np.testing.assert_allclose(fixed.sum(-1), 1, rtol=1e-5)


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def run_loop(graph, state, batch, rules, sampling):
    branches = (Branch.COND, Branch.TEXT_FREE, Branch.SEMANTIC_FREE)
    capacity = Capacity(semantic=14, acoustic=14)
    return decode_ar(
        nnx.merge(graph, state), batch, branches=branches, sampling=sampling, capacity=capacity, rules=rules
    )


@pytest.mark.parametrize("number", [0, 1])
def test_greedy_decoding_takes_the_best_token_of_each_distribution(release_golden, release, number):
    """The loop with its cache against whole sequences, whose distributions are the original's."""
    run = recorded_run(release_golden, number)
    model = release.ar.model
    request = ARRequest(
        text_tokens=np.pad(run.text_ids, (0, 12 - len(run.text_ids)))[:, None].astype(np.int32),
        prompt=build_prompt(
            model.config.vocabulary, ("en", "zh")[run.prefix[1] - 1], run.prompt_units, run.prompt_codes
        ),
        guidance=run.guidance,
        limits=Limits(min_semantic=0, max_semantic=14, min_acoustic=0, max_acoustic=14, max_total=99),
        seed=0,
    )
    branches = (Branch.COND, Branch.TEXT_FREE, Branch.SEMANTIC_FREE)
    batch = batch_requests([request], branches, text_width=12, prefix_width=5, acoustic_prefix_width=4)
    greedy = SamplingConfig(temperature=0.0)
    result = jax.device_get(run_loop(*nnx.split(model), batch, FAITHFUL, greedy))
    units = result.semantic_tokens[0, : result.semantic_lengths[0]]
    codes = result.codes[0, : result.code_lengths[0]]
    drawn = np.r_[units + 3, 56, codes + 23, 57]
    best = probabilities(release, run, drawn).argmax(-1)
    forced = {len(units): len(units) == 14, len(drawn) - 1: len(codes) == 14, len(units) + 1: drawn[-2] == 56}
    free = [place for place in range(len(drawn)) if not forced.get(place)]
    np.testing.assert_array_equal(drawn[free], best[free])
    assert len(free) > 14


def test_export_gives_back_every_key_exactly(release_tensors, release, tmp_path):
    for name, tensors in zip(("ar", "nar"), export_voxinstruct(release), strict=True):
        for path, write in ((tmp_path / "x.pyt", write_pytorch), (tmp_path / "x.safetensors", write_safetensors)):
            write(path, tensors)
            found = read_tensors(path)
            assert found.keys() == release_tensors[name].keys()
            for key, array in release_tensors[name].items():
                np.testing.assert_array_equal(found[key], array, err_msg=key)


def test_files_without_adapters_or_in_safetensors_are_read_too(
    release_golden, release_tensors, release_config, tmp_path
):
    """Plain keys: what is left when the adapters' product is put into the projections."""
    for name, tensors in release_tensors.items():
        plain = {}
        for key, array in tensors.items():
            if "lora" in key:
                continue
            if "base_layer" in key:
                down, up = (tensors[key.replace("base_layer", f"lora_{part}.default")] for part in "AB")
                array = array + 2 * (up @ down)
            plain[key.replace("base_model.model.", "").replace("base_layer.", "")] = array
        write_safetensors(tmp_path / f"{name}.safetensors", plain)
    merged = load_voxinstruct(tmp_path / "ar.safetensors", tmp_path / "nar.safetensors", release_config)
    arrays = data(release_golden, "text_ids", "text_attn_mask", "seqs", "segment_ids")
    with jax.default_matmul_precision("highest"):
        logits = merged.ar.logits(*arrays)
    valid = arrays[-1] > 0
    assert relative_error(logits[valid], release_golden["ar/cond/logits"][valid]) < LIMIT
    assert export_voxinstruct(merged)[0].keys() == read_tensors(tmp_path / "ar.safetensors").keys()


def change_file(files, tmp_path, tensors, name, change):
    changed = dict(tensors[name])
    change(changed)
    write_pytorch(tmp_path / f"{name}.pyt", {"model": changed})
    return {"ar": files.ar, "nar": files.nar, name: tmp_path / f"{name}.pyt"}


LAYER = "layers.1.self_attn.k_proj.weight"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "ar",
            lambda w: w.update({"renamed": w.pop("prompt_fc.bias")}),
            "1 missing: prompt_fc.bias; 1 left over: renamed",
        ),
        ("ar", lambda w: w.pop(f"model.model.{LAYER}"), f"1 missing: model.model.{LAYER}"),
        ("nar", lambda w: w.update({f"model.{LAYER}": np.ones((64, 63), np.float32)}), "64 x 63 instead of 64 x 64"),
        ("nar", lambda w: w.pop("out_proj.6.weight"), "1 missing: out_proj.6.weight"),
        ("nar", lambda w: w.pop("all_embed_tokens.7.weight"), "1 left over: out_proj.6.weight"),
        ("ar", lambda w: w.update({"model.model.embed_tokens.weight": np.ones((3, 64), np.float32)}), "embed_tokens"),
        ("ar", lambda w: w.pop("embed_tokens.weight"), "embed_tokens.weight is missing"),
        ("ar", lambda w: w.update({"optimizer.step": np.ones(1)}), "1 left over: optimizer.step"),
        (
            "ar",
            lambda w: w.update(
                {"t5_model.base_model.model.encoder.embed_tokens.weight": np.ones((40, 32), np.float32)}
            ),
            "one tensor in the model, but differ",
        ),
    ],
)
def test_keys_that_do_not_fit_are_named(
    release_files, release_tensors, release_config, tmp_path, name, change, message
):
    paths = change_file(release_files, tmp_path, release_tensors, name, change)
    with pytest.raises(InputError) as caught:
        load_voxinstruct(paths["ar"], paths["nar"], release_config)
    assert message in str(caught.value)
    assert f"{name}.pyt" in str(caught.value)


@pytest.mark.parametrize("change", [{"num_semantic": 21}, {"languages": ("en",)}, {"num_heads": 5}])
def test_a_config_that_does_not_fit_the_shapes_is_refused(release_files, release_config, change):
    with pytest.raises(InputError, match=r"has 58 ids|do not divide into 5 heads"):
        load_voxinstruct(release_files.ar, release_files.nar, dataclasses.replace(release_config, **change))


def test_the_defaults_are_those_of_the_release():
    config = ReleaseConfig()
    assert (config.num_heads, config.lora_alpha, config.num_semantic, config.text_slots) == (16, 16.0, 500, 512)
    assert len(config.languages) == 2
    with pytest.raises(ConfigError, match="num_heads"):
        ReleaseConfig(num_heads=0)


def test_texts_longer_than_the_slots_are_refused(release):
    ids = np.ones((1, 13), np.int32)
    with pytest.raises(InputError, match="13 ids, but there are 12 slots"):
        release.ar.logits(ids, ids, jnp.ones((1, 3), jnp.int32), np.ones((1, 3), np.int32))
