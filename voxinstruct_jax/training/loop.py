"""The loop: restore or begin, step, log, save, stop cleanly. The same for codec, AR and NAR, on one process or many.

All processes of a run do the same, each with its own rows; the first one writes the logs.
"""

import contextlib
import dataclasses
import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from voxinstruct_jax.checkpoints.run import RunStore
from voxinstruct_jax.checkpoints.weights import load_weights, merge_trees
from voxinstruct_jax.config import InputError, VoxError, to_dict
from voxinstruct_jax.data.steps import read_ahead
from voxinstruct_jax.sharding.chips import chip_of
from voxinstruct_jax.sharding.mesh import build_mesh, place_batch
from voxinstruct_jax.training.events import EventLog
from voxinstruct_jax.training.guard import Guard
from voxinstruct_jax.training.metrics import MetricsLog
from voxinstruct_jax.training.optimizer import learning_rate, make_optimizer
from voxinstruct_jax.training.step import Trainer, TrainState, build_trainer
from voxinstruct_jax.training.task import StoredPart, Task

__all__ = ["Sampler", "TrainResult", "train"]

Report = Callable[[int, int, dict[str, float | None]], None]
"""(step, steps, values of a logged step) → None; draws the progress."""
Sampler = Callable[[int, Any], list[dict[str, Any]]]
"""(step, weights as nested dicts of host arrays) → rows of samples: file, duration_s, finish_reason, maybe error."""
PROFILED_STEPS = 5
OPTIONAL = (
    "lora_down",
    "lora_up",
    "discriminator",
    "features",
    "melody",
    "noise_head",
    "pitch_head",
    "style_reader",
    "duration_shift",
)
"""Parts that weights to start from may lack: adapters of `AdaptedDense`, what a codec is trained against, what it reads
units by, what its harmonic source needs, what reads the style off a description, and how durations follow it."""
LORA = ("down", "up")
"""The same of the text encoder's `LoRADense`, where these are arrays; elsewhere linear maps are called so."""


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """Where a run stands when the loop returns."""

    step: int
    stopped: int
    """Signal that ended it before its last step (its state is saved), or 0."""
    state: TrainState


def train(task: Task, experiment: Any, out: Path, *, report: Report, sampler: Sampler | None = None) -> TrainResult:
    """Trains, or goes on with the run that `out` holds.

    Args:
        task: From `experiment.build_task`.
        experiment: The resolved settings, stored as `config.json`.
        out: Folder of the run, shared by its processes: `config.json`, `run.json`, `metrics.jsonl`, `events.jsonl`,
            `tensorboard/`, `states/`.
        report: Called at each logged step.
        sampler: Called every `train.sample_every` steps on the first process: training does not decode itself.

    Raises:
        InputError: `out` holds another run (another model, data, seed, objective, optimiser or batch), another process
            trains there, a state could not be written, or the loss is not finite any more.
    """
    began = time.monotonic()
    with _claim(out, task, experiment):
        trainer = build_trainer(
            task.program.build_model,
            task.program.objective,
            make_optimizer(task.optimizer),
            build_mesh(task.mesh),
            seed=task.train.seed,
            config=task.step,
        )
        store = RunStore(out / "states", keep=task.train.keep, best_of=task.train.best_of)
        try:
            state = _restore(store, trainer) or _first_state(task, trainer)
            return _Run(task, trainer, store, out, report, sampler).go(state, began)
        finally:
            store.close()


