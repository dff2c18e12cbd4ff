"""Strict configuration: dataclasses to and from plain values, errors, fingerprints.

The dataclasses themselves live beside the code that reads them; this module only moves them to JSON and back and says
exactly what is wrong when a file or a command line does not fit. Read `from_dict` first.
"""

import dataclasses
import difflib
import functools
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

__all__ = ["ConfigError", "InputError", "VoxError", "fingerprint", "from_dict", "to_dict"]

T = TypeVar("T")


class VoxError(Exception):
    """An error that its user can mend; the message is one line."""


class ConfigError(VoxError):
    """A configuration value is unknown, missing, of the wrong type or out of range."""


class InputError(VoxError):
    """A file, a row or an argument from the user cannot be used as it is."""


def to_dict(value: Any) -> Any:
    """Turns nested dataclasses into plain JSON values; tuples become lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_dict(getattr(value, field.name)) for field in dataclasses.fields(value) if field.init}
    if isinstance(value, Mapping):
        return {str(key): to_dict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_dict(item) for item in value]
    return value


def from_dict(cls: type[T], values: Mapping[str, Any], *, path: str = "") -> T:
    """Builds a dataclass from plain values, strictly.

    Args:
        cls: The dataclass; nested dataclasses, tuples, unions and literals follow its annotations.
        values: As `to_dict` gives, or as read from JSON.
        path: Where `values` stands, for messages (`model.backbone`).

    Raises:
        ConfigError: A key is unknown (the nearest known one is named), missing, or holds the wrong type.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path or cls.__name__}: expected a table of settings, got {values!r}")
    fields = {field.name: field for field in dataclasses.fields(typing.cast("Any", cls)) if field.init}
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(fields)}"
            raise ConfigError(f"{_join(path, key)}: unknown setting of {cls.__name__}{hint}")
    hints = _hints(cls)
    chosen = {}
    for name, field in fields.items():
        if name in values:
            chosen[name] = _convert(hints[name], values[name], _join(path, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{_join(path, name)}: missing; {cls.__name__} needs it")
    try:
        return cls(**chosen)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}" if path else str(error)) from error


def fingerprint(value: Any) -> str:
    """Returns 16 hex digits that change when any setting in `value` changes."""
    return hashlib.sha256(json.dumps(to_dict(value), sort_keys=True).encode()).hexdigest()[:16]


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast("type", hint), value, path=path)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, path)
    if origin is typing.Literal:
        if value not in arguments:
            raise ConfigError(f"{path}: {value!r} is not one of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        return _convert_tuple(arguments, value, path)
    if origin is dict:
        return _convert_table(arguments, value, path)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and (not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool)):
        raise ConfigError(f"{path}: expected {hint.__name__}, got {value!r}")
    return value


def _convert_union(choices: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and type(None) in choices:
        return None
    problems = []
    for choice in choices:
        if choice is type(None):
            continue
        try:
            return _convert(choice, value, path)
        except ConfigError as error:
            problems.append(str(error))
    raise ConfigError(problems[0] if problems else f"{path}: expected nothing, got {value!r}")


def _convert_table(arguments: tuple[Any, ...], value: Any, path: str) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path}: expected a table, got {value!r}")
    return {_convert(arguments[0], k, path): _convert(arguments[1], v, _join(path, str(k))) for k, v in value.items()}


def _convert_tuple(arguments: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{path}: expected a list, got {value!r}")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_convert(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if len(arguments) != len(value):
        raise ConfigError(f"{path}: expected {len(arguments)} values, got {len(value)}")
    return tuple(
        _convert(hint, item, f"{path}[{i}]") for i, (hint, item) in enumerate(zip(arguments, value, strict=True))
    )
