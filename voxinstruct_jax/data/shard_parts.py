"""The folder of a run of `prepare` while it is made: whose it is, which shards are finished, and the index at the end.

`prepare.json` names the run, `parts/` has a record of each finished shard, `prepare.lock` keeps a second process out
(not in a store: there two runs make the same files). Files appear whole or not at all, the index last.
"""

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from voxinstruct_jax.config import InputError, from_dict, to_dict
from voxinstruct_jax.data import store
from voxinstruct_jax.data.manifest import Rejection, Row
from voxinstruct_jax.data.shards import Lengths, ShardEntry, ShardIndex, write_index

__all__ = ["ShardPart", "assemble", "claim", "finished", "locked", "record", "scan", "text_arrays"]

FORMAT_VERSION = 2
LOCK = "prepare.lock"
ENCODED_FIELDS = ("id", "language", "transcript", "offset_s", "duration_s", "speaker", "instructions", "attributes")
"""What of a row goes into a shard; other columns may change while a run is resumed."""


@dataclass(frozen=True, kw_only=True)
class ShardPart:
    """What is recorded of a finished shard until the index is written."""

    entry: ShardEntry | None
    """None if every row was set aside."""
    duration_s: float
    num_codebooks: int
    largest_code: int
    largest_semantic_token: int
    languages: tuple[str, ...]
    """Language of each example."""
    speakers: tuple[str, ...]
    stressed: tuple[bool, ...]
    """Whether the stressed words of each example are known."""
    frames: tuple[int, ...]
    semantic: tuple[int, ...]
    text: tuple[tuple[int, ...], ...]
    """Text tokens of each variant of each example."""
    rejected: tuple[Rejection, ...]


def scan(rows: Iterable[Row]) -> tuple[int, str]:
    """Returns the number of rows and a fingerprint of what shards take from them, however the manifest is stored."""
    digest, count = hashlib.sha256(), 0
    for row in rows:
        audio = row.audio if "://" in row.audio else os.path.abspath(row.audio)  # noqa: PTH100 - a million times
        values: dict[str, Any] = {name: getattr(row, name) for name in ENCODED_FIELDS}
        digest.update(json.dumps({**values, "audio": audio}, sort_keys=True).encode())
        count += 1
    return count, digest.hexdigest()[:16]


@contextlib.contextmanager
def locked(folder: str) -> Iterator[None]:
    """Makes the folder and keeps it for this process; the system frees it however the process ends.

    Raises:
        InputError: Another process has it.
    """
    if store.is_remote(folder):
        yield
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    lock = Path(folder) / LOCK
    with lock.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise InputError(
                f"{folder}: {file.read().strip() or 'another process'} is preparing it; wait for it or stop it"
            ) from None
        except OSError:  # a network folder without locks: shards come out the same if two runs make them
            pass
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}")
        file.flush()
        try:
            yield
        finally:
            if (Path(folder) / "index.json").exists():
                lock.unlink(missing_ok=True)  # whoever comes now finds a finished run


def claim(folder: str, identity: Mapping[str, str]) -> bool:
    """Names the run in an empty folder, or checks that the folder holds this very run; returns whether it is finished.

    Raises:
        InputError: It holds something else, or a run that differs; the message says in what.
    """
    identity = {"format_version": str(FORMAT_VERSION), **identity}
    path, there = store.join(folder, "prepare.json"), store.names(folder)
    if "prepare.json" not in there:
        if any(not name.endswith(".partial") and name != LOCK for name in there):
            raise InputError(f"{folder}: holds other files; give an empty folder")
        store.write_json(path, identity)
    found = json.loads(store.read(path))
    differing = [name for name in identity if found.get(name) != identity[name]]
    if differing:
        raise InputError(f"{folder}: holds a run with other {', '.join(differing)}; give an empty folder")
    if not store.is_remote(folder):
        for partial in list(Path(folder).rglob("*.partial*")):
            store.remove(str(partial))
    return "index.json" in there


def finished(folder: str) -> set[int]:
    """Numbers of the shards that are recorded as finished."""
    recorded = store.names(store.join(folder, "parts"))
    return {int(name[len("shard-") : -len(".json")]) for name in recorded if name.endswith(".json")}


def record(folder: str, number: int, part: ShardPart) -> None:
    """Records a shard, whose file is written, as finished."""
    if not store.is_remote(folder):
        Path(folder, "parts").mkdir(exist_ok=True)
    store.write_json(_part_path(folder, number), to_dict(part))