class _Run:
    """One stretch of a run, from its start to its end or stop."""

    def __init__(
        self, task: Task, trainer: Trainer, store: RunStore, out: Path, report: Report, sampler: Sampler | None
    ) -> None:
        self.task, self.trainer, self.store, self.out, self.report = task, trainer, store, out, report
        self.sampler = sampler
        self.first = jax.process_index() == 0
        self.events = EventLog(out, active=self.first)
        self.meter = _Meter(task, trainer)
        self.schedule = learning_rate(task.optimizer)
        self.guard = Guard(task.train.max_skipped, task.train.max_rollbacks)

    def go(self, state: TrainState, began: float) -> TrainResult:
        steps, step = self.task.train.steps, int(state.step)
        log = MetricsLog(self.out, step, wandb_project=self.task.train.wandb) if self.first else None
        self.events.write("start", step, seconds=time.monotonic() - began, devices=jax.device_count())
        batches = read_ahead(self.task.batches, start_step=step, num_steps=steps - step, workers=self.task.workers)
        stopped = 0
        with _signals() as asked, _Profiler(self.out, active=self.first) as profiler:
            while step < steps:
                with self.meter.waiting("data"):
                    batch = next(batches)
                profiler.before(step)
                state, metrics = self.trainer.step(state, self._place(batch))
                step += 1
                self.meter.count(batch)
                stopped = asked(step)
                state = self._look_after(step, state, metrics, log, stopping=bool(stopped))
                if stopped:
                    break
        self.events.write("stop" if stopped else "end", step)
        if log is not None:
            log.close()
        return TrainResult(step, stopped if step < steps else 0, state)

    def _place(self, batch: Any) -> Any:
        return place_batch(self.trainer.mesh, batch, self.task.rows)

    def _look_after(
        self, step: int, state: TrainState, metrics: dict[str, Any], log: MetricsLog | None, *, stopping: bool
    ) -> TrainState:
        """Logs, guards and saves where it is due; returns the state to go on with."""
        config = self.task.train
        last = step == config.steps
        values: dict[str, float | None] = {}
        sampled = self._sample(step, state) if not stopping else {}
        if step % config.log_every == 0 or last or stopping or sampled:
            values = {name: _number(value) for name, value in metrics.items()}
            values |= {
                "learning_rate": np.asarray(self.schedule(step - 1)).item(),
                **self.meter.read(step, self.events),
            }
            if log is not None:
                log.write(step, values | sampled)
                self.report(step, config.steps, values | sampled)
            if values.get("skipped_in_a_row"):
                self.events.write("skipped", step, in_a_row=values["skipped_in_a_row"])
            if self.guard.wants_rollback(values):
                state = self._roll_back(step, state)
        if step % config.save_every == 0 or last or stopping:
            with self.meter.waiting("saving"):
                self.store.save(step, state, {name: v for name, v in values.items() if v is not None})
                if last or stopping:
                    self.store.finish()
        else:
            self.store.finish_if_written()
        return state

    def _sample(self, step: int, state: TrainState) -> dict[str, float | None]:
        """Speaks samples where they are due; returns their means, on all processes under the same names."""
        if self.sampler is None or step % self.task.train.sample_every:
            return {}
        with self.meter.waiting("sampling"):
            weights = _on_host(merge_trees(state.params if state.ema is None else state.ema, state.rest))
            rows: list[dict[str, Any]] = []
            try:
                rows = self.sampler(step, weights) if self.first else []
            except VoxError as error:
                self.events.write("sample_failed", step, reason=str(error))
            for row in rows:
                self.events.write("sample", step, **row)
        columns = {
            "sample_duration_s": [row["duration_s"] for row in rows],
            "sample_stopped": [row["finish_reason"] == "stop" for row in rows],
            "sample_error": [row["error"] for row in rows if "error" in row],
        }
        return {name: float(np.mean(column)) if column else None for name, column in columns.items()}

    def _roll_back(self, step: int, state: TrainState) -> TrainState:
        """Takes the newest saved weights, and goes on with the data where it is: what broke them is not read again."""
        self.store.finish()
        found = self.store.newest_whole_step()
        if found is None or not self.guard.take_rollback():
            raise InputError(
                f"{self.out}: steps up to {step} were skipped over and over (loss or gradient not finite, or a spike); "
                "lower the learning rate or look at the data around this step, then run the same command again"
            )
        self.events.write("rollback", step, restored_step=found)
        restored = self.store.restore(found, self.trainer.shapes)
        in_a_row = jax.tree.map(lambda leaf: leaf * 0, restored.guard["in_a_row"])
        return dataclasses.replace(restored, step=state.step, guard={**state.guard, "in_a_row": in_a_row})


