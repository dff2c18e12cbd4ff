"""Files of a folder that lies on this machine or in a store that fsspec reaches (`s3://…`, `gs://…`).

A store has no rename, and it may not answer: a file is put whole under its name, what was put is read back, and every
request is tried again for half a minute. A file appears whole or not at all here as there.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import posixpath
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from voxinstruct_jax.config import InputError, VoxError

__all__ = [
    "absolute",
    "cache_folder",
    "download",
    "is_remote",
    "join",
    "locked",
    "names",
    "patiently",
    "read",
    "remove",
    "sha256",
    "sizes",
    "staged",
    "upload",
    "write",
    "write_json",
]

Result = TypeVar("Result")

RETRY_DELAYS_S = (1.0, 5.0, 25.0)
"""Between attempts to reach a store that does not answer."""


def is_remote(location: str | os.PathLike[str]) -> bool:
    """Whether it is a URL."""
    return "://" in os.fspath(location)


def absolute(location: str) -> str:
    """Returns a local path in full; URLs stay."""
    return location if is_remote(location) else os.path.abspath(location)  # noqa: PTH100 - Path would join "a//b"


def join(folder: str, *parts: str) -> str:
    """A place in a folder."""
    return posixpath.join(folder, *parts)


def patiently(location: str, action: Callable[[], Result]) -> Result:
    """Does what needs a store, again where that does not answer.

    Raises:
        FileNotFoundError, VoxError: From the action; they would come again.
        ConnectionError: The store does not answer or refuses.
    """
    for delay_s in (*RETRY_DELAYS_S, None):
        try:
            return action()
        except (FileNotFoundError, VoxError):
            raise
        except Exception as error:  # every store has errors of its own
            if delay_s is None or isinstance(error, PermissionError):
                raise ConnectionError(f"{location}: cannot be reached ({error}); check your access to it") from error
            time.sleep(delay_s)
    raise AssertionError("the last attempt returns or raises")


def sizes(folder: str) -> dict[str, int]:
    """Bytes of each file directly in a folder, by name; none if there is no such folder."""
    if not is_remote(folder):
        with contextlib.suppress(FileNotFoundError):
            return {entry.name: entry.stat().st_size for entry in os.scandir(folder) if entry.is_file()}
        return {}
    filesystem, path = _filesystem(folder)

    def listed() -> dict[str, int]:
        found = [item for item in filesystem.ls(path, detail=True) if item["type"] == "file"]
        return {posixpath.basename(item["name"]): item["size"] for item in found}

    with contextlib.suppress(FileNotFoundError):
        return patiently(folder, listed)
    return {}


def names(folder: str) -> set[str]:
    """Names of the files and folders directly in a folder; none if there is no such folder."""
    if not is_remote(folder):
        return set(os.listdir(folder)) if os.path.isdir(folder) else set()  # noqa: PTH112, PTH208 - no Path here
    filesystem, path = _filesystem(folder)
    with contextlib.suppress(FileNotFoundError):
        found = patiently(folder, lambda: filesystem.ls(path, detail=False))
        return {posixpath.basename(item.rstrip("/")) for item in found} - {""}
    return set()


def read(location: str) -> bytes:
    """Reads a file.

    Raises:
        FileNotFoundError: It is not there.
        ConnectionError: The store does not answer.
    """
    if not is_remote(location):
        return Path(location).read_bytes()
    filesystem, path = _filesystem(location)
    return patiently(location, lambda: filesystem.cat_file(path))


def write(location: str, content: bytes) -> None:
    """Writes a file that appears whole or not at all, in a folder that is there; a store has no need of one.

    Raises:
        OSError: It cannot be written.
    """
    if is_remote(location):
        filesystem, path = _filesystem(location)
        _make_folder_of(filesystem, path)
        patiently(location, lambda: filesystem.pipe_file(path, content))
        return
    partial = partial_of(Path(location))
    try:
        partial.write_bytes(content)
        partial.replace(location)
    finally:
        partial.unlink(missing_ok=True)


def write_json(location: str | os.PathLike[str], value: Any) -> None:
    """Writes a JSON file that appears whole or not at all."""
    write(os.fspath(location), json.dumps(value, ensure_ascii=False).encode())


def partial_of(path: Path) -> Path:
    """Where a local file is written before it gets its name: a place of this process alone."""
    return path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.partial")


def remove(location: str) -> None:
    """Removes a file or a folder with all that it holds; nothing happens if it is not there."""
    filesystem, path = _filesystem(location)
    with contextlib.suppress(FileNotFoundError):
        patiently(location, lambda: filesystem.rm(path, recursive=True))


@contextlib.contextmanager
def staged(folder: str) -> Iterator[Path]:
    """A local folder whose files lie in `folder` when the block ends well: itself, or one that is then uploaded."""
    if not is_remote(folder):
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory(prefix="voxinstruct-") as scratch:
        yield Path(scratch)
        for path in sorted(Path(scratch).iterdir()):
            upload(path, join(folder, path.name))


def upload(path: Path, location: str) -> None:
    """Puts a local file into a store and reads it back: it lies there with the same bytes, or an error says so.

    Raises:
        ConnectionError: The store does not answer, or gives other bytes.
    """
    filesystem, target = _filesystem(location)
    wanted = sha256(path)

    def put() -> None:
        _make_folder_of(filesystem, target)
        filesystem.put_file(str(path), target)
        try:
            with filesystem.open(target, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            found = None
        if found != wanted:
            raise OSError("what was put there " + ("reads otherwise" if found else "is not there"))

    patiently(location, put)


def download(location: str, path: Path, checksum: str) -> None:
    """Fetches a file of a store, which appears whole, with this SHA-256, or not at all.

    Raises:
        InputError: It is missing or its bytes are others, each time that it was fetched.
        ConnectionError: The store does not answer.
    """
    filesystem, source = _filesystem(location)
    partial = partial_of(path)
    try:
        for _ in range(2):  # a connection may end early without a word
            patiently(location, lambda: filesystem.get_file(source, str(partial)))
            if sha256(partial) == checksum:
                partial.replace(path)
                return
    except FileNotFoundError as error:
        raise InputError(f"{location}: missing; run prepare again") from error
    finally:
        partial.unlink(missing_ok=True)
    raise InputError(f"{location}: damaged (checksum differs); copy or prepare it again")


def sha256(path: Path) -> str:
    """Of a local file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder(name: str) -> Path:
    """A folder on this machine for copies: below `VOXINSTRUCT_CACHE`, else where the system keeps such things."""
    place = os.environ.get("VOXINSTRUCT_CACHE")
    if place is None:
        place = posixpath.join(os.environ.get("XDG_CACHE_HOME", posixpath.expanduser("~/.cache")), "voxinstruct_jax")
    folder = Path(place) / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps a local folder for this process while the block runs; another one that asks for it waits."""
    with (folder / ".lock").open("a") as file:
        with contextlib.suppress(OSError):  # a network folder without locks: both do the same
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make_folder_of(filesystem: Any, path: str) -> None:
    """Where there are folders: an object store has none, and would make a bucket."""
    if not filesystem.async_impl:
        filesystem.makedirs(posixpath.dirname(path), exist_ok=True)


def _filesystem(location: str) -> tuple[Any, str]:
    """The file system of a location and its path there; it asks the store each time, since others write there too."""
    import fsspec

    try:
        options = {"use_listings_cache": False} if is_remote(location) else {}
        return fsspec.core.url_to_fs(location, **options)
    except ImportError as error:
        raise InputError(f"{location}: {error}") from error
