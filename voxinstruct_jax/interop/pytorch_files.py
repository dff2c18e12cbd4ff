"""Files of `torch.save` without PyTorch: the zip form, read and written, and the older one of pickles in a row, read.

Arrays are read-only views of the mapped file, so a checkpoint costs no memory until its weights are used. Storages of
the zip form are checked against their checksums. Read `read_pytorch`.
"""

import dataclasses
import math
import mmap
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from voxinstruct_jax.config import InputError
from voxinstruct_jax.interop.restricted_pickle import Kind, Maker, read_pickle

__all__ = ["LEGACY_START", "map_file", "read_pytorch", "write_pytorch"]

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
"""First bytes of the older form: the pickle of its magic number."""

_LOCAL_HEADER = struct.Struct("<4s22xHH")
_STORED = zipfile.ZIP_STORED
_ENCRYPTED = 1


@dataclasses.dataclass(frozen=True)
class StorageType:
    """What a storage class of PyTorch holds."""

    dtype: np.dtype[Any]


@dataclasses.dataclass(frozen=True)
class Storage:
    """One flat array, which tensors view; None while the older form's data is still to come."""

    data: np.ndarray | None


def read_pytorch(path: Path) -> Any:
    """Reads a file of `torch.save`: its containers, plain values, and tensors as NumPy arrays (bfloat16 by ml_dtypes).

    Raises:
        InputError: The file is missing, damaged, truncated, not of PyTorch, or holds more than weights need.
    """
    mapped = map_file(path)
    if mapped[: len(LEGACY_START)] == LEGACY_START:
        return _read_legacy(mapped, str(path))
    return _read_zip(mapped, path)


def write_pytorch(path: Path, value: Mapping[str, Any]) -> None:
    """Writes what `torch.load` reads, safe loading included; the file appears whole or not at all.

    Args:
        path: Target; an older file is replaced.
        value: NumPy arrays and whole numbers by key, tables of such among them. An array that stands there twice is
            stored once.
    """
    storages: dict[int, np.ndarray] = {}
    record = b"\x80\x02" + _pickled(value, storages) + b"."
    partial = path.with_name(f".{path.name}.partial")
    with zipfile.ZipFile(partial, "w", _STORED) as archive:
        for name, content in (("data.pkl", record), ("byteorder", b"little"), ("version", b"3\n")):
            archive.writestr(f"{path.stem}/{name}", content)
        for key, array in enumerate(storages.values()):
            with archive.open(f"{path.stem}/data/{key}", "w", force_zip64=True) as entry:
                entry.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    partial.replace(path)


def _pickled(value: Any, storages: dict[int, np.ndarray]) -> bytes:
    """Opcodes (protocol 2) that rebuild the value."""
    if isinstance(value, np.ndarray):
        return _pickled_tensor(value, storages)
    if isinstance(value, Mapping):
        return b"}(" + b"".join(_pickled(part, storages) for pair in value.items() for part in pair) + b"u"
    if isinstance(value, tuple):
        return b"(" + b"".join(_pickled(part, storages) for part in value) + b"t"
    if isinstance(value, int):
        digits = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8a" + bytes([len(digits)]) + digits
    if isinstance(value, str):
        text = value.encode()
        return b"X" + len(text).to_bytes(4, "little") + text
    raise TypeError(f"{type(value).__name__} has no place in a weights file")


def _pickled_tensor(array: np.ndarray, storages: dict[int, np.ndarray]) -> bytes:
    name = next(name for name, dtype in _STORAGE_TYPES.items() if array.dtype == dtype)
    storages.setdefault(id(array), array)
    key = list(storages).index(id(array))
    strides = tuple(math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim))
    identity = b"".join(
        (
            b"(" + _pickled("storage", storages) + f"ctorch\n{name}Storage\n".encode(),
            *(_pickled(part, storages) for part in (str(key), "cpu", array.size)),
            b"tQ",
        )
    )
    place = b"".join(_pickled(part, storages) for part in (0, array.shape, strides))
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + identity + place + b"\x89ccollections\nOrderedDict\n)RtR"


def map_file(path: Path) -> mmap.mmap:
    """Maps a file into memory, read only.

    Raises:
        InputError: There is no such file, or it is empty.
    """
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: no file to read ({error}); check the path") from error


