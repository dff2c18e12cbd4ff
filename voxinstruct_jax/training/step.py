"""The train step: one jitted, donating function over split, sharded state, whatever the model."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jaxtyping import Array, Bool, Float

from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.sharding.mesh import parameter_sharding, replicated

__all__ = [
    "Mean",
    "Objective",
    "StepConfig",
    "TrainState",
    "Trainer",
    "build_trainer",
    "loss_of",
    "state_shapes",
    "weighted_mean",
]

Batch = Any
Metrics = dict[str, Float[Array, ""]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean that is not divided yet, so that those of several parts of a batch can be added up exactly."""

    total: Float[Array, ""]
    weight: Float[Array, ""]

    @property
    def value(self) -> Float[Array, ""]:
        """The mean; 0 where nothing counts."""
        return self.total / jnp.maximum(self.weight, 1e-9)

    def scaled(self, factor: float) -> "Mean":
        return Mean(self.total * factor, self.weight)


Objective = Callable[[Any, Batch, jax.Array], tuple[Sequence[Mean], Mapping[str, Mean]]]
"""(model, batch, key) → (parts of the loss, whose values are summed; further metrics). What it draws for a row follows
from the key and the row's number, since a batch may come in parts. May update the model's non-parameter state (EMA
codebooks)."""


def weighted_mean(
    values: Float[Array, "batch time"] | Bool[Array, "batch time"],
    weights: Bool[Array, "batch time"] | Float[Array, "batch time"],
) -> Mean:
    """Mean over the whole batch, so a short clip's tokens weigh as much as a long one's."""
    counted = weights.astype(jnp.float32)
    return Mean(jnp.sum(values * counted), jnp.sum(counted))


