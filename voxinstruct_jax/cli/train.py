"""`voxinstruct train CONFIG --out DIR [--a.b value ...]`."""

import argparse
import signal
import sys
import time
from pathlib import Path

from voxinstruct_jax.cli.experiments import load_experiment, override
from voxinstruct_jax.cli.options import parse_known

__all__ = ["run"]

EXAMPLE = "example: voxinstruct train configs/smoke_ar.py --out runs/smoke_ar --train.steps 200"
INTERRUPTED = 1


def run(arguments: list[str]) -> int:
    """Trains, or goes on with the run in `--out`."""
    parser = argparse.ArgumentParser("voxinstruct train", description=f"Train from a configuration file; {EXAMPLE}")
    parser.add_argument("config", help="a file of configs/; `train CONFIG --options` lists what can be overridden")
    parser.add_argument(
        "--out", type=Path, help="folder of the run; goes on if it holds the same run (default: runs/NAME)"
    )
    parser.add_argument("--options", action="store_true", help="list every `--a.b` of this configuration and stop")
    options, rest = parse_known(parser, arguments)
    experiment = load_experiment(options.config)
    experiment = override(experiment, ["--help"] if options.options else rest, program=f"train {options.config}")
    from voxinstruct_jax.data.shards import local_folder
    from voxinstruct_jax.judges.bins import carry_bins
    from voxinstruct_jax.sharding.cluster import PREEMPTED, join_cluster
    from voxinstruct_jax.training.experiment import build_task
    from voxinstruct_jax.training.loop import train
    from voxinstruct_jax.training.units import UnitsExperiment, train_units

    out = options.out or Path("runs") / Path(options.config).stem
    if isinstance(experiment, UnitsExperiment):
        train_units(experiment, out)
        print(f"{out}: {experiment.num_units} units saved")
        return 0
    join_cluster()
    task = build_task(experiment)
    if task.summary:
        print(task.summary, flush=True)
    sampler = None
    if experiment.train.sample_every:
        from voxinstruct_jax.cli.samples import make_sampler

        sampler = make_sampler(experiment, out)
    result = train(task, experiment, out, report=_Progress(), sampler=sampler)
    for folder in getattr(experiment.data, "folders", ()):
        carry_bins(local_folder(folder), out)
    if result.stopped:
        print(f"stopped at step {result.step}, saved; the same command goes on from there", file=sys.stderr)
        return PREEMPTED if result.stopped == signal.SIGTERM else INTERRUPTED
    print(f"{out}: step {result.step} saved")
    return 0


class _Progress:
    """One line a logged step: step, main numbers, time to the end."""

    def __init__(self) -> None:
        self.began: tuple[int, float] | None = None

    def __call__(self, step: int, steps: int, values: dict[str, float | None]) -> None:
        now = time.monotonic()
        if self.began is None:
            self.began = (step, now)
        first, since = self.began
        left = (now - since) / max(step - first, 1) * (steps - step) if step > first else None
        shown = " ".join(
            f"{name} {value:.4g}"
            for name, value in values.items()
            if value is not None and (name == "loss" or name.startswith(("loss_", "accuracy", "mel", "tokens")))
        )
        print(f"step {step}/{steps} {shown}" + (f" | {_clock(left)} left" if left is not None else ""), flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
