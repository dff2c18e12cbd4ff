"""The paper's baselines from the blocks of the embedded voice, once for all of them: `configs/` says what differs.

What they share beside the settings of `configs/instruct_ar_small.py` and `configs/instruct_nar_small.py`: no semantic
tokens, and style and content apart.
"""

import dataclasses

from voxinstruct_jax.data.plan import BatchConfig
from voxinstruct_jax.models.ar import ARConfig
from voxinstruct_jax.models.llama import LlamaConfig
from voxinstruct_jax.models.nar import NARConfig
from voxinstruct_jax.text.encoder import TextEncoderConfig
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer, TextForm
from voxinstruct_jax.training.ar import ARExperiment, ARObjective
from voxinstruct_jax.training.language_model import TokenData
from voxinstruct_jax.training.nar import NARExperiment
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.task import TrainConfig
from voxinstruct_jax.vocabulary import Vocabulary

__all__ = ["small_ar", "small_nar"]

_VOCABULARY = Vocabulary(num_semantic=256, codebook_size=1024, num_codebooks=4)
_BACKBONE = LlamaConfig(num_layers=4, model_dim=256, num_heads=4, num_kv_heads=4, head_dim=64, ffn_dim=512, dropout=0.0)


def small_ar(text_form: TextForm, *, description_free_ratio: float = 0.4, prompt_ratio: float = 0.15) -> ARExperiment:
    """Trains the AR model of a baseline: first codebook from text of this form."""
    return ARExperiment(
        model=ARConfig(
            vocabulary=_VOCABULARY,
            backbone=_BACKBONE,
            text_encoder=_text_encoder(),
            timing="aligned",
            text_form=text_form,
            semantic=False,
        ),
        objective=ARObjective(drop_semantic=0.0),
        data=_data(description_free_ratio, prompt_ratio),
        optimizer=_optimizer(warmup_steps=60, steps=3200),
        train=TrainConfig(steps=3200, log_every=20, save_every=250),
    )


def small_nar(text_form: TextForm, *, description_free_ratio: float = 0.4, prompt_ratio: float = 0.15) -> NARExperiment:
    """Trains the NAR model of a baseline: further codebooks from the first and text of this form."""
    return NARExperiment(
        model=NARConfig(
            vocabulary=_VOCABULARY,
            backbone=_BACKBONE,
            text_encoder=_text_encoder(),
            timing="aligned",
            text_form=text_form,
            semantic=False,
        ),
        data=_data(description_free_ratio, prompt_ratio),
        optimizer=_optimizer(warmup_steps=150, steps=3000),
        train=TrainConfig(steps=3000, log_every=20, save_every=250),
    )


def _text_encoder() -> TextEncoderConfig:
    config = TextEncoderConfig.small(PronunciationTokenizer().channel_sizes, num_layers=2)
    return dataclasses.replace(config, dropout=0.0)


def _data(description_free_ratio: float, prompt_ratio: float) -> TokenData:
    batch = BatchConfig(
        text_width=320,
        time_width=512,
        rows=2,
        max_clips=8,
        description_free_ratio=description_free_ratio,
        prompt_ratio=prompt_ratio,
    )
    return TokenData(shards="corpus/v2/train", batch=batch)


def _optimizer(*, warmup_steps: int, steps: int) -> OptimizerConfig:
    return OptimizerConfig(
        peak_lr=1e-3,
        warmup_steps=warmup_steps,
        decay="cosine",
        decay_steps=steps,
        beta2=0.98,
        weight_decay=0.1,
        max_grad_norm=1.0,
    )
