r"""Trains the systems of a comparison on equal data and an equal budget, and makes voices of them.

Operations of a step are counted from its program (multiplications and additions of products, padding included); a
system takes as many steps as the budget pays for, its learning rate falling over all of them. By default the budget is
what the embedded voice's AR and NAR model took, as its `training.json` says. A run that is there goes on; the file of
that name in each voice's folder says what it took, and `voxinstruct compare` shows it.

A flow behind the language model comes with the embedded voice's AR model, and what that took is taken off the budget:
AR model and flow together cost what AR and NAR model did, and the flow gets what the NAR model, in whose place it
stands, had.

What trains on token shards reads `--shards`, by default those of its configuration: the embedded voice's own training
speech. For equal data `voxinstruct prepare` makes them of the manifest.

Run: uv run python benchmarks/train_baselines.py configs/compare_small.py --manifest M.jsonl --shards S --budget 1e15
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
from voxinstruct_jax.training.codec_flow import CodecFlowExperiment
from voxinstruct_jax.training.experiment import step_operations
from voxinstruct_jax.voice_folder import embedded_release


def main() -> int:
    """Trains and converts one system after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", help="configs/compare_small.py")
    parser.add_argument("--manifest", required=True, help="of the speech that all are trained on")
    parser.add_argument("--shards", help="token shards of the same speech (default: those of the configurations)")
    parser.add_argument("--budget", type=float, help="operations of each training (default: the embedded voice's)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs (default: runs)")
    parser.add_argument("--only", nargs="+", help="names of systems (default: all)")
    parser.add_argument("--dry", action="store_true", help="count and print, train nothing")
    options = parser.parse_args()
    embedded = json.loads((embedded_release() / TRAINING_FILE).read_text())
    budget = options.budget or embedded["operations"]
    print(f"budget: {budget:.3g} operations")
    for system in load_experiment(options.comparison).systems:
        if system.trained_by and (options.only is None or system.name in options.only):
            code = _train(system, budget, embedded["parts"]["ar"], options)
            if code:
                return code
    return 0


def _train(system: Any, budget: float, lent: dict[str, Any], options: argparse.Namespace) -> int:
    """Trains a system and makes its voice; `lent` is what the AR model took, where the system comes with it."""
    experiment = load_experiment(system.trained_by)
    if isinstance(experiment, CodecFlowExperiment):
        data, parts, own = ["--data.shards", options.shards or experiment.data.shards], {"ar": lent}, "flow"
    else:
        data, parts, own = ["--data.manifest", options.manifest], {}, "denoiser"
    a_step = step_operations(override(experiment, data, program="train"))
    left = budget - sum(part["operations"] for part in parts.values())
    steps = round(left / a_step)
    print(f"{system.name}: {a_step:.3g} operations a step, {steps} steps for {left:.3g}", flush=True)
    if steps < 1:
        print(f"{system.name}: the budget pays for no step", file=sys.stderr)
        return 1
    if options.dry:
        return 0
    run = options.runs / system.name
    overrides = [*data, "--train.steps", str(steps), "--optimizer.decay-steps", str(steps)]
    code = voxinstruct(["train", system.trained_by, "--out", str(run), *overrides])
    code = code or voxinstruct(["convert", str(run), "--out", system.voice])
    if not code:
        parts[own] = {"config": system.trained_by, "steps": steps, "operations": steps * a_step, "data": data[1]}
        told = {"operations": sum(part["operations"] for part in parts.values()), "parts": parts}
        (Path(system.voice) / TRAINING_FILE).write_text(json.dumps(told, indent=1) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
