"""Shards in a store: what a run leaves there, through kills and faults, is what a run on disk leaves.

`memory://` stands in where requests fail; where several processes are needed it is S3, or `file://` where that cannot
be had.
"""

import dataclasses
import json
import pathlib
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from voxinstruct_jax.config import InputError
from voxinstruct_jax.data import store
from voxinstruct_jax.data.batches import TokenBatches
from voxinstruct_jax.data.manifest import write_manifest
from voxinstruct_jax.data.plan import BatchConfig
from voxinstruct_jax.data.prepare import prepare, recount_text
from voxinstruct_jax.data.shards import ShardReader

HERE = pathlib.Path(__file__).parent
RUN = """
import functools, sys
sys.path.insert(0, sys.argv[1])
import conftest, failing_encoders
from voxinstruct_jax.data.manifest import ManifestRows
from voxinstruct_jax.data.prepare import prepare
from voxinstruct_jax.data.workers import in_processes

if __name__ == "__main__":
    _, _, manifest, out, factory, *arguments = sys.argv
    opened = functools.partial(getattr(failing_encoders, factory), *arguments)
    engine = in_processes(opened, 1, say=lambda line: print(line, flush=True))
    prepare(ManifestRows(manifest), out, conftest.make_encoders(), engine=engine, shard_size=8, progress=False)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Copies of this test alone; no waiting for a store that fails on purpose."""
    monkeypatch.setenv("VOXINSTRUCT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "RETRY_DELAYS_S", (0.0, 0.0))
    return tmp_path / "cache"


@pytest.fixture
def memory():
    """An empty store and its URL."""
    filesystem = fsspec.filesystem("memory")
    yield filesystem
    filesystem.rm("/vox-shards", recursive=True)


URL = "memory://vox-shards/a"


def made(rows, encoders, url=URL):
    return prepare(rows, url, encoders, shard_size=8, progress=False)


def same_as(found: ShardReader, reader: ShardReader) -> bool:
    folder = found.fetch()
    names = [shard.name for shard in reader.index.shards] + ["lengths.npz", "index.json"]
    return found.fingerprint == reader.fingerprint and all(
        (folder / name).read_bytes() == (reader.folder / name).read_bytes() for name in names
    )


def test_a_bucket_of_google_holds_what_a_folder_would(google_bucket, rows, encoders, reader):
    assert same_as(made(rows, encoders, f"{google_bucket}/shards"), reader)
    again = made(rows, encoders, f"{google_bucket}/shards")  # nothing is left to be done
    assert same_as(again, reader)


def test_a_store_holds_what_a_folder_would_and_gives_the_same_batches(memory, rows, encoders, reader, vocabulary):
    found = made(rows, encoders)
    assert sorted(path.rpartition("/")[2] for path in memory.ls("/vox-shards/a", detail=False)) == sorted(
        path.name for path in reader.folder.iterdir()
    )
    assert not list(found.folder.glob("*.array_record"))  # not before a record is asked for
    config = BatchConfig(rows=2, text_width=200, time_width=300, prompt_ratio=0.5)
    batches = [TokenBatches(each, encoders.tokenizer, vocabulary, config) for each in (found, reader)]
    assert batches[0].fingerprint == batches[1].fingerprint
    for step in (0, 7):
        one, other = (each[step] for each in batches)
        np.testing.assert_array_equal(one.tokens, other.tokens)
    assert same_as(found, reader)


def test_a_finished_folder_is_copied_once_and_anew_when_it_changes(memory, rows, encoders, letters, monkeypatch):
    made(rows[:8], encoders).fetch()
    monkeypatch.setattr(MemoryFileSystem, "get_file", None)  # a second fetch would fail
    assert len(ShardReader(URL)[3].codes) == 3
    monkeypatch.undo()

    class Doubled(letters):
        def encode(self, text):
            return np.repeat(super().encode(text), 2, axis=0)

    before = ShardReader(URL)
    after = recount_text(URL, Doubled(fingerprint="doubled"))
    assert after.index.fingerprints["tokenizer"] == "doubled"
    np.testing.assert_array_equal(after.lengths.text, 2 * before.lengths.text)
    assert after.folder != before.folder


def test_an_upload_that_gets_lost_is_made_again(memory, rows, encoders, reader, monkeypatch):
    put, puts = MemoryFileSystem.put_file, []

    def losing(self, source, target, **kwargs):
        puts.append(target)
        if len(puts) == 2:
            self.pipe_file(target, pathlib.Path(source).read_bytes()[:-100])
        elif len(puts) != 4:
            put(self, source, target, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "put_file", losing)
    assert same_as(made(rows, encoders), reader)
    assert len(puts) == len(reader.index.shards) + 2 + 2  # two again, rejected.jsonl and lengths.npz


def test_a_store_that_stays_away_is_one_line_and_finished_shards_are_kept(memory, rows, encoders, reader, monkeypatch):
    put, puts = MemoryFileSystem.put_file, []

    def failing(self, source, target, **kwargs):
        puts.append(target)
        if len(puts) > 2:
            raise TimeoutError("no answer")
        put(self, source, target, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "put_file", failing)
    with pytest.raises(InputError, match=r"shard-00002\.array_record: cannot be reached.*run the same command again"):
        made(rows, encoders)
    assert len(puts) == 2 + 3
    with pytest.raises(InputError, match=r"memory://vox-shards/a: holds no index\.json"):
        ShardReader(URL)
    monkeypatch.setattr(MemoryFileSystem, "put_file", put)
    calls = []
    counting = prepare(rows, URL, counted(encoders, calls), shard_size=8, progress=False)
    assert len(calls) == len(rows) - 16
    assert same_as(counting, reader)


def counted(encoders, calls):
    return dataclasses.replace(encoders, acoustic=lambda samples: calls.append(1) or encoders.acoustic(samples))


def test_a_finished_shard_that_is_gone_is_named_and_made_again(memory, rows, encoders, reader, monkeypatch):
    ask, removed = store.sizes, []

    def losing(folder):
        if not removed:
            removed.append(memory.rm("/vox-shards/a/shard-00001.array_record"))
        return ask(folder)

    monkeypatch.setattr(store, "sizes", losing)
    with pytest.raises(InputError, match=r"shard-00001\.array_record is missing or cut short; run the same command"):
        made(rows, encoders)
    calls = []
    assert same_as(made(rows, counted(encoders, calls)), reader)
    assert len(calls) == 8


def test_damage_in_the_store_is_named(memory, rows, encoders):
    found = made(rows, encoders)
    name = "/vox-shards/a/shard-00001.array_record"
    content = memory.cat_file(name)
    memory.pipe_file(name, content[:100] + b"x" + content[101:])
    with pytest.raises(InputError, match=r"a/shard-00001\.array_record: damaged \(checksum differs\)"):
        found[0]
    memory.rm(name)
    with pytest.raises(InputError, match=r"a/shard-00001\.array_record: missing"):
        ShardReader(URL)[0]
    memory.pipe_file(name, content)
    assert found[9].id == "clip-9"
    memory.pipe_file("/vox-shards/a/index.json", json.dumps({"format_version": 99}).encode())
    with pytest.raises(InputError, match="format version 99"):
        ShardReader(URL)


def test_a_folder_of_another_run_or_with_other_files_is_refused(memory, rows, encoders):
    made(rows[:8], encoders)
    with pytest.raises(InputError, match="holds a run with other rows; give an empty folder"):
        made(rows[1:], encoders)
    memory.pipe_file("/vox-shards/b/notes.txt", b"mine")
    with pytest.raises(InputError, match="holds other files"):
        made(rows, encoders, "memory://vox-shards/b")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """The URL of an empty place that several processes reach: S3 by a server on this machine, if it can be had."""
    if find_spec("moto") is None or find_spec("s3fs") is None:
        yield f"file://{tmp_path_factory.mktemp('store')}/far away"
        return
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "x")
        fsspec.filesystem("s3").mkdir("corpora")
        yield "s3://corpora"
    server.stop()


