"""Token shards: prepared clips in ArrayRecord files, and the index that makes plans possible without reading them.

A folder holds `shard-*.array_record` (one compressed example a record), `lengths.npz` (what packing needs to know of
each record) and `index.json` (counts, fingerprints, checksums). What goes into a shard is decided in `prepare`. A
folder in a store is read from a copy on this machine.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import posixpath
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Bool, Int, Int8, Int16, Int32, Int64

from voxinstruct_jax.config import InputError, VoxError, fingerprint, from_dict, to_dict
from voxinstruct_jax.data import store

__all__ = [
    "Example",
    "Lengths",
    "ShardEntry",
    "ShardIndex",
    "ShardReader",
    "decode_example",
    "encode_example",
    "is_stressed",
    "local_folder",
    "write_index",
    "write_shard",
]

FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)
"""Version 1 has no durations."""
INDEX, LENGTHS = "index.json", "lengths.npz"
NUM_FETCHERS = 8
"""Files that are fetched from a store at a time."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One prepared clip."""

    id: str
    language: str
    transcript: str
    instructions: tuple[str, ...]
    """Described variants first; the last one is always the transcript alone, in quotes."""
    semantic_tokens: Int16[np.ndarray, " run"]
    """K-means ids, de-duplicated."""
    run_lengths: Int16[np.ndarray, " run"]
    """Semantic frames that each token lasts; their sum is the number of codec frames where both have one rate."""
    codes: Int16[np.ndarray, "codebook frame"]
    """Codec indices."""
    speaker: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)
    durations: Int16[np.ndarray, " character"] = field(default_factory=lambda: np.zeros(0, np.int16))
    """How long each character of the transcript is spoken, in half frames, as the text tokenizer has them: from the
    opening quote (the silence before) to the closing one (the silence after). Empty = not known."""


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """What packing needs to know of every record, in record order."""

    frames: Int32[np.ndarray, " record"]
    semantic: Int32[np.ndarray, " record"]
    """Number of semantic tokens after de-duplication."""
    text: Int32[np.ndarray, " variant"]
    """Text tokens of every instruction variant of every record, one record after another."""
    text_offsets: Int64[np.ndarray, " record_and_end"]
    """Where each record's variants start in `text`, and the end."""
    speakers: Int32[np.ndarray, " record"]
    """Number of each record's speaker, from 1; 0 = unknown."""
    languages: Int8[np.ndarray, " known"] = field(default_factory=lambda: np.zeros(0, np.int8))
    """Number of each record's language among the index's, by name. Empty in folders of earlier releases, as is
    `stressed`: see `ShardReader.languages`."""
    stressed: Bool[np.ndarray, " known"] = field(default_factory=lambda: np.zeros(0, bool))
    """Whether the stressed words of the record are known."""

    def num_variants_of(self, records: Int[np.ndarray, " chosen"]) -> Int64[np.ndarray, " chosen"]:
        """Returns how many instruction variants the records have."""
        return self.text_offsets[records + 1] - self.text_offsets[records]

    def text_of(
        self, records: Int[np.ndarray, " chosen"], variants: Int[np.ndarray, " chosen"]
    ) -> Int32[np.ndarray, " chosen"]:
        """Returns the text length of one chosen variant of each of the records."""
        return self.text[self.text_offsets[records] + variants]


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One shard file."""

    name: str
    num_examples: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """`index.json`."""

    fingerprints: dict[str, str]
    """Of what made the shards: codec, units, tokenizer."""
    frame_rate: float
    """Codec frames a second (Hz)."""
    num_examples: int
    hours: float
    num_codebooks: int
    largest_code: int
    largest_semantic_token: int
    languages: dict[str, int]
    """Examples by language."""
    shards: tuple[ShardEntry, ...]
    semantic_rate: float | None = None
    """Semantic frames a second (Hz), before de-duplication; None = as codec frames (older folders)."""
    lengths_sha256: str = ""
    format_version: int = FORMAT_VERSION


def is_stressed(example: Example) -> bool:
    """Whether the clip's stressed words are known: such clips make the fine-grained stage."""
    return bool(example.attributes.get("stress"))


