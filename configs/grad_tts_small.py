"""Grad-TTS in miniature: phones, aligned by search, to a guess of the log-mel frames, and a score around it.

After arXiv 2105.06337. Frames of 32 bins at 62.5 Hz in place of 80 at 86 Hz, whole clips in place of crops, and the
instruction in place of a speaker's embedding. 3.9M weights.

Run: voxinstruct train configs/grad_tts_small.py --out runs/grad_tts_small
Hardware: two CPU cores.
Cost: 400 steps of 8 clips, some five minutes.
Expect: `loss_diffusion`, `loss_prior` and `loss_duration` each fall below their `..._trivial`.
Measured: by the tests, on tones.
"""

from voxinstruct_jax.audio.latents import LatentConfig
from voxinstruct_jax.audio.spectrogram import MelConfig
from voxinstruct_jax.data.sound_batches import SoundData
from voxinstruct_jax.diffusion.systems import SYSTEMS
from voxinstruct_jax.models.grad_tts import GradTTSConfig
from voxinstruct_jax.text.phones import NUM_PHONES
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
from voxinstruct_jax.training.grad_tts import GradTTSExperiment
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.step import StepConfig
from voxinstruct_jax.training.task import TrainConfig

latents = LatentConfig(mel=MelConfig(sample_rate=16_000, num_mels=32, n_fft=1024, hop_length=256, f_max=8000.0))
experiment = GradTTSExperiment(
    model=GradTTSConfig.small(latents, PronunciationTokenizer().channel_sizes, NUM_PHONES),
    diffusion=SYSTEMS["grad_tts"],
    data=SoundData(clip_s=3.0, pad_is_silence=False, rows=8, text_width=160, phone_width=80),
    optimizer=OptimizerConfig(
        peak_lr=2e-3, warmup_steps=40, decay="cosine", decay_steps=400, beta2=0.98, weight_decay=0.0, max_grad_norm=1.0
    ),
    train=TrainConfig(steps=400, log_every=20, save_every=200),
    step=StepConfig(ema_decay=0.99),
)
