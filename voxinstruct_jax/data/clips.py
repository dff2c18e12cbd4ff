"""The sound of one manifest row: from a local file or a store, the whole of it or a part."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

from voxinstruct_jax.audio.waveform import read_audio
from voxinstruct_jax.config import InputError
from voxinstruct_jax.data.manifest import Row
from voxinstruct_jax.data.store import is_remote, patiently

__all__ = ["MAX_DURATION_S", "MIN_DURATION_S", "read_clip"]

MIN_DURATION_S = 0.2
MAX_DURATION_S = 120.0
"""Longer than any row of training; an hour in one clip would also take gigabytes to encode."""
BLOCK_BYTES = 2**19
"""Fetched at a time; the stores' own default is some 50 MB."""


def read_clip(row: Row, sample_rate: int) -> Float[np.ndarray, " sample"]:
    """Reads the clip of a row, mono at `sample_rate` (Hz).

    A remote recording is read by range: what lies around the clip is not fetched, and nothing is kept on disk.

    Raises:
        InputError: There is no such sound, or it is damaged, too short or too long.
        ConnectionError: The store does not answer or refuses; other rows would fail as this one.
    """
    if not is_remote(row.audio):
        return _read(row.audio, row, sample_rate)

    def fetched() -> np.ndarray:
        with _opened(row.audio) as file:
            try:
                return _read(file, row, sample_rate)
            except InputError:
                if file.error is None:
                    raise
                raise file.error from None

    try:
        return patiently(row.audio, fetched)
    except FileNotFoundError as error:
        raise InputError(f"{row.audio}: no such audio file") from error


def _read(source: Any, row: Row, sample_rate: int) -> Float[np.ndarray, " sample"]:
    samples = read_audio(
        source,
        sample_rate,
        offset_s=row.offset_s,
        duration_s=row.duration_s,
        limit_s=MAX_DURATION_S,
        name=row.audio,
    )
    if len(samples) < MIN_DURATION_S * sample_rate:
        found_s = len(samples) / sample_rate
        raise InputError(f"{row.audio}: {found_s:.2f} s is too short; give at least {MIN_DURATION_S} s")
    return samples


class _WatchedFile:
    """A file that remembers why it could not be read: libsndfile takes an error for the end of the file."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.error: Exception | None = None

    def read(self, size: int = -1) -> bytes:
        try:
            return self._file.read(size)
        except Exception as error:
            self.error = error
            raise

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


@contextlib.contextmanager
def _opened(location: str) -> Iterator[_WatchedFile]:
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(location)
    with filesystem.open(path, "rb", block_size=BLOCK_BYTES) as file:
        yield _WatchedFile(file)
