"""Makes hubert_large_tiny.npz: HuBERT in its large form with random weights; needs torch and transformers.

Run: python tests/golden/make_hubert_large.py
"""

from pathlib import Path

import numpy as np
import originals
import torch

SIZES = {
    "feat_extract_norm": "layer",
    "conv_bias": True,
    "do_stable_layer_norm": True,
    "conv_dim": [8] * 7,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}


def main():
    model = originals.hubert(5, **SIZES)
    samples = np.random.default_rng(5).standard_normal((2, 2000)).astype(np.float32)
    with torch.no_grad():
        hidden = model(torch.tensor(samples), output_hidden_states=True).hidden_states
    arrays = {f"w/{key}": value.numpy() for key, value in model.state_dict().items()}
    arrays |= {f"hidden_{layer}": value.numpy() for layer, value in enumerate(hidden)}
    config = model.config.to_json_string(use_diff=False)
    np.savez_compressed(Path(__file__).with_name("hubert_large_tiny.npz"), wave_16k=samples, config=config, **arrays)


if __name__ == "__main__":
    main()
