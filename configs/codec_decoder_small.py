"""Last stage of the embedded voice's codec: its decoder alone, on the codes that the voice itself predicts.

The AR and the NAR model err, and the decoder has heard true codes only. `launch/predict_codes.py` writes what they make
of the training clips when each code before is given; the decoder learns to make of that, and of the semantic units that
the AR model has said before, what the clips are. Half of the crops have their true codes, lest it unlearn them. Codes
stay what they are, so nothing else has to be trained again.
After Tacotron 2 (Shen et al. 2018), section 2.3: a vocoder trained on predicted frames in time with the truth.

Run: voxinstruct train configs/codec_decoder_small.py --out runs/decoder --train.init-from voice/codec --data.codes F
Hardware: two CPU cores.
Cost: 2,000 steps of 15.4 s of speech, about 25 minutes; extra asr (Whisper's encoder is what hears).
Expect: fewer words lost between the voice's codes and its sound; resynthesis of true codes about as before.
Measured: see voxinstruct_jax/release/MODEL_CARD.md.
"""

from voxinstruct_jax.audio.codec import CodecConfig
from voxinstruct_jax.training.codec import CodecExperiment, CodecObjective, SegmentData
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.task import TrainConfig

experiment = CodecExperiment(
    model=CodecConfig.small(),
    objective=CodecObjective(hearing_weight=1.0),
    data=SegmentData(rows=12, gain_db=0.0),
    optimizer=OptimizerConfig(
        peak_lr=5e-4,
        warmup_steps=100,
        decay="cosine",
        decay_steps=2000,
        beta2=0.99,
        weight_decay=0.01,
        max_grad_norm=1.0,
    ),
    train=TrainConfig(steps=2000, log_every=20, save_every=250),
)
