"""The loop: restore or begin, step, log, save, stop cleanly. The same for codec, AR and NAR."""

import dataclasses
import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from voxinstruct_jax.checkpoints.run import RunStore
from voxinstruct_jax.checkpoints.weights import load_weights
from voxinstruct_jax.config import InputError, to_dict
from voxinstruct_jax.data.steps import read_ahead
from voxinstruct_jax.sharding.mesh import build_mesh, parameter_sharding, place_batch
from voxinstruct_jax.training.metrics import MetricsLog
from voxinstruct_jax.training.optimizer import learning_rate, make_optimizer
from voxinstruct_jax.training.step import TrainState, init_state, make_train_step
from voxinstruct_jax.training.task import Task

__all__ = ["TrainResult", "train"]

Report = Callable[[int, int, dict[str, float | None]], None]
"""(step, steps, values of a logged step) → None; draws the progress."""


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """Where a run stands when the loop returns."""

    step: int
    stopped: bool
    """True if a signal ended it before its last step; its state is saved."""
    state: TrainState


def train(task: Task, experiment: Any, out: Path, *, report: Report) -> TrainResult:
    """Trains, or goes on with the run that `out` holds.

    Args:
        task: From `experiment.build_task`.
        experiment: The resolved settings, stored as `config.json`.
        out: Folder of the run: `config.json`, `run.json`, `metrics.jsonl`, `tensorboard/`, `states/`.
        report: Called at each logged step.

    Raises:
        InputError: `out` holds another run (another model, data, seed, objective, optimiser or batch).
    """
    _claim(out, task, experiment)
    store = RunStore(out / "states", keep=task.train.keep)
    model = task.build_model(nnx.Rngs(task.train.seed))
    optimizer = make_optimizer(task.optimizer)
    mesh = build_mesh(task.mesh)
    state = jax.device_put(init_state(model, optimizer), parameter_sharding(mesh, None))
    state = _restore(store, state) or _start_from(task.train.init_from, state)
    step_fn = make_train_step(model, task.objective, optimizer, task.train.seed)
    log = MetricsLog(out, int(state.step))
    schedule, steps, start = learning_rate(task.optimizer), task.train.steps, int(state.step)
    meter = _Meter()
    batches = read_ahead(task.batches, start_step=start, num_steps=steps - start)
    with _stop_on_signal() as asked_to_stop:
        step = start
        for step, batch in enumerate(batches, start + 1):
            state, metrics = step_fn(state, place_batch(mesh, batch))
            meter.tokens += task.count_tokens(batch)
            stopping = bool(asked_to_stop) and step < steps
            if step % task.train.log_every == 0 or step == steps:
                values = {name: float(value) for name, value in metrics.items()}
                values |= {"learning_rate": np.asarray(schedule(step - 1)).item(), **meter.read()}
                log.write(step, values)
                report(step, steps, values)
            if step % task.train.save_every == 0 or step == steps or stopping:
                store.save(step, state)
            if stopping:
                break
    log.close()
    store.close()
    return TrainResult(step, step < steps, state)


class _Meter:
    """Tokens a second since the last reading."""

    def __init__(self) -> None:
        self.tokens, self.since = 0, time.monotonic()

    def read(self) -> dict[str, float | None]:
        now = time.monotonic()
        rate = self.tokens / max(now - self.since, 1e-9)
        self.tokens, self.since = 0, now
        return {"tokens_per_s": rate, "mfu": None}  # no peak is known for a CPU


def _claim(out: Path, task: Task, experiment: Any) -> None:
    """Writes the run's identity, or compares it with what is there."""
    path = out / "run.json"
    if path.exists():
        found = json.loads(path.read_text())
        changed = sorted(name for name in {*found, *task.identity} if found.get(name) != task.identity.get(name))
        if changed:
            raise InputError(f"{out}: holds another run (its {', '.join(changed)} differs); give another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, value in (("config.json", to_dict(experiment)), ("run.json", task.identity)):
            partial = out / f".{name}.partial"
            partial.write_text(json.dumps(value, indent=2) + "\n")
            partial.replace(out / name)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error}); give another --out") from error


def _restore(store: RunStore, state: TrainState) -> TrainState | None:
    whole = store.whole_steps()
    store.drop_after(whole[0] if whole else -1)
    return store.restore(whole[0], state) if whole else None


def _start_from(folder: str, state: TrainState) -> TrainState:
    """Puts another run's weights into the state of step 0: the next stage of a curriculum."""
    if not folder:
        return state
    _, arrays = load_weights(Path(folder))
    try:
        return dataclasses.replace(state, params=_take(state.params, arrays), rest=_take(state.rest, arrays))
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder}: weights of another model ({error}); give another --train.init-from") from error


def _take(like: Any, arrays: Any) -> Any:
    """Those arrays that stand where `like` has one, and are shaped like it."""
    if isinstance(like, dict):
        return {key: _take(value, arrays[key]) for key, value in like.items()}
    if like.shape != arrays.shape:
        raise TypeError(f"an array is {arrays.shape}, here {like.shape}")
    return jax.device_put(arrays, like.sharding)


@contextmanager
def _stop_on_signal() -> Iterator[list[int]]:
    """Turns SIGINT and SIGTERM into a request that the loop reads between steps."""
    received: list[int] = []
    kinds = (signal.SIGINT, signal.SIGTERM)
    previous = {kind: signal.signal(kind, lambda number, _: received.append(number)) for kind in kinds}
    try:
        yield received
    finally:
        for kind, handler in previous.items():
            signal.signal(kind, handler)
