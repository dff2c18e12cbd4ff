"""A job in an S3 bucket: a real server on loopback, reached through a gate that is shut, slow or broken for a while."""

import contextlib
import json
import random
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from fake_voice import FakeVoice
from jobs_for_tests import lasting, rows_named, run, write_requests

from voxinstruct_jax.config import InputError
from voxinstruct_jax.jobs.store import RemoteStore, open_store

BROKEN = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Gate:
    """Passes connections on to a server; while it is `shut` nobody listens, while `broken` all answers are errors."""

    def __init__(self, target):
        self.target, self.broken, self.delay_s, self.refused = target, False, 0.0, 0
        self.port, self._listener, self._open = 0, None, set()
        self.open()

    def open(self):
        self._listener = socket.create_server(("127.0.0.1", self.port), reuse_port=False)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, args=(self._listener,), daemon=True).start()

    def shut(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def cut(self):
        """Ends all connections, in the middle of whatever they carry."""
        for one in list(self._open):
            self._end(one)

    def _serve(self, listener):
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._pass_on, args=(client,), daemon=True).start()

    def _pass_on(self, client):
        if self.broken:
            self.refused += 1
            client.recv(65536)
            client.sendall(BROKEN)
            self._end(client)
            return
        time.sleep(self.delay_s)
        server = socket.create_connection(self.target)
        self._open |= {client, server}
        back = threading.Thread(target=self._copy, args=(server, client), daemon=True)
        back.start()
        self._copy(client, server)
        back.join()

    def _copy(self, source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        self._end(source)
        self._end(target)

    def _end(self, one):
        self._open.discard(one)
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()


@pytest.fixture(scope="module")
def gate():
    pytest.importorskip("s3fs", reason="needs the cloud extra")
    server = pytest.importorskip("moto.server", reason="needs moto").ThreadedMotoServer(
        "127.0.0.1", port=0, verbose=False
    )
    server.start()
    gate = Gate(server.get_host_and_port())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "x")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "x")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{gate.port}")
        import s3fs

        s3fs.S3FileSystem(skip_instance_cache=True).mkdir("bucket")
        yield gate
    gate.cut()
    server.stop()


@pytest.mark.parametrize("protocol", ["s3", "gs"])
def test_a_store_writes_whole_files_and_creates_each_once(protocol, request):
    request.getfixturevalue({"s3": "gate", "gs": "google_bucket"}[protocol])
    store = open_store(f"{protocol}://bucket/plain")
    assert store.names("a") == []
    assert store.read("a/x") is None
    assert store.create("a/x", b"first")
    assert store.create("a/x", b"first")  # its own, whose answer was lost
    assert not store.create("a/x", b"second")
    store.write("a/x", b"third")
    store.write("a/y", b"")
    assert store.read("a/x") == b"third"
    assert store.names("a") == ["x", "y"]
    store.remove("a")
    store.remove("a/none")
    assert not store.exists("a/x")


def test_a_job_outlives_a_store_that_is_gone_and_broken_in_its_middle(gate, tmp_path):
    requests = write_requests(tmp_path / "r.jsonl", rows_named(*[f"r{number}" for number in range(8)]))
    calls, chance = [], random.Random(2)

    class Voice(FakeVoice):
        def synthesize(self, instruction, **options):
            calls.append(instruction)
            if len(calls) == 3:
                gate.shut()
                threading.Timer(chance.uniform(0.6, 1.2), gate.open).start()
            if len(calls) == 6:
                gate.broken, gate.delay_s = True, 0.05
                gate.cut()
                threading.Timer(1.0, lambda: setattr(gate, "broken", False)).start()
            return super().synthesize(instruction, **options)

    found = run(requests, "s3://bucket/job", Voice, unit_size=2, lease_s=30.0)
    gate.delay_s = 0.0
    assert gate.refused
    assert lasting(found) == lasting(run(requests, tmp_path / "local", FakeVoice))
    assert len(calls) == 8
    store = open_store("s3://bucket/job")
    assert len(store.names("audio")) == 8
    assert store.names("claims") == store.names("workers") == []
    assert json.loads(store.read("job.json"))["state"] == "finished"


def test_a_job_in_a_bucket_of_google_ends_like_one_on_disk(google_bucket, tmp_path):
    requests = write_requests(tmp_path / "r.jsonl", rows_named("a", "b", "c", "d"))
    found = run(requests, f"{google_bucket}/job", FakeVoice, unit_size=2)
    assert lasting(found) == lasting(run(requests, tmp_path / "local", FakeVoice))
    store = open_store(f"{google_bucket}/job")
    assert store.names("claims") == store.names("workers") == []
    for sound in store.names("audio"):
        assert store.read(f"audio/{sound}") == (tmp_path / "local" / "audio" / sound).read_bytes()


def test_a_store_that_stays_away_is_one_clear_line(gate):
    said = []
    store = RemoteStore("s3://bucket/away", patience_s=0.5, say=said.append)
    gate.shut()
    try:
        with pytest.raises(InputError, match=r"no answer for .* start the same command again") as found:
            store.write("x", b"1")
    finally:
        gate.open()
    assert "\n" not in str(found.value)
    assert len(said) == 1


def test_a_bucket_that_is_not_there_is_refused_at_once(gate):
    with pytest.raises(InputError, match="s3://no-such-bucket/x: refused"):
        open_store("s3://no-such-bucket/x").write("a", b"")


@pytest.mark.parametrize(
    ("place", "message"), [("nostore://a/b", "Protocol not known"), ("s4://a", "Protocol not known")]
)
def test_an_unknown_kind_of_url_is_one_clear_line(place, message):
    with pytest.raises(InputError, match=message):
        open_store(place)
