"""What the objectives of AR and NAR share: their data, per-clip draws, and masked means over packed rows."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from voxinstruct_jax.attributes import STYLE_CLASSES
from voxinstruct_jax.config import ConfigError, InputError
from voxinstruct_jax.data.batches import TokenBatches
from voxinstruct_jax.data.mixture import Mixture
from voxinstruct_jax.data.packing import TIME_FIELDS
from voxinstruct_jax.data.plan import BatchConfig, ClipForm, PackingSummary
from voxinstruct_jax.data.shards import ShardReader
from voxinstruct_jax.layers.execution import Execution
from voxinstruct_jax.sharding.mesh import BATCH_AXES, MeshConfig, build_mesh, row_shares
from voxinstruct_jax.text.subword import open_tokenizer
from voxinstruct_jax.training.flops import batch_flops, language_model_flops
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.step import Objective, StepConfig
from voxinstruct_jax.training.task import Program, Task, TrainConfig, identity
from voxinstruct_jax.vocabulary import ACOUSTIC, PackedBatch

__all__ = [
    "TokenData",
    "TokenExperiment",
    "abstract_batch",
    "clip_uniform",
    "count_tokens",
    "describe_packing",
    "measure_packing",
    "open_batches",
    "row_keys",
    "token_losses",
    "token_program",
    "token_task",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenData:
    """Packed token batches. `shards` is a folder or URL that `prepare` wrote; `mixture.corpora` names several."""

    shards: str = "shards"
    mixture: Mixture = Mixture()
    tokenizer: str = ""
    """mT5's `spiece.model` or `tokenizer.json`, or its folder; empty = the text tokenizer of this package."""
    batch: BatchConfig = BatchConfig()
    workers: int = 0
    """Processes that read ahead; 0 = a thread."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ConfigError(f"workers: {self.workers} is below 0")

    @property
    def folders(self) -> tuple[str, ...]:
        """All shard folders, in their order."""
        return tuple(corpus.shards for corpus in self.mixture.corpora) or (self.shards,)


@runtime_checkable
class TokenExperiment(Protocol):
    """What AR and NAR experiments have in common."""

    @property
    def model(self) -> Any: ...
    @property
    def objective(self) -> Any: ...
    @property
    def data(self) -> TokenData: ...
    @property
    def optimizer(self) -> OptimizerConfig: ...
    @property
    def train(self) -> TrainConfig: ...
    @property
    def step(self) -> StepConfig: ...
    @property
    def execution(self) -> Execution: ...
    @property
    def mesh(self) -> MeshConfig: ...


def token_program(
    experiment: TokenExperiment,
    model_class: Callable[..., nnx.Module],
    objective: Objective,
    head_size: int,
    *,
    causal: bool,
    further_weights: int = 0,
) -> Program:
    """Puts together what an experiment computes in a step.

    Args:
        experiment: Its settings.
        model_class: Takes the model's configuration, `execution` and `rngs`.
        objective: Of the train step.
        head_size: Classes of the head that a slot is multiplied with.
        causal: Whether a slot sees earlier ones only.
        further_weights: As of `language_model_flops`.
    """
    model = experiment.model
    return Program(
        build_model=lambda rngs: model_class(model, execution=experiment.execution, rngs=rngs),
        objective=objective,
        flops=language_model_flops(
            model.backbone, model.text_encoder, head_size, causal=causal, further_weights=further_weights
        ),
    )


def token_task(kind: str, experiment: TokenExperiment, program: Program) -> Task:
    """Opens prepared data with the text tokenizer that it names; the draws follow the run's seed.

    Args:
        kind: Of the run: "ar" or "nar".
        experiment: Its settings.
        program: What is computed in a step.

    Raises:
        InputError: The data is missing, or does not fit the model.
    """
    rows = experiment.data.batch.rows
    batches = open_batches(experiment, host_rows=row_shares(build_mesh(experiment.mesh), rows))
    return Task(
        program=program,
        batches=batches,
        count_tokens=count_tokens,
        count_audio_s=lambda batch: count_frames(batch) / batches.frame_rate,
        count_flops=functools.partial(batch_flops, program.flops) if program.flops else None,
        rows=rows,
        measure=functools.partial(measure_packing, rows=rows),
        workers=experiment.data.workers,
        summary=describe_packing(batches.planner.summary()),
        optimizer=experiment.optimizer,
        train=experiment.train,
        step=experiment.step,
        mesh=experiment.mesh,
        identity=identity(
            kind,
            batches.fingerprint,
            experiment.train,
            model=experiment.model,
            objective=experiment.objective,
            optimizer=experiment.optimizer,
        ),
    )


def abstract_batch(experiment: TokenExperiment, mesh: Mesh) -> PackedBatch:
    """Returns shapes and placement of the batches of an experiment: enough to compile its step, without data."""
    batch, model = experiment.data.batch, experiment.model
    sharding = NamedSharding(mesh, PartitionSpec(BATCH_AXES))

    def rows(*shape: int, dtype: Any = jnp.int32) -> Any:
        return jax.ShapeDtypeStruct((batch.rows, *shape), dtype, sharding=sharding)

    channels = len(model.text_encoder.channel_sizes)
    timed = {"times": rows(batch.time_width, dtype=jnp.float32), "text_durations": rows(batch.text_width)}
    told = {"text_attributes": rows(batch.text_width, len(STYLE_CLASSES))} if _reads_style(experiment) else {}
    return PackedBatch(
        text_tokens=rows(batch.text_width, channels),
        text_segment_ids=rows(batch.text_width),
        tokens=rows(model.vocabulary.num_codebooks, batch.time_width),
        **{name: rows(batch.time_width) for name in TIME_FIELDS},
        **(timed if model.timing == "aligned" else {}),
        **told,
        clip_ids=rows(),
    )


def open_batches(experiment: TokenExperiment, *, host_rows: tuple[int, int] | None = None) -> TokenBatches:
    """Opens the data of an experiment; the draws follow the run's seed.

    Args:
        experiment: Its settings.
        host_rows: As in `TokenBatches`.

    Raises:
        InputError: As `token_task`.
    """
    data, model = experiment.data, experiment.model
    channels = model.text_encoder.channel_sizes
    tokenizer = open_tokenizer(data.tokenizer, channels[0])
    if tokenizer.channel_sizes != channels:
        raise InputError(
            f"model.text_encoder reads channels of {channels} ids, the text tokenizer gives {tokenizer.channel_sizes}; "
            "for mT5 give --data.tokenizer (its spiece.model or tokenizer.json)"
        )
    return TokenBatches(
        [ShardReader(folder) for folder in data.folders],
        tokenizer,
        model.vocabulary,
        dataclasses.replace(data.batch, seed=experiment.train.seed),
        mixture=data.mixture,
        form=ClipForm(
            aligned=model.timing == "aligned",
            text=model.text_form,
            semantic=model.semantic,
            attributes=_reads_style(experiment),
        ),
        host_rows=host_rows,
    )


def _reads_style(experiment: TokenExperiment) -> bool:
    """Whether the model is taught attributes; a NAR model never is."""
    return getattr(experiment.model, "style_reader", False)


def describe_packing(summary: PackingSummary) -> str:
    """One line on how full the batches are."""
    shares = "".join(f", {name} {share:.1%}" for name, share in summary.shares.items())
    return (
        f"{summary.clips_per_step:.1f} clips a step, {summary.waste:.1%} of slots empty, "
        f"{summary.too_long:.2%} of clips too long for a row{shares}"
    )


def measure_packing(batch: PackedBatch, *, rows: int) -> dict[str, float]:
    """Clips of a host batch, and its empty slots as a share of all slots of the step, which has `rows` rows."""
    segments = np.asarray(batch.segment_ids)
    empty = np.count_nonzero(segments == 0) / (rows * segments.shape[1])
    return {"clips_per_step": float(segments.max(axis=1).sum()), "waste": float(empty)}


def count_tokens(batch: PackedBatch) -> int:
    """Real slots of a host batch, text included."""
    return int(np.count_nonzero(batch.segment_ids))


def count_frames(batch: PackedBatch) -> int:
    """Codec frames of a host batch, voice prompts included."""
    acoustic = (np.asarray(batch.part_ids) == ACOUSTIC) & (np.asarray(batch.segment_ids) > 0)
    return int(acoustic.sum() - np.asarray(batch.segment_ids).max(axis=1).sum())  # without each clip's EOS2


def row_keys(key: jax.Array, batch: PackedBatch) -> jax.Array:
    """One key a row, by the row's global number: the same draws on any number of hosts."""
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(batch.clip_ids)


