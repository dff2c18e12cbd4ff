import dataclasses
import json
import zlib

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxinstruct_jax.config import InputError
from voxinstruct_jax.data.shards import Example, ShardReader, decode_example, encode_example, write_shard


def same(one: Example, other: Example) -> bool:
    pairs = [(getattr(one, item.name), getattr(other, item.name)) for item in dataclasses.fields(Example)]
    return all(
        np.array_equal(a, b) and a.dtype == b.dtype == np.int16 if isinstance(a, np.ndarray) else a == b
        for a, b in pairs
    )


def make_example(runs: int, codebooks: int, frames: int, largest: int, seed: int = 0, text: str = "Hi “there”"):
    random = np.random.default_rng(seed)
    return Example(
        id=f"id-{seed}",
        language="zh",
        transcript=text,
        instructions=(text, f"Say {text}"),
        semantic_tokens=random.integers(0, largest + 1, runs).astype(np.int16),
        run_lengths=random.integers(1, 30, runs).astype(np.int16),
        codes=random.integers(0, largest + 1, (codebooks, frames)).astype(np.int16),
        speaker="s",
        attributes={"gender": "male", "stress": [0, 2]},
        durations=random.integers(0, 40, len(text) + 2).astype(np.int16),
    )


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 9), st.integers(1, 4), st.integers(0, 20), st.sampled_from([0, 1, 499, 1023, 32767]), st.text())
def test_decoded_examples_equal_what_was_encoded(runs, codebooks, frames, largest, text):
    example = make_example(runs, codebooks, frames, largest, text=text)
    assert same(decode_example(encode_example(example)), example)


def without_last_field(record: bytes) -> bytes:
    return zlib.compress(msgpack.packb(msgpack.unpackb(zlib.decompress(record))[:-1]))


def test_records_of_version_1_have_no_durations():
    example = make_example(3, 2, 4, 9)
    old = without_last_field(encode_example(example))
    assert same(decode_example(old), dataclasses.replace(example, durations=np.zeros(0, np.int16)))
    with pytest.raises(InputError, match="the record is damaged"):
        decode_example(without_last_field(old))


def test_an_hour_of_speech_takes_about_a_megabyte(tmp_path):
    random = np.random.default_rng(0)
    text = "".join(random.choice(list("abcdefghijklmnopqrstuvwxyz "), 60))
    clips = [make_example(40, 8, 100, 1023, seed=seed, text=text) for seed in range(900)]
    entry = write_shard(tmp_path / "shard.array_record", clips)
    assert entry.num_bytes < 1.35e6


def test_a_shard_appears_whole_or_not_at_all(tmp_path):
    def broken():
        yield make_example(3, 2, 4, 9)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path / "shard.array_record", broken())
    assert write_shard(tmp_path / "shard.array_record", []) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("record", [b"", b"no zlib", encode_example(make_example(3, 2, 4, 9))[:-3]])
def test_damaged_records_are_refused(record):
    with pytest.raises(InputError, match="the record is damaged"):
        decode_example(record)


@pytest.fixture
def copied(reader, tmp_path):
    for path in reader.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_damage_inside_a_shard_is_found_by_its_checksum_and_on_reading(copied):
    path = copied / "shard-00001.array_record"
    content = bytearray(path.read_bytes())
    for place in range(100, 1000):
        content[place] ^= 255
    path.write_bytes(content)
    reader = ShardReader(copied)
    with pytest.raises(InputError, match=r"shard-00001.array_record: damaged \(checksum differs\)"):
        reader.verify()
    assert reader[0].id == "clip-0"
    with pytest.raises(InputError, match=r"shard-00001.array_record: record \d+: "):
        [reader[record] for record in range(8, 16)]


def test_whole_shards_verify(copied):
    ShardReader(copied).verify()


def test_truncated_and_missing_files_are_named_on_opening(copied):
    path = copied / "shard-00002.array_record"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(InputError, match=f"shard-00002.array_record: {len(content) - 1} bytes, not {len(content)}"):
        ShardReader(copied)
    path.unlink()
    with pytest.raises(InputError, match=r"shard-00002\.array_record: missing"):
        ShardReader(copied)
    (copied / "lengths.npz").write_bytes(b"x")
    with pytest.raises(InputError, match=r"lengths\.npz: missing or damaged"):
        ShardReader(copied)


def test_an_index_of_version_1_is_read(copied, reader):
    index = json.loads((copied / "index.json").read_text())
    assert index["format_version"] == 2
    (copied / "index.json").write_text(json.dumps(index | {"format_version": 1}))
    old = ShardReader(copied)
    assert old.index.format_version == 1
    assert same(old[3], reader[3])
    assert old[3].durations.shape == (0,)


def test_an_index_of_another_format_or_none_is_refused(copied):
    index = json.loads((copied / "index.json").read_text())
    (copied / "index.json").write_text(json.dumps(index | {"format_version": 99}))
    with pytest.raises(InputError, match=r"format version 99, this release reads \(1, 2\)"):
        ShardReader(copied)
    (copied / "index.json").write_text("{")
    with pytest.raises(InputError, match=r"index\.json: damaged"):
        ShardReader(copied)
    (copied / "index.json").unlink()
    with pytest.raises(InputError, match="holds no index"):
        ShardReader(copied)
