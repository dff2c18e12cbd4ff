"""Settings of the embedded voice and of the baselines made of its blocks, once; `configs/` says what differs.

Sizes are those that two CPU cores can train in hours and run faster than real time.
"""

import dataclasses
from collections.abc import Callable
from typing import TypeVar

from voxinstruct_jax.data.description_batches import DescriptionData
from voxinstruct_jax.data.mixture import Kinds, Mixture
from voxinstruct_jax.data.plan import BatchConfig
from voxinstruct_jax.models.ar import ARConfig
from voxinstruct_jax.models.llama import LlamaConfig
from voxinstruct_jax.models.nar import NARConfig
from voxinstruct_jax.text.encoder import TextEncoderConfig
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer, TextForm
from voxinstruct_jax.training.ar import ARExperiment, ARObjective
from voxinstruct_jax.training.language_model import TokenData
from voxinstruct_jax.training.nar import NARExperiment, NARObjective
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.style import StyleExperiment
from voxinstruct_jax.training.task import TrainConfig
from voxinstruct_jax.vocabulary import Vocabulary

__all__ = ["INSTRUCT", "small_ar", "small_data", "small_nar", "small_style"]

INSTRUCT = Kinds(transcript=0.4, instruction=0.6)
"""Of the second stage, and of baselines that have no other."""

VOCABULARY = Vocabulary(num_semantic=256, codebook_size=1024, num_codebooks=6)
SHARDS = "corpus/train"
# No dropout: drawing its random bits would take a third of a step on a CPU.
BACKBONE = LlamaConfig(num_layers=4, model_dim=256, num_heads=4, num_kv_heads=4, head_dim=64, ffn_dim=512, dropout=0.0)
PEAK_LR, NAR_PEAK_LR = 1e-3, 1.5e-3
DROP_ACOUSTIC = 0.3
NEARBY_FRAMES = 4
READER_DIM = 64
T = TypeVar("T")
_WARMUP_STEPS = 100


def small_ar(
    data: TokenData,
    *,
    steps: int,
    peak_lr: float = PEAK_LR,
    text_form: TextForm = "instruction",
    semantic: bool = True,
) -> ARExperiment:
    """An AR experiment of the embedded voice's size.

    Args:
        data: From `small_data`.
        steps: Over which the learning rate falls to nothing.
        peak_lr: Where it starts.
        text_form: What the model reads.
        semantic: Whether it predicts semantic tokens, and the first codebook given them; else the first codebook alone.
    """
    model = _model(ARConfig, text_form, semantic)
    if text_form == "instruction":
        model = _reading(model)
    objective = ARObjective(drop_semantic=0.1 if semantic else 0.0, drop_acoustic=DROP_ACOUSTIC)
    optimizer, train = _schedule(steps, peak_lr)
    return ARExperiment(model=model, objective=objective, data=data, optimizer=optimizer, train=train)


def small_style(*, steps: int) -> StyleExperiment:
    """The stage in which the AR model of the embedded voice learns what descriptions ask for."""
    optimizer, train = _schedule(steps, 10 * PEAK_LR)
    return StyleExperiment(
        model=_reading(_model(ARConfig, "instruction", semantic=True)),
        data=DescriptionData(shards=SHARDS),
        # Decay would wear away the weights that this stage gives no gradient.
        optimizer=dataclasses.replace(optimizer, weight_decay=0.0),
        train=train,
    )


def small_nar(
    data: TokenData,
    *,
    steps: int,
    peak_lr: float = NAR_PEAK_LR,
    text_form: TextForm = "instruction",
    semantic: bool = True,
) -> NARExperiment:
    """A NAR experiment of the embedded voice's size; see `small_ar`."""
    model = dataclasses.replace(
        _model(NARConfig, text_form, semantic),
        backbone=dataclasses.replace(BACKBONE, num_layers=2),
        nearby_frames=NEARBY_FRAMES,
    )
    optimizer, train = _schedule(steps, peak_lr)
    objective = NARObjective(drop_prompt=0.9, codebook_decay=1.0)
    return NARExperiment(model=model, objective=objective, data=data, optimizer=optimizer, train=train)


def small_data(kinds: Kinds, *, prompt_ratio: float = 0.15, row_slots: int = 1024) -> TokenData:
    """A thousand slots a step.

    Args:
        kinds: What the stage is made of.
        prompt_ratio: Share of clips that begin with another of their speaker.
        row_slots: Length of a row, which bounds that of a clip with its text.
    """
    batch = BatchConfig(
        text_width=row_slots * 5 // 8,
        time_width=row_slots,
        rows=1024 // row_slots,
        max_clips=row_slots // 64,
        prompt_ratio=prompt_ratio,
    )
    return TokenData(shards=SHARDS, mixture=Mixture(kinds=kinds), batch=batch)


def _model(config: Callable[..., T], text_form: TextForm, semantic: bool) -> T:
    text_encoder = TextEncoderConfig.small(PronunciationTokenizer().channel_sizes, num_layers=2)
    return config(
        vocabulary=VOCABULARY,
        backbone=BACKBONE,
        text_encoder=dataclasses.replace(text_encoder, dropout=0.0),
        timing="aligned",
        text_form=text_form,
        semantic=semantic,
    )


def _reading(model: ARConfig) -> ARConfig:
    return dataclasses.replace(model, style_reader=True, reader_dim=READER_DIM)


def _schedule(steps: int, peak_lr: float) -> tuple[OptimizerConfig, TrainConfig]:
    optimizer = OptimizerConfig(
        peak_lr=peak_lr,
        warmup_steps=_WARMUP_STEPS,
        decay="cosine",
        decay_steps=steps,
        beta2=0.98,
        weight_decay=0.1,
        max_grad_norm=1.0,
    )
    return optimizer, TrainConfig(steps=steps, log_every=20, save_every=250)
