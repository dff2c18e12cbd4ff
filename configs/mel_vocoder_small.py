"""A small vocoder: log-mel frames of a latent space to the waveform by a Vocos head, 2.3M weights.

After Vocos (arXiv 2306.00814) without its discriminators. The spectrogram is that of the log-mel latents; for the
small Mel-VAE give its own: `--model.mel.num-mels 64 --model.mel.hop-length 256 --model.vocos.hop-length 256`.

Run: voxinstruct train configs/mel_vocoder_small.py --out runs/mel_vocoder --data.manifest M.jsonl
Hardware: two CPU cores.
Cost: 2,000 steps of 16 crops of 1.28 s, some ten minutes.
Expect: mel L1 (natural log) well below 1; 32 bins and half-overlapping frames tell little of pitch.
Measured: not yet.
"""

from voxinstruct_jax.audio.latents import LatentConfig
from voxinstruct_jax.audio.vocos import MelVocoderConfig
from voxinstruct_jax.training.codec import SegmentData
from voxinstruct_jax.training.mel_vocoder import MelVocoderExperiment
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.task import TrainConfig

experiment = MelVocoderExperiment(
    model=MelVocoderConfig.small(LatentConfig().mel),
    data=SegmentData(rows=16),
    optimizer=OptimizerConfig(
        peak_lr=1e-3,
        warmup_steps=100,
        decay="cosine",
        decay_steps=2000,
        beta2=0.99,
        weight_decay=0.01,
        max_grad_norm=1.0,
    ),
    train=TrainConfig(steps=2000, log_every=20, save_every=250),
)
