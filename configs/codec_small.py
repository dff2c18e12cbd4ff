"""Codec of the embedded voice: log-mel, ConvNeXt encoder, 6 x 1024 residual codebooks at 25 Hz, Vocos decoder.

VoxInstruct takes EnCodec (75 Hz, 8 x 1024, section 4.1); a third of the frames is a third of the AR steps.

Run: voxinstruct train configs/codec_small.py --out runs/codec --data.manifest M.jsonl --data.units voice/units
Hardware: two CPU cores.
Cost: 6,000 steps of 15.4 s of speech, about 80 minutes; extra asr (Whisper's encoder is what hears).
Expect: mel L1 about .45 (natural log) on unseen speech; resynthesis that Whisper understands (see the card).
Measured: 2026-11-21, see voxinstruct_jax/release/MODEL_CARD.md.
"""

from voxinstruct_jax.audio.codec import CodecConfig
from voxinstruct_jax.training.codec import CodecExperiment, CodecObjective, SegmentData
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.task import TrainConfig

experiment = CodecExperiment(
    model=CodecConfig.small(),
    objective=CodecObjective(unit_weight=0.15, hearing_weight=1.0),
    data=SegmentData(rows=12),
    optimizer=OptimizerConfig(
        peak_lr=1e-3,
        warmup_steps=100,
        decay="cosine",
        decay_steps=6000,
        beta2=0.99,
        weight_decay=0.01,
        max_grad_norm=1.0,
    ),
    train=TrainConfig(steps=6000, log_every=20, save_every=250),
)
