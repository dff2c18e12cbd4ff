"""UNISON D20 at 44.1 kHz: 20 blocks, each fed by the text encoder's layer of its depth, 621M weights.

After arXiv 2605.31530, sections 3.4 and 4.1. Its text encoder (Qwen2.5-Omni-7B's Thinker, 20 of its 28 layers, 3,584
wide) is run apart: its states come in the batch, for which no reader is built yet, so this configuration is for
`inspect` and `plan`. Latents are those of a Mel-VAE of 40 channels at 43 Hz.

Run: voxinstruct plan configs/unison_d20.py --topology v5e:8x8 --mesh.fsdp 64
Hardware: the paper used 8 H800.
Cost: not known; 150,000 steps of 448 clips make the first stage.
Expect: WER 1.42 % on Seed-TTS English without a reference (UNISON, table 2).
Measured: not run; counted and compiled for pods.
"""

import dataclasses

from voxinstruct_jax.audio.latents import LatentConfig
from voxinstruct_jax.audio.mel_vae import MelVAEConfig
from voxinstruct_jax.data.sound_batches import SoundData
from voxinstruct_jax.data.sound_tasks import TASKS
from voxinstruct_jax.diffusion.systems import SYSTEMS
from voxinstruct_jax.layers.execution import Execution
from voxinstruct_jax.models.mmdit import MMDiTConfig
from voxinstruct_jax.training.diffusion import DiffusionExperiment
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.step import StepConfig
from voxinstruct_jax.training.task import TrainConfig

experiment = DiffusionExperiment(
    model=dataclasses.replace(MMDiTConfig.unison(joint_blocks=20, latent_channels=40), dtype="bfloat16"),
    latents=LatentConfig(vae=MelVAEConfig.at_43_hz()),
    diffusion=SYSTEMS["unison"],
    data=SoundData(
        tasks=tuple(name for name in TASKS if name != "instruct_tts"),
        first_stage_steps=150_000,
        clip_s=10.0,
        rows=448,
        task_rows=7,
        text_width=256,
        phone_width=0,
    ),
    optimizer=OptimizerConfig(
        peak_lr=1e-4,
        warmup_steps=2000,
        decay="cosine",
        decay_steps=890_000,
        beta2=0.95,
        weight_decay=0.01,
        max_grad_norm=1.0,
    ),
    train=TrainConfig(steps=890_000, log_every=100, save_every=5000),
    step=StepConfig(ema_decay=0.9999),
    execution=Execution(remat="full", scan=True),
)
