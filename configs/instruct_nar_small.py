"""NAR model of the embedded voice: codebooks 2 and 3 from the first, the semantic tokens and the instruction.

After VoxInstruct, section 4.2 (stage III), in miniature. The codec has 8 codebooks; an hour of CPU is too little to
learn all, and three already carry the words (see the model card).

Run: voxinstruct train configs/instruct_nar_small.py --out runs/nar --data.shards corpus/v2/train
Hardware: two CPU cores.
Cost: about 1 second a step of 4,096 slots.
Expect: accuracy on masked places of the second codebook far above the share of its commonest code.
Measured: 2026-11-21, see voxinstruct_jax/release/MODEL_CARD.md.
"""

import dataclasses

from voxinstruct_jax.data.batches import BatchConfig
from voxinstruct_jax.models.llama import LlamaConfig
from voxinstruct_jax.models.nar import NARConfig
from voxinstruct_jax.text.encoder import TextEncoderConfig
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
from voxinstruct_jax.training.language_model import TokenData
from voxinstruct_jax.training.nar import NARExperiment
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.task import TrainConfig
from voxinstruct_jax.vocabulary import Vocabulary

experiment = NARExperiment(
    model=NARConfig(
        vocabulary=Vocabulary(num_semantic=256, codebook_size=1024, num_codebooks=4),
        # no dropout: drawing its random bits would take a third of a step on a CPU
        backbone=LlamaConfig(
            num_layers=4, model_dim=256, num_heads=4, num_kv_heads=4, head_dim=64, ffn_dim=512, dropout=0.0
        ),
        text_encoder=dataclasses.replace(
            TextEncoderConfig.small(PronunciationTokenizer().channel_sizes, num_layers=2), dropout=0.0
        ),
        timing="aligned",
    ),
    data=TokenData(
        shards="corpus/v2/train",
        batch=BatchConfig(
            text_width=320, time_width=512, rows=2, max_clips=8, description_free_ratio=0.4, prompt_ratio=0.15
        ),
    ),
    optimizer=OptimizerConfig(
        peak_lr=1e-3,
        warmup_steps=150,
        decay="cosine",
        decay_steps=3000,
        beta2=0.98,
        weight_decay=0.1,
        max_grad_norm=1.0,
    ),
    train=TrainConfig(steps=3000, log_every=20, save_every=250),
)
