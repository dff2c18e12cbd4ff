"""The paper's training settings, once for all stages and sizes; the experiments of `configs/` say what differs.

Source:
    VoxInstruct, section 5.1: peak learning rate 1e-4, 10,000 warm-up steps. The release drops .1 of attention
    probabilities; fused attention kernels have no dropout, so there is none here. UNISON (arXiv 2605.31530), sections
    3.4 and 4.1.
"""

import dataclasses

from voxinstruct_jax.audio.latents import LatentConfig
from voxinstruct_jax.audio.mel_vae import MelVAEConfig
from voxinstruct_jax.data.plan import BatchConfig
from voxinstruct_jax.data.sound_batches import SoundData
from voxinstruct_jax.data.sound_tasks import TASKS
from voxinstruct_jax.diffusion.systems import SYSTEMS
from voxinstruct_jax.layers.execution import Execution
from voxinstruct_jax.models.ar import ARConfig
from voxinstruct_jax.models.llama import LlamaConfig
from voxinstruct_jax.models.mmdit import MMDiTConfig
from voxinstruct_jax.models.nar import NARConfig
from voxinstruct_jax.training.ar import ARExperiment
from voxinstruct_jax.training.diffusion import DiffusionExperiment
from voxinstruct_jax.training.language_model import TokenData
from voxinstruct_jax.training.nar import NARExperiment
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.step import StepConfig
from voxinstruct_jax.training.task import TrainConfig

__all__ = ["paper_ar", "paper_data", "paper_nar", "paper_unison"]

OPTIMIZER = OptimizerConfig(peak_lr=1e-4, warmup_steps=10_000, decay="inverse_sqrt")
TOKENIZER = "mt5-base"
"""Folder of google/mt5-base, or its `spiece.model` or `tokenizer.json`; the user brings it (`--data.tokenizer`)."""
EXECUTION = Execution(remat="names")


def paper_ar(
    data: TokenData, train: TrainConfig, *, backbone: LlamaConfig | None = None, execution: Execution = EXECUTION
) -> ARExperiment:
    """An AR experiment with the paper's settings.

    Args:
        data: From `paper_data`, or any other.
        train: Its length and what it leaves behind.
        backbone: Of another size than the paper's.
        execution: How a step is run.
    """
    model = dataclasses.replace(ARConfig.paper(), backbone=_without_dropout(backbone), dtype="bfloat16")
    return ARExperiment(model=model, data=data, optimizer=OPTIMIZER, train=train, execution=execution)


def paper_nar(data: TokenData, train: TrainConfig) -> NARExperiment:
    """A NAR experiment with the paper's settings; see `paper_ar`."""
    model = dataclasses.replace(NARConfig.paper(), backbone=_without_dropout(None), dtype="bfloat16")
    return NARExperiment(model=model, data=data, optimizer=OPTIMIZER, train=train, execution=EXECUTION)


def paper_data(shards: str, *, rows: int, description_free_ratio: float) -> TokenData:
    """Rows of 2,560 slots, each of some four clips, 512 of them at most text; text in mT5's subwords."""
    batch = BatchConfig(text_width=512, time_width=2560, rows=rows, description_free_ratio=description_free_ratio)
    return TokenData(shards=shards, batch=batch, tokenizer=TOKENIZER)


def paper_unison(joint_blocks: int, vae: MelVAEConfig, latent_channels: int) -> DiffusionExperiment:
    """UNISON of a number of blocks, over the latents of a Mel-VAE; both stages of its curriculum."""
    model = MMDiTConfig.unison(joint_blocks=joint_blocks, latent_channels=latent_channels)
    return DiffusionExperiment(
        model=dataclasses.replace(model, dtype="bfloat16"),
        latents=LatentConfig(vae=vae),
        diffusion=SYSTEMS["unison"],
        data=SoundData(
            tasks=tuple(name for name in TASKS if name != "instruct_tts"),
            first_stage_steps=150_000,
            clip_s=10.0,
            rows=448,
            task_rows=7,
            text_width=256,
            phone_width=0,
        ),
        optimizer=OptimizerConfig(
            peak_lr=1e-4,
            warmup_steps=2000,
            decay="cosine",
            decay_steps=890_000,
            beta2=0.95,
            weight_decay=0.01,
            max_grad_norm=1.0,
        ),
        train=TrainConfig(steps=890_000, log_every=100, save_every=5000),
        step=StepConfig(ema_decay=0.9999),
        execution=Execution(remat="full", scan=True),
    )


def _without_dropout(backbone: LlamaConfig | None) -> LlamaConfig:
    return dataclasses.replace(backbone or LlamaConfig.paper(), dropout=0.0)
