"""Last stage of the embedded voice's codec: its decoder alone, on the codes that the voice itself predicts.

Of what is in a clip's codebooks beyond the first, little follows from the first, and the decoder has heard true codes
only. `launch/predict_codes.py` writes what the NAR model makes of the training clips; the decoder learns to make of
that, and of the semantic units and phones of each frame, which are known before, what the clips are. Three crops in ten
have their true codes and nothing else, lest it unlearn them. Codes stay what they are, so nothing else has to be
trained again.
After Tacotron 2 (Shen et al. 2018), section 2.3: a vocoder trained on predicted frames in time with the truth.

Run: voxinstruct train configs/codec_decoder_small.py --out runs/decoder --train.init-from voice/codec --data.codes F
Hardware: two CPU cores.
Cost: 5,000 steps of 15.4 s of speech, about 45 minutes; extra asr (Whisper's encoder is what hears).
Expect: fewer words lost between the voice's codes and its sound; resynthesis of true codes about as before.
Measured: see voxinstruct_jax/release/MODEL_CARD.md.
"""

from voxinstruct_jax.audio.codec import CodecConfig
from voxinstruct_jax.training.codec import CodecExperiment, CodecObjective, SegmentData
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.task import TrainConfig

experiment = CodecExperiment(
    model=CodecConfig.small(),
    objective=CodecObjective(hearing_weight=1.0, pitch_weight=0.5),
    data=SegmentData(rows=6, segment_s=2.56, gain_db=0.0),  # short crops would show half of what a block sees
    optimizer=OptimizerConfig(
        peak_lr=8e-4,
        warmup_steps=100,
        decay="cosine",
        decay_steps=5000,
        beta2=0.99,
        weight_decay=0.01,
        max_grad_norm=1.0,
    ),
    train=TrainConfig(steps=5000, log_every=20, save_every=250),
)
