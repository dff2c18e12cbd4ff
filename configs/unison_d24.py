"""UNISON D24 at 16 kHz: 24 blocks, each fed by the text encoder's layer of its depth, 732M weights.

After arXiv 2605.31530, sections 3.4 and 4.1. Its text encoder (Qwen2.5-Omni-7B's Thinker, 24 of its 28 layers, 3,584
wide) is run apart: its states come in the batch, for which no reader is built yet, so this configuration is for
`inspect` and `plan`. Latents are those of a Mel-VAE of 20 channels at 31.25 Hz.

Run: voxinstruct plan configs/unison_d24.py --topology v5e:8x8 --mesh.fsdp 64
Hardware: the paper used 8 H800.
Cost: not known; 150,000 steps of 448 clips make the first stage.
Expect: WER 1.27 % on Seed-TTS English without a reference (UNISON, table 2).
Measured: not run; counted.
"""

from voxinstruct_jax.audio.mel_vae import MelVAEConfig
from voxinstruct_jax.training.paper import paper_unison

experiment = paper_unison(24, MelVAEConfig.at_31_hz(), latent_channels=20)
