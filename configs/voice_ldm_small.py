"""VoiceLDM's guidance in miniature: a description and a content, each with a weight of its own, 1.2M weights.

After arXiv 2309.13664: noise is predicted on the cosine path, either condition is left out of a tenth of the rows, both
of another tenth, and `dual(1, 9)` guides. The network is InstructAudio's, not a U-Net; latents are log-mel frames at
31.25 Hz; the text encoder is trained along.

Run: voxinstruct train configs/voice_ldm_small.py --out runs/voice_ldm_small
Hardware: two CPU cores.
Cost: 200 steps of 8 clips, one to two minutes.
Expect: loss falls below that of the predictor which has seen nothing (`loss_trivial`).
Measured: the guidance by the tests; the loss not yet.
"""

from voxinstruct_jax.audio.latents import LatentConfig
from voxinstruct_jax.data.sound_batches import SoundData
from voxinstruct_jax.diffusion.systems import SYSTEMS
from voxinstruct_jax.models.mmdit import MMDiTConfig
from voxinstruct_jax.text.phones import NUM_PHONES
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
from voxinstruct_jax.training.diffusion import DiffusionExperiment
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.step import StepConfig
from voxinstruct_jax.training.task import TrainConfig

latents = LatentConfig()
experiment = DiffusionExperiment(
    model=MMDiTConfig.instructaudio_tiny(latents.channels, PronunciationTokenizer().channel_sizes, NUM_PHONES),
    latents=latents,
    diffusion=SYSTEMS["voice_ldm"],
    data=SoundData(clip_s=3.0, pad_is_silence=False, rows=8, text_width=160, phone_width=80),
    optimizer=OptimizerConfig(
        peak_lr=2e-3, warmup_steps=30, decay="cosine", decay_steps=200, beta2=0.98, weight_decay=0.0, max_grad_norm=1.0
    ),
    train=TrainConfig(steps=200, log_every=20, save_every=100),
    step=StepConfig(ema_decay=0.98),
)
