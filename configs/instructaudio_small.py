"""InstructAudio in miniature: instruction and phones to log-mel latents, 2 joint blocks and a single one, 1.2M weights.

After arXiv 2511.18487. Latents are log-mel frames at 31.25 Hz, so that no Mel-VAE has to be trained before; the text
encoder is trained along.

Run: voxinstruct train configs/instructaudio_small.py --out runs/instructaudio_small
Hardware: two CPU cores.
Cost: 200 steps of 8 clips, one to two minutes.
Expect: loss falls well below that of the predictor which has seen nothing (`loss_trivial`).
Measured: by the tests.
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
    diffusion=SYSTEMS["instructaudio"],
    data=SoundData(clip_s=3.0, pad_is_silence=False, rows=8, text_width=160, phone_width=80),
    optimizer=OptimizerConfig(
        peak_lr=2e-3, warmup_steps=30, decay="cosine", decay_steps=200, beta2=0.98, weight_decay=0.0, max_grad_norm=1.0
    ),
    train=TrainConfig(steps=200, log_every=20, save_every=100),
    step=StepConfig(ema_decay=0.98),
)