def encode_example(example: Example) -> bytes:
    """Packs an example: arrays at as many bits as they need, fields in their order without names, all compressed.

    Eight codebooks of 1024 entries at 25 Hz take .9 MB an hour.
    """
    import msgpack

    fields = [getattr(example, item.name) for item in dataclasses.fields(example)]
    packed = [_pack_bits(value) if isinstance(value, np.ndarray) else value for value in fields]
    return zlib.compress(msgpack.Packer().pack(packed), 9)


def decode_example(record: bytes) -> Example:
    """Inverse of `encode_example`.

    Raises:
        InputError: The bytes are no example.
    """
    import msgpack

    try:
        names = [item.name for item in dataclasses.fields(Example)]
        values = msgpack.unpackb(zlib.decompress(record))
        # the last field is younger than the rest
        fields = dict(zip(names[: len(values)] if len(values) == len(names) - 1 else names, values, strict=True))
        for name in {"semantic_tokens", "run_lengths", "codes", "durations"} & fields.keys():
            fields[name] = _unpack_bits(*fields[name])
        return Example(**{**fields, "instructions": tuple(fields["instructions"])})
    except (zlib.error, ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
        raise InputError(f"the record is damaged ({error}); prepare this shard again") from error


def write_shard(path: Path, examples: Iterable[Example]) -> ShardEntry | None:
    """Writes a shard that appears whole or not at all; None and no file if there are no examples.

    Raises:
        OSError: It cannot be written, as when the disk is full.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    partial = store.partial_of(path)
    # group_size:1 makes each record its own chunk: random access reads one record. Records are compressed already.
    writer = ArrayRecordWriter(str(partial), "group_size:1,uncompressed")
    num_examples = 0
    try:
        for example in examples:
            writer.write(encode_example(example))
            num_examples += 1
        writer.close()
        if not num_examples:
            return None
        entry = ShardEntry(
            name=path.name, num_examples=num_examples, num_bytes=partial.stat().st_size, sha256=store.sha256(partial)
        )
        partial.replace(path)
        return entry
    except RuntimeError as error:  # of ArrayRecord
        raise OSError(f"{path}: cannot be written ({error})") from error
    finally:
        partial.unlink(missing_ok=True)


def write_index(folder: str | os.PathLike[str], index: ShardIndex, lengths: Lengths) -> ShardIndex:
    """Writes `lengths.npz`, then `index.json`, which makes the folder complete; returns the index as written.

    The lengths are not compressed, so that a reader can leave them on disk.
    """
    with store.staged(os.fspath(folder)) as place:
        partial = place / "lengths.partial.npz"
        np.savez(partial, **{item.name: getattr(lengths, item.name) for item in dataclasses.fields(Lengths)})
        index = dataclasses.replace(index, lengths_sha256=store.sha256(partial))
        partial.replace(place / LENGTHS)
    store.write_json(store.join(os.fspath(folder), INDEX), to_dict(index))
    return index


class ShardReader:
    """Random access to the examples of a folder; safe to use from several threads."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Opens a folder that `prepare` has finished; shards in a store are fetched when the first record is asked for.

        Raises:
            InputError: The folder is no finished one, was written by another format version, or a file of it is
                missing or has the wrong size; or the store does not answer.
        """
        self.location = os.fspath(folder)
        self.folder = local_folder(folder)
        self.index = _read_index(self.folder)
        self.lengths = self._read_lengths()
        self._opened, self._lock = None, threading.Lock()
        if not store.is_remote(folder):
            self._open()

    def __reduce__(self) -> tuple[type["ShardReader"], tuple[str]]:
        """Another process opens the folder itself, and shares the pages of the lengths."""
        return type(self), (self.location,)

    def fetch(self) -> Path:
        """Returns the folder on this machine, with all shards in it.

        Raises:
            InputError: A shard is missing or damaged, or the store does not answer.
        """
        if store.is_remote(self.location):
            with _reached(), store.locked(self.folder), ThreadPoolExecutor(NUM_FETCHERS) as fetchers:
                missing = [shard for shard in self.index.shards if _size(self.folder / shard.name) != shard.num_bytes]
                for done in [fetchers.submit(self._fetch_shard, shard) for shard in missing]:
                    done.result()
        return self.folder

    def __len__(self) -> int:
        return self.index.num_examples

    def __getitem__(self, record: int) -> Example:
        try:
            return decode_example(self._open()[record])
        except (VoxError, RuntimeError, ValueError) as error:
            raise InputError(f"{self._shard_of(record)}: record {record}: {error}") from error

    @property
    def languages(self) -> Int8[np.ndarray, " record"]:
        """Number of each record's language among the index's, by name."""
        return self._told.languages

    @property
    def stressed(self) -> Bool[np.ndarray, " record"]:
        """Whether the stressed words of each record are known."""
        return self._told.stressed

    @functools.cached_property
    def _told(self) -> Lengths:
        """The lengths with all columns; those that an earlier release left out are read from the records."""
        if len(self.lengths.languages) == len(self):
            return self.lengths
        names = sorted(self.index.languages)
        found = [(names.index(each.language), is_stressed(each)) for each in map(self.__getitem__, range(len(self)))]
        return dataclasses.replace(
            self.lengths,
            languages=np.array([language for language, _ in found], np.int8),
            stressed=np.array([stressed for _, stressed in found], bool),
        )

    @property
    def fingerprint(self) -> str:
        """Changes when any byte of the shards or any length in the index changes."""
        values = to_dict(self.index)
        if values["semantic_rate"] is None:  # a folder made before the rate was stored keeps its fingerprint
            del values["semantic_rate"]
        return fingerprint(values)

    def verify(self) -> None:
        """Reads every shard and compares its checksum.

        Raises:
            InputError: A shard's bytes are not those that were written; names the first one.
        """
        self.fetch()
        for shard in self.index.shards:
            if store.sha256(self.folder / shard.name) != shard.sha256:
                raise InputError(f"{self.folder / shard.name}: damaged (checksum differs); copy or prepare it again")

    def _open(self) -> Any:
        """The records of all shards, in order."""
        import grain

        with self._lock:
            if self._opened is None:
                self.fetch()
                for shard in self.index.shards:
                    path = self.folder / shard.name
                    if (found := _size(path)) != shard.num_bytes:
                        state = "missing" if found is None else f"{found} bytes, not {shard.num_bytes}"
                        raise InputError(f"{path}: {state}; copy it again or run prepare in an empty folder")
                paths = [str(self.folder / shard.name) for shard in self.index.shards]
                try:
                    self._opened = grain.sources.ArrayRecordDataSource(paths)
                except RuntimeError as error:
                    raise InputError(
                        f"{self.folder}: a shard is damaged; copy or prepare it again ({error})"
                    ) from error
            return self._opened

    def _fetch_shard(self, shard: ShardEntry) -> None:
        store.download(store.join(self.location, shard.name), self.folder / shard.name, shard.sha256)

    def _read_lengths(self) -> Lengths:
        path = self.folder / LENGTHS
        if not path.is_file() or store.sha256(path) != self.index.lengths_sha256:
            raise InputError(f"{path}: missing or damaged; copy it again or run prepare in an empty folder")
        return Lengths(**_columns(path))

    def _shard_of(self, record: int) -> Path:
        ends = np.cumsum([shard.num_examples for shard in self.index.shards])
        return self.folder / self.index.shards[int(np.searchsorted(ends, record, side="right"))].name


def local_folder(folder: str | os.PathLike[str]) -> Path:
    """Returns the folder itself, or for one in a store its place on this machine, with all files but the shards in it.

    The place is named after the index: when that changes, all files are fetched anew.

    Raises:
        InputError: As `ShardReader`.
    """
    if not store.is_remote(folder):
        return Path(folder)
    location = os.fspath(folder)
    with _reached():
        try:
            content = store.read(store.join(location, INDEX))
        except FileNotFoundError as error:
            raise InputError(f"{location}: holds no {INDEX}; give a folder that `prepare` has finished") from error
    index = _parse_index(content, store.join(location, INDEX))
    digest = hashlib.sha256(content).hexdigest()[:16]
    folder = store.cache_folder(posixpath.join("shards", digest, posixpath.basename(location.rstrip("/"))))
    with _reached(), store.locked(folder):
        store.write(str(folder / INDEX), content)
        if not (folder / LENGTHS).is_file() or store.sha256(folder / LENGTHS) != index.lengths_sha256:
            store.download(store.join(location, LENGTHS), folder / LENGTHS, index.lengths_sha256)
        if "bins.json" in store.names(location):  # boundaries go where what they made goes
            store.write(str(folder / "bins.json"), store.read(store.join(location, "bins.json")))
    return folder


@contextlib.contextmanager
def _reached() -> Iterator[None]:
    """A store that does not answer is the user's matter."""
    try:
        yield
    except ConnectionError as error:
        raise InputError(str(error)) from error


def _read_index(folder: Path) -> ShardIndex:
    path = folder / INDEX
    if not path.is_file():
        raise InputError(f"{folder}: holds no {INDEX}; give a folder that `prepare` has finished")
    return _parse_index(path.read_bytes(), str(path))


def _parse_index(content: bytes, path: str) -> ShardIndex:
    try:
        values = json.loads(content)
        if values["format_version"] not in READABLE_VERSIONS:
            raise InputError(
                f"{path}: format version {values['format_version']}, this release reads {READABLE_VERSIONS}"
            )
        return from_dict(ShardIndex, values)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error}); copy it again") from error


