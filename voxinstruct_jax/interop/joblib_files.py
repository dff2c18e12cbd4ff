"""Files of `joblib.dump` without joblib: a pickle with the bytes of its arrays in between."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from voxinstruct_jax.config import InputError
from voxinstruct_jax.interop.pytorch_files import map_file
from voxinstruct_jax.interop.restricted_pickle import Kind, Placeholder, read_pickle

__all__ = ["read_joblib"]

_WRAPPER = "joblib.numpy_pickle.NumpyArrayWrapper"
_PICKLE = b"\x80"


def read_joblib(path: Path) -> Any:
    """Reads an uncompressed joblib file; objects of scikit-learn come as a `Placeholder` with their attributes.

    Raises:
        InputError: The file is missing, damaged, compressed, or holds more than arrays and plain values.
    """
    mapped, source = map_file(path), str(path)
    if mapped[:1] != _PICKLE:
        raise InputError(f"{source}: not an uncompressed joblib file; write it with joblib.dump(model, path)")

    def built(value: Placeholder) -> Any:
        """The bytes of an array follow right behind the description of it."""
        if value.name != _WRAPPER:
            return value
        shape, dtype = value.state["shape"], value.state["dtype"]
        if value.state.get("numpy_array_alignment_bytes") is not None:
            mapped.seek(mapped.read_byte(), 1)
        whole = isinstance(dtype, np.dtype) and all(type(length) is int and length >= 0 for length in shape)
        size = math.prod(shape) * dtype.itemsize if whole else -1
        if not 0 <= size <= len(mapped) - mapped.tell():
            raise ValueError("an array is larger than the file")
        data = memoryview(mapped)[mapped.tell() : mapped.tell() + size]
        mapped.seek(size, 1)
        return np.frombuffer(data, dtype).reshape(shape, order="F" if value.state["order"] == "F" else "C")

    return read_pickle(mapped, source, makers={_WRAPPER: Kind(_WRAPPER)}, built=built)
