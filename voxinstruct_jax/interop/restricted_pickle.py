"""Pickles read without running them: plain values and arrays come out, anything else is refused.

Python's own unpickler imports what a file names and calls it, and filtering those names has been got round before. Here
a small machine follows the opcodes itself: nothing is imported, and the only functions it can call are the ones in its
table of makers. Classes that surround weights in known files (settings, optimisers) become a `Placeholder` that holds
what was stored and does nothing. Read `read_pickle`; the file formats around it are `pytorch_files` and `joblib_files`.
"""

import collections
import dataclasses
import math
import mmap
import pickletools
import re
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, cast

import numpy as np

from voxinstruct_jax.config import InputError

__all__ = ["Maker", "Placeholder", "read_pickle"]

INERT_MODULES = ("argparse", "fairseq", "omegaconf", "sklearn", "numpy.random", "torch.optim", "typing")
"""Modules whose objects stand beside weights in known files; they are kept as placeholders."""

MAX_NAME = 80
"""Characters of a foreign name that are shown."""

MAX_COPIED = 2**28
"""Bytes that makers may copy: a small file can name one large value again and again."""


@dataclasses.dataclass(frozen=True)
class Maker:
    """A function of this package that a file may call by one of its names."""

    function: Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A class that is known and not needed."""

    name: str


@dataclasses.dataclass
class Placeholder:
    """An object of such a class: what the file stored of it, and no behaviour."""

    name: str
    """Module and class."""
    state: dict[Any, Any] = dataclasses.field(default_factory=dict)
    """Its attributes."""
    items: list[Any] = dataclasses.field(default_factory=list)
    """Its entries, where it is a kind of list, set or dict (then pairs)."""


def read_pickle(
    stream: mmap.mmap,
    source: str,
    *,
    makers: Mapping[str, Any] | None = None,
    persistent: Callable[[Any], Any] | None = None,
    built: Callable[[Any], Any] | None = None,
) -> Any:
    """Reads one pickle and leaves the stream behind it.

    Args:
        stream: A mapped file, at the place where the pickle begins.
        source: Names the file in errors.
        makers: What the names `module.name` in the file stand for, beside plain values and NumPy's.
        persistent: Gives the object of a persistent id; without it, a file that has any is refused.
        built: Given each placeholder whose state is complete, returns what stands for it from there on.

    Raises:
        InputError: The pickle asks for a class or function that no weights need, or it is damaged.
    """
    machine = _Machine(source, {**_PLAIN_MAKERS, **(makers or {})}, persistent, built)
    try:
        for opcode, argument, _ in pickletools.genops(cast("BinaryIO", stream)):
            machine.follow(opcode.name, argument)
        return machine.result()
    except InputError:
        raise
    except Exception as error:  # a hostile file may fail at any step and in any way
        what = str(error).splitlines()[0][:MAX_NAME] if str(error) else type(error).__name__
        raise InputError(f"{source}: damaged or not a pickle of weights ({what}); copy or download it again") from error


class _Machine:
    """Stack and memo of one pickle; a method for each opcode that does more than push its argument."""

    def __init__(
        self,
        source: str,
        makers: Mapping[str, Any],
        persistent: Callable[[Any], Any] | None,
        built: Callable[[Any], Any] | None,
    ) -> None:
        self.source, self.makers, self.persistent, self.built = source, makers, persistent, built
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.copied = 0

    def follow(self, name: str, argument: Any) -> None:
        if name in _PUSHED:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif (method := getattr(self, f"on_{name.lower()}", None)) is not None:
            method(argument)
        elif name not in _IGNORED:
            raise self.refuse(f"the opcode {name}")

    def result(self) -> Any:
        (value,) = self.stack
        return value

    def refuse(self, what: str) -> InputError:
        return InputError(f"{self.source}: asks for {what}, which no weights need; refused, and nothing of it was run")

    def find(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in self.makers:
            return self.makers[full]
        if any(module == inert or module.startswith(f"{inert}.") for inert in INERT_MODULES):
            return Kind(full)
        shown = full if len(full) <= MAX_NAME else f"{full[:MAX_NAME]}..."
        raise self.refuse(shown if shown.isprintable() else ascii(shown))

    def make(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        if isinstance(function, Maker):
            for argument in arguments:
                self.count_copy(argument)
            return function.function(*arguments)
        if isinstance(function, Kind):
            return Placeholder(function.name)
        raise self.refuse(f"a call of a {type(function).__name__}")

    def count_copy(self, value: Any) -> None:
        if isinstance(value, str | bytes | bytearray):
            self.copied += len(value)
        elif isinstance(value, list | tuple | dict | set | frozenset):
            self.copied += 64 * len(value)
        if self.copied > MAX_COPIED:
            raise self.refuse("more memory than it holds")

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def on_mark(self, _: None) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def on_pop(self, _: None) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.since_mark()

    def on_pop_mark(self, _: None) -> None:
        self.since_mark()

    def on_dup(self, _: None) -> None:
        self.stack.append(self.stack[-1])

    def on_put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    on_binput = on_long_binput = on_put

    def on_memoize(self, _: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def on_get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    on_binget = on_long_binget = on_get

    def on_tuple(self, _: None) -> None:
        items = self.since_mark()
        self.stack.append(tuple(items))

    def on_tuple1(self, _: None) -> None:
        self.stack[-1:] = [(self.stack[-1],)]

    def on_tuple2(self, _: None) -> None:
        self.stack[-2:] = [(self.stack[-2], self.stack[-1])]

    def on_tuple3(self, _: None) -> None:
        self.stack[-3:] = [(self.stack[-3], self.stack[-2], self.stack[-1])]

    def on_list(self, _: None) -> None:
        items = self.since_mark()
        self.stack.append(items)

    def on_dict(self, _: None) -> None:
        items = self.since_mark()
        self.stack.append(dict(_pairs(items)))

    def on_frozenset(self, _: None) -> None:
        items = self.since_mark()
        self.stack.append(frozenset(items))

    def on_append(self, _: None) -> None:
        self.add([self.stack.pop()])

    def on_appends(self, _: None) -> None:
        items = self.since_mark()
        self.add(items)

    on_additems = on_appends

    def add(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Placeholder):
            target.items.extend(items)
        elif isinstance(target, set):
            target.update(items)
        elif isinstance(target, list):
            target.extend(items)
        else:
            raise self.refuse(f"entries of a {type(target).__name__}")

    def on_setitem(self, _: None) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.put([key, value])

    def on_setitems(self, _: None) -> None:
        items = self.since_mark()
        self.put(items)

    def put(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Placeholder):
            target.items.extend(_pairs(items))
        elif isinstance(target, dict):
            target.update(_pairs(items))
        else:
            raise self.refuse(f"keys of a {type(target).__name__}")

    def on_global(self, name: str) -> None:
        module, _, attribute = name.partition(" ")
        self.stack.append(self.find(module, attribute))

    def on_stack_global(self, _: None) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(self.find(str(module), str(name)))

    def on_reduce(self, _: None) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(self.make(function, tuple(arguments)))

    on_newobj = on_reduce

    def on_newobj_ex(self, _: None) -> None:
        self.stack.pop()  # keyword arguments: only placeholders have any, and they keep none
        self.on_reduce(None)

    def on_inst(self, name: str) -> None:
        module, _, attribute = name.partition(" ")
        arguments = self.since_mark()
        self.stack.append(self.make(self.find(module, attribute), tuple(arguments)))

    def on_obj(self, _: None) -> None:
        function, *arguments = self.since_mark()
        self.stack.append(self.make(function, tuple(arguments)))

    def on_build(self, _: None) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        for part in state if isinstance(state, tuple) else (state,):
            self.count_copy(part)
        if isinstance(target, Placeholder):
            _set_attributes(target, state)
            self.stack[-1] = self.built(target) if self.built else target
        elif isinstance(target, np.ndarray):
            _set_array(target, state)
        elif isinstance(target, np.dtype):
            _set_byte_order(target, state)
        elif not isinstance(target, collections.OrderedDict):  # its attributes (torch: `_metadata`) are not needed
            raise self.refuse(f"attributes of a {type(target).__name__}")

    def on_binpersid(self, _: None) -> None:
        if self.persistent is None:
            raise self.refuse("an object outside of it")
        self.stack.append(self.persistent(self.stack.pop()))


_PUSHED = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_IGNORED = {"PROTO", "FRAME", "STOP"}


def _pairs(items: list[Any]) -> list[tuple[Any, Any]]:
    return list(zip(items[::2], items[1::2], strict=True))


def _set_attributes(target: Placeholder, state: Any) -> None:
    """State is a dict, or a pair of dicts where a class has slots; other forms are not needed and dropped."""
    for part in state if isinstance(state, tuple) else (state,):
        if isinstance(part, dict):
            target.state.update(part)


def _dtype(name: str, align: bool = False, copy: bool = True) -> np.dtype[Any]:
    """A fresh type, since `_set_byte_order` changes it in place; plain numbers, bytes and text only."""
    if not isinstance(name, str) or not re.fullmatch(r"[<>|=]?[biufcSU]\d{1,9}", name):
        raise ValueError("a type of array that is not numbers")
    return np.dtype(name, False, True)


def _set_byte_order(target: np.dtype[Any], state: Any) -> None:
    _, order, *structure = state
    if order not in ("<", ">", "|", "=") or any(part is not None for part in structure[:3]):
        raise ValueError("a structured type of array")
    target.__setstate__((3, order, None, None, None, *structure[3:5], 0))  # pyright: ignore[reportAttributeAccessIssue]


def _set_array(target: np.ndarray, state: Any) -> None:
    version, shape, dtype, fortran, data = state if len(state) == 5 else (1, *state)
    data = data.encode("latin1") if isinstance(data, str) else data
    if not isinstance(dtype, np.dtype) or not isinstance(data, bytes | bytearray):
        raise ValueError("an array that is not numbers")
    if any(type(length) is not int or length < 0 for length in shape) or math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError("an array of another size than its data")
    state = (version, shape, dtype, bool(fortran), bytes(data))
    target.__setstate__(cast("Any", state))


def _scalar(dtype: np.dtype[Any], data: bytes | str) -> Any:
    data = data.encode("latin1") if isinstance(data, str) else data
    (value,) = np.frombuffer(data, dtype)
    return value


def _from_buffer(data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], order: str = "C") -> np.ndarray:
    if not isinstance(dtype, np.dtype) or order not in ("C", "F"):
        raise ValueError("an array that is not numbers")
    return np.frombuffer(data, dtype).reshape(shape, order=order)


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """How older protocols write bytes; no codec but this one, since codecs can expand or import."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError("bytes in an unknown encoding")
    return text.encode("latin1")


