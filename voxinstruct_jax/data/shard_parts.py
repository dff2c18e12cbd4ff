"""The folder of a run of `prepare` while it is made: whose it is, which shards are finished, and the index at the end.

`prepare.json` names the run, `parts/` has a record of each finished shard, `prepare.lock` keeps a second process out.
Files appear whole or not at all, the index last.
"""

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from voxinstruct_jax.config import InputError, from_dict, to_dict
from voxinstruct_jax.data.manifest import Rejection, Row
from voxinstruct_jax.data.shards import Lengths, ShardEntry, ShardIndex, write_index, write_json

__all__ = ["ShardPart", "assemble", "claim", "is_done", "locked", "record", "scan", "text_arrays"]

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
def locked(folder: Path) -> Iterator[None]:
    """Makes the folder and keeps it for this process; the system frees it however the process ends.

    Raises:
        InputError: Another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+") as file:
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
            if (folder / "index.json").exists():
                (folder / LOCK).unlink(missing_ok=True)  # whoever comes now finds a finished run


def claim(folder: Path, identity: Mapping[str, str]) -> None:
    """Names the run in an empty folder, or checks that the folder holds this very run.

    Raises:
        InputError: It holds something else, or a run that differs; the message says in what.
    """
    identity = {"format_version": str(FORMAT_VERSION), **identity}
    path = folder / "prepare.json"
    if not path.exists():
        if any(not item.name.endswith(".partial") and item.name != LOCK for item in folder.iterdir()):
            raise InputError(f"{folder}: holds other files; give an empty folder")
        write_json(path, identity)
    found = json.loads(path.read_text(encoding="utf-8"))
    differing = [name for name in identity if found.get(name) != identity[name]]
    if differing:
        raise InputError(f"{folder}: holds a run with other {', '.join(differing)}; give an empty folder")
    for partial in folder.rglob("*.partial*"):
        partial.unlink(missing_ok=True)


def is_done(folder: Path, number: int) -> bool:
    """Whether the shard of this number is recorded as finished."""
    return _part_path(folder, number).exists()


def record(folder: Path, number: int, part: ShardPart) -> None:
    """Records a shard, whose file is written, as finished."""
    path = _part_path(folder, number)
    path.parent.mkdir(exist_ok=True)
    write_json(path, to_dict(part))


def assemble(
    folder: Path,
    num_shards: int,
    fingerprints: Mapping[str, str],
    rates: tuple[float, float],
    rejected: Sequence[Rejection] = (),
) -> None:
    """Writes `rejected.jsonl` and the index of finished shards.

    Args:
        folder: Of the run; each shard is recorded.
        num_shards: How many there are.
        fingerprints: Of codec, units and tokenizer.
        rates: Of the codec and of the semantic units (Hz).
        rejected: Rows set aside before, listed first.

    Raises:
        InputError: Every row was set aside.
    """
    _write_rejected(folder, num_shards, rejected)
    columns = _Columns()
    entries, seconds, languages, largest = [], 0.0, Counter[str](), np.zeros(3, int)
    for part in _parts(folder, num_shards):
        if part.entry is not None:
            entries.append(part.entry)
        seconds += part.duration_s
        languages.update(part.languages)
        largest = np.maximum(largest, (part.num_codebooks, part.largest_code, part.largest_semantic_token))
        columns.add(part)
    if not entries:
        raise InputError(f"{folder}: all rows were set aside, see rejected.jsonl; mend them and give an empty folder")
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
    shutil.rmtree(folder / "parts")


def text_arrays(text: Iterable[Sequence[int]]) -> dict[str, np.ndarray]:
    """The fields `text` and `text_offsets` of `Lengths`, from the counts of each record's variants."""
    flat, sizes = [], []
    for counts in text:
        flat.extend(counts)
        sizes.append(len(counts))
    return {"text": np.array(flat, np.int32), "text_offsets": np.cumsum([0, *sizes]).astype(np.int64)}


class _Columns:
    """Gathers the lengths of all records, a few bytes each."""

    def __init__(self) -> None:
        self._arrays: dict[str, list[np.ndarray]] = {"frames": [], "semantic": [], "speakers": [], "text": []}
        self._variants = [np.zeros(1, np.int64)]
        self._speakers: dict[str, int] = {"": 0}
        self._languages: list[str] = []
        self._stressed: list[np.ndarray] = []

    def add(self, part: ShardPart) -> None:
        numbers = [self._speakers.setdefault(name, len(self._speakers)) for name in part.speakers]
        text = text_arrays(part.text)
        found = {"frames": part.frames, "semantic": part.semantic, "speakers": numbers, "text": text["text"]}
        for name, values in found.items():
            self._arrays[name].append(np.array(values, np.int32))
        self._variants.append(np.diff(text["text_offsets"]))
        self._languages.extend(map(sys.intern, part.languages))
        self._stressed.append(np.array(part.stressed, bool))

    def lengths(self) -> Lengths:
        names = {name: number for number, name in enumerate(sorted({*self._languages}))}
        arrays = {name: np.concatenate(pieces) for name, pieces in self._arrays.items()}
        arrays["speakers"] = self._in_order_of_names()[arrays["speakers"]]
        return Lengths(
            **arrays,
            text_offsets=np.cumsum(np.concatenate(self._variants)),
            languages=np.array([names[name] for name in self._languages], np.int8),
            stressed=np.concatenate(self._stressed),
        )

    def _in_order_of_names(self) -> Int32[np.ndarray, " speaker"]:
        """The final number of each speaker; "" sorts first and keeps 0."""
        final = np.zeros(len(self._speakers), np.int32)
        for number, name in enumerate(sorted(self._speakers)):
            final[self._speakers[name]] = number
        return final


def _write_rejected(folder: Path, num_shards: int, first: Sequence[Rejection]) -> None:
    partial = folder / "rejected.jsonl.partial"
    with partial.open("w", encoding="utf-8") as file:
        for rejections in itertools.chain([first], (part.rejected for part in _parts(folder, num_shards))):
            file.writelines(json.dumps(to_dict(item), ensure_ascii=False) + "\n" for item in rejections)
    partial.replace(folder / "rejected.jsonl")


def _parts(folder: Path, num_shards: int) -> Iterator[ShardPart]:
    for number in range(num_shards):
        path = _part_path(folder, number)
        yield from_dict(ShardPart, json.loads(path.read_text(encoding="utf-8")), path=str(path))


def _part_path(folder: Path, number: int) -> Path:
    return folder / "parts" / f"shard-{number:05d}.json"
