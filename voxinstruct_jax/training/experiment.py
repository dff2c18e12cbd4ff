"""The kinds of experiment, and how each is made ready for the loop.

Files in `configs/` build one; `--a.b value` on the command line changes it; `config.json` beside a run stores it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from voxinstruct_jax.layers.operations import count_operations
from voxinstruct_jax.sharding.mesh import build_mesh
from voxinstruct_jax.training.ar import ARExperiment, ar_program, ar_task
from voxinstruct_jax.training.codec import CodecExperiment, codec_task
from voxinstruct_jax.training.codec_flow import (
    CodecFlowExperiment,
    abstract_code_batch,
    codec_flow_program,
    codec_flow_task,
)
from voxinstruct_jax.training.diffusion import (
    DiffusionExperiment,
    abstract_sound_batch,
    diffusion_program,
    diffusion_task,
)
from voxinstruct_jax.training.distillation import DistillationExperiment, distillation_program, distillation_task
from voxinstruct_jax.training.grad_tts import (
    GradTTSExperiment,
    grad_tts_program,
    grad_tts_task,
)
from voxinstruct_jax.training.language_model import abstract_batch
from voxinstruct_jax.training.masked_latents import MaskedLatentsExperiment, masked_latents_program, masked_latents_task
from voxinstruct_jax.training.mel_vae import MelVAEExperiment, mel_vae_task
from voxinstruct_jax.training.mel_vocoder import MelVocoderExperiment, mel_vocoder_task
from voxinstruct_jax.training.melody import MelodyExperiment, melody_task
from voxinstruct_jax.training.nar import NARExperiment, nar_program, nar_task
from voxinstruct_jax.training.optimizer import make_optimizer
from voxinstruct_jax.training.step import build_trainer
from voxinstruct_jax.training.style import StyleExperiment, abstract_description_batch, style_program, style_task
from voxinstruct_jax.training.task import Program, Task

__all__ = [
    "Denoising",
    "Experiment",
    "Plannable",
    "batch_of",
    "build_task",
    "program_of",
    "rows_of",
    "step_operations",
    "with_rows",
]

Denoising = (
    DiffusionExperiment | GradTTSExperiment | CodecFlowExperiment | DistillationExperiment | MaskedLatentsExperiment
)
"""Experiments of denoisers, whose rows are all of one length."""
Experiment = (
    CodecExperiment
    | ARExperiment
    | NARExperiment
    | StyleExperiment
    | MelVAEExperiment
    | MelVocoderExperiment
    | MelodyExperiment
    | Denoising
)
Plannable = ARExperiment | NARExperiment | Denoising
_TASKS: dict[type, Callable[[Any], Task]] = {
    CodecExperiment: codec_task,
    ARExperiment: ar_task,
    NARExperiment: nar_task,
    StyleExperiment: style_task,
    DiffusionExperiment: diffusion_task,
    GradTTSExperiment: grad_tts_task,
    CodecFlowExperiment: codec_flow_task,
    DistillationExperiment: distillation_task,
    MaskedLatentsExperiment: masked_latents_task,
    MelVAEExperiment: mel_vae_task,
    MelVocoderExperiment: mel_vocoder_task,
    MelodyExperiment: melody_task,
}


def build_task(experiment: Experiment) -> Task:
    """Opens the experiment's data.

    Raises:
        InputError: The data is missing or does not fit the model.
    """
    return _TASKS[type(experiment)](experiment)


def program_of(experiment: Plannable | StyleExperiment) -> Program:
    """What the experiment computes in a step, without its data."""
    match experiment:
        case ARExperiment():
            return ar_program(experiment)
        case NARExperiment():
            return nar_program(experiment)
        case StyleExperiment():
            return style_program(experiment)
        case DiffusionExperiment():
            return diffusion_program(experiment)
        case GradTTSExperiment():
            return grad_tts_program(experiment)
        case CodecFlowExperiment():
            return codec_flow_program(experiment)
        case DistillationExperiment():
            return distillation_program(experiment)
        case MaskedLatentsExperiment():
            return masked_latents_program(experiment)


def batch_of(experiment: Plannable | StyleExperiment, mesh: Mesh) -> Any:
    """Shapes and placement of the experiment's batches."""
    match experiment:
        case DiffusionExperiment() | DistillationExperiment():
            return abstract_sound_batch(experiment.data, experiment.latents, experiment.model, mesh)
        case GradTTSExperiment() | MaskedLatentsExperiment():
            return abstract_sound_batch(experiment.data, experiment.latents, experiment.model.network, mesh)
        case CodecFlowExperiment():
            return abstract_code_batch(experiment, mesh)
        case StyleExperiment():
            return abstract_description_batch(experiment, mesh)
        case _:
            return abstract_batch(experiment, mesh)


def step_operations(experiment: Plannable | StyleExperiment) -> float:
    """Multiplications and additions of the products in a training step, padding included, counted from its program."""
    program, mesh = program_of(experiment), build_mesh(experiment.mesh)
    optimizer = make_optimizer(experiment.optimizer)
    trainer = build_trainer(
        program.build_model, program.objective, optimizer, mesh, seed=experiment.train.seed, config=experiment.step
    )
    with jax.set_mesh(mesh):
        return count_operations(trainer.jitted, trainer.shapes, batch_of(experiment, mesh))


def rows_of(experiment: Plannable) -> int:
    """Rows of a step."""
    return experiment.data.rows if isinstance(experiment, Denoising) else experiment.data.batch.rows


def with_rows(experiment: Plannable, rows: int) -> tuple[str, Plannable]:
    """The option that sets the rows of a step, and the experiment with them."""
    data: Any = experiment.data
    if isinstance(experiment, Denoising):
        return f"--data.rows {rows}", dataclasses.replace(experiment, data=dataclasses.replace(data, rows=rows))
    batch = dataclasses.replace(experiment.data.batch, rows=rows)
    return f"--data.batch.rows {rows}", dataclasses.replace(experiment, data=dataclasses.replace(data, batch=batch))