def clip_uniform(keys: jax.Array, segment_ids: Int[Array, "batch time"]) -> Float[Array, "batch time"]:
    """Draws one number from U(0, 1) a clip and gives it to all slots of the clip."""
    draw = jax.vmap(lambda key, ids: jax.random.uniform(key, (ids.shape[0] + 1,))[ids])
    return draw(keys, segment_ids)


def token_losses(
    predict: Callable[[Array], Array],
    hidden: Float[Array, "batch time dim"],
    targets: Int[Array, "batch time"],
    *,
    chunk: int,
) -> tuple[Float[Array, "batch time"], Bool[Array, "batch time"]]:
    """Cross-entropy of each slot, and whether its likeliest token is the target.

    Args:
        predict: Hidden states to logits; those of a chunk are made again for the backward pass, never kept.
        hidden: What the logits are made from.
        targets: Classes.
        chunk: Slots whose logits exist at once; 0 = all.
    """

    def evaluate(turn: tuple[Array, Array]) -> tuple[Array, Array]:
        logits = predict(turn[0])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, turn[1])
        return loss, logits.argmax(-1) == turn[1]

    time = targets.shape[1]
    if not chunk or chunk >= time:
        return evaluate((hidden, targets))
    padding = -time % chunk

    def split(x: Array) -> Array:
        wide = jnp.pad(x, ((0, 0), (0, padding), *[(0, 0)] * (x.ndim - 2)))
        return jnp.moveaxis(wide.reshape(len(x), -1, chunk, *x.shape[2:]), 1, 0)

    parts = jax.lax.map(jax.checkpoint(evaluate), (split(hidden), split(targets)))
    loss, hit = (jnp.moveaxis(part, 0, 1).reshape(len(targets), -1)[:, :time] for part in parts)
    return loss, hit
