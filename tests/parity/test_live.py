"""Our ports against the original programs themselves: random models of several sizes, written and loaded as files.

Skipped unless torch and transformers are installed (for VoxInstruct also peft, for Vocos also vocos and encodec).
Run: pytest -m torch
"""

import argparse
import importlib.util
import warnings

import jax
import numpy as np
import pytest

NEEDED = ("torch", "transformers")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
if MISSING:
    pytest.skip(f"{', '.join(MISSING)} not installed", allow_module_level=True)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import originals
    import torch

LIMIT = 1e-4
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def _exact_products():
    with jax.default_matmul_precision("highest"), torch.no_grad():
        yield


def check(found, expected):
    found, expected = np.asarray(found, np.float32), expected.detach().numpy()
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= LIMIT * np.abs(expected).max()


def noise(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


HUBERTS = {
    "usual": {},
    "wide": {
        "hidden_size": 96,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "conv_dim": [16, 24, 24, 24, 32, 32, 40],
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 8,
    },
    "odd positions": {"num_conv_pos_embeddings": 9, "num_conv_pos_embedding_groups": 1, "num_hidden_layers": 1},
    "large": {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True},
    "norms first": {"do_stable_layer_norm": True, "num_conv_pos_embedding_groups": 6},
    "norms of layers": {"feat_extract_norm": "layer"},
    "other front end": {"conv_dim": [8, 12, 16], "conv_kernel": [9, 4, 3], "conv_stride": [4, 3, 2], "conv_bias": True},
}


@pytest.mark.parametrize("form", HUBERTS)
@pytest.mark.parametrize(("seed", "safe"), [(0, True), (1, False)])
def test_hubert(tmp_path, form, seed, safe):
    from voxinstruct_jax.interop.hubert import load_hubert

    original = originals.hubert(seed, **HUBERTS[form])
    original.save_pretrained(tmp_path, safe_serialization=safe)
    hubert = load_hubert(tmp_path)
    for length in (400, 5003):
        samples = noise(length, 2, length)
        expected = original(torch.tensor(samples), output_hidden_states=True).hidden_states
        for layer in (0, len(expected) - 1):
            check(hubert(samples, layer), expected[layer])


def test_hubert_of_a_fairseq_checkpoint(tmp_path):
    from voxinstruct_jax.interop.hubert import load_hubert

    original, state = originals.hubert(2), {}
    for key, value in original.state_dict().items():
        for theirs, ours in (
            (".conv.weight", ".0.weight"),
            ("conv_layers.0.layer_norm", "conv_layers.0.2"),
            ("feature_projection.layer_norm", "layer_norm"),
            ("feature_projection.projection", "post_extract_proj"),
            ("pos_conv_embed.conv", "pos_conv.0"),
            ("parametrizations.weight.original0", "weight_g"),
            ("parametrizations.weight.original1", "weight_v"),
            (".layer_norm", ".self_attn_layer_norm") if "encoder.layers" in key else ("", ""),
            (".attention.", ".self_attn."),
            ("feed_forward.intermediate_dense", "fc1"),
            ("feed_forward.output_dense", "fc2"),
            ("masked_spec_embed", "mask_emb"),
        ):
            key = key.replace(theirs, ours)
        state[key] = value
    state["label_embs_concat"] = torch.zeros(504, 8)
    arguments = argparse.Namespace(encoder_attention_heads=4, layer_norm_first=False)
    torch.save({"args": arguments, "cfg": None, "model": state, "task_state": {}}, tmp_path / "hubert.pt")
    samples = noise(0, 1, 4000)
    check(load_hubert(tmp_path / "hubert.pt")(samples, 3), original(torch.tensor(samples)).last_hidden_state)


def test_hubert_exported_gives_the_original_the_same(tmp_path):
    import transformers

    from voxinstruct_jax.interop.hubert import export_hubert, load_hubert

    original = originals.hubert(3)
    original.save_pretrained(tmp_path / "theirs")
    export_hubert(load_hubert(tmp_path / "theirs"), tmp_path / "ours")
    again, report = transformers.HubertModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values())
    samples = torch.tensor(noise(0, 1, 4000))
    check(again.eval()(samples).last_hidden_state, original(samples).last_hidden_state)


MT5S = {"usual": {}, "narrow": {"d_model": 24, "num_heads": 3, "d_kv": 16, "num_layers": 1, "vocab_size": 33}}


