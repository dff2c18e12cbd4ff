r"""Trains the systems of a comparison on equal data and an equal budget, and makes voices of them.

Operations of a step are counted from its program (multiplications and additions of products, padding included); a
system takes as many steps as the budget pays for, its learning rate falling over all of them. By default the budget is
that of the embedded voice's AR and NAR model. A run that is there goes on; `training.json` in each voice's folder says
what it took, and `voxinstruct compare` shows it.

Run: uv run python benchmarks/train_baselines.py configs/compare_small.py --manifest M.jsonl --budget 1e15
Then: voxinstruct compare configs/compare_small.py --out runs/compare_small --metrics wer,pinyin,mos,rtf
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from voxinstruct_jax.cli.compare import TRAINING_FILE
from voxinstruct_jax.cli.experiments import load_experiment, override
from voxinstruct_jax.cli.main import main as voxinstruct
from voxinstruct_jax.training.experiment import step_operations

EMBEDDED = ("configs/instruct_ar_small.py", "configs/instruct_nar_small.py")
"""What the embedded voice was trained by, beside its codec, which all systems share."""


def main() -> int:
    """Trains and converts one system after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", help="configs/compare_small.py")
    parser.add_argument("--manifest", required=True, help="of the speech that all are trained on")
    parser.add_argument("--budget", type=float, help="operations of each training (default: the embedded voice's)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs (default: runs)")
    parser.add_argument("--only", nargs="+", help="names of systems (default: all)")
    parser.add_argument("--dry", action="store_true", help="count and print, train nothing")
    options = parser.parse_args()
    budget = options.budget or sum(_operations(path) for path in EMBEDDED)
    print(f"budget: {budget:.3g} operations")
    for system in load_experiment(options.comparison).systems:
        if system.trained_by and (options.only is None or system.name in options.only):
            code = _train(system, budget, options)
            if code:
                return code
    return 0


def _operations(path: str) -> float:
    experiment = load_experiment(path)
    return experiment.train.steps * step_operations(experiment)


def _train(system: Any, budget: float, options: argparse.Namespace) -> int:
    path, data = system.trained_by, ["--data.manifest", options.manifest]
    a_step = step_operations(override(load_experiment(path), data, program="train"))
    steps = str(max(1, round(budget / a_step)))
    print(f"{system.name}: {a_step:.3g} operations a step, {steps} steps", flush=True)
    if options.dry:
        return 0
    run = options.runs / system.name
    overrides = [*data, "--train.steps", steps, "--optimizer.decay-steps", steps]
    code = voxinstruct(["train", path, "--out", str(run), *overrides])
    code = code or voxinstruct(["convert", str(run), "--out", system.voice])
    if not code:
        told = {"config": path, "steps": int(steps), "operations": int(steps) * a_step, "manifest": options.manifest}
        (Path(system.voice) / TRAINING_FILE).write_text(json.dumps(told, indent=1) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
