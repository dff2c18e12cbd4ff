"""UNISON in miniature on the codec's latents, 64 channels at 25 Hz: what a codec language model's decoder reads.

After arXiv 2605.31530; the network of `unison_small.py`, wider, and of its tasks those that speak by an instruction
alone. Silence behind the words is learned, so the length need not be told.

Run: voxinstruct train configs/unison_codec_small.py --out runs/unison --data.manifest M.jsonl
Hardware: two CPU cores.
Cost: 3,000 steps of 8 clips, about an hour.
Expect: held-out loss well below `loss_trivial`; see docs/baselines.md.
Measured: 2026-11-23, 1,573 steps on 1.83 h (a core, 35 minutes), mean of the last five logged: loss 0.28 against 2.41
    for the mean (silence behind the words is learnt, too). How it sounds: docs/baselines.md.
"""

import dataclasses

from voxinstruct_jax.audio.codec import CodecConfig
from voxinstruct_jax.audio.latents import LatentConfig
from voxinstruct_jax.data.sound_batches import SoundData
from voxinstruct_jax.diffusion.systems import SYSTEMS
from voxinstruct_jax.models.mmdit import MMDiTConfig
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
from voxinstruct_jax.training.diffusion import DiffusionExperiment
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.step import StepConfig
from voxinstruct_jax.training.task import TrainConfig

latents = LatentConfig(codec=CodecConfig.small())
tiny = MMDiTConfig.unison_tiny(latents.channels, PronunciationTokenizer().channel_sizes)
experiment = DiffusionExperiment(
    model=dataclasses.replace(tiny, model_dim=256, num_heads=4, rotary_dims=48),
    latents=latents,
    latent_weights="voxinstruct_jax/release/codec",
    diffusion=SYSTEMS["unison"],
    data=SoundData(tasks=("tts", "instruct_tts"), clip_s=5.2, rows=8, text_width=256, phone_width=0),
    optimizer=OptimizerConfig(
        peak_lr=1e-3,
        warmup_steps=100,
        decay="cosine",
        decay_steps=3000,
        beta2=0.98,
        weight_decay=0.01,
        max_grad_norm=1.0,
    ),
    train=TrainConfig(steps=3000, log_every=20, save_every=250),
    step=StepConfig(ema_decay=0.995),
)
