"""UNISON in miniature: all tasks of its table, 4 blocks each fed by a layer of the text encoder, 1.3M weights.

After arXiv 2605.31530. Latents are log-mel frames at 31.25 Hz, so that no Mel-VAE has to be trained before; the text
encoder, which in the paper is a frozen language model, is trained along and reads pronunciation; sounds are made on the
spot. One task alone: `--data.tasks edit_add`.

Run: voxinstruct train configs/unison_small.py --out runs/unison_small
Hardware: two CPU cores.
Cost: 200 steps of 8 examples, one to two minutes.
Expect: loss falls well below that of the predictor which has seen nothing (`loss_trivial`).
Measured: by the tests.
"""

from voxinstruct_jax.audio.latents import LatentConfig
from voxinstruct_jax.data.sound_batches import SoundData
from voxinstruct_jax.data.sound_tasks import TASKS
from voxinstruct_jax.diffusion.systems import SYSTEMS
from voxinstruct_jax.models.mmdit import MMDiTConfig
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
from voxinstruct_jax.training.diffusion import DiffusionExperiment
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.step import StepConfig
from voxinstruct_jax.training.task import TrainConfig

latents = LatentConfig()
experiment = DiffusionExperiment(
    model=MMDiTConfig.unison_tiny(latents.channels, PronunciationTokenizer().channel_sizes),
    latents=latents,
    diffusion=SYSTEMS["unison"],
    data=SoundData(
        tasks=tuple(TASKS),
        first_stage_steps=100,
        clip_s=4.0,
        rows=8,
        text_width=192,
        phone_width=0,
    ),
    optimizer=OptimizerConfig(
        peak_lr=2e-3, warmup_steps=30, decay="cosine", decay_steps=200, beta2=0.98, weight_decay=0.01, max_grad_norm=1.0
    ),
    train=TrainConfig(steps=200, log_every=20, save_every=100),
    step=StepConfig(ema_decay=0.98),
)
