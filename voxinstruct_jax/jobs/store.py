"""Where a job's files lie: a local folder, or a place in an object store, behind the few operations that a job needs.

All rests on `create`: of any number of writers of a name one wins, and what is there is whole. Object stores have no
rename, so nothing here asks for one. Start at `open_store`.
"""

import contextlib
import itertools
import os
import random
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar, runtime_checkable

from voxinstruct_jax.config import InputError
from voxinstruct_jax.data.store import is_remote

__all__ = ["PARTIAL_FOLDER", "LocalStore", "RemoteStore", "Store", "open_binary", "open_store"]

T = TypeVar("T")

PARTIAL_FOLDER = "partial"
"""In a local folder: what is being written. At a job's end it is gone."""
EMPTY_FOLDERS = ("claims", "workers")
PATIENCE_S = 900.0
"""For so long an object store that fails is tried again (s)."""
LONGEST_WAIT_S = 30.0
ANSWER_S = 20.0
"""A store that has not answered by then (s) counts as failing."""
REFUSALS = ("NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError", "ParamValidationError")
"""Errors of clients, by name, that waiting does not mend; the clients may not be installed."""


@runtime_checkable
class Store(Protocol):
    """Files by names such as `results/unit-00000.parquet`; its functions may be called from several threads."""

    place: str
    """As the user wrote it."""

    def create(self, name: str, content: bytes) -> bool:
        """Writes a file that is not there yet; False if one with another content is."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Writes a file, or replaces it; it appears whole or not at all."""
        ...

    def write_file(self, name: str, source: Path) -> None:
        """As `write`, with the content of a local file."""
        ...

    def read(self, name: str) -> bytes | None:
        """Returns a file's content; None if there is none."""
        ...

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        ...

    def names(self, folder: str) -> list[str]:
        """Returns the names of a folder's files, in order; none if there is no such folder."""
        ...

    def remove(self, name: str) -> None:
        """Removes a file or folder, if it is there."""
        ...

    def tidy(self) -> None:
        """Removes what belongs to work in progress and is empty."""
        ...


def open_store(
    place: str, *, patience_s: float = PATIENCE_S, say: Callable[[str], None] | None = None
) -> "LocalStore | RemoteStore":
    """Opens a place that a job's files go to.

    Args:
        place: A folder, made if missing, or an fsspec URL (`s3://`, `gs://` ...).
        patience_s: For so long an object store that fails is tried again (s).
        say: Called with a line when it fails; by default it goes to the error output.

    Raises:
        InputError: It cannot be written, or the package for this kind of URL is not installed.
    """
    if is_remote(place):
        return RemoteStore(place, patience_s=patience_s, say=say or (lambda line: print(line, file=sys.stderr)))  # noqa: T201
    return LocalStore(place)


