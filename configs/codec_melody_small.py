"""The melody of the embedded voice's codec: the course of pitch, from what is said in each frame.

A convolution over units and phones learns which tune a tone, a stress and the end of a sentence have; the height of the
voice is left to the codes and to what is asked. Nothing else of the codec is trained, and its codes stay what they are.

Run: voxinstruct train configs/codec_melody_small.py --out runs/melody --train.init-from voice/codec --data.codes F
Hardware: two CPU cores.
Cost: 2,000 steps of 24 crops of 3.84 s, ten minutes.
Expect: loss falls well below `flat_distance`, what a voice without any tune has.
Measured: see voxinstruct_jax/release/MODEL_CARD.md.
"""

import dataclasses

from voxinstruct_jax.audio.codec import CodecConfig
from voxinstruct_jax.training.codec import SegmentData
from voxinstruct_jax.training.melody import MelodyExperiment
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.task import TrainConfig

experiment = MelodyExperiment(
    model=dataclasses.replace(CodecConfig.small(), melody_dim=96),
    data=SegmentData(segment_s=3.84, rows=24, gain_db=0.0),
    optimizer=OptimizerConfig(
        peak_lr=3e-3,
        warmup_steps=100,
        decay="cosine",
        decay_steps=2000,
        beta2=0.98,
        weight_decay=0.01,
        max_grad_norm=1.0,
    ),
    train=TrainConfig(steps=2000, log_every=20, save_every=250),
)
