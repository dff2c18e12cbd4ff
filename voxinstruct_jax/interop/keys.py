"""Which foreign key is which of our weights: one table for import and export, and every key accounted for.

A port declares its table as a list of `Weight`; each names one path of ours, the foreign keys it comes from, and how
the arrays are turned, there and back. Read `Weight`, then `import_module` and `export_tensors`.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

from voxinstruct_jax.config import InputError, VoxError

__all__ = [
    "Weight",
    "check_depth",
    "convolution",
    "export_tensors",
    "fill",
    "flat_weights",
    "heads_in",
    "heads_out",
    "import_module",
    "joined",
    "merge_ties",
    "same",
    "settings_of",
    "stacked",
    "transposed",
]

T = TypeVar("T", bound=nnx.Module)
Reader = Callable[..., np.ndarray]
Writer = Callable[[np.ndarray], Sequence[np.ndarray]]

MAX_LIKELY_WEIGHTS = 500_000_000
"""Numbers in a model that is larger than its file, from which on only its settings can be wrong."""
MAX_LISTED = 10
"""Keys of each kind that an error names."""


@dataclasses.dataclass(frozen=True)
class Weight:
    """One of our weights and where it comes from."""

    path: str
    """Ours, parted by `/`; a place in a list is its number."""
    keys: tuple[str, ...]
    """Foreign keys, usually one."""
    read: Reader
    """Foreign arrays, in the order of `keys`, to ours."""
    write: Writer
    """Ours to the foreign arrays; the exact inverse of `read`."""


def same(key: str, path: str) -> Weight:
    """The array as it is."""
    return Weight(path, (key,), lambda a: a, lambda a: (a,))


def transposed(key: str, path: str) -> Weight:
    """PyTorch's linear (out, in) to (in, out)."""
    return Weight(path, (key,), lambda a: a.T, lambda a: (a.T,))


