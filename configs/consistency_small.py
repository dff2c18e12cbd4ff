"""A student of InstructAudio in miniature by consistency: one or two steps in place of 32, guidance baked in.

After arXiv 2303.01469 and, for the guided teacher, ConsistencyTTA (arXiv 2309.10740). The
teacher is a run of `configs/instructaudio_small.py`, converted; the model and path of another go here in place of its.

Run: voxinstruct train configs/consistency_small.py --out runs/consistency_small --teacher-weights TEACHER
Hardware: two CPU cores.
Cost: 200 steps of 8 clips, about four times those of the teacher: a few minutes.
Expect: loss falls; it is a distance of neighbouring answers, no measure of the sound.
Measured: by the tests, on distributions that are known.
"""

import dataclasses

from voxinstruct_jax.audio.latents import LatentConfig
from voxinstruct_jax.data.sound_batches import SoundData
from voxinstruct_jax.diffusion.guidance import unguided
from voxinstruct_jax.diffusion.solvers import SamplerConfig
from voxinstruct_jax.diffusion.systems import SYSTEMS
from voxinstruct_jax.diffusion.times import Grid
from voxinstruct_jax.models.mmdit import MMDiTConfig
from voxinstruct_jax.text.phones import NUM_PHONES
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
from voxinstruct_jax.training.distillation import DistillationConfig, DistillationExperiment
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.step import StepConfig
from voxinstruct_jax.training.task import TrainConfig

latents, teacher = LatentConfig(), SYSTEMS["instructaudio"]
experiment = DistillationExperiment(
    model=MMDiTConfig.instructaudio_tiny(latents.channels, PronunciationTokenizer().channel_sizes, NUM_PHONES),
    latents=latents,
    diffusion=dataclasses.replace(
        teacher, guidance=unguided(), sampler=SamplerConfig(solver="consistency", grid=Grid(steps=2))
    ),
    distillation=DistillationConfig(guidance=teacher.guidance),
    data=SoundData(clip_s=3.0, pad_is_silence=False, rows=8, text_width=160, phone_width=80),
    optimizer=OptimizerConfig(
        peak_lr=1e-3, warmup_steps=30, decay="cosine", decay_steps=200, beta2=0.98, weight_decay=0.0, max_grad_norm=1.0
    ),
    train=TrainConfig(steps=200, log_every=20, save_every=100),
    step=StepConfig(ema_decay=0.98),
)