@pytest.mark.parametrize("form", MT5S)
@pytest.mark.parametrize(("seed", "safe"), [(0, True), (1, False)])
def test_mt5(tmp_path, form, seed, safe):
    from voxinstruct_jax.interop.mt5 import load_mt5

    original = originals.mt5(seed, **MT5S[form])
    original.save_pretrained(tmp_path, safe_serialization=safe)
    mt5 = load_mt5(tmp_path)
    random = np.random.default_rng(seed)
    for length in (1, 150):
        ids, mask = random.integers(1, 33, (2, length)), np.ones((2, length), int)
        mask[1, length // 2 + 1 :] = 0
        expected = original(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask)).last_hidden_state
        check(mt5(ids, mask), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("stored", ["shards", "PyTorch shards", "older PyTorch"])
def test_forms_of_files(tmp_path, dtype, stored):
    """A whole mT5, decoder included, in half precision."""
    from voxinstruct_jax.interop.mt5 import load_mt5

    sizes = originals.mt5(0).config.to_dict()
    whole = originals.transformers.MT5ForConditionalGeneration(originals.transformers.MT5Config(**sizes))
    whole = originals.randomize(whole, 3).to(dtype)
    if stored == "older PyTorch":
        whole.config.save_pretrained(tmp_path)
        torch.save(whole.state_dict(), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    else:
        whole.save_pretrained(tmp_path, safe_serialization=stored == "shards", max_shard_size="40KB")
        assert len(list(tmp_path.glob("*model-0000*"))) > 1
    ids = np.random.default_rng(0).integers(1, 60, (2, 20))
    expected = whole.float().get_encoder()(input_ids=torch.tensor(ids)).last_hidden_state
    check(load_mt5(tmp_path)(ids, np.ones_like(ids)), expected)


def test_the_program_of_encodec(tmp_path):
    pytest.importorskip("encodec")
    try:
        from encodec import modules, quantization
        from encodec.model import EncodecModel
    except OSError as error:  # a torchaudio built for a GPU that is not here
        pytest.skip(f"encodec cannot be imported: {error}")

    from voxinstruct_jax.interop.encodec import load_encodec

    sizes = {"channels": 1, "norm": "weight_norm", "causal": True, "n_filters": 4, "dimension": 16}
    sizes["ratios"] = [5, 4, 2, 3]
    quantizer = quantization.ResidualVectorQuantizer(dimension=16, n_q=6, bins=512)
    parts = modules.SEANetEncoder(**sizes), modules.SEANetDecoder(**sizes), quantizer
    original = originals.randomize(EncodecModel(*parts, [3.0, 6.0], 24_000, 1), 3)
    for number, layer in enumerate(original.quantizer.vq.layers):
        layer._codebook.embed.copy_(0.5 * torch.tensor(noise(number, 512, 16)))
        layer._codebook.inited.fill_(1)
    torch.save(original.state_dict(), tmp_path / "encodec.th")
    codec, samples = load_encodec(tmp_path / "encodec.th"), 0.3 * noise(4, 1, 4001)
    original.set_target_bandwidth(6.0)
    ((expected, _),) = original.encode(torch.tensor(samples)[:, None])
    np.testing.assert_array_equal(codec.encode(samples, num_codebooks=expected.shape[1]), expected)
    check(codec.decode(expected.numpy()), original.decode([(expected, None)])[:, 0])


ENCODECS = {
    "usual": {},
    "other ratios": {"upsampling_ratios": [5, 4, 4, 2], "num_filters": 6, "codebook_size": 64, "hidden_size": 24},
    "other kernels": {
        "kernel_size": 4,
        "last_kernel_size": 3,
        "residual_kernel_size": 5,
        "num_residual_layers": 2,
        "dilation_growth_rate": 3,
        "compress": 1,
        "num_lstm_layers": 1,
    },
    "other padding": {"pad_mode": "constant", "use_conv_shortcut": False},
}


@pytest.mark.parametrize("form", ENCODECS)
@pytest.mark.parametrize(("seed", "safe"), [(0, True), (1, False)])
def test_encodec(tmp_path, form, seed, safe):
    from voxinstruct_jax.interop.encodec import load_encodec

    original = originals.encodec(seed, **ENCODECS[form])
    original.save_pretrained(tmp_path, safe_serialization=safe)
    codec, hop_length = load_encodec(tmp_path), original.config.hop_length
    for length in (1, hop_length, 5 * hop_length + 7):
        samples = 0.3 * noise(length, 2, length)
        latents = original.encoder(torch.tensor(samples)[:, None])
        expected = original.quantizer.encode(latents, bandwidth=3.0).transpose(0, 1)
        codes = codec.encode(samples, num_codebooks=expected.shape[1])
        np.testing.assert_array_equal(codes, expected)
        decoded = original.decoder(original.quantizer.decode(expected.transpose(0, 1)))
        check(codec.decode(codes), decoded[:, 0])


MIMIS = {
    "usual": {},
    "shared heads": {"hidden_size": 24, "upsample_groups": 24, "num_attention_heads": 3, "num_key_value_heads": 1},
    "other kernels": {"kernel_size": 5, "residual_kernel_size": 5, "num_residual_layers": 2, "rope_theta": 500.0},
}


@pytest.mark.parametrize("form", MIMIS)
def test_mimi(tmp_path, form):
    from voxinstruct_jax.interop.mimi import load_mimi

    original = originals.mimi(0, **MIMIS[form])
    original.save_pretrained(tmp_path)
    codec = load_mimi(tmp_path)
    samples = 0.3 * noise(0, 2, 9601)
    expected = original.encode(torch.tensor(samples)[:, None], num_quantizers=4).audio_codes
    np.testing.assert_array_equal(codec.encode(samples, num_codebooks=4), expected)
    check(codec.decode(expected.numpy()), original.decode(expected).audio_values[:, 0])


@pytest.mark.parametrize("padding", ["same", "center"])
@pytest.mark.parametrize(("seed", "sizes"), [(0, {}), (1, {"dim": 48, "num_layers": 2, "intermediate_dim": 64})])
def test_vocos(tmp_path, seed, sizes, padding):
    if importlib.util.find_spec("vocos") is None:
        pytest.skip("vocos not installed")
    pytest.importorskip("yaml")
    import yaml

    from voxinstruct_jax.interop.vocos import load_vocos

    original = originals.vocos(seed, padding=padding, **sizes)
    torch.save(original.state_dict(), tmp_path / "pytorch_model.bin")
    backbone = {"input_channels": 16, "dim": 32, "intermediate_dim": 96, "num_layers": 3, "adanorm_num_embeddings": 4}
    backbone |= sizes
    parts = {
        "feature_extractor": ("vocos.feature_extractors.EncodecFeatures", {"encodec_model": "encodec_24khz"}),
        "backbone": ("vocos.models.VocosBackbone", backbone),
        "head": (
            "vocos.heads.ISTFTHead",
            {"dim": backbone["dim"], "n_fft": 1280, "hop_length": 320, "padding": padding},
        ),
    }
    settings = {name: {"class_path": path, "init_args": values} for name, (path, values) in parts.items()}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    vocos = load_vocos(tmp_path, codebook_size=32)
    for frames in (2, 31):
        codes = np.random.default_rng(frames).integers(0, 32, (2, 8, frames))
        features = original.codes_to_features(torch.tensor(codes).transpose(0, 1))
        for bandwidth_id in (0, 2):
            expected = original.decode(features, bandwidth_id=torch.tensor([bandwidth_id]))
            check(vocos(codes, bandwidth_id=bandwidth_id), expected)


RELEASES = {"usual": {}, "wide": {"dim": 48, "num_heads": 3, "num_semantic": 9, "codebook_size": 17, "lora_rank": 2}}


@pytest.mark.parametrize("form", RELEASES)
def test_voxinstruct(tmp_path, form):
    pytest.importorskip("peft")
    from voxinstruct_jax.interop.voxinstruct import ReleaseConfig, load_voxinstruct

    sizes = {**originals.RELEASE_SIZES, **RELEASES[form]}
    ar, nar = originals.release(4, **sizes)
    for name, network in (("ar", ar), ("nar", nar)):
        whole = {"model": network.state_dict(), "scheduler": {"_last_lr": [np.float64(1e-5)]}, "steps": 7}
        torch.save(whole, tmp_path / f"{name}.pyt")
    config = ReleaseConfig(
        num_semantic=sizes["num_semantic"],
        num_heads=sizes["num_heads"],
        lora_alpha=float(sizes["lora_alpha"]),
        text_slots=sizes["text_slots"],
    )
    ours = load_voxinstruct(tmp_path / "ar.pyt", tmp_path / "nar.pyt", config)
    random = np.random.default_rng(0)
    text_ids, text_mask = random.integers(1, 40, (2, 12)), np.ones((2, 12), int)
    text_ids[1, 5:] = text_mask[1, 5:] = 0
    rows = random.integers(ar.first_code, ar.num_ids, (2, 8, 14))
    segments = np.array([[1] * 6 + [2] * 8, [1] * 4 + [2] * 6 + [0] * 4])
    rows[segments[:, None].repeat(8, axis=1) == 0] = 0
    valid = segments > 0
    places = [torch.tensor(array) for array in (text_ids, text_mask, rows[:, 0], segments)]
    for free in ({}, {"text_free": True}, {"semantic_free": True}):
        found = ours.ar.logits(text_ids, text_mask, rows[:, 0], segments, **free)
        check(found[valid], ar(*places, **free)[torch.tensor(valid)])
    places[2] = torch.tensor(rows)
    for codebook in (1, 7):
        found = ours.nar.logits(text_ids, text_mask, rows, segments, codebook)
        check(found[valid], nar(*places, codebook)[torch.tensor(valid)])
