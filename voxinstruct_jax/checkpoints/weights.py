"""What synthesis loads: one folder a model, with its arrays (Orbax), settings, checksums; never a pickle."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from voxinstruct_jax.checkpoints.run import file_checksums
from voxinstruct_jax.config import InputError

__all__ = ["FORMAT_VERSION", "load_weights", "read_settings", "save_weights", "weights_fingerprint"]

FORMAT_VERSION = 1
SETTINGS = "config.json"
CHECKSUMS = "sha256.json"


def save_weights(folder: Path, weights: Any, settings: dict[str, Any], *, card: str, dtype: str = "float32") -> None:
    """Writes a model's folder; it appears whole or not at all, and replaces an older one.

    Args:
        folder: Target.
        weights: Nested dict of arrays; floating ones are stored as `dtype`.
        settings: All that is needed to build the model again.
        card: Markdown for `MODEL_CARD.md`.
        dtype: "float32" or "bfloat16".
    """
    import orbax.checkpoint as ocp

    stored = jax.tree.map(lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, weights)
    partial = folder.with_name(f".{folder.name}.partial").absolute()
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(partial / "weights", stored)
    for note in (partial / "weights").rglob("commit_success.txt"):
        note.write_text("committed\n")  # Orbax names the folder it saved to, a path of this machine
    described = {"format_version": FORMAT_VERSION, "arrays": _describe(stored), **settings}
    (partial / SETTINGS).write_text(json.dumps(described, indent=1) + "\n")
    (partial / "MODEL_CARD.md").write_text(card)
    (partial / CHECKSUMS).write_text(json.dumps(file_checksums(partial), indent=1) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)


def read_settings(folder: Path) -> dict[str, Any]:
    """Returns the `config.json` of a model's folder.

    Raises:
        InputError: There is none, or it is of another format version.
    """
    path = folder / SETTINGS
    if not path.is_file():
        raise InputError(f"{folder}: no checkpoint here (it has no {SETTINGS})")
    settings = json.loads(path.read_text())
    if settings.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{path}: format version {settings.get('format_version')}, this release reads {FORMAT_VERSION}"
        )
    return settings


def weights_fingerprint(folder: Path) -> str:
    """Returns 16 hex digits that change with any byte of a weights folder.

    Raises:
        InputError: There is no checkpoint in the folder.
    """
    read_settings(folder)
    return hashlib.sha256((folder / CHECKSUMS).read_bytes()).hexdigest()[:16]


def load_weights(folder: Path) -> tuple[dict[str, Any], Any]:
    """Returns the settings and the arrays (floating ones as float32) of a model's folder.

    Raises:
        InputError: The folder is missing, incomplete or changed since it was written.
    """
    import orbax.checkpoint as ocp

    if (folder / SETTINGS).is_file():
        _check_files(folder)
    settings = read_settings(folder)
    target = _abstract(settings["arrays"])
    with ocp.StandardCheckpointer() as checkpointer:
        arrays = checkpointer.restore((folder / "weights").absolute(), target)
    arrays = jax.tree.map(lambda a: a.astype(jnp.float32) if a.dtype == jnp.bfloat16 else a, arrays)
    return settings, _integer_keys(arrays)


def _check_files(folder: Path) -> None:
    """Raises an `InputError` that names the first file that is missing, added or changed."""
    try:
        expected = json.loads((folder / CHECKSUMS).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: {CHECKSUMS} is missing or damaged; copy the checkpoint again") from error
    found = {name: digest for name, digest in file_checksums(folder).items() if name != CHECKSUMS}
    damaged = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    if damaged:
        raise InputError(f"{folder}: {damaged[0]} is not as it was saved; copy the checkpoint again")


def _describe(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {str(key): _describe(value) for key, value in tree.items()}
    return {"shape": list(np.shape(tree)), "dtype": str(tree.dtype)}


def _abstract(described: Any) -> Any:
    if set(described) == {"shape", "dtype"} and isinstance(described["dtype"], str):
        return jax.ShapeDtypeStruct(tuple(described["shape"]), jnp.dtype(described["dtype"]))
    return {key: _abstract(value) for key, value in described.items()}


def _integer_keys(tree: Any) -> Any:
    """Orbax stores list places as text; NNX wants them as numbers."""
    if not isinstance(tree, dict):
        return tree
    return {int(key) if str(key).isdigit() else key: _integer_keys(value) for key, value in tree.items()}
