"""Writes `unison_tiny.npz`: weights and outputs of the transformer of UNISON's release, small and with random weights.

Run: PYTHONPATH=UNISON python tests/golden/make_unison.py
(needs torch, diffusers, einops, loguru and a clone of lizhaoqing/UNISON)

Made with torch 2.13 from the release's text at 0cfc935, less the branches that these settings do not take, with empty
stand-ins for diffusers and loguru. Norms, modulation, activations, rotation and attention are those of
Tencent-Hunyuan/HunyuanVideo-1.5, from which the release has them.

Settings are those of D20 and D24 but for the sizes. The rows' texts are partly padding, whole, and none at all;
`velocity_null` is the branch without a condition as the release samples it.
"""

import types
from pathlib import Path

import numpy as np
import torch
from torch.nn.attention.flex_attention import flex_attention
from unison.models.transformers.backbone import UnisonBackbone
from unison.models.transformers.modules import attention

CHANNELS, WIDTH, HEADS, BLOCKS, TEXT_WIDTH = 3, 12, 2, 3, 10
ROWS, FRAMES, TOKENS = 3, 9, 4
SETTINGS = {
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "hidden_size": WIDTH,
    "heads_num": HEADS,
    "mm_double_blocks_depth": BLOCKS,
    "rope_dim_list": [4, 1, 1],
    "omni_dim": TEXT_WIDTH,
    "concat_condition": True,
    "is_audio_type": True,
    "use_omni_embedding": True,
}


def main() -> None:
    attention.flex_attention = flex_attention  # as it is: compiled it computes the same
    attention.get_parallel_state = lambda: types.SimpleNamespace(sp_enabled=False)  # one process, no device
    torch.manual_seed(0)
    model = UnisonBackbone(**SETTINGS).eval()
    for name, value in model.state_dict().items():
        noise = torch.randn_like(value)
        spread = 1.0 + 0.3 * noise if "norm.weight" in name else 0.3 * noise
        value.copy_(spread if value.ndim < 2 else 1.3 * noise / value[0].numel() ** 0.5)
        value.copy_(value.half())  # halves the file
    inputs = torch.randn(ROWS, 2 * CHANNELS + 1, FRAMES)
    inputs[:, -1] = torch.tensor([0.0, 1.0, 2.0])[:, None]
    sigma = torch.tensor([0.03, 0.5, 1.0])
    text = torch.randn(BLOCKS, ROWS, TOKENS, TEXT_WIDTH)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    with torch.no_grad():
        velocity = model(inputs, sigma, omni_emb_list=list(text), omni_mask=mask)[0]
        nothing = {"omni_emb_list": list(torch.zeros_like(text)), "omni_mask": torch.zeros_like(mask)}
        velocity_null = model(inputs, sigma, **nothing)[0]
    arrays = {f"w/{name}": value.numpy().astype(np.float16) for name, value in model.state_dict().items()}
    found = {"inputs": inputs, "sigma": sigma, "text": text, "mask": mask}
    found |= {"velocity": velocity, "velocity_null": velocity_null}
    arrays |= {name: value.numpy() for name, value in found.items()}
    np.savez_compressed(Path(__file__).parent / "unison_tiny.npz", **arrays)


if __name__ == "__main__":
    main()
