"""InstructAudio in miniature on the codec's latents, 64 channels at 25 Hz: what a codec language model's decoder reads.

After arXiv 2511.18487; the network of `instructaudio_small.py`, wider, so that it has about as many weights as the AR
or the NAR model of the embedded voice. With its budget of operations it takes some 3,000 steps.

Run: voxinstruct train configs/instructaudio_codec_small.py --out runs/instructaudio --data.manifest M.jsonl
Hardware: two CPU cores.
Cost: 3,000 steps of 8 clips, about an hour.
Expect: held-out loss well below `loss_trivial`; see docs/baselines.md.
Measured: 2026-11-22, 1,139 steps on 1.83 h (a core, 30 minutes), mean of the last five logged: loss 0.87 against 2.04
    for the mean. How it sounds: docs/baselines.md.
"""

import dataclasses

from voxinstruct_jax.audio.codec import CodecConfig
from voxinstruct_jax.audio.latents import LatentConfig
from voxinstruct_jax.data.sound_batches import SoundData
from voxinstruct_jax.diffusion.systems import SYSTEMS
from voxinstruct_jax.models.mmdit import MMDiTConfig
from voxinstruct_jax.models.phone_encoder import PhoneEncoderConfig
from voxinstruct_jax.text.phones import NUM_PHONES
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
from voxinstruct_jax.training.diffusion import DiffusionExperiment
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.step import StepConfig
from voxinstruct_jax.training.task import TrainConfig

latents = LatentConfig(codec=CodecConfig.small())
tiny = MMDiTConfig.instructaudio_tiny(latents.channels, PronunciationTokenizer().channel_sizes, NUM_PHONES)
experiment = DiffusionExperiment(
    model=dataclasses.replace(
        tiny,
        model_dim=128,
        num_heads=4,
        joint_blocks=4,
        single_blocks=2,
        rotary_dims=32,
        phones=PhoneEncoderConfig(num_phones=NUM_PHONES, model_dim=128, num_layers=2, num_heads=4, ffn_dim=256),
    ),
    latents=latents,
    latent_weights="voxinstruct_jax/release/codec",
    diffusion=SYSTEMS["instructaudio"],
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