def assemble(
    folder: str,
    num_shards: int,
    fingerprints: Mapping[str, str],
    rates: tuple[float, float],
    rejected: Sequence[Rejection] = (),
) -> None:
    """Writes `rejected.jsonl` and the index of finished shards; memory does not grow with the number of clips.

    Args:
        folder: Of the run; each shard is recorded.
        num_shards: How many there are.
        fingerprints: Of codec, units and tokenizer.
        rates: Of the codec and of the semantic units (Hz).
        rejected: Rows set aside before, listed first.

    Raises:
        InputError: Every row was set aside; or a finished shard is gone, which the same command then makes again.
    """
    _write_rejected(folder, num_shards, rejected)
    entries, seconds, languages, largest = [], 0.0, Counter[str](), np.zeros(3, int)
    with _scratch(folder) as scratch:
        columns = _Columns(Path(scratch))
        for part in _parts(folder, num_shards):
            if part.entry is not None:
                entries.append(part.entry)
            seconds += part.duration_s
            languages.update(part.languages)
            largest = np.maximum(largest, (part.num_codebooks, part.largest_code, part.largest_semantic_token))
            columns.add(part)
        if not entries:
            raise InputError(
                f"{folder}: all rows were set aside, see rejected.jsonl; mend them and give an empty folder"
            )
        _check_shards(folder, entries)
        num_codebooks, largest_code, largest_semantic_token = largest.tolist()
        index = ShardIndex(
            fingerprints=dict(fingerprints),
            frame_rate=rates[0],
            semantic_rate=rates[1],
            num_examples=sum(entry.num_examples for entry in entries),
            hours=seconds / 3600,
            num_codebooks=num_codebooks,
            largest_code=largest_code,
            largest_semantic_token=largest_semantic_token,
            languages=dict(sorted(languages.items())),
            shards=tuple(entries),
        )
        write_index(folder, index, columns.lengths())
    store.remove(store.join(folder, "parts"))


def _check_shards(folder: str, entries: Sequence[ShardEntry]) -> None:
    """Forgets finished shards that are not there any more, and says so."""
    there = store.sizes(folder)
    gone = [entry.name for entry in entries if there.get(entry.name) != entry.num_bytes]
    for name in gone:
        store.remove(store.join(folder, "parts", Path(name).stem + ".json"))
    if gone:
        raise InputError(f"{folder}: {', '.join(gone)} is missing or cut short; run the same command again to make it")


def _scratch(folder: str) -> "tempfile.TemporaryDirectory[str]":
    """A folder for what is large and gone at the end: beside the shards, where there is room, if they are local."""
    return tempfile.TemporaryDirectory(suffix=".partial", dir=None if store.is_remote(folder) else folder)


def text_arrays(text: Iterable[Sequence[int]]) -> dict[str, np.ndarray]:
    """The fields `text` and `text_offsets` of `Lengths`, from the counts of each record's variants."""
    flat, sizes = [], []
    for counts in text:
        flat.extend(counts)
        sizes.append(len(counts))
    return {"text": np.array(flat, np.int32), "text_offsets": np.cumsum([0, *sizes]).astype(np.int64)}


class _Columns:
    """Gathers the lengths of all records in files: a number is in memory for each speaker, not for each record."""

    DTYPES = {  # noqa: RUF012 - never changed
        "frames": np.int32,
        "semantic": np.int32,
        "text": np.int32,
        "text_offsets": np.int64,
        "speakers": np.int32,
        "languages": np.int8,
        "stressed": np.bool_,
    }
    PIECE = 2**20

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._speakers: dict[str, int] = {"": 0}
        self._languages: dict[str, int] = {}
        self._num_text = 0
        self._put("text_offsets", [0])

    def add(self, part: ShardPart) -> None:
        text = text_arrays(part.text)
        for name in ("frames", "semantic", "stressed"):
            self._put(name, getattr(part, name))
        self._put("text", text["text"])
        self._put("text_offsets", text["text_offsets"][1:] + self._num_text)
        self._num_text += len(text["text"])
        self._put("speakers", [self._speakers.setdefault(name, len(self._speakers)) for name in part.speakers])
        self._put("languages", [self._languages.setdefault(name, len(self._languages)) for name in part.languages])

    def lengths(self) -> Lengths:
        """All columns, on disk; speakers ("" keeps 0) and languages by their place among the sorted names."""
        arrays = {name: self._mapped(name) for name in self.DTYPES}
        for name, numbers in (("speakers", self._speakers), ("languages", self._languages)):
            final = np.zeros(len(numbers), self.DTYPES[name])
            for place, value in enumerate(sorted(numbers)):
                final[numbers[value]] = place
            for first in range(0, len(arrays[name]), self.PIECE):
                piece = slice(first, first + self.PIECE)
                arrays[name][piece] = final[arrays[name][piece]]
        return Lengths(**arrays)

    def _put(self, name: str, values: Sequence[int] | np.ndarray) -> None:
        with (self._folder / name).open("ab") as file:
            file.write(np.asarray(values, self.DTYPES[name]).tobytes())

    def _mapped(self, name: str) -> np.ndarray:
        return np.asarray(np.memmap(self._folder / name, self.DTYPES[name], "r+"))


def _write_rejected(folder: str, num_shards: int, first: Sequence[Rejection]) -> None:
    with store.staged(folder) as place:
        partial = place / "rejected.jsonl.partial"
        with partial.open("w", encoding="utf-8") as file:
            for rejections in itertools.chain([first], (part.rejected for part in _parts(folder, num_shards))):
                file.writelines(json.dumps(to_dict(item), ensure_ascii=False) + "\n" for item in rejections)
        partial.replace(place / "rejected.jsonl")


def _parts(folder: str, num_shards: int) -> Iterator[ShardPart]:
    for number in range(num_shards):
        path = _part_path(folder, number)
        yield from_dict(ShardPart, json.loads(store.read(path)), path=path)


def _part_path(folder: str, number: int) -> str:
    return store.join(folder, "parts", f"shard-{number:05d}.json")
