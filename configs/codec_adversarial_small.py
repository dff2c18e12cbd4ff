"""Second stage of the embedded voice's codec: against discriminators, from the weights of configs/codec_small.py.

Run: voxinstruct train configs/codec_adversarial_small.py --out runs/codec2 --train.init-from codec
         --data.manifest M.jsonl --data.units voice/units
Hardware: one GPU. On two CPU cores a step takes many times that of the first stage.
Cost: not measured.
Expect: less blur and a higher DNSMOS than the first stage, mel L1 about the same.
Measured: not yet run.
"""

from voxinstruct_jax.audio.codec import CodecConfig
from voxinstruct_jax.audio.discriminators import DiscriminatorConfig
from voxinstruct_jax.training.codec import CodecExperiment, CodecObjective, SegmentData
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.task import TrainConfig

experiment = CodecExperiment(
    model=CodecConfig.small(),
    discriminator=DiscriminatorConfig(),
    objective=CodecObjective(unit_weight=0.15, mel_weight=15.0, stft_weight=0.0, adversarial_weight=1.0),
    data=SegmentData(rows=16),
    optimizer=OptimizerConfig(
        peak_lr=2e-4,
        warmup_steps=200,
        decay="cosine",
        decay_steps=20_000,
        beta1=0.8,
        beta2=0.99,
        weight_decay=0.01,
        max_grad_norm=10.0,
    ),
    train=TrainConfig(steps=20_000, log_every=50, save_every=1000),
)
