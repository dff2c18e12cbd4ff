"""Writes `vocos_mel_tiny.npz`: weights and outputs of the original Vocos for mel input, in a tiny random configuration.

Run: python tests/golden/make_vocos_mel.py   (needs torch, torchaudio and vocos; made with torch 2.13, vocos 0.1.0)
"""

from pathlib import Path

import numpy as np
import torch
from vocos.feature_extractors import MelSpectrogramFeatures
from vocos.heads import ISTFTHead
from vocos.models import VocosBackbone
from vocos.pretrained import Vocos


def main() -> None:
    torch.manual_seed(0)
    extractor = MelSpectrogramFeatures(sample_rate=24_000, n_fft=256, hop_length=64, n_mels=20, padding="center")
    backbone = VocosBackbone(input_channels=20, dim=24, intermediate_dim=48, num_layers=2)
    model = Vocos(extractor, backbone, ISTFTHead(dim=24, n_fft=256, hop_length=64, padding="center")).eval()
    fixed = [name for name in model.state_dict() if name.startswith("feature_extractor.") or name.endswith(".window")]
    for name, value in model.state_dict().items():
        if name not in fixed:
            value.copy_(torch.randn_like(value) * (0.3 if value.ndim < 2 else value[0].numel() ** -0.5))
    wave = torch.randn(2, 1000)
    with torch.no_grad():
        mel = model.feature_extractor(wave)
        found = {"wave": wave, "mel": mel, "decoded": model.decode(mel)}
    arrays = {f"w/{name}": value.numpy() for name, value in model.state_dict().items()}
    arrays |= {name: value.numpy() for name, value in found.items()}
    np.savez_compressed(Path(__file__).parent / "vocos_mel_tiny.npz", **arrays)


if __name__ == "__main__":
    main()
