"""What the loop needs to know of an experiment: a model, its objective, its batches, and what identifies the run."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flax import nnx

from voxinstruct_jax.checkpoints.weights import weights_fingerprint
from voxinstruct_jax.config import ConfigError, fingerprint
from voxinstruct_jax.data.steps import StepSource
from voxinstruct_jax.sharding.mesh import MeshConfig
from voxinstruct_jax.training.flops import BatchFlops
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.step import Objective, StepConfig

__all__ = ["Program", "StoredPart", "Task", "TrainConfig", "identity"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length of a run and what it leaves behind."""

    steps: int = 1000
    seed: int = 0
    log_every: int = 10
    save_every: int = 500
    keep: int = 2  # newest states kept
    best_of: str = ""  # metric whose lowest logged value marks a state that is kept too; empty = none
    max_skipped: int = 10  # steps in a row without a finite loss before the run goes back to saved weights
    max_rollbacks: int = 2  # times it does so before it stops
    init_from: str = ""
    """Weights folder (see `voxinstruct convert`) that a new run starts from: those of another run, or of an mT5 encoder
    alone; empty = fresh weights."""
    sample_every: int = 0
    """Steps after which a few instructions are spoken into `samples/`, and judged; 0 = never."""
    sample_voice: str = ""
    """Voice folder that lends samples all parts but the model that is trained; empty = the embedded voice."""
    wandb: str = ""
    """Project of Weights & Biases that metrics go to as well; empty = none."""

    def __post_init__(self) -> None:
        if min(self.steps, self.log_every, self.save_every, self.keep) < 1:
            raise ConfigError("steps, log_every, save_every and keep must be at least 1")
        if self.sample_every < 0:
            raise ConfigError(f"sample_every: {self.sample_every} is below 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """What is computed in a step, without the data: enough to plan it."""

    build_model: Callable[[nnx.Rngs], nnx.Module]
    objective: Objective
    flops: BatchFlops | None = None
    """None where no count is known (codec)."""


@dataclasses.dataclass(frozen=True)
class StoredPart:
    """A part of what a weights folder holds."""

    folder: Path
    name: str
    """Key of the part among the folder's arrays."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One experiment, made ready for the loop."""

    program: Program
    batches: StepSource[Any]
    count_tokens: Callable[[Any], int]
    """Real tokens (codec: frames) in a host batch."""
    count_audio_s: Callable[[Any], float]
    """Seconds of speech in a host batch."""
    count_flops: Callable[[Any], float] | None
    """Operations that a step on a host batch takes at least; None = not known."""
    rows: int
    """Of a step, over all processes."""
    optimizer: OptimizerConfig
    train: TrainConfig
    step: StepConfig
    mesh: MeshConfig
    measure: Callable[[Any], dict[str, float]] = lambda _: {}
    """Further numbers of a host batch, which add up over processes; means over the steps since the last logged one are
    logged."""
    workers: int = 0
    """Processes that read batches ahead; 0 = a thread."""
    summary: str = ""
    """One line on the data, shown at the start."""
    frozen: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Weights folders (Path) of frozen parts, nested as the parts are in the model; a new run starts with them."""
    initial: Mapping[str, StoredPart] = dataclasses.field(default_factory=dict)
    """Where parts of the model begin, trained and frozen ones alike, such as a student and its teacher."""
    identity: dict[str, str]
    """Fingerprints that must agree for a run to be continued."""


def identity(kind: str, data_fingerprint: str, train: TrainConfig, **parts: Any) -> dict[str, str]:
    """What makes two runs the same: kind, data, seed, first weights, `parts`; not mesh, length, logging or saving."""
    found = {"kind": kind, "data": data_fingerprint, "seed": str(train.seed)}
    if train.init_from:
        found["init_from"] = weights_fingerprint(Path(train.init_from))
    return found | {name: fingerprint(part) for name, part in parts.items()}
