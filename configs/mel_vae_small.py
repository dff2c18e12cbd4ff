"""A small Mel-VAE: 64 log-mel bins at 62.5 Hz to 8 channels at 31.25 Hz, 1.2M weights.

After MMAudio's audio autoencoder, which UNISON takes (arXiv 2605.31530, section 3.2); no discriminator yet.

Run: voxinstruct train configs/mel_vae_small.py --out runs/mel_vae
Hardware: two CPU cores.
Cost: 300 steps of 8 crops of 1.28 s, a few minutes.
Expect: mel L1 (in deviations) well below that of the mean spectrum, `mel_l1_mean`.
Measured: by the tests, in fewer steps.
"""

from voxinstruct_jax.audio.mel_vae import MelVAEConfig
from voxinstruct_jax.training.codec import SegmentData
from voxinstruct_jax.training.mel_vae import MelVAEExperiment
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.step import StepConfig
from voxinstruct_jax.training.task import TrainConfig

experiment = MelVAEExperiment(
    model=MelVAEConfig.small(),
    data=SegmentData(rows=8),
    optimizer=OptimizerConfig(
        peak_lr=3e-3, warmup_steps=30, decay="cosine", decay_steps=300, beta2=0.98, weight_decay=0.0, max_grad_norm=1.0
    ),
    train=TrainConfig(steps=300, log_every=20, save_every=100),
    step=StepConfig(ema_decay=0.98),
)
