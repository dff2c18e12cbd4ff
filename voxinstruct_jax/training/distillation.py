"""Training of few-step students, from any denoiser that `training.diffusion` has trained."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from voxinstruct_jax.audio.latents import LatentConfig
from voxinstruct_jax.checkpoints.weights import read_settings, weights_fingerprint
from voxinstruct_jax.config import ConfigError, InputError, to_dict
from voxinstruct_jax.data.sound_batches import SoundBatch, SoundData
from voxinstruct_jax.diffusion.denoiser import Denoiser, make_denoiser
from voxinstruct_jax.diffusion.distillation import consistency_loss, matching_loss, reflow_pairs
from voxinstruct_jax.diffusion.guidance import DenoiserGuidance
from voxinstruct_jax.diffusion.objective import diffusion_loss
from voxinstruct_jax.diffusion.path import Path as NoisePath
from voxinstruct_jax.diffusion.solvers import draw_noise
from voxinstruct_jax.diffusion.systems import DiffusionConfig
from voxinstruct_jax.diffusion.times import Grid, sample_times, time_grid
from voxinstruct_jax.layers.execution import Execution
from voxinstruct_jax.layers.parameter import freeze
from voxinstruct_jax.models.conditions import Conditions
from voxinstruct_jax.models.latent_diffusion import LatentDiffusion, side_by_side
from voxinstruct_jax.models.mmdit import MMDiT, MMDiTConfig
from voxinstruct_jax.sharding.mesh import MeshConfig
from voxinstruct_jax.training.diffusion import conditions_of, frame_masks, row_mean, sound_task, split_by_row
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.step import Mean, StepConfig
from voxinstruct_jax.training.task import Program, StoredPart, Task, TrainConfig

__all__ = [
    "DistillationConfig",
    "DistillationExperiment",
    "Student",
    "distillation_loss",
    "distillation_program",
    "distillation_task",
]

Method = Literal["consistency", "distribution", "reflow"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """How a student is taught.

    Raises:
        ConfigError: A number is out of range.
    """

    method: Method = "consistency"
    """`consistency`: one answer along each path of the teacher's flow · `distribution`: samples that the teacher cannot
    tell from its own (DMD) · `reflow`: the teacher's pairs of noise and data."""
    guidance: DenoiserGuidance = DenoiserGuidance()
    """Of the teacher; the student has it baked in."""
    grid: Grid = Grid(steps=18)
    """Times of the teacher's steps: of consistency those of neighbouring answers, of reflow its solver's."""
    target_decay: float = 0.95
    """Of the mean of the student's weights that consistency is measured against."""

    def __post_init__(self) -> None:
        if not 0 <= self.target_decay < 1:
            raise ConfigError(f"distillation.target_decay: {self.target_decay} must lie in [0, 1)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillationExperiment:
    """Trains a student."""

    model: MMDiTConfig
    """Of teacher and student."""
    latents: LatentConfig = LatentConfig()
    latent_weights: str = ""
    """As of `DiffusionExperiment`."""
    teacher_weights: str = ""
    """Weights folder of the teacher (`voxinstruct convert` of its run)."""
    diffusion: DiffusionConfig = DiffusionConfig()
    """Of the student: the teacher's path and times; no guidance; the sampler that it is made for."""
    distillation: DistillationConfig = DistillationConfig()
    data: SoundData = SoundData()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    step: StepConfig = StepConfig()
    execution: Execution = Execution()
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self) -> None:
        self.latents.check_channels("model.latent_channels", self.model.latent_channels)
        if self.diffusion.path.prediction not in ("velocity", "data_velocity", "v", "edm"):
            raise ConfigError(
                f"diffusion.path.prediction: a student of {self.diffusion.path.prediction!r} would not be the identity "
                "at t = 0, or lose the data at t = 1; take a teacher of 'velocity', 'v' or 'edm'"
            )
        if len(self.diffusion.guidance.branches) > 1:
            raise ConfigError(
                "diffusion.guidance: a student has its teacher's baked in; set it as distillation.guidance"
            )
        renoised = self.diffusion.sampler.solver == "consistency"
        if renoised == (self.distillation.method == "reflow"):
            raise ConfigError(
                f"diffusion.sampler.solver: {self.diffusion.sampler.solver!r} is not for students by "
                f"{self.distillation.method!r}; 'consistency' is for those by consistency or distribution"
            )


class Student(LatentDiffusion):
    """The student where a denoiser stands, beside what it is trained with; exported without that."""

    def __init__(
        self,
        config: MMDiTConfig,
        latents: LatentConfig,
        method: Method,
        *,
        execution: Execution = Execution(),
        rngs: nnx.Rngs,
    ) -> None:
        """Makes fresh weights; a run begins with the teacher's in all of them."""
        super().__init__(config, latents, execution=execution, rngs=rngs)
        self.teacher = MMDiT(config, execution=execution, rngs=rngs)
        freeze(self.teacher, adapters=True)
        if method == "consistency":
            self.target = MMDiT(config, execution=execution, rngs=rngs)
            freeze(self.target, adapters=True)
        if method == "distribution":
            self.fake = MMDiT(config, execution=execution, rngs=rngs)


