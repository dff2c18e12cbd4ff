"""The kinds of experiment, and how each is made ready for the loop.

Files in `configs/` build one; `--a.b value` on the command line changes it; `config.json` beside a run stores it.
"""

from voxinstruct_jax.training.ar import ARExperiment, ar_task
from voxinstruct_jax.training.codec import CodecExperiment, codec_task
from voxinstruct_jax.training.nar import NARExperiment, nar_task
from voxinstruct_jax.training.task import Task

__all__ = ["Experiment", "build_task"]

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