def _columns(path: Path) -> dict[str, np.ndarray]:
    """The columns of `lengths.npz`, mapped: the system reads what is asked for, and all processes share it.

    Those that an earlier release compressed are read into memory.
    """
    names, found = {item.name for item in dataclasses.fields(Lengths)}, {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if name not in names:
                continue
            if member.compress_type == zipfile.ZIP_STORED:
                found[name] = _mapped(file, member.header_offset)
            else:
                with archive.open(member) as column:
                    found[name] = np.lib.format.read_array(column, allow_pickle=False)
    return found


def _mapped(file: BinaryIO, header_offset: int) -> np.ndarray:
    """Maps the array of an archive's member that is not compressed."""
    file.seek(header_offset + 26)  # of the member's own header, which ends in its name and its extra field
    file.seek(header_offset + 30 + sum(struct.unpack("<HH", file.read(4))))
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if not shape[0]:  # nothing to map
        return np.zeros(shape, dtype)
    return np.asarray(np.memmap(file, dtype, "r", file.tell(), shape))


def _pack_bits(values: Int[np.ndarray, "*shape"]) -> tuple[list[int], int, bytes]:
    flat = values.reshape(-1).astype(np.uint16)
    bits = max(int(flat.max(initial=0)).bit_length(), 1)
    table = (flat[:, None] >> np.arange(bits, dtype=np.uint16)) & 1
    return list(values.shape), bits, np.packbits(table.astype(np.uint8)).tobytes()


def _unpack_bits(shape: list[int], bits: int, data: bytes) -> Int16[np.ndarray, "*shape"]:
    count = int(np.prod(shape))
    table = np.unpackbits(np.frombuffer(data, np.uint8), count=count * bits).reshape(count, bits)
    return (table.astype(np.int32) @ (1 << np.arange(bits, dtype=np.int32))).astype(np.int16).reshape(shape)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