def loss_of(parts: Sequence[Mean]) -> Float[Array, ""]:
    """The loss that parts add up to."""
    return sum((part.value for part in parts), jnp.zeros(()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepConfig:
    """How a step is taken.

    Raises:
        ConfigError: A number is out of range.
    """

    accumulate: int = 1
    """Parts that a batch's rows are worked off in, one after another; gradients are added up."""
    ema_decay: float = 0.0
    """Of the running mean of the weights, which `convert` then takes; 0 = none."""
    spike_ratio: float = 0.0
    """A step whose gradient norm is this many times the usual one is skipped, as one that is not finite always is;
    0 = no such limit."""

    def __post_init__(self) -> None:
        if self.accumulate < 1 or not 0 <= self.ema_decay < 1:
            raise ConfigError(f"accumulate {self.accumulate} must be at least 1, ema_decay {self.ema_decay} in [0, 1)")
        if self.spike_ratio and self.spike_ratio <= 1:
            raise ConfigError(f"spike_ratio: {self.spike_ratio} must be above 1, or 0 for no limit")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that changes while training; a pytree of arrays, and what a checkpoint holds."""

    step: Any  # int32 scalar; as its siblings not checked: trees of shapes and of placements have this form too
    params: Any  # plain nested dict
    rest: Any  # non-parameter state, plain nested dict
    optimizer: Any
    guard: Any  # usual_norm (of gradients), skipped (steps, in all), in_a_row (of them the newest)
    ema: Any = None  # as `params`; None without a running mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trainer:
    """A model's train step with the placement of its state."""

    mesh: Mesh
    shapes: TrainState
    """`ShapeDtypeStruct`s with their placement: what to restore onto, and to plan with."""
    init: Callable[[], TrainState]
    """Makes the state of step 0, each array where it belongs: no device ever holds it whole."""
    jitted: Any
    """The step as `jax.jit` has it; to be called or lowered with the mesh set."""

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Takes a step and donates the state.

        Where loss or gradient is not finite (or the gradient is a spike) the step is skipped: weights and moments stay,
        the step counts, and `skipped` among the metrics goes up.
        """
        with jax.set_mesh(self.mesh):
            return self.jitted(state, batch)

    def lower(self, batch: Batch) -> Any:
        """Lowers the step for arrays like these (`ShapeDtypeStruct` with placement); compiles and runs nothing."""
        with jax.set_mesh(self.mesh):
            return self.jitted.lower(self.shapes, batch)


def build_trainer(
    build_model: Callable[[nnx.Rngs], nnx.Module],
    objective: Objective,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    seed: int,
    config: StepConfig = StepConfig(),
) -> Trainer:
    """Puts together model, objective and optimiser on a mesh.

    Randomness is a function of (seed, step) alone, so a resumed run draws what the unbroken one would have drawn.

    Args:
        build_model: Makes fresh weights.
        objective: See `Objective`.
        optimizer: From `make_optimizer`.
        mesh: Its axes may be of one device each, and its devices only described.
        seed: Of the weights, of dropout, masks and guidance drops.
        config: How a step is taken.
    """
    model = nnx.eval_shape(lambda: build_model(nnx.Rngs(seed)))
    graph, params_like, rest_like = nnx.split(model, nnx.Param, ...)
    shapes = state_shapes(build_model, optimizer, mesh, config)
    placement = jax.tree.map(lambda leaf: leaf.sharding, shapes)

    def init() -> TrainState:
        return _fresh_state(build_model, optimizer, seed, config)

    def merge(params: Any, rest: Any) -> nnx.Module:
        return nnx.merge(graph, _fill(params_like, params), _fill(rest_like, rest), copy=True)

    def evaluate(params: Any, rest: Any, rows: Batch, key: jax.Array) -> tuple[Sequence[Mean], dict[str, Mean], Any]:
        module = merge(params, rest)
        parts, metrics = objective(module, rows, key)
        _, _, rest = nnx.split(module, nnx.Param, ...)
        return parts, dict(metrics), nnx.to_pure_dict(rest)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        grads, loss, means, rest = _gradients(evaluate, state, batch, key, config.accumulate)
        norm = optax.tree.norm(grads)
        updates, moments = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if config.ema_decay:
            ema = optax.incremental_update(params, state.ema, 1 - config.ema_decay)
        guard, applied = _judge(state.guard, loss, norm, config.spike_ratio)
        new = TrainState(state.step, params, rest, moments, state.guard, ema)
        new = jax.tree.map(lambda new, old: jnp.where(applied, new, old), new, state)
        metrics = {
            "loss": loss,
            "grad_norm": norm,
            "param_norm": optax.tree.norm(new.params),
            "skipped": guard["skipped"],
            "skipped_in_a_row": guard["in_a_row"],
            **{name: jnp.where(mean.weight > 0, mean.value, jnp.nan) for name, mean in means.items()},
        }
        return dataclasses.replace(new, step=state.step + 1, guard=guard), metrics

    jitted = jax.jit(step, donate_argnums=0, out_shardings=(placement, None))
    return Trainer(mesh=mesh, shapes=shapes, init=jax.jit(init, out_shardings=placement), jitted=jitted)


def state_shapes(
    build_model: Callable[[nnx.Rngs], nnx.Module],
    optimizer: optax.GradientTransformation,
    mesh: Mesh | AbstractMesh,
    config: StepConfig,
) -> TrainState:
    """Returns the state as shapes with their placement; arguments as in `build_trainer`, the mesh may be abstract."""
    model = nnx.eval_shape(lambda: build_model(nnx.Rngs(0)))
    _, params, rest = nnx.split(model, nnx.Param, ...)
    placement = _placement(mesh, params, rest, optimizer, with_ema=bool(config.ema_decay))
    return jax.tree.map(
        lambda array, place: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=place),
        jax.eval_shape(lambda: _fresh_state(build_model, optimizer, 0, config)),
        placement,
    )


def _fresh_state(
    build_model: Callable[[nnx.Rngs], nnx.Module],
    optimizer: optax.GradientTransformation,
    seed: int,
    config: StepConfig,
) -> TrainState:
    _, params, rest = nnx.split(build_model(nnx.Rngs(seed)), nnx.Param, ...)
    params, rest = nnx.to_pure_dict(params), nnx.to_pure_dict(rest)
    ema = jax.tree.map(jnp.copy, params) if config.ema_decay else None
    return TrainState(jnp.zeros((), jnp.int32), params, rest, optimizer.init(params), _fresh_guard(), ema)


def _fresh_guard() -> dict[str, Array]:
    return {"usual_norm": jnp.zeros(()), "skipped": jnp.zeros((), jnp.int32), "in_a_row": jnp.zeros((), jnp.int32)}


def _judge(
    guard: dict[str, Array], loss: Float[Array, ""], norm: Float[Array, ""], spike_ratio: float
) -> tuple[dict[str, Array], Bool[Array, ""]]:
    """Whether a step counts, and what is known of steps after it."""
    applied = jnp.isfinite(loss) & jnp.isfinite(norm)
    usual = guard["usual_norm"]
    if spike_ratio:
        applied &= (usual == 0) | (norm < spike_ratio * usual)
    moved = jnp.where(usual == 0, norm, 0.98 * usual + 0.02 * norm)
    skipped = 1 - applied.astype(jnp.int32)
    return {
        "usual_norm": jnp.where(applied, moved, usual),
        "skipped": guard["skipped"] + skipped,
        "in_a_row": jnp.where(applied, 0, guard["in_a_row"] + 1),
    }, applied


def _gradients(
    evaluate: Callable[..., Any], state: TrainState, batch: Batch, key: jax.Array, count: int
) -> tuple[Any, Float[Array, ""], dict[str, Mean], Any]:
    """Gradients of the loss over a whole batch, its rows worked off in `count` parts."""

    def loss_fn(
        params: Any, rest: Any, rows: Batch, key: jax.Array, weights: Sequence[Array] | None
    ) -> tuple[Float[Array, ""], tuple[dict[str, Mean], Any]]:
        parts, means, rest = evaluate(params, rest, rows, key)
        if weights is not None:
            parts = [Mean(part.total, weight) for part, weight in zip(parts, weights, strict=True)]
        return loss_of(parts), (means, rest)

    differentiate = jax.value_and_grad(loss_fn, has_aux=True)
    if count == 1:
        (loss, (means, rest)), grads = differentiate(state.params, state.rest, batch, key, None)
        return grads, loss, means, rest
    # Part k takes rows k, k + count, ...: every device keeps the rows that it holds.
    parts = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, count, *x.shape[1:]), 0, 1), batch)

    def weigh(rows: Batch) -> list[Array]:
        return [part.weight for part in evaluate(state.params, state.rest, rows, key)[0]]

    # What the loss divides by follows from the batch and the draws, so the compiler drops the model from this pass.
    weights = [jnp.sum(weight) for weight in jax.lax.map(weigh, parts)]

    def turn(carry: Any, rows: Batch) -> tuple[Any, Any]:
        grads, rest = carry
        (loss, (means, rest)), more = differentiate(state.params, rest, rows, key, weights)
        return (jax.tree.map(jnp.add, grads, more), rest), (loss, means)

    zeros = jax.tree.map(jnp.zeros_like, state.params)
    (grads, rest), (losses, means) = jax.lax.scan(turn, (zeros, state.rest), parts)
    return grads, jnp.sum(losses), jax.tree.map(jnp.sum, means), rest


def _placement(
    mesh: Mesh | AbstractMesh,
    params: nnx.State,
    rest: nnx.State,
    optimizer: optax.GradientTransformation,
    *,
    with_ema: bool,
) -> TrainState:
    """Where each array of the state lies: parameters by their logical axes, moments with their parameter."""
    whole = replicated(mesh)

    def by_names(state: nnx.State) -> Any:
        def place(variable: nnx.Variable) -> NamedSharding:
            names = variable.get_metadata().get("out_sharding")
            return parameter_sharding(mesh, names, variable.get_value().shape)

        is_variable = lambda x: isinstance(x, nnx.Variable)  # noqa: E731
        return nnx.to_pure_dict(jax.tree.map(place, state, is_leaf=is_variable))

    placed = by_names(params)
    moments = jax.eval_shape(optimizer.init, nnx.to_pure_dict(params))
    moments = optax.tree_map_params(
        optimizer, lambda _, place: place, moments, placed, transform_non_params=lambda _: whole
    )
    guard = jax.tree.map(lambda _: whole, jax.eval_shape(_fresh_guard))
    return TrainState(whole, placed, by_names(rest), moments, guard, placed if with_ema else None)


def _fill(like: nnx.State, values: Any) -> nnx.State:
    filled = jax.tree.map(lambda leaf: leaf, like)
    nnx.replace_by_pure_dict(filled, values)
    return filled
