"""The kinds of experiment, and how each is made ready for the loop.

Files in `configs/` build one; `--a.b value` on the command line changes it; `config.json` beside a run stores it.
"""

import dataclasses
from typing import Any

from jax.sharding import Mesh

from voxinstruct_jax.training.ar import ARExperiment, ar_program, ar_task
from voxinstruct_jax.training.codec import CodecExperiment, codec_task
from voxinstruct_jax.training.diffusion import (
    DiffusionExperiment,
    abstract_sound_batch,
    diffusion_program,
    diffusion_task,
)
from voxinstruct_jax.training.distillation import DistillationExperiment, distillation_task
from voxinstruct_jax.training.language_model import abstract_batch
from voxinstruct_jax.training.masked_latents import MaskedLatentsExperiment, masked_latents_task
from voxinstruct_jax.training.mel_vae import MelVAEExperiment, mel_vae_task
from voxinstruct_jax.training.nar import NARExperiment, nar_program, nar_task
from voxinstruct_jax.training.task import Program, Task

__all__ = ["Experiment", "Plannable", "batch_of", "build_task", "program_of", "rows_of", "with_rows"]

Experiment = (
    CodecExperiment
    | ARExperiment
    | NARExperiment
    | DiffusionExperiment
    | DistillationExperiment
    | MaskedLatentsExperiment
    | MelVAEExperiment
)
Plannable = ARExperiment | NARExperiment | DiffusionExperiment


def build_task(experiment: Experiment) -> Task:
    """Opens the experiment's data.

    Raises:
        InputError: The data is missing or does not fit the model.
    """
    match experiment:
        case CodecExperiment():
            return codec_task(experiment)
        case ARExperiment():
            return ar_task(experiment)
        case NARExperiment():
            return nar_task(experiment)
        case DiffusionExperiment():
            return diffusion_task(experiment)
        case DistillationExperiment():
            return distillation_task(experiment)
        case MaskedLatentsExperiment():
            return masked_latents_task(experiment)
        case MelVAEExperiment():
            return mel_vae_task(experiment)


def program_of(experiment: Plannable) -> Program:
    """What the experiment computes in a step, without its data."""
    match experiment:
        case ARExperiment():
            return ar_program(experiment)
        case NARExperiment():
            return nar_program(experiment)
        case DiffusionExperiment():
            return diffusion_program(experiment)


def batch_of(experiment: Plannable, mesh: Mesh) -> Any:
    """Shapes and placement of the experiment's batches."""
    if isinstance(experiment, DiffusionExperiment):
        return abstract_sound_batch(experiment, mesh)
    return abstract_batch(experiment, mesh)


def rows_of(experiment: Plannable) -> int:
    """Rows of a step."""
    return experiment.data.rows if isinstance(experiment, DiffusionExperiment) else experiment.data.batch.rows


def with_rows(experiment: Plannable, rows: int) -> tuple[str, Plannable]:
    """The option that sets the rows of a step, and the experiment with them."""
    data = experiment.data
    if isinstance(experiment, DiffusionExperiment):
        return f"--data.rows {rows}", dataclasses.replace(experiment, data=dataclasses.replace(data, rows=rows))
    batch = dataclasses.replace(experiment.data.batch, rows=rows)
    return f"--data.batch.rows {rows}", dataclasses.replace(experiment, data=dataclasses.replace(data, batch=batch))
