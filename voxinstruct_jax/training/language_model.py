"""What the objectives of AR and NAR share: their data, per-clip draws, and masked means over packed rows."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from voxinstruct_jax.data.batches import BatchConfig, TokenBatches
from voxinstruct_jax.data.shards import ShardReader
from voxinstruct_jax.sharding.mesh import MeshConfig
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
from voxinstruct_jax.training.optimizer import OptimizerConfig
from voxinstruct_jax.training.step import Objective
from voxinstruct_jax.training.task import Task, TrainConfig, identity
from voxinstruct_jax.vocabulary import PackedBatch

__all__ = ["TokenData", "TokenExperiment", "clip_uniform", "count_tokens", "row_keys", "token_task", "weighted_mean"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenData:
    """Packed token batches. `shards` is a folder that `prepare` wrote."""

    shards: str = "shards"
    batch: BatchConfig = BatchConfig()


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
    def mesh(self) -> MeshConfig: ...


def token_task(
    kind: str, experiment: TokenExperiment, build_model: Callable[[nnx.Rngs], nnx.Module], objective: Objective
) -> Task:
    """Opens prepared data with the tokenizer of the small text encoder; the draws follow the run's seed.

    Args:
        kind: Of the run: "ar" or "nar".
        experiment: Its settings.
        build_model: Makes fresh weights.
        objective: Of the train step.

    Raises:
        InputError: The data is missing, or does not fit the model.
    """
    batch = dataclasses.replace(experiment.data.batch, seed=experiment.train.seed)
    reader = ShardReader(Path(experiment.data.shards))
    batches = TokenBatches(
        reader,
        PronunciationTokenizer(),
        experiment.model.vocabulary,
        batch,
        aligned=experiment.model.timing == "aligned",
    )
    return Task(
        build_model=build_model,
        objective=objective,
        batches=batches,
        count_tokens=count_tokens,
        optimizer=experiment.optimizer,
        train=experiment.train,
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


def count_tokens(batch: PackedBatch) -> int:
    """Real slots of a host batch, text included."""
    return int(np.count_nonzero(batch.segment_ids))


def row_keys(key: jax.Array, batch: PackedBatch) -> jax.Array:
    """One key a row, by the row's global number: the same draws on any number of hosts."""
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(batch.clip_ids)


def clip_uniform(keys: jax.Array, segment_ids: Int[Array, "batch time"]) -> Float[Array, "batch time"]:
    """Draws one number from U(0, 1) a clip and gives it to all slots of the clip."""
    draw = jax.vmap(lambda key, ids: jax.random.uniform(key, (ids.shape[0] + 1,))[ids])
    return draw(keys, segment_ids)


def weighted_mean(
    values: Float[Array, "batch time"], weights: Bool[Array, "batch time"] | Float[Array, "batch time"]
) -> Float[Array, ""]:
    """Mean over the whole batch, so a short clip's tokens weigh as much as a long one's; 0 where nothing counts."""
    return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1)