class _Meter:
    """Rates since the last reading, and where the time went."""

    def __init__(self, task: Task, trainer: Trainer) -> None:
        self.task = task
        chip = chip_of(trainer.mesh.devices.flat[0].device_kind)
        self.peak = chip.flops * trainer.mesh.size if chip else None
        self.tokens = self.flops = self.audio_s = 0.0
        self.since, self.waited = time.monotonic(), {"data": 0.0, "saving": 0.0, "sampling": 0.0}
        self.measured: dict[str, float] = {}
        self.steps = self.readings = 0

    @contextmanager
    def waiting(self, reason: str) -> Iterator[None]:
        since = time.monotonic()
        yield
        self.waited[reason] += time.monotonic() - since

    def count(self, batch: Any) -> None:
        self.steps += 1
        for name, value in self.task.measure(batch).items():
            self.measured[name] = self.measured.get(name, 0.0) + value
        self.tokens += self.task.count_tokens(batch)
        self.audio_s += self.task.count_audio_s(batch)
        self.flops += self.task.count_flops(batch) if self.task.count_flops else 0.0

    def read(self, step: int, events: EventLog) -> dict[str, float | None]:
        seconds = max(time.monotonic() - self.since, 1e-9)
        own = np.array([self.tokens, self.audio_s, self.flops, *self.measured.values()])
        tokens, audio_s, flops, *sums = _sum_over_processes(own).tolist()
        means = {name: value / self.steps for name, value in zip(self.measured, sums, strict=True)}
        waited = {f"{reason}_seconds": value for reason, value in self.waited.items()}
        # The first reading has the compilation in it: every step after it tells what the steps themselves take.
        compiling = {"compiling_seconds": seconds - sum(self.waited.values())} if not self.readings else {}
        events.write("steps", step, seconds=seconds, **waited, **compiling)
        self.readings += 1
        data_share = self.waited["data"] / seconds
        self.tokens = self.flops = self.audio_s = 0.0
        self.steps, self.measured = 0, {}
        self.since, self.waited = time.monotonic(), dict.fromkeys(self.waited, 0.0)
        return {
            "tokens_per_s": tokens / seconds,
            "audio_hours_per_hour": audio_s / seconds,
            **means,
            "mfu": flops / seconds / self.peak if self.peak and flops else None,
            "data_wait": data_share,
        }


class _Profiler:
    """Captures a few steps into `profile/` when the process gets SIGUSR1."""

    def __init__(self, out: Path, *, active: bool) -> None:
        self.folder, self.active = out / "profile", active
        self.asked, self.stop_at = False, -1

    def __enter__(self) -> "_Profiler":
        if self.active:
            self.previous = signal.signal(signal.SIGUSR1, lambda *_: setattr(self, "asked", True))
        return self

    def __exit__(self, *_: object) -> None:
        if self.active:
            signal.signal(signal.SIGUSR1, self.previous)
            self._stop()

    def before(self, step: int) -> None:
        if self.asked:
            self.asked, self.stop_at = False, step + PROFILED_STEPS
            jax.profiler.start_trace(str(self.folder))
        elif step == self.stop_at:
            self._stop()

    def _stop(self) -> None:
        if self.stop_at >= 0:
            self.stop_at = -1
            jax.profiler.stop_trace()


def _number(value: Any) -> float | None:
    number = float(value)
    return number if np.isfinite(number) else None


def _on_host(tree: Any) -> Any:
    """Whole arrays; on many processes each gets all of them."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


def _sum_over_processes(values: np.ndarray) -> np.ndarray:
    if jax.process_count() == 1:
        return values
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(values)).sum(axis=0)


@contextmanager
def _claim(out: Path, task: Task, experiment: Any) -> Iterator[None]:
    """Holds the folder for this run: checks or writes its identity, and keeps others out."""
    with contextlib.ExitStack() as held:
        if jax.process_index() == 0:
            _check_identity(out, task.identity)
            try:
                out.mkdir(parents=True, exist_ok=True)
                held.enter_context(_locked(out))
                for name, value in (("config.json", to_dict(experiment)), ("run.json", task.identity)):
                    partial = out / f".{name}.partial"
                    partial.write_text(json.dumps(value, indent=2) + "\n")
                    partial.replace(out / name)
            except OSError as error:
                raise InputError(f"{out}: cannot be written ({error}); give another --out") from error
        yield


def _check_identity(out: Path, identity: dict[str, str]) -> None:
    path = out / "run.json"
    if not path.exists():
        return
    found = json.loads(path.read_text())
    changed = sorted(name for name in {*found, *identity} if found.get(name) != identity.get(name))
    if changed:
        raise InputError(f"{out}: holds another run (its {', '.join(changed)} differs); give another --out")


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """A lock that ends with the process, however it ends."""
    import fcntl

    with (out / "run.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{out}: another process trains here; stop it, or give another --out") from error
        yield


def _restore(store: RunStore, trainer: Trainer) -> TrainState | None:
    step = store.newest_whole_step()
    store.drop_after(-1 if step is None else step)
    return None if step is None else store.restore(step, trainer.shapes)


def _first_state(task: Task, trainer: Trainer) -> TrainState:
    started = _start_from(task.train.init_from, trainer)
    return _put_initial(task.initial, _put_frozen(task.frozen, started))


def _start_from(folder: str, trainer: Trainer) -> TrainState:
    """The state of step 0, with other weights if a folder is given: of the last stage's run, or of the mT5 encoder."""
    state = trainer.init()
    if not folder:
        return state
    settings, arrays = load_weights(Path(folder))
    take = _take_encoder if settings.get("kind") == "mt5" else _take
    try:
        params = take(state.params, arrays)
        ema = jax.tree.map(lambda leaf: leaf + 0, params) if state.ema is not None else None
        return dataclasses.replace(state, params=params, rest=take(state.rest, arrays), ema=ema)
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder}: weights of another model ({error}); give another --train.init-from") from error


