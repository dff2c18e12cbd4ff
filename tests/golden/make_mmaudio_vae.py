"""Writes `mmaudio_vae_tiny.npz`: weights and outputs of MMAudio's VAE, narrow and with random weights, in both forms.

Run: PYTHONPATH=MMAUDIO python tests/golden/make_mmaudio_vae.py
(needs torch, einops, librosa and a clone of hkchengrex/MMAudio; made with torch 2.13, MMAudio 974010a, and in librosa's
place the same filters by transformers 4.57.6)
"""

from pathlib import Path

import numpy as np
import torch
from mmaudio.ext.autoencoder.vae import VAE
from mmaudio.ext.mel_converter import get_mel_converter

FORMS = {"16k": (80, 16_000), "44k": (128, 44_100)}
LATENT_CHANNELS, WIDTH, LATENTS = 3, 4, 6


def main() -> None:
    arrays = {}
    for form, (bins, rate) in FORMS.items():
        torch.manual_seed(bins)
        vae = VAE(data_dim=bins, embed_dim=LATENT_CHANNELS, hidden_dim=WIDTH).eval()
        for name, value in vae.state_dict().items():
            if not name.startswith("data_"):
                # of all sizes, small ones too: what is added to a norm must show
                value.copy_((torch.randn_like(value) * 10 ** -(2 * torch.rand(()))).half().float())
        weights = {name: value.numpy().copy() for name, value in vae.state_dict().items()}
        halves = {name: value.astype(np.float16) for name, value in weights.items() if not name.startswith("data_")}
        arrays |= {f"{form}/w/{name}": value for name, value in {**weights, **halves}.items()}
        converter = get_mel_converter(form)
        seconds = torch.arange(2 * converter.hop_size * LATENTS) / rate
        wave = 0.3 * torch.sin(2 * torch.pi * 440 * seconds) * (1 + torch.sin(2 * torch.pi * 30 * seconds))
        wave = (wave + 0.01 * torch.randn(wave.shape)).half().float()[None]
        latents = torch.randn(2, LATENT_CHANNELS, 5)
        with torch.no_grad():
            mel = converter(wave)
            vae.remove_weight_norm()
            posterior = vae.encode(mel)
            found = {
                "mel": mel,
                "mean": posterior.mean,
                "log_variance": posterior.logvar,
                "latents": latents,
                "decoded": vae.decode(latents),
            }
        arrays[f"{form}/wave"] = wave.numpy().astype(np.float16)
        arrays |= {f"{form}/{name}": value.transpose(1, 2).numpy() for name, value in found.items()}
    np.savez_compressed(Path(__file__).parent / "mmaudio_vae_tiny.npz", **arrays)


if __name__ == "__main__":
    main()
