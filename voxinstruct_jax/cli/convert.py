"""`voxinstruct convert SOURCE --out DIR`: a training run's newest state to weights that `load` and `prepare` read."""

import argparse
import json
from pathlib import Path
from typing import Any

from voxinstruct_jax.cli.options import parse
from voxinstruct_jax.config import InputError

__all__ = ["export_run", "run"]


def run(arguments: list[str]) -> int:
    """Exports a run."""
    parser = argparse.ArgumentParser(
        "voxinstruct convert",
        description="Turn a training run into weights. Example: voxinstruct convert runs/codec --out voice/codec",
    )
    parser.add_argument("source", type=Path, help="folder of a run (it holds run.json)")
    parser.add_argument("--out", type=Path, required=True, help="weights folder to write")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="how weights are stored")
    parser.add_argument("--card", type=Path, help="a MODEL_CARD.md to store with them")
    options = parse(parser, arguments)
    step = export_run(options.source, options.out, dtype=options.dtype, card=options.card)
    print(f"{options.out}: weights of step {step}")
    return 0


def export_run(source: Path, out: Path, *, dtype: str, card: Path | None = None) -> int:
    """Writes the newest whole state of a run as a weights folder; returns its step.

    Raises:
        InputError: The folder holds no run, or no whole state.
    """
    from voxinstruct_jax.checkpoints.run import RunStore
    from voxinstruct_jax.checkpoints.weights import save_weights

    if not (source / "run.json").is_file():
        raise InputError(f"{source}: no training run here (it has no run.json)")
    settings = json.loads((source / "config.json").read_text())
    kind = json.loads((source / "run.json").read_text())["kind"]
    store = RunStore(source / "states")
    steps = store.whole_steps()
    if not steps:
        raise InputError(f"{source}: no whole state saved yet; train on")
    state = store.restore_arrays(steps[0])
    store.close()
    text = card.read_text() if card else f"# {kind}\n\nExported from step {steps[0]} of a training run.\n"
    weights: Any = _merge(state["params"], state["rest"])
    save_weights(out, weights, {"kind": kind, "model": settings["model"], "step": steps[0]}, card=text, dtype=dtype)
    return steps[0]


def _merge(first: Any, second: Any) -> Any:
    merged = dict(first)
    for key, value in second.items():
        merged[key] = _merge(merged[key], value) if isinstance(merged.get(key), dict) else value
    return merged
