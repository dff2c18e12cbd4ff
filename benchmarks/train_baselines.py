r"""Trains the systems of a comparison on equal data and an equal budget, and makes voices of them.

Operations of a step are counted from its program (multiplications and additions of products, padding included); a
system takes as many steps as the budget pays for, its learning rate falling over all of them; of a system of two parts
each gets half. A run that is there goes on; the file of that name in each voice's folder says what it took, and
`voxinstruct compare` shows it.

A flow behind the language model comes with an AR model that was trained before, and what that took is taken off the
budget: AR model and flow together cost what AR and NAR model did, and the flow gets what the NAR model, in whose place
it stands, had.

What trains on token shards reads `--shards`, by default those of its configuration: the embedded voice's own training
speech. For equal data `voxinstruct prepare` makes them of the manifest.

Run: uv run python benchmarks/train_baselines.py configs/compare_small.py --manifest M.jsonl --shards S --budget 1e15
Then: voxinstruct compare configs/compare_small.py --out runs/compare_small --metrics wer,pinyin,mos,rtf
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from voxinstruct_jax.cli.compare import TRAINING_FILE
from voxinstruct_jax.cli.convert import export_run
from voxinstruct_jax.cli.experiments import load_experiment, override
from voxinstruct_jax.cli.main import main as voxinstruct
from voxinstruct_jax.config import VoxError
from voxinstruct_jax.training.ar import ARExperiment
from voxinstruct_jax.training.codec_flow import CodecFlowExperiment
from voxinstruct_jax.training.experiment import step_operations
from voxinstruct_jax.training.nar import NARExperiment
from voxinstruct_jax.voice_folder import SETTINGS, embedded_release

BUDGET = 1e14
"""Operations; about an hour of two cores."""
PARTS = {ARExperiment: "ar", NARExperiment: "nar", CodecFlowExperiment: "flow"}
"""Parts that learn from token shards; the part of any other experiment is a denoiser."""


def main() -> int:
    """Trains and converts one system after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", help="configs/compare_small.py")
    parser.add_argument("--manifest", required=True, help="of the speech that all are trained on")
    parser.add_argument("--shards", help="token shards of the same speech (default: those of the configurations)")
    parser.add_argument("--budget", type=float, default=BUDGET, help="operations of each system (default: 1e14)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs (default: runs)")
    parser.add_argument("--only", nargs="+", help="names of systems (default: all)")
    parser.add_argument("--dry", action="store_true", help="count and print, train nothing")
    options = parser.parse_args()
    print(f"budget: {options.budget:.3g} operations")
    try:
        for system in load_experiment(options.comparison).systems:
            if system.trained_by and (options.only is None or system.name in options.only):
                _train_system(system, options)
    except VoxError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _train_system(system: Any, options: argparse.Namespace) -> None:
    """Trains the parts of a system and makes its voice."""
    parts = {"ar": _lent(system.ar_of, options)} if system.ar_of else {}
    left = options.budget - sum(part["operations"] for part in parts.values())
    runs = {}
    for config in system.trained_by:
        name = PARTS.get(type(load_experiment(config)), "denoiser")
        runs[name] = options.runs / (system.name if len(system.trained_by) == 1 else f"{system.name}-{name}")
        parts[name] = _train_part(system.name, config, left / len(system.trained_by), runs[name], options)
    if options.dry:
        return
    _make_voice(system, runs)
    told = {"operations": sum(part["operations"] for part in parts.values()), "parts": parts}
    (Path(system.voice) / TRAINING_FILE).write_text(json.dumps(told, indent=1) + "\n")


def _lent(voice: str, options: argparse.Namespace) -> dict[str, Any]:
    """What the AR model of a voice took; before it is trained, the half of the budget that it will take."""
    told = Path(voice) / TRAINING_FILE
    if told.is_file():
        return json.loads(told.read_text())["parts"]["ar"]
    if options.dry:
        return {"operations": options.budget / 2}
    raise VoxError(f"{voice}: no {TRAINING_FILE}; train the system whose AR model is lent first")


def _train_part(system: str, config: str, budget: float, run: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Trains a part for as many steps as its budget pays for; returns what it took."""
    experiment = load_experiment(config)
    data = ["--data.manifest", options.manifest]
    if type(experiment) in PARTS:
        data = ["--data.shards", options.shards or experiment.data.shards]
    a_step = step_operations(override(experiment, data, program="train"))
    steps = round(budget / a_step)
    print(f"{system}: {config}: {a_step:.3g} operations a step, {steps} steps for {budget:.3g}", flush=True)
    if steps < 1:
        raise VoxError(f"{system}: the budget pays for no step")
    schedule = ["--train.steps", str(steps), "--optimizer.decay-steps", str(steps)]
    if not options.dry:
        _run("train", config, "--out", str(run), *data, *schedule)
    return {"config": config, "options": schedule, "steps": steps, "operations": steps * a_step, "data": data[1]}


def _make_voice(system: Any, runs: dict[str, Path]) -> None:
    """Makes a voice of runs; an AR and a NAR model get codec, units and ways of decoding of the embedded voice."""
    voice = Path(system.voice)
    if "nar" not in runs:
        [run] = runs.values()
        _run("convert", str(run), "--out", str(voice), *(["--voice", system.ar_of] if system.ar_of else []))
        return
    for part, run in runs.items():
        export_run(run, voice / part, dtype="bfloat16")
    for part in ("codec", "units"):
        shutil.copytree(embedded_release() / part, voice / part, dirs_exist_ok=True)
    shutil.copyfile(embedded_release() / SETTINGS, voice / SETTINGS)


def _run(*command: str) -> None:
    """Runs a command of `voxinstruct`, which says itself what is wrong."""
    if voxinstruct(list(command)):
        raise VoxError(f"voxinstruct {command[0]} failed")


if __name__ == "__main__":
    sys.exit(main())