def test_a_killed_run_goes_on_to_the_same_shards(tmp_path, rows, reader, bucket):
    """Killed, worker and all, after its first shard; what it was writing never counts."""
    url = f"{bucket}/speech/shards"
    write_manifest(tmp_path / "m.jsonl", rows)
    (tmp_path / "run.py").write_text(RUN)
    command = [sys.executable, str(tmp_path / "run.py"), str(HERE), str(tmp_path / "m.jsonl"), url]
    with subprocess.Popen([*command, "slow", str(tmp_path), "0.2"], stderr=subprocess.DEVNULL) as first:
        end = time.monotonic() + 300
        while not store.names(store.join(url, "parts")):
            assert time.monotonic() < end
            assert first.poll() is None
            time.sleep(0.05)
        first.send_signal(signal.SIGKILL)
    with pytest.raises(InputError, match=r"holds no index\.json"):
        ShardReader(url)
    subprocess.run([*command, "dying", str(tmp_path), "0"], check=True)
    assert same_as(ShardReader(url), reader)
    assert store.names(url) == {path.name for path in reader.folder.iterdir()}


def test_a_place_that_is_not_there_is_one_line_and_is_not_made(bucket, rows, encoders):
    nowhere = bucket + "-not-there/a"
    with pytest.raises(InputError, match=r"-not-there/a: holds no index\.json"):
        ShardReader(nowhere)
    if nowhere.startswith("s3://"):
        with pytest.raises(InputError, match="bucket does not exist; finished shards are kept"):
            made(rows, encoders, nowhere)
    assert not fsspec.open(nowhere).fs.exists(bucket + "-not-there")
