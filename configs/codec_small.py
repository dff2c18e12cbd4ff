"""Codec of the embedded voice: log-mel, ConvNeXt encoder, 8 x 512 residual codebooks at 25 Hz, Vocos decoder.

VoxInstruct takes EnCodec (75 Hz, 8 x 1024, section 4.1); a third of the frames is a third of the AR steps.

Run: voxinstruct train configs/codec_small.py --out runs/codec --data.manifest corpus/train.jsonl
Hardware: two CPU cores.
Cost: 3,000 steps of 15.4 s of speech, about 25 minutes.
Expect: mel L1 about .45 (natural log) on unseen speech; resynthesis that Whisper understands (see the card).
Measured: 2026-11-21, see voxinstruct_jax/release/MODEL_CARD.md.
"""

from voxinstruct_jax.audio.codec import CodecConfig
from voxinstruct_jax.training.codec import CodecExperiment, SegmentData
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.task import TrainConfig

experiment = CodecExperiment(
    model=CodecConfig.small(),
    data=SegmentData(rows=12),
    optimizer=OptimizerConfig(
        peak_lr=1e-3,
        warmup_steps=100,
        decay="cosine",
        decay_steps=3000,
        beta2=0.99,
        weight_decay=0.01,
        max_grad_norm=1.0,
    ),
    train=TrainConfig(steps=3000, log_every=20, save_every=250),
)