def _take_encoder(like: Any, arrays: Any) -> Any:
    """`like` with the arrays of the text encoder in place of its own."""
    encoder = _take(like["text"].get("encoder", {}), arrays)
    return {**like, "text": {**like["text"], "encoder": encoder}}


def _may_lack(key: str, value: Any) -> bool:
    return key in OPTIONAL or (key in LORA and not isinstance(value, dict))


def _put_frozen(folders: Mapping[str, Any], state: TrainState) -> TrainState:
    """The state with parts of it, such as a frozen latent space, taken from weights folders of their own."""

    def put(like: Any, place: Any) -> Any:
        if isinstance(place, Path):
            _, arrays = load_weights(place)
            try:
                return _take(like, arrays)
            except (KeyError, TypeError) as error:
                raise InputError(f"{place}: weights of another model ({error}); give another folder") from error
        return {**like, **{name: put(like[name], inner) for name, inner in place.items()}}

    return dataclasses.replace(state, rest=put(state.rest, folders)) if folders else state


def _put_initial(parts: Mapping[str, StoredPart], state: TrainState) -> TrainState:
    """The state with parts of the model taken from weights folders, whatever of them is trained."""

    def put(like: Any) -> Any:
        return {**like, **{name: read(like[name], part) for name, part in parts.items() if name in like}}

    def read(like: Any, part: StoredPart) -> Any:
        _, arrays = load_weights(part.folder)
        try:
            return _take(like, arrays[part.name])
        except (KeyError, TypeError) as error:
            raise InputError(f"{part.folder}: weights of another model ({error}); give another folder") from error

    if not parts:
        return state
    params = put(state.params)
    ema = jax.tree.map(lambda leaf: leaf + 0, params) if state.ema is not None else None
    return dataclasses.replace(state, params=params, rest=put(state.rest), ema=ema)


def _take(like: Any, arrays: Any) -> Any:
    """Those arrays that stand where `like` has one, and are shaped like it; `OPTIONAL` parts that lack stay fresh."""
    if isinstance(like, dict):
        return {
            key: value if key not in arrays and _may_lack(key, value) else _take(value, arrays[key])
            for key, value in like.items()
        }
    if like.shape != arrays.shape:
        raise TypeError(f"an array is {arrays.shape}, here {like.shape}")
    return jax.device_put(arrays, like.sharding)


@contextmanager
def _signals() -> Iterator[Callable[[int], int]]:
    """Gives a function that says, after each step, which signal asks to stop; on all processes at the same step."""
    received: list[int] = []
    many = jax.process_count() > 1
    # With several processes SIGTERM belongs to JAX, which tells all of them of it.
    kinds = (signal.SIGINT,) if many else (signal.SIGINT, signal.SIGTERM)
    previous = {kind: signal.signal(kind, lambda number, _: received.append(number)) for kind in kinds}

    def asked(step: int) -> int:
        if many:
            from jax.experimental import multihost_utils

            if multihost_utils.reached_preemption_sync_point(step):
                return int(signal.SIGTERM)
        return received[0] if received and not many else 0

    try:
        yield asked
    finally:
        for kind, handler in previous.items():
            signal.signal(kind, handler)