def _read_zip(mapped: mmap.mmap, path: Path) -> Any:
    source = str(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
    except Exception as error:  # a damaged directory may fail in any way
        raise InputError(f"{source}: not a whole PyTorch file; copy or download it again") from error
    records = [name for name in entries if name.endswith("/data.pkl")]
    if len(records) != 1:
        raise InputError(f"{source}: a zip, but no file of torch.save (it has {len(records)} data.pkl, not 1)")
    root = records[0].removesuffix("data.pkl")

    def entry(name: str) -> memoryview:
        if root + name not in entries:
            raise InputError(f"{source}: {name} is missing; copy or download the file again")
        return _stored_entry(mapped, entries[root + name], source)

    if f"{root}byteorder" in entries and bytes(entry("byteorder")) != b"little":
        raise InputError(f"{source}: written on a big-endian machine; save it again on a little-endian one")
    storages: dict[str, memoryview] = {}

    def persistent(identity: Any) -> Storage:
        dtype, key, length = _storage_identity(identity)
        if key not in storages:
            storages[key] = entry(f"data/{key}")
        return Storage(_flat_array(storages[key], dtype, length))

    offset, size = _entry_place(mapped, entries[records[0]], source)
    mapped.seek(offset)
    value = read_pickle(mapped, source, makers=_MAKERS, persistent=persistent)
    if mapped.tell() > offset + size:
        raise InputError(f"{source}: damaged (data.pkl runs past its end); copy or download it again")
    return value


def _entry_place(mapped: mmap.mmap, entry: zipfile.ZipInfo, source: str) -> tuple[int, int]:
    """Where the bytes of an entry lie. `torch.save` never compresses, so an entry is never larger than the file."""
    if entry.compress_type != _STORED or entry.flag_bits & _ENCRYPTED or entry.compress_size != entry.file_size:
        raise InputError(f"{source}: its entries are compressed or encrypted, which torch.save never does; refused")
    header = mapped[entry.header_offset : entry.header_offset + _LOCAL_HEADER.size]
    if len(header) < _LOCAL_HEADER.size or header[:4] != b"PK\x03\x04":
        raise InputError(f"{source}: damaged (an entry is not where the file says); copy or download it again")
    _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    offset = entry.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    if offset + entry.file_size > len(mapped):
        raise InputError(f"{source}: truncated; copy or download it again")
    return offset, entry.file_size


def _stored_entry(mapped: mmap.mmap, entry: zipfile.ZipInfo, source: str) -> memoryview:
    offset, size = _entry_place(mapped, entry, source)
    data = memoryview(mapped)[offset : offset + size]
    if zlib.crc32(data) != entry.CRC:
        raise InputError(f"{source}: damaged (a checksum does not fit); copy or download it again")
    return data


def _read_legacy(mapped: mmap.mmap, source: str) -> Any:
    """The older form: magic number, version, system, the object, the order of storages, their data.

    The data come last, so the object is read twice: once to learn what storages there are, once with them.
    """
    _, version, system = (read_pickle(mapped, source) for _ in range(3))
    if version != 1001 or not (isinstance(system, dict) and system.get("little_endian") is True):
        raise InputError(f"{source}: an older PyTorch file of a version or byte order that is not supported")
    begin, types, storages = mapped.tell(), {}, {}

    def note(identity: Any) -> Storage:
        dtype, key, _ = _storage_identity(identity)
        types[key] = dtype
        return Storage(None)

    def find(identity: Any) -> Storage:
        return storages[_storage_identity(identity)[1]]

    read_pickle(mapped, source, makers=_MAKERS, persistent=note)
    order = read_pickle(mapped, source)
    if not isinstance(order, list) or not all(isinstance(key, str) for key in order):
        raise InputError(f"{source}: damaged (its storages have no order); copy or download it again")
    for key in order:
        length = int.from_bytes(mapped.read(8), "little")
        size = length * types[key].itemsize if key in types else -1
        offset = mapped.tell()
        if not 0 <= size <= len(mapped) - offset:
            raise InputError(f"{source}: truncated or damaged; copy or download it again")
        storages[key] = Storage(_flat_array(memoryview(mapped)[offset : offset + size], types[key], length))
        mapped.seek(offset + size)
    mapped.seek(begin)
    return read_pickle(mapped, source, makers=_MAKERS, persistent=find)


def _storage_identity(identity: Any) -> tuple[np.dtype[Any], str, int]:
    """Type, name and length of ('storage', type, name, place, length); a sixth item (a view) was always None."""
    word, kind, key, _, length, *view = identity
    known = word == "storage" and isinstance(kind, StorageType) and isinstance(key, str)
    if not known or type(length) is not int or any(part is not None for part in view):
        raise ValueError("a storage of an unknown kind")
    return kind.dtype, key, length


def _flat_array(data: memoryview, dtype: np.dtype[Any], length: int) -> np.ndarray:
    if len(data) != length * dtype.itemsize:
        raise ValueError(f"a storage has {len(data)} bytes, {length * dtype.itemsize} are expected")
    return np.frombuffer(data, dtype)


def _view(storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> Any:
    """A tensor: a view of its storage, which it must not leave."""
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    if storage.data is None:
        return None
    numbers = (offset, *shape, *strides)
    if len(shape) != len(strides) or any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError("a tensor of impossible shape")
    data, size = storage.data, math.prod(shape)
    last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True)) if size else 0
    if size > len(data) or last >= max(len(data), 1):
        raise ValueError("a tensor is larger than its storage")
    steps = tuple(stride * data.itemsize for stride in strides)
    return np.lib.stride_tricks.as_strided(data[offset if size else 0 :], shape, steps, writeable=False)


def _from_type(maker: Any, kind: Any, arguments: tuple[Any, ...], *_: Any) -> Any:
    """A tensor whose class or attributes are not plain: the plain tensor."""
    if not isinstance(maker, Maker):
        raise ValueError("a tensor of an unknown kind")
    return maker.function(*arguments)


def _first(value: Any, *_: Any) -> Any:
    return value


_STORAGE_TYPES = {
    "Double": np.float64,
    "Float": np.float32,
    "Half": np.float16,
    "BFloat16": ml_dtypes.bfloat16,
    "Long": np.int64,
    "Int": np.int32,
    "Short": np.int16,
    "Char": np.int8,
    "Byte": np.uint8,
    "Bool": np.bool_,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _view,
    "torch._utils._rebuild_tensor_v2": _view,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch.Size": lambda lengths=(): tuple(lengths),
}
_CLASSES = ("torch.nn.parameter.Parameter", "torch.Tensor", "torch.device", "torch.float32", "torch.bfloat16")
_MAKERS: Mapping[str, Any] = {
    **{f"torch.{name}Storage": StorageType(np.dtype(dtype)) for name, dtype in _STORAGE_TYPES.items()},
    **{name: Maker(function) for name, function in _FUNCTIONS.items()},
    **{name: Kind(name) for name in _CLASSES},
}
