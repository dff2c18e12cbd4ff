"""Masked generation over continuous latents in miniature: a transformer of frames, a denoiser of one, 1.4M weights.

After MAR (arXiv 2406.11838) and IMPACT (arXiv 2506.00736), told instruction and phones as InstructAudio is. Latents are
log-mel frames at 31.25 Hz; the text encoder is trained along.

Run: voxinstruct train configs/masked_latents_small.py --out runs/masked_latents_small
Hardware: two CPU cores.
Cost: 200 steps of 8 clips, one to two minutes.
Expect: loss falls well below that of the predictor which has seen nothing (`loss_trivial`).
Measured: by the tests, on tones.
"""

import dataclasses

from voxinstruct_jax.audio.latents import LatentConfig
from voxinstruct_jax.data.sound_batches import SoundData
from voxinstruct_jax.diffusion.systems import SYSTEMS
from voxinstruct_jax.models.masked_latents import MaskedLatentsConfig, TokenHeadConfig
from voxinstruct_jax.models.mmdit import MMDiTConfig
from voxinstruct_jax.text.phones import NUM_PHONES
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
from voxinstruct_jax.training.masked_latents import MaskedLatentsExperiment
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.step import StepConfig
from voxinstruct_jax.training.task import TrainConfig

latents = LatentConfig()
network = MMDiTConfig.instructaudio_tiny(latents.channels + 1, PronunciationTokenizer().channel_sizes, NUM_PHONES)
experiment = MaskedLatentsExperiment(
    model=MaskedLatentsConfig(
        network=dataclasses.replace(network, output_channels=64), head=TokenHeadConfig(model_dim=128)
    ),
    latents=latents,
    diffusion=SYSTEMS["impact"],
    data=SoundData(clip_s=3.0, pad_is_silence=False, rows=8, text_width=160, phone_width=80),
    optimizer=OptimizerConfig(
        peak_lr=2e-3, warmup_steps=30, decay="cosine", decay_steps=200, beta2=0.98, weight_decay=0.0, max_grad_norm=1.0
    ),
    train=TrainConfig(steps=200, log_every=20, save_every=100),
    step=StepConfig(ema_decay=0.98),
)
