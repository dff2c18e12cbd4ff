"""A tiny codec on the bundled clips: shows that training, logging and saving work.

Run: voxinstruct train configs/smoke_codec.py --out runs/smoke_codec
Hardware: two CPU cores.
Cost: 60 steps, under a minute.
Expect: mel L1 falls below 1.5 (natural log).
Measured: by the tests.
"""

from voxinstruct_jax.audio.codec import CodecConfig
from voxinstruct_jax.training.codec import CodecExperiment, CodecObjective, SegmentData
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.task import TrainConfig

experiment = CodecExperiment(
    model=CodecConfig.tiny(),
    objective=CodecObjective(stft_windows=(512,)),
    data=SegmentData(segment_s=0.64, rows=4),
    optimizer=OptimizerConfig(
        peak_lr=2e-3, warmup_steps=20, decay="cosine", decay_steps=60, beta2=0.99, weight_decay=0.0, max_grad_norm=1.0
    ),
    train=TrainConfig(steps=60, log_every=10, save_every=30),
)