def distillation_loss(
    config: DistillationConfig, diffusion: DiffusionConfig, model: Student, batch: SoundBatch, key: jax.Array
) -> tuple[list[Mean], dict[str, Mean]]:
    """The loss of a student by its method, and of the denoiser of its samples where there is one.

    Source:
        As of `diffusion.distillation`. Of DMD the two-sided updates of Yin et al. 2024 (arXiv 2311.18828), algorithm 1;
        students of several steps see noised data, as in DMD2 (arXiv 2405.14867), section 4.4, before its backward
        simulation.
    """
    path = NoisePath(diffusion.path)
    keys = split_by_row(key, batch.row_ids, 4)
    x0 = jax.lax.stop_gradient(model.latents.encode(batch.target))
    frame_mask, loss_mask = frame_masks(batch, x0.shape[1], model.latents.config.hop_length)
    noise, other = (draw_noise(keys[:, part], *x0.shape[1:]) for part in (0, 1))
    own = conditions_of(model, batch)

    def told(network: MMDiT) -> Conditions:
        """The same source, the text as this network reads it."""
        seen = side_by_side(network, model.latents)
        text = seen.conditions(batch.text_tokens, batch.phones, text_states=batch.text_states)
        return dataclasses.replace(text, source=own.source, task_tag=own.task_tag)

    def denoiser(network: MMDiT, conditions: Conditions, guidance: DenoiserGuidance | None = None) -> Denoiser:
        return make_denoiser(network, path, conditions, frame_mask, guidance)

    def predictor(network: MMDiT, conditions: Conditions) -> Callable[..., Float[Array, "batch time channel"]]:
        return functools.partial(network, conditions=conditions, frame_mask=frame_mask)

    student = denoiser(model.network, own)
    teacher = denoiser(model.teacher, told(model.teacher), config.guidance)
    every = jnp.ones(len(x0))
    if config.method == "consistency":
        times = jnp.asarray(time_grid(config.grid, path), jnp.float32)
        index = jax.vmap(lambda row: jax.random.randint(row, (), 0, config.grid.steps))(keys[:, 2])
        t, u = times[index], times[index + 1]
        pair = (path.add_noise(x0, noise, t), t, u)
        target = denoiser(model.target, told(model.target))
        losses = consistency_loss(path, student, target, teacher, pair, loss_mask)
        _follow(model.target, model.network, config.target_decay)
        return [row_mean(losses, every)], {}
    t = sample_times(keys[:, 2], diffusion.times, path)
    if config.method == "reflow":
        straight = reflow_pairs(teacher, path, noise, config.grid)
        losses = diffusion_loss(path, predictor(model.network, own), straight, noise, t, loss_mask)
        return [row_mean(losses, every)], {}
    starts = jnp.asarray(time_grid(diffusion.sampler.grid, path)[:-1], jnp.float32)
    chosen = starts[jax.vmap(lambda row: jax.random.randint(row, (), 0, len(starts)))(keys[:, 3])]
    made = student(path.add_noise(x0, noise, chosen), chosen).x0
    of_fake, still = told(model.fake), jax.lax.stop_gradient(made)
    matching = matching_loss(path, made, teacher, denoiser(model.fake, of_fake), other, t, loss_mask)
    learning = diffusion_loss(path, predictor(model.fake, of_fake), still, other, t, loss_mask)
    parts = [row_mean(matching, every), row_mean(learning, every)]
    return parts, {"matching": parts[0], "fake": parts[1]}


def distillation_program(experiment: DistillationExperiment) -> Program:
    """Model and objective of the experiment."""
    return Program(
        build_model=lambda rngs: Student(
            experiment.model,
            experiment.latents,
            experiment.distillation.method,
            execution=experiment.execution,
            rngs=rngs,
        ),
        objective=functools.partial(distillation_loss, experiment.distillation, experiment.diffusion),
    )


def distillation_task(experiment: DistillationExperiment) -> Task:
    """Opens data and teacher, and makes the experiment ready.

    Raises:
        ConfigError: No teacher is given, or what `diffusion_task` refuses.
        InputError: The data or the teacher cannot be read, or it is the teacher of another path.
    """
    folder = _teacher_folder(experiment)
    parts = {name: StoredPart(folder, "network") for name in ("network", "teacher", "target", "fake")}
    return sound_task(
        "distillation",
        experiment,
        distillation_program(experiment),
        experiment.model,
        initial=parts,
        distillation=experiment.distillation,
        teacher=weights_fingerprint(folder),
    )


def _teacher_folder(experiment: DistillationExperiment) -> Path:
    if not experiment.teacher_weights:
        raise ConfigError(
            "teacher_weights: a student needs a teacher; train one, convert its run, and give --teacher-weights FOLDER"
        )
    folder = Path(experiment.teacher_weights)
    settings = read_settings(folder)
    if settings.get("kind") != "diffusion":
        raise InputError(f"{folder}: weights of kind {settings.get('kind')!r}; a teacher is of kind 'diffusion'")
    path = settings.get("diffusion", {}).get("path")
    if path is not None and path != to_dict(experiment.diffusion.path):
        raise InputError(f"{folder}: trained on another path; give diffusion.path as {path}")
    return folder


def _follow(target: MMDiT, network: MMDiT, decay: float) -> None:
    """Moves the slow copy towards the network."""
    state = nnx.state(target)
    slow, fast = (nnx.to_pure_dict(nnx.state(module)) for module in (target, network))
    moved = jax.tree.map(lambda a, b: decay * a + (1 - decay) * jax.lax.stop_gradient(b), slow, fast)
    nnx.replace_by_pure_dict(state, moved)
    nnx.update(target, state)
