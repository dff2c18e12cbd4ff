"""InstructAudio at paper size: 14 joint and 6 single blocks, instruction and phones, 1.34B weights.

After arXiv 2511.18487, section 2.4. Its text encoder (Qwen2.5-7B, last layer, 3,584 wide) is run apart: its states come
in the batch, for which no reader is built yet, so this configuration is for `inspect` and `plan`. Its Zipformer is
replaced by a plain conformer; latents are those of a Mel-VAE of 40 channels at 43 Hz.

Run: voxinstruct plan configs/instructaudio.py --topology v5e:8x8 --mesh.fsdp 64
Hardware: the paper used 32 A800.
Cost: not known; the paper names no number of steps.
Expect: WER 1.52 % on Seed-TTS English (InstructAudio, table 1).
Measured: not run; counted.
"""

import dataclasses

from voxinstruct_jax.audio.latents import LatentConfig
from voxinstruct_jax.audio.mel_vae import MelVAEConfig
from voxinstruct_jax.data.sound_batches import SoundData
from voxinstruct_jax.diffusion.systems import SYSTEMS
from voxinstruct_jax.layers.execution import Execution
from voxinstruct_jax.models.mmdit import MMDiTConfig
from voxinstruct_jax.training.diffusion import DiffusionExperiment
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.step import StepConfig
from voxinstruct_jax.training.task import TrainConfig

experiment = DiffusionExperiment(
    model=dataclasses.replace(MMDiTConfig.instructaudio(), dtype="bfloat16"),
    latents=LatentConfig(vae=MelVAEConfig.at_43_hz()),
    diffusion=SYSTEMS["instructaudio"],
    data=SoundData(clip_s=20.0, pad_is_silence=False, rows=512, text_width=256, phone_width=512),
    optimizer=OptimizerConfig(
        peak_lr=1e-4, warmup_steps=2000, decay="cosine", decay_steps=500_000, weight_decay=0.0, max_grad_norm=1.0
    ),
    train=TrainConfig(steps=500_000, log_every=100, save_every=5000),
    step=StepConfig(ema_decay=0.9999),
    execution=Execution(remat="full", scan=True),
)
