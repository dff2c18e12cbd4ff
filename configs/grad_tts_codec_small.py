"""Grad-TTS in miniature on the codec's latents, 64 channels at 25 Hz: what a codec language model's decoder reads.

After arXiv 2105.06337; the model of `grad_tts_small.py`, wider, so that it has about as many weights as the AR or the
NAR model of the embedded voice, 6.8M. It says itself how long each phone lasts. At 25 Hz that is a frame or two; clips
with more phones than frames count for nothing (`aligned` is the share of the others).

Run: voxinstruct train configs/grad_tts_codec_small.py --out runs/grad_tts --data.manifest M.jsonl
Hardware: two CPU cores.
Cost: 3,000 steps of 8 clips, about an hour.
Expect: `loss_diffusion`, `loss_prior` and `loss_duration` each fall below their `..._trivial`.
Measured: 2026-11-23, 1,761 steps on 1.83 h (a core, 30 minutes), mean of the last five logged: loss_diffusion 0.14
    against 1.00, loss_prior 0.25 against 0.49, loss_duration 0.20 against 0.31. How it sounds: docs/baselines.md.
"""

import dataclasses

from voxinstruct_jax.audio.codec import CodecConfig
from voxinstruct_jax.audio.latents import LatentConfig
from voxinstruct_jax.data.sound_batches import SoundData
from voxinstruct_jax.diffusion.systems import SYSTEMS
from voxinstruct_jax.models.grad_tts import GradTTSConfig
from voxinstruct_jax.models.phone_encoder import PhoneEncoderConfig
from voxinstruct_jax.text.phones import NUM_PHONES
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
from voxinstruct_jax.training.grad_tts import GradTTSExperiment
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.step import StepConfig
from voxinstruct_jax.training.task import TrainConfig

latents = LatentConfig(codec=CodecConfig.small())
small = GradTTSConfig.small(latents, PronunciationTokenizer().channel_sizes, NUM_PHONES)
experiment = GradTTSExperiment(
    model=dataclasses.replace(
        small,
        network=dataclasses.replace(small.network, model_dim=160, rotary_dims=40),
        phones=PhoneEncoderConfig(num_phones=NUM_PHONES, model_dim=192, num_layers=4, num_heads=4, ffn_dim=512),
    ),
    latent_weights="voxinstruct_jax/release/codec",
    diffusion=SYSTEMS["grad_tts"],
    data=SoundData(clip_s=5.2, pad_is_silence=False, rows=8, text_width=256, phone_width=128),
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
