"""Tensors by name, from and to files: safetensors, PyTorch, folders in the style of Hugging Face, k-means centroids."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from voxinstruct_jax.config import InputError
from voxinstruct_jax.interop.joblib_files import read_joblib
from voxinstruct_jax.interop.pytorch_files import LEGACY_START, map_file, read_pytorch
from voxinstruct_jax.interop.restricted_pickle import Placeholder

__all__ = ["read_centroids", "read_folder", "read_settings", "read_tensors", "write_safetensors"]

WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")
"""In this order of preference; each may also be in shards, with an index of the same name and `.index.json`."""

SETTINGS_FILES = ("config.json", "config.yaml")
STATE_DICT_KEYS = ("model", "state_dict", "best_state")
"""Where training programs keep the tensors in a file that holds more."""

_ZIP = b"PK\x03\x04"


def read_tensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the tensors of one file, safetensors or PyTorch by its content.

    Of a PyTorch file that holds more than tensors, the table under "model", "state_dict" or "best_state" is read.

    Returns:
        Arrays by key, bfloat16 ones as ml_dtypes' type; those of PyTorch are read-only views of the mapped file.

    Raises:
        InputError: The file is missing, damaged, of another kind, or asks for code to be run.
    """
    path = Path(path)
    start = map_file(path)[: len(LEGACY_START)]
    if start.startswith(_ZIP) or start == LEGACY_START:
        return _state_dict(read_pytorch(path), path)
    if start[8:9] == b"{":
        return _read_safetensors(path)
    raise InputError(f"{path}: neither safetensors nor a file of torch.save; name a weights file of one of these kinds")


def read_folder(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Reads a model folder in the style of Hugging Face.

    Returns:
        The settings of `config.json` or `config.yaml`, and the tensors of `model.safetensors` or `pytorch_model.bin`,
        whole or in shards with an index.

    Raises:
        InputError: Settings or weights are missing or damaged, or the shards are not those of the index.
    """
    folder = Path(folder)
    settings = read_settings(folder)
    for name in WEIGHTS_FILES:
        if (folder / name).is_file():
            return settings, read_tensors(folder / name)
        if (folder / f"{name}.index.json").is_file():
            return settings, _read_shards(folder / f"{name}.index.json")
    raise InputError(f"{folder}: no weights here; expected {' or '.join(WEIGHTS_FILES)}")


def read_settings(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads the `config.json` or `config.yaml` of a model folder.

    Raises:
        InputError: There is none, or it is damaged.
    """
    folder = Path(folder)
    path = next((folder / name for name in SETTINGS_FILES if (folder / name).is_file()), None)
    if path is None:
        raise InputError(f"{folder}: no model folder (it has no {' or '.join(SETTINGS_FILES)})")
    settings = _parse(path)
    if not isinstance(settings, dict):
        raise InputError(f"{path}: expected a table of settings; copy or download it again")
    return settings


def write_safetensors(path: str | os.PathLike[str], tensors: Mapping[str, Any]) -> None:
    """Writes tensors under their keys; the file appears whole or not at all, and replaces an older one.

    Args:
        path: Ends in `.safetensors` by custom.
        tensors: NumPy or JAX arrays.
    """
    from safetensors.numpy import save_file

    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {key: np.ascontiguousarray(value).reshape(np.shape(value)) for key, value in tensors.items()}
    save_file(whole, partial, metadata={"format": "pt"})  # transformers wants to be told the axes' order
    partial.replace(path)


def read_centroids(path: str | os.PathLike[str]) -> Float32[np.ndarray, "unit dim"]:
    """Reads k-means centroids: of a scikit-learn model dumped by joblib, or a plain array in `.npy`.

    Raises:
        InputError: The file is missing or damaged, or holds no table of centroids.
    """
    path = Path(path)
    if map_file(path)[:6] == b"\x93NUMPY":
        try:
            value: Any = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # a damaged header may fail in any way
            raise InputError(f"{path}: not a plain array, or damaged; copy or download it again") from error
    else:
        value = read_joblib(path)
    centroids = value.state.get("cluster_centers_") if isinstance(value, Placeholder) else value
    if not isinstance(centroids, np.ndarray) or centroids.ndim != 2 or centroids.dtype.kind != "f":
        raise InputError(f"{path}: no k-means centroids here; expected a model with `cluster_centers_` or a 2-d array")
    return centroids.astype(np.float32)


def _state_dict(value: Any, path: Path) -> dict[str, np.ndarray]:
    for key in STATE_DICT_KEYS:
        if isinstance(value, dict) and isinstance(value.get(key), dict):
            value = value[key]
            break
    if not isinstance(value, dict) or not value:
        raise InputError(
            f"{path}: no table of tensors here; expected a state dict, or one under {STATE_DICT_KEYS[0]!r}"
        )
    others = [key for key, item in value.items() if not (isinstance(key, str) and isinstance(item, np.ndarray))]
    if others:
        shown = repr(others[0]) if isinstance(others[0], str) else type(others[0]).__name__
        raise InputError(f"{path}: {len(others)} entries of the state dict are no tensors, the first is {shown[:80]}")
    return dict(value)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, KeyError, ValueError) as error:
        what = str(error).splitlines()[0]
        raise InputError(f"{path}: damaged safetensors ({what}); copy or download it again") from error


def _read_shards(index: Path) -> dict[str, np.ndarray]:
    settings = _parse(index)
    placed = settings.get("weight_map") if isinstance(settings, dict) else None
    if not isinstance(placed, dict) or not all(isinstance(name, str) for name in placed.values()):
        raise InputError(f"{index}: no weight_map here; copy or download it again")
    tensors: dict[str, np.ndarray] = {}
    for name in sorted(set(placed.values())):
        if Path(name).name != name:
            raise InputError(f"{index}: the shard {name!r} lies outside the folder; refused")
        tensors |= read_tensors(index.parent / name)
    different = sorted(placed.keys() ^ tensors.keys())
    if different:
        raise InputError(f"{index}: its shards do not hold the keys that it lists, {different[0]} for one")
    return tensors


def _parse(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            return json.loads(text)
        import yaml

        return yaml.safe_load(text)
    except Exception as error:  # yaml's errors share no class with json's
        raise InputError(f"{path}: cannot be read ({str(error).splitlines()[0]}); copy or download it again") from error