def _numpy_makers() -> dict[str, Maker]:
    functions = {"scalar": _scalar, "_reconstruct": lambda *_: np.empty(0, np.int8)}
    makers = {
        f"numpy.{core}.multiarray.{name}": Maker(function)
        for core in ("core", "_core")
        for name, function in functions.items()
    }
    makers |= {f"numpy.{core}.numeric._frombuffer": Maker(_from_buffer) for core in ("core", "_core")}
    return {**makers, "numpy.dtype": Maker(_dtype), "numpy.ndarray": Maker(lambda *_: np.empty(0, np.int8))}


_PLAIN_MAKERS: dict[str, Maker] = {
    "collections.OrderedDict": Maker(lambda pairs=(): collections.OrderedDict(pairs)),
    "collections.defaultdict": Maker(lambda *_: {}),
    "_codecs.encode": Maker(_encode),
    **{
        f"{module}.{name}": Maker(maker)
        for module in ("builtins", "__builtin__")
        for name, maker in {
            "set": lambda items=(): set(items),
            "frozenset": lambda items=(): frozenset(items),
            "list": lambda items=(): list(items),
            "dict": lambda pairs=(): dict(pairs),
            "tuple": lambda items=(): tuple(items),
            "int": lambda value=0: int(value) if isinstance(value, int | float) else 0,
            "float": lambda value=0.0: float(value) if isinstance(value, int | float) else 0.0,
            "str": lambda value="": value if isinstance(value, str) else "",
            "bool": lambda value=False: value is True,
            "complex": lambda real=0.0, imaginary=0.0: complex(float(real), float(imaginary)),
            "bytearray": lambda data=b"": bytearray(data) if isinstance(data, bytes | bytearray) else bytearray(),
        }.items()
    },
    **_numpy_makers(),
}
