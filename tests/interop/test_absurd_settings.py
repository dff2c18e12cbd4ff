"""Settings beside the weights may ask for anything: each wish that cannot be met is one line, at once."""

import importlib
import json
import tracemalloc

import numpy as np
import pytest

from voxinstruct_jax.config import VoxError
from voxinstruct_jax.interop.tensors import write_safetensors

HUGE = 10**9
TENSORS = {"a.weight": np.zeros((2, 2), np.float32), "b.weight_g": np.ones(2, np.float32)}


def vocos(**backbone):
    parts = {"feature_extractor": ("EncodecFeatures", {}), "backbone": ("VocosBackbone", backbone)}
    parts["head"] = ("ISTFTHead", {"dim": 8, "n_fft": 1280, "hop_length": 320})
    return {name: {"class_path": f"vocos.{kind}", "init_args": values} for name, (kind, values) in parts.items()}


ABSURD = [
    ("mt5", {"num_layers": HUGE}),
    ("mt5", {"d_model": HUGE, "d_ff": HUGE}),
    ("mt5", {"vocab_size": 10**30}),
    ("mt5", {"d_kv": -1}),
    ("mt5", {"num_heads": "many"}),
    ("mt5", {"d_ff": None}),
    ("hubert", {"num_hidden_layers": HUGE}),
    ("hubert", {"hidden_size": 12 * HUGE}),
    ("hubert", {"conv_dim": [HUGE] * 7}),
    ("hubert", {"conv_dim": [8] * 50, "conv_kernel": [2] * 50, "conv_stride": [2] * 50}),
    ("hubert", {"feat_extract_norm": "batch"}),
    ("encodec", {"num_residual_layers": HUGE}),
    ("encodec", {"target_bandwidths": [1e12]}),
    ("encodec", {"target_bandwidths": ["x"]}),
    ("encodec", {"sampling_rate": "x"}),
    ("encodec", {"codebook_size": 0, "target_bandwidths": [6.0]}),
    ("encodec", {"pad_mode": []}),
    ("encodec", {"hidden_size": HUGE, "codebook_dim": HUGE}),
    ("encodec", {"upsampling_ratios": [HUGE, HUGE]}),
    ("encodec", {"upsampling_ratios": []}),
    ("encodec", {"num_lstm_layers": HUGE}),
    ("mimi", {"num_hidden_layers": HUGE}),
    ("mimi", {"num_quantizers": HUGE}),
    ("mimi", {"num_attention_heads": 0}),
    ("mimi", {"hidden_size": "x"}),
    ("mimi", {"upsampling_ratios": 3}),
    ("vocos", {**vocos(), "feature_extractor": {"class_path": "EncodecFeatures", "init_args": {"bandwidths": "x"}}}),
    ("vocos", {**vocos(), "backbone": {"class_path": "VocosBackbone", "init_args": [1]}}),
    ("vocos", vocos(num_layers=HUGE)),
    ("vocos", vocos(dim=HUGE)),
    ("vocos", {}),
]


@pytest.mark.parametrize(("kind", "settings"), ABSURD)
def test_absurd_settings_are_one_line_and_take_no_memory(tmp_path, kind, settings):
    write_safetensors(tmp_path / "model.safetensors", TENSORS)
    (tmp_path / "config.json").write_text(json.dumps(settings))
    load = getattr(importlib.import_module(f"voxinstruct_jax.interop.{kind}"), f"load_{kind}")
    tracemalloc.start()
    with pytest.raises(VoxError) as refusal:
        load(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 1500
    assert peak < 2**27
