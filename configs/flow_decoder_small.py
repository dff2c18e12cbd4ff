"""A flow decoder over our semantic tokens: units, each as long as it lasts, and the instruction to codec latents.

The second half of a language model and flow hybrid, after MeLoDy (arXiv 2305.15719) and CosyVoice (arXiv 2407.05407):
an AR model says units, the flow makes what the embedded voice's codec decodes. 3.3M weights. `convert` makes a voice of
the run and the embedded voice's AR model.

Run: voxinstruct train configs/flow_decoder_small.py --out runs/flow_decoder_small
Hardware: two CPU cores.
Cost: 600 steps of 8 stretches of 96 frames, five to ten minutes.
Expect: loss, the squared error of the latents, falls well below that of their mean (`loss_trivial`), `loss_t3` (near
    the noise) towards what the units leave open.
Measured: 2026-11-22, 100 steps (`--train.steps 100 --optimizer.decay-steps 100 --optimizer.warmup-steps 20`), mean of
    the last five logged: loss 0.36 against 1.07 for the mean.
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
    model=CodecFlowConfig.small(CodecConfig.small(), PronunciationTokenizer().channel_sizes, num_units=256),
    diffusion=SYSTEMS["flow_decoder"],
    data=CodeData(shards="corpus/train", frames=96, rows=8, text_width=320),
    optimizer=OptimizerConfig(
        peak_lr=2e-3, warmup_steps=50, decay="cosine", decay_steps=600, beta2=0.98, weight_decay=0.0, max_grad_norm=1.0
    ),
    train=TrainConfig(steps=600, log_every=20, save_every=200),
    step=StepConfig(ema_decay=0.99),
)
