"""AR model of the embedded voice: instruction to language, semantic tokens and first codebook, trained from scratch.

After VoxInstruct, sections 4.2 and 4.3, in miniature: quoted transcripts and described instructions in one stage.

Run: voxinstruct train configs/instruct_ar_small.py --out runs/ar --data.shards corpus/v2/train
Hardware: two CPU cores.
Cost: about 1 second a step of 4,096 slots.
Expect: semantic loss well below the unigram entropy of the tokens; Whisper WER on unseen sentences in the model card.
Measured: 2026-11-21, see voxinstruct_jax/release/MODEL_CARD.md.
"""

import dataclasses

from voxinstruct_jax.data.batches import BatchConfig
from voxinstruct_jax.models.ar import ARConfig
from voxinstruct_jax.models.llama import LlamaConfig
from voxinstruct_jax.text.encoder import TextEncoderConfig
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
from voxinstruct_jax.training.ar import ARExperiment
from voxinstruct_jax.training.language_model import TokenData
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.task import TrainConfig
from voxinstruct_jax.vocabulary import Vocabulary

experiment = ARExperiment(
    model=ARConfig(
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
        warmup_steps=60,
        decay="cosine",
        decay_steps=3200,
        beta2=0.98,
        weight_decay=0.1,
        max_grad_norm=1.0,
    ),
    train=TrainConfig(steps=3200, log_every=20, save_every=250),
)
