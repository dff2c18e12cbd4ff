"""What synthesis loads: one folder a model, with its arrays (Orbax), settings, checksums; never a pickle.

Arrays that several models have in common may lie in one folder beside theirs (`share_weights`).
"""

import hashlib
import json
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Num

from voxinstruct_jax.checkpoints.run import file_checksums
from voxinstruct_jax.config import InputError

__all__ = [
    "FORMAT_VERSION",
    "load_weights",
    "merge_trees",
    "read_settings",
    "save_weights",
    "share_weights",
    "weights_fingerprint",
]

FORMAT_VERSION = 1
SHARING_VERSION = 2
"""Of folders that are whole only with another one."""
WHOLE_NUMBERS_VERSION = 3
"""Of folders that hold matrices as whole numbers with their steps."""
SETTINGS = "config.json"
CHECKSUMS = "sha256.json"


def save_weights(
    folder: Path,
    weights: Any,
    settings: dict[str, Any],
    *,
    card: str,
    dtype: str = "float32",
    exact: Collection[str] = (),
) -> None:
    """Writes a model's folder; it appears whole or not at all, and replaces an older one.

    Args:
        folder: Target.
        weights: Nested dict of arrays; floating ones are stored as `dtype`.
        settings: All that is needed to build the model again; under "shared", what `share_weights` gave.
        card: Markdown for `MODEL_CARD.md`.
        dtype: Of floating arrays: "float32", "bfloat16", or "int8": matrices as eight bits a number, the others, and
            parts that are named in `exact`, as bfloat16.
        exact: Top-level parts that eight bits a number are too few for.
    """
    import orbax.checkpoint as ocp

    stored = {
        name: _as_stored(part, "bfloat16" if dtype == "int8" and name in exact else dtype)
        for name, part in weights.items()
    }
    partial = folder.with_name(f".{folder.name}.partial").absolute()
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(partial / "weights", stored)
    for note in (partial / "weights").rglob("commit_success.txt"):
        note.write_text("committed\n")  # Orbax names the folder it saved to, a path of this machine
    version = SHARING_VERSION if "shared" in settings else FORMAT_VERSION
    version = WHOLE_NUMBERS_VERSION if dtype == "int8" else version
    described = {**settings, "format_version": version, "arrays": _describe(stored)}
    (partial / SETTINGS).write_text(json.dumps(described, indent=1) + "\n")
    (partial / "MODEL_CARD.md").write_text(card)
    (partial / CHECKSUMS).write_text(json.dumps(file_checksums(partial), indent=1) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)


def merge_trees(first: Any, second: Any) -> Any:
    """Puts two nested dicts together, the trained and the other arrays of a model."""
    merged = dict(first)
    for key, value in second.items():
        merged[key] = merge_trees(merged[key], value) if isinstance(merged.get(key), dict) else value
    return merged


def read_settings(folder: Path) -> dict[str, Any]:
    """Returns the `config.json` of a model's folder.

    Raises:
        InputError: There is none, or it is of another format version.
    """
    path = folder / SETTINGS
    if not path.is_file():
        raise InputError(f"{folder}: no checkpoint here (it has no {SETTINGS})")
    settings = json.loads(path.read_text())
    if settings.get("format_version") not in range(FORMAT_VERSION, WHOLE_NUMBERS_VERSION + 1):
        raise InputError(
            f"{path}: format version {settings.get('format_version')}, this release reads {FORMAT_VERSION} to "
            f"{WHOLE_NUMBERS_VERSION}"
        )
    return settings


def share_weights(folder: Path, place: Sequence[str]) -> dict[str, Any]:
    """Returns the setting "shared" of a model whose folder stands beside this one.

    Args:
        folder: A weights folder.
        place: Names that lead to its arrays in the other model's.

    Raises:
        InputError: There is no checkpoint in the folder.
    """
    return {"folder": folder.name, "place": list(place), "fingerprint": weights_fingerprint(folder)}


def weights_fingerprint(folder: Path) -> str:
    """Returns 16 hex digits that change with any byte of a weights folder.

    Raises:
        InputError: There is no checkpoint in the folder.
    """
    read_settings(folder)
    return hashlib.sha256((folder / CHECKSUMS).read_bytes()).hexdigest()[:16]


def load_weights(folder: Path, shared: dict[Path, Any] | None = None) -> tuple[dict[str, Any], Any]:
    """Returns the settings and the arrays (floating ones as float32) of a model's folder, shared ones in their place.

    Args:
        folder: Of the model.
        shared: Where models are loaded one after another: takes up shared arrays, which are then held once.

    Raises:
        InputError: The folder is missing, incomplete or changed since it was written, or the one it shares is.
    """
    import orbax.checkpoint as ocp

    if (folder / SETTINGS).is_file():
        _check_files(folder)
    settings = read_settings(folder)
    target = _abstract(settings["arrays"])
    with ocp.StandardCheckpointer() as checkpointer:
        arrays = checkpointer.restore((folder / "weights").absolute(), target)
    arrays = _integer_keys(_as_computed(arrays))
    if "shared" in settings:
        _put(arrays, settings["shared"]["place"], _load_shared(folder, settings.pop("shared"), shared))
    return settings, arrays


def _load_shared(folder: Path, setting: dict[str, Any], known: dict[Path, Any] | None) -> Any:
    place = folder.resolve().parent / Path(setting["folder"]).name
    if not (place / SETTINGS).is_file():
        raise InputError(f"{folder}: shares the weights of {place}, which are missing; copy them beside it")
    if weights_fingerprint(place) != setting["fingerprint"]:
        raise InputError(f"{folder}: shares other weights than those of {place}; copy or convert them again together")
    known = {} if known is None else known
    if place not in known:
        known[place] = load_weights(place)[1]
    return known[place]


def _put(arrays: Any, place: Sequence[str | int], inner: Any) -> None:
    """Adds a tree to a place of another one; dicts that both have are joined, `inner` is left as it is."""
    for name in place:
        arrays = arrays.setdefault(name, {})
    for name, value in inner.items():
        if isinstance(value, dict):
            _put(arrays, (name,), value)
        else:
            arrays[name] = value


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


def _as_stored(tree: Any, dtype: str) -> Any:
    if isinstance(tree, dict):
        return {name: _as_stored(part, dtype) for name, part in tree.items()}
    if not jnp.issubdtype(tree.dtype, jnp.floating):
        return tree
    if dtype == "int8" and tree.ndim > 1:
        return _as_whole_numbers(np.asarray(tree, np.float32))
    return tree.astype("bfloat16" if dtype == "int8" else dtype)


def _as_whole_numbers(array: Float[np.ndarray, "..."]) -> dict[str, Num[np.ndarray, "..."]]:
    """Rounds to whole steps, each row or each column having its own: whichever is nearer to the array."""

    def rounded(axis: int) -> dict[str, Num[np.ndarray, "..."]]:
        largest = np.abs(array).max(axis, keepdims=True)
        step = np.where(largest > 0, largest / 127, 1).astype(np.float32)
        return {"int8": np.round(array / step).astype(np.int8), "step": step}

    return min(
        map(rounded, (-2, -1)), key=lambda stored: float(np.square(array - stored["int8"] * stored["step"]).sum())
    )


def _as_computed(tree: Any) -> Any:
    """Floating arrays as float32, whatever they are stored as."""
    if not isinstance(tree, dict):
        return tree.astype(jnp.float32) if tree.dtype == jnp.bfloat16 else tree
    if set(tree) == {"int8", "step"}:
        return tree["int8"] * tree["step"]
    return {name: _as_computed(part) for name, part in tree.items()}


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
