"""The kinds of experiment, and how each is made ready for the loop.

Files in `configs/` build one; `--a.b value` on the command line changes it; `config.json` beside a run stores it.
"""

from voxinstruct_jax.training.ar import ARExperiment, ar_program, ar_task
from voxinstruct_jax.training.codec import CodecExperiment, codec_task
from voxinstruct_jax.training.nar import NARExperiment, nar_program, nar_task
from voxinstruct_jax.training.task import Program, Task

__all__ = ["Experiment", "build_task", "program_of"]

Experiment = CodecExperiment | ARExperiment | NARExperiment


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


def program_of(experiment: ARExperiment | NARExperiment) -> Program:
    """What the experiment computes in a step, without its data."""
    return ar_program(experiment) if isinstance(experiment, ARExperiment) else nar_program(experiment)
