"""A Schroedinger bridge from the first codebook's entries to the latents of all codebooks: a rival of the NAR model.

After Bridge-TTS (arXiv 2312.03491), whose bridge begins at a text encoder's output; here it begins at what the AR model
has spoken. As the NAR model, it reads the semantic units and the instruction besides. 3.3M weights.

Run: voxinstruct train configs/bridge_small.py --out runs/bridge_small
Hardware: two CPU cores.
Cost: 600 steps of 8 stretches of 96 frames, five to ten minutes.
Expect: loss, the squared error of the latents, falls below `error_first_codebook`, that of the first codebook alone.
Measured: 2026-11-22, 100 steps (`--train.steps 100 --optimizer.decay-steps 100 --optimizer.warmup-steps 20`), mean of
    the last five logged: loss 0.114 against 0.135 for the first codebook.
"""

from voxinstruct_jax.audio.codec import CodecConfig
from voxinstruct_jax.data.code_batches import CodeData
from voxinstruct_jax.diffusion.systems import SYSTEMS
from voxinstruct_jax.models.codec_flow import CodecFlowConfig
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
from voxinstruct_jax.training.codec_flow import CodecFlowExperiment
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.step import StepConfig
from voxinstruct_jax.training.task import TrainConfig

experiment = CodecFlowExperiment(
    model=CodecFlowConfig.small(
        CodecConfig.small(), PronunciationTokenizer().channel_sizes, num_units=256, first_codebook=True
    ),
    diffusion=SYSTEMS["bridge"],
    data=CodeData(shards="corpus/train", frames=96, rows=8, text_width=320),
    optimizer=OptimizerConfig(
        peak_lr=2e-3, warmup_steps=50, decay="cosine", decay_steps=600, beta2=0.98, weight_decay=0.0, max_grad_norm=1.0
    ),
    train=TrainConfig(steps=600, log_every=20, save_every=200),
    step=StepConfig(ema_decay=0.99),
)
