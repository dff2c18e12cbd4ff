"""Experiment files: Python files that hold one `experiment`, and typed overrides for them from the command line."""

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import tyro

from voxinstruct_jax.config import ConfigError

__all__ = ["load_experiment", "override"]

BACKBONE = "backbone"


def load_experiment(path: str) -> Any:
    """Runs an experiment file and returns its `experiment`.

    Raises:
        ConfigError: The file is missing or defines no `experiment`.
    """
    place = Path(path)
    if not place.is_file():
        near = ", ".join(sorted(file.name for file in place.parent.glob("*.py"))) if place.parent.is_dir() else ""
        raise ConfigError(f"{path}: no such configuration" + (f"; this folder has {near}" if near else ""))
    spec = importlib.util.spec_from_file_location(f"experiment_{place.stem}", place)
    assert spec is not None  # a .py file always has one
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "experiment"):
        raise ConfigError(f"{path}: defines no `experiment`")
    return module.experiment


def override(experiment: Any, arguments: list[str], *, program: str) -> Any:
    """Applies `--a.b value` to an experiment, with the types of its fields.

    `--model.num-layers` and its like reach the language model's blocks wherever these are nested.
    """
    arguments = [_expand(experiment, argument) for argument in arguments]
    return tyro.cli(type(experiment), default=experiment, args=arguments, prog=program)


def _expand(experiment: Any, argument: str) -> str:
    prefix, _, rest = argument.partition("--model.")
    backbone = getattr(getattr(experiment, "model", None), BACKBONE, None)
    if prefix or not rest or backbone is None:
        return argument
    name = rest.partition("=")[0].replace("-", "_")
    is_block_size = name in {field.name for field in dataclasses.fields(backbone)} and not hasattr(
        experiment.model, name
    )
    return f"--model.{BACKBONE}.{rest}" if is_block_size else argument