class LocalStore:
    """A folder that all processes of the job see, on this machine or mounted."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.root = Path(place)
        self._token, self._numbers = uuid.uuid4().hex[:12], itertools.count()
        with self._faults(self.root):
            (self.root / PARTIAL_FOLDER).mkdir(parents=True, exist_ok=True)
            probe = self._written(b"")  # that a folder is read-only shows only by writing
            probe.unlink()

    def create(self, name: str, content: bytes) -> bool:
        path = self.root / name
        with self._faults(path):
            if path.exists():
                return path.read_bytes() == content
            partial = self._written(content)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                os.link(partial, path)  # unlike a rename it replaces nothing
            except FileExistsError:
                return path.read_bytes() == content
            except OSError:  # a file system without links
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
        return True

    def write(self, name: str, content: bytes) -> None:
        path = self.root / name
        with self._faults(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._written(content).replace(path)
            except FileNotFoundError:  # whoever ended the job has swept the partial files away
                self._written(content).replace(path)

    def write_file(self, name: str, source: Path) -> None:
        path = self.root / name
        with self._faults(path):
            partial = self._written(b"")
            shutil.copyfile(source, partial)
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.replace(path)

    def read(self, name: str) -> bytes | None:
        path = self.root / name
        with self._faults(path):
            try:
                return path.read_bytes()
            except FileNotFoundError:
                return None

    def exists(self, name: str) -> bool:
        return (self.root / name).is_file()

    def names(self, folder: str) -> list[str]:
        path = self.root / folder
        with self._faults(path):
            return sorted(entry.name for entry in os.scandir(path)) if path.is_dir() else []

    def remove(self, name: str) -> None:
        path = self.root / name
        with self._faults(path):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def tidy(self) -> None:
        for folder in (PARTIAL_FOLDER, *EMPTY_FOLDERS):
            with contextlib.suppress(OSError):
                (self.root / folder).rmdir()

    def _written(self, content: bytes) -> Path:
        """A new file in the folder of partial files."""
        path = self.root / PARTIAL_FOLDER / f"{self._token}-{next(self._numbers)}"
        path.parent.mkdir(exist_ok=True)  # whoever ended the job has removed it
        with path.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return path

    @contextlib.contextmanager
    def _faults(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{path}: cannot be written ({error.strerror or error}); give another --out, or mend it and start the "
                "same command again"
            ) from error


class RemoteStore:
    """A place in an object store. Failing and slow answers are tried again, for as long as `patience_s`."""

    def __init__(self, place: str, *, patience_s: float, say: Callable[[str], None]) -> None:
        self.place = place.rstrip("/")
        self._patience_s, self._say = patience_s, say
        self._files, self._root = _filesystem(self.place)

    def create(self, name: str, content: bytes) -> bool:
        def put() -> bool:
            try:
                self._files.pipe_file(self._path(name), content, mode="create")
            except FileExistsError:
                # Perhaps by this very call: the answer to an earlier try may have been lost on its way.
                return self._files.cat_file(self._path(name)) == content
            return True

        return self._patiently(put)

    def write(self, name: str, content: bytes) -> None:
        self._patiently(lambda: self._files.pipe_file(self._path(name), content))

    def write_file(self, name: str, source: Path) -> None:
        self._patiently(lambda: self._files.put_file(str(source), self._path(name)))

    def read(self, name: str) -> bytes | None:
        return self._patiently(lambda: self._or_none(lambda: self._files.cat_file(self._path(name))))

    def exists(self, name: str) -> bool:
        # Not `isfile`, to which a store that does not answer has no files.
        return self._patiently(lambda: self._or_none(lambda: self._files.info(self._path(name)))) is not None

    def names(self, folder: str) -> list[str]:
        found = self._patiently(lambda: self._or_none(lambda: self._files.ls(self._path(folder), detail=False)))
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found or ())

    def remove(self, name: str) -> None:
        self._patiently(lambda: self._or_none(lambda: self._files.rm(self._path(name), recursive=True)))

    def tidy(self) -> None:
        """There are no folders."""

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _or_none(self, ask: Callable[[], T]) -> T | None:
        try:
            return ask()
        except FileNotFoundError:
            return None

    def _patiently(self, ask: Callable[[], T]) -> T:
        """Asks until there is an answer."""
        began, told = time.monotonic(), False
        for attempt in itertools.count():
            try:
                return ask()
            except Exception as error:  # clients have errors of their own, few of them an OSError
                if _is_refusal(error):
                    raise InputError(
                        f"{self.place}: refused ({_reason(error)}); check its name and your keys"
                    ) from error
                if not told:
                    self._say(f"{self.place}: {_reason(error)}; trying again for up to {self._patience_s:.0f} s")
                    told = True
                waited = time.monotonic() - began
                if waited > self._patience_s:
                    raise InputError(
                        f"{self.place}: no answer for {waited:.0f} s ({_reason(error)}); what is done is kept: start "
                        "the same command again"
                    ) from error
            time.sleep(random.uniform(0.5, 1.0) * min(0.2 * 2**attempt, LONGEST_WAIT_S))
        raise AssertionError


@contextlib.contextmanager
def open_binary(place: str) -> Iterator[IO[bytes]]:
    """Opens a local file or one behind a URL for reading.

    Raises:
        InputError: It is missing or cannot be read.
    """
    try:
        if not is_remote(place):
            with Path(place).open("rb") as file:
                yield file
            return
        files, path = _filesystem(place)
        with files.open(path, "rb") as file:
            yield file
    except FileNotFoundError as error:
        raise InputError(f"{place}: no such file") from error
    except OSError as error:
        raise InputError(f"{place}: cannot be read ({_reason(error)})") from error


def _filesystem(place: str) -> tuple[Any, str]:
    import fsspec

    protocol = place.partition("://")[0]
    options: dict[str, Any] = {}
    if protocol in ("s3", "s3a"):
        times = {"connect_timeout": ANSWER_S, "read_timeout": ANSWER_S}
        options = {"config_kwargs": {"retries": {"max_attempts": 2, "mode": "standard"}, **times}}
    try:
        files = fsspec.filesystem(protocol, use_listings_cache=False, **options)
    except ImportError as error:
        raise InputError(
            f"{place}: {_reason(error)}; run with `uv run --extra cloud`, or install voxinstruct-jax[cloud]"
        ) from error
    except ValueError as error:
        raise InputError(f"{place}: {_reason(error)}; give a folder, s3://... or gs://...") from error
    return files, files._strip_protocol(place)


def _is_refusal(error: Exception) -> bool:
    if isinstance(error, InputError | FileNotFoundError | PermissionError | NotImplementedError | TypeError):
        return True
    return type(error).__name__ in REFUSALS


def _reason(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
