"""Writes `mimi_tiny.npz`: weights and outputs of transformers' MimiModel in a tiny random configuration.

Run: python tests/golden/make_mimi.py   (needs torch and transformers; made with torch 2.13, transformers 4.57.6)

The attention window of the config is in force, as in the original program and in transformers with flash attention;
transformers 4.57 forgets it on its other paths, so the mask is put back here.
"""

import json
from pathlib import Path

import numpy as np
import torch
from transformers import MimiConfig, MimiModel
from transformers.masking_utils import create_sliding_window_causal_mask
from transformers.models.mimi import modeling_mimi

CONFIG = {
    "hidden_size": 16,
    "num_filters": 4,
    "upsampling_ratios": [4, 3, 2],
    "num_residual_layers": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "codebook_size": 32,
    "codebook_dim": 8,
    "vector_quantization_hidden_dimension": 8,
    "num_quantizers": 6,
    "num_semantic_quantizers": 1,
    "upsample_groups": 16,
    "sliding_window": 10,
}
LENGTHS = (1, 2, 23, 24, 47, 48, 49, 240, 1501)
"""Of 48 samples a frame; the last is 63 frames at the transformers' rate, beyond the window of 10."""


def main() -> None:
    modeling_mimi.create_causal_mask = create_sliding_window_causal_mask
    torch.manual_seed(0)
    config = MimiConfig(**CONFIG)
    model = MimiModel(config).eval()
    for name, value in model.state_dict().items():
        value.copy_(_random(name, value))
    arrays = {f"w/{name}": value.numpy() for name, value in model.state_dict().items()}
    arrays["config"] = np.array(json.dumps({**CONFIG, "model_type": "mimi"}))
    with torch.no_grad():
        for length in LENGTHS:
            wave = torch.randn(2 if length == LENGTHS[-1] else 1, 1, length)
            frames = model.encoder(wave)
            transformed = model.encoder_transformer(frames.transpose(1, 2))[0]
            latents = model.downsample(transformed.transpose(1, 2))
            codes = model.encode(wave).audio_codes
            found = {
                "wave": wave[:, 0],
                "seanet": frames.transpose(1, 2),
                "transformer": transformed,
                "latents": latents.transpose(1, 2),
                "codes": codes.to(torch.int32),
                "decoded": model.decode(codes).audio_values[:, 0],
                "decoded_3": model.decode(codes[:, :3]).audio_values[:, 0],
            }
            arrays |= {f"{name}/{length}": value.numpy() for name, value in found.items()}
    np.savez_compressed(Path(__file__).parent / "mimi_tiny.npz", **arrays)


def _random(name: str, value: torch.Tensor) -> torch.Tensor:
    """Values at which every part matters: no norm is the identity, no scale tiny."""
    if name.endswith("initialized"):
        return torch.ones_like(value)
    if name.endswith(("cluster_usage", "layer_scale.scale", "layernorm.weight")):
        return 0.5 + torch.rand_like(value)
    if value.ndim < 2:
        return 0.1 * torch.randn_like(value)
    if name.endswith("embed_sum"):
        return torch.randn_like(value)
    return torch.randn_like(value) * value[0].numel() ** -0.5


if __name__ == "__main__":
    main()