def heads_out(key: str, path: str, num_heads: int) -> Weight:
    """PyTorch's linear (heads x head_dim, in) to (in, heads, head_dim)."""
    return Weight(
        path,
        (key,),
        lambda a: a.T.reshape(a.shape[1], num_heads, a.shape[0] // num_heads),
        lambda a: (a.reshape(a.shape[0], -1).T,),
    )


def heads_in(key: str, path: str, num_heads: int) -> Weight:
    """PyTorch's linear (out, heads x head_dim) to (heads, head_dim, out)."""
    return Weight(
        path,
        (key,),
        lambda a: a.T.reshape(num_heads, a.shape[1] // num_heads, a.shape[0]),
        lambda a: (a.reshape(-1, a.shape[-1]).T,),
    )


def convolution(key: str, path: str) -> Weight:
    """PyTorch's convolution (out, in, taps) to (taps, in, out)."""
    return Weight(path, (key,), lambda a: a.transpose(2, 1, 0), lambda a: (a.transpose(2, 1, 0),))


def joined(keys: Sequence[str], path: str) -> Weight:
    """Tables of equal size, one below the other."""
    return Weight(path, tuple(keys), lambda *arrays: np.concatenate(arrays), lambda a: tuple(np.split(a, len(keys))))


def stacked(keys: Sequence[str], path: str) -> Weight:
    """PyTorch's linears (out, in) to one array (key, in, out)."""
    return Weight(
        path,
        tuple(keys),
        lambda *arrays: np.stack([a.T for a in arrays]),
        lambda a: tuple(part.T for part in a),
    )


def import_module(
    build: Callable[[], T],
    weights: Sequence[Weight],
    tensors: Mapping[str, np.ndarray],
    *,
    source: str,
    unused: Collection[str] = (),
) -> T:
    """Makes a module that holds exactly the weights of a foreign table.

    Args:
        build: Makes the module (`lambda: TextEncoder(config, rngs=nnx.Rngs(0))`); traced only, nothing is initialised.
        weights: The table of keys; it must name every weight of the module once.
        tensors: Foreign arrays by key; floating ones are brought to the type of the module's.
        source: Names the file or folder in errors.
        unused: Foreign keys that may stand there and are known to have no use here.

    Raises:
        InputError: Keys are missing, left over or of another shape; all are listed in one line.
    """
    try:
        abstract = nnx.eval_shape(build)
    except (OverflowError, MemoryError, TypeError) as error:
        raise InputError(f"{source}: its settings make no model ({str(error).splitlines()[0]}); check them") from error
    shapes = {path: leaf.shape for path, leaf in flat_weights(abstract).items()}
    _check_size(shapes, tensors, source)
    expected = {key: array.shape for weight in weights for key, array in _foreign_examples(weight, shapes)}
    _check_keys(expected, {key: np.shape(array) for key, array in tensors.items() if key not in unused}, source)
    table = {weight.path: weight.read(*(_widened(tensors[key]) for key in weight.keys)) for weight in weights}
    return _fill(abstract, table, source)


@contextlib.contextmanager
def settings_of(source: str) -> Iterator[None]:
    """Within, what settings of wrong types lead to becomes one line.

    Raises:
        InputError: They make no sense.
    """
    try:
        yield
    except VoxError:
        raise
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        what = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        raise InputError(f"{source}: its settings make no sense ({what}); copy or download them again") from error


def check_depth(tensors: Collection[str], source: str, **counts: Any) -> None:
    """Compares numbers of layers or codebooks with the number of tensors, before tables as long as they are made.

    Raises:
        InputError: There are more of one than tensors.
    """
    for name, count in counts.items():
        if isinstance(count, int) and count > len(tensors):
            raise InputError(f"{source}: its settings say {name} {count}, but there are {len(tensors)} tensors")


def export_tensors(module: nnx.Module, weights: Sequence[Weight]) -> dict[str, np.ndarray]:
    """Returns a module's weights by their foreign keys: the inverse of `import_module`.

    Raises:
        InputError: The table does not name every weight of the module.
    """
    ours = flat_weights(module)
    _check_keys(dict.fromkeys(weight.path for weight in weights), dict.fromkeys(ours), type(module).__name__)
    return {
        key: array
        for weight in weights
        for key, array in zip(weight.keys, weight.write(np.asarray(ours[weight.path])), strict=True)
    }


def merge_ties(tensors: Mapping[str, np.ndarray], ties: Mapping[str, str], source: str) -> dict[str, np.ndarray]:
    """Leaves one name to each tensor that the original knows under two.

    Args:
        tensors: Foreign arrays by key.
        ties: Second name → first name; either or both may stand there.
        source: Names the file or folder in errors.

    Raises:
        InputError: Both names stand there with different values.
    """
    merged = dict(tensors)
    for tie, key in ties.items():
        if tie not in merged:
            continue
        array = merged.pop(tie)
        if not np.array_equal(merged.setdefault(key, array), array):
            raise InputError(f"{source}: {tie} and {key} are one tensor in the model, but differ here")
    return merged


def fill(build: Callable[[], T], table: Mapping[str, np.ndarray], *, source: str) -> T:
    """As `import_module`, from arrays by our own paths.

    Raises:
        InputError: Paths are missing, left over or of another shape; all are listed in one line.
    """
    return _fill(nnx.eval_shape(build), table, source)


def flat_weights(module: nnx.Module) -> dict[str, Any]:
    """Returns the arrays of a module (or their shapes, if it is abstract) by path."""
    return {"/".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.state(module))}


def _fill(abstract: T, table: Mapping[str, np.ndarray], source: str) -> T:
    graph, state = nnx.split(abstract)
    flat = {"/".join(map(str, path)): (path, leaf) for path, leaf in nnx.to_flat_state(state)}
    shapes = {path: leaf.get_value().shape for path, (_, leaf) in flat.items()}
    _check_keys(shapes, {path: np.shape(array) for path, array in table.items()}, source)
    # One weight after another, so that a large one is never held twice beside all others.
    values = {
        path: leaf.replace(jnp.asarray(np.asarray(table[name]), leaf.get_value().dtype))
        for name, (path, leaf) in flat.items()
    }
    return nnx.merge(graph, nnx.from_flat_state(values))


def _check_size(shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, np.ndarray], source: str) -> None:
    """Keeps absurd settings from taking all memory: the error's list of keys is made from arrays of these shapes."""
    ours, theirs = sum(map(math.prod, shapes.values())), sum(np.size(array) for array in tensors.values())
    if ours > max(MAX_LIKELY_WEIGHTS, 4 * theirs):
        raise InputError(f"{source}: weights do not fit; its settings ask for {ours} numbers, the file holds {theirs}")


def _widened(array: np.ndarray) -> np.ndarray:
    """Half precision as float32: the original computes what is stored in parts after widening, too."""
    return array.astype(np.float32) if array.dtype.itemsize == 2 and array.dtype.kind in "fV" else array


def _foreign_examples(weight: Weight, shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[str, np.ndarray]]:
    """The foreign arrays of a weight with the right shapes and no content."""
    if weight.path not in shapes:
        raise InputError(f"the table of keys names {weight.path}, which the model does not have")
    example = np.broadcast_to(np.zeros((), np.float32), shapes[weight.path])
    return list(zip(weight.keys, weight.write(example), strict=True))


def _check_keys(
    expected: Mapping[str, tuple[int, ...] | None], found: Mapping[str, tuple[int, ...] | None], source: str
) -> None:
    shapes = [
        f"{key} {_shape(found[key])} instead of {_shape(expected[key])}"
        for key in expected
        if key in found and found[key] != expected[key]
    ]
    problems = {
        "missing": [key for key in expected if key not in found],
        "left over": [key for key in found if key not in expected],
        "of another shape": shapes,
    }
    listed = [f"{len(keys)} {what}: {_shorten(keys)}" for what, keys in problems.items() if keys]
    if listed:
        raise InputError(f"{source}: weights do not fit; {'; '.join(listed)}")


def _shape(shape: tuple[int, ...] | None) -> str:
    return " x ".join(map(str, shape)) if shape else "scalar"


def _shorten(keys: list[str]) -> str:
    rest = len(keys) - MAX_LISTED
    return ", ".join(key if key.isprintable() else ascii(key) for key in keys[:MAX_LISTED]) + (
        f" and {rest} more" if rest > 0 else ""
    )
