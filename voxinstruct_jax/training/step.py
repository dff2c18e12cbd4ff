"""The train step: one jitted, donating function over split state, whatever the model."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float

__all__ = ["Objective", "TrainState", "init_state", "make_train_step"]

Batch = Any
Metrics = dict[str, Float[Array, ""]]
Objective = Callable[[Any, Batch, jax.Array], tuple[Float[Array, ""], Metrics]]
"""(model, batch, key) → (loss, further metrics). May update the model's non-parameter state (EMA codebooks)."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that changes while training; a pytree of arrays, and what a checkpoint holds."""

    step: Any  # int32 scalar; as its siblings not checked: trees of shapes and of placements have this form too
    params: Any  # plain nested dict
    rest: Any  # non-parameter state, plain nested dict
    optimizer: Any


def init_state(model: nnx.Module, optimizer: optax.GradientTransformation) -> TrainState:
    """Splits a fresh model into the state of step 0."""
    _, params, rest = nnx.split(model, nnx.Param, ...)
    params, rest = nnx.to_pure_dict(params), nnx.to_pure_dict(rest)
    return TrainState(jnp.zeros((), jnp.int32), params, rest, optimizer.init(params))


def make_train_step(
    model: nnx.Module, objective: Objective, optimizer: optax.GradientTransformation, seed: int
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Builds `step(state, batch) -> (state, metrics)`.

    The state is donated. Randomness is a function of (seed, step) alone, so a resumed run draws what the unbroken one
    would have drawn.

    Args:
        model: Gives the graph only; its arrays are not read.
        objective: See `Objective`.
        optimizer: From `make_optimizer`.
        seed: Of dropout, masks and guidance drops.
    """
    graph, params_like, rest_like = nnx.split(model, nnx.Param, ...)

    def merge(params: Any, rest: Any) -> nnx.Module:
        return nnx.merge(graph, _fill(params_like, params), _fill(rest_like, rest), copy=True)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)

        def loss_fn(params: Any) -> tuple[Float[Array, ""], tuple[Metrics, Any]]:
            module = merge(params, state.rest)
            loss, metrics = objective(module, batch, key)
            _, _, rest = nnx.split(module, nnx.Param, ...)
            return loss, (metrics, nnx.to_pure_dict(rest))

        (loss, (metrics, rest)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads), **metrics}
        return TrainState(state.step + 1, params, rest, optimizer_state), metrics

    return jax.jit(step, donate_argnums=0)


def _fill(like: nnx.State, values: Any) -> nnx.State:
    filled = jax.tree.map(lambda leaf: leaf, like)
    nnx.replace_by_pure_dict(filled, values)
    return filled
