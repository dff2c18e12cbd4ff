import email.utils
import http.server
import json
import socket
import sys
import threading
import time
import types
from datetime import UTC, datetime, timedelta

import pytest

from voxinstruct_jax.config import InputError
from voxinstruct_jax.data.language_models import LanguageModel, LocalTransformers, OpenAICompatible


class ChatServer(http.server.ThreadingHTTPServer):
    """Speaks the OpenAI chat protocol; `replies` says what each prompt gets, one entry a try, the last for ever."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), ChatHandler)
        self.replies, self.asked, self.lock = {}, [], threading.Lock()

    @property
    def base_url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):
        """Clients that hang up are part of the tests."""


class ChatHandler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][0]["content"]
        with self.server.lock:
            tries = sum(prompt == asked["messages"][0]["content"] for asked in self.server.asked)
            self.server.asked.append(body | {"path": self.path, "key": self.headers["Authorization"]})
        replies = self.server.replies.get(prompt, [lambda handler: handler.answer(prompt.upper())])
        replies[min(tries, len(replies) - 1)](self)

    def answer(self, text, finish_reason="stop"):
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
        self.raw(200, json.dumps({"choices": [choice]}).encode())

    def raw(self, status, body, *, length=None, **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def drip(self):
        """A right answer, too late: each byte comes soon after the one before."""
        self.send_response(200)
        self.end_headers()
        for _ in range(40):
            self.wfile.write(b" ")
            self.wfile.flush()
            time.sleep(0.05)
        self.wfile.write(b'{"choices": [{"message": {"content": "late"}}]}')

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ChatServer() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def model(server, **settings):
    return OpenAICompatible(**{"base_url": server.base_url, "model": "tiny", "first_wait_s": 0.01} | settings)


def test_prompts_are_answered_in_order_and_in_parallel(server):
    prompts = [f"prompt {number}" for number in range(20)]
    assert isinstance(model(server), LanguageModel)
    assert model(server).complete(prompts) == [prompt.upper() for prompt in prompts]
    assert {asked["path"] for asked in server.asked} == {"/v1/chat/completions"}
    assert {asked["model"] for asked in server.asked} == {"tiny"}
    assert {asked["key"] for asked in server.asked} == {None}
    assert model(server).complete([]) == []


def test_key_comes_from_the_environment(server, monkeypatch):
    monkeypatch.setenv("TINY_KEY", "abc")
    model(server, api_key_env="TINY_KEY").complete(["a"])
    assert server.asked[0]["key"] == "Bearer abc"
    monkeypatch.delenv("TINY_KEY")
    with pytest.raises(InputError, match="environment variable TINY_KEY holds no key"):
        model(server, api_key_env="TINY_KEY").complete(["a"])


@pytest.mark.parametrize(
    "bad",
    [
        lambda handler: handler.raw(429, b"busy", Retry_After="0"),
        lambda handler: handler.raw(503, b"", Retry_After="Wed, 01 Jan 2020 00:00:00 GMT"),
        lambda handler: handler.raw(500, b"oops", Retry_After="soon"),
        lambda handler: handler.raw(200, b'{"choices": [{"mess'),
        lambda handler: handler.raw(200, b'{"choices": [{"message"', length=500),
        lambda handler: handler.raw(200, b"[]"),
        lambda handler: handler.raw(200, b'{"choices": []}'),
        lambda handler: handler.raw(200, b"\xff\xfe"),
        lambda handler: handler.answer("cut of", finish_reason="length"),
        lambda handler: handler.connection.shutdown(socket.SHUT_RDWR),
    ],
    ids=["429", "503", "500", "cut", "cut early", "list", "no choices", "no text", "too long", "hangs up"],
)
def test_what_may_pass_is_tried_again_and_given_up_at_last(server, bad):
    server.replies = {"once": [bad, lambda handler: handler.answer("better")], "always": [bad]}
    assert model(server, attempts=3).complete(["once", "always", "fine"]) == ["better", "", "FINE"]
    assert sum(asked["messages"][0]["content"] == "always" for asked in server.asked) == 3


@pytest.mark.parametrize("date", [False, True])
def test_the_time_that_the_server_names_is_waited(server, date, monkeypatch):
    waits = []
    monkeypatch.setattr("voxinstruct_jax.data.language_models.time.sleep", waits.append)
    soon = email.utils.format_datetime(datetime.now(UTC) + timedelta(seconds=7), usegmt=True) if date else "7"
    server.replies = {"a": [lambda h: h.raw(429, b"", Retry_After=soon), lambda h: h.raw(429, b""),
                            lambda h: h.raw(429, b"", Retry_After="86400"), lambda h: h.answer("ok")]}  # fmt: skip
    assert model(server, first_wait_s=2.0).complete(["a"]) == ["ok"]
    assert waits[0] == pytest.approx(7, abs=2)
    assert waits[1:] == [4.0, 60.0]


@pytest.mark.parametrize(
    "slow",
    [lambda handler: (time.sleep(1.0), handler.answer("late")), lambda handler: handler.drip()],
    ids=["late", "drips"],
)
def test_slow_answers_are_given_up(server, slow):
    server.replies = {"slow": [slow]}
    assert model(server, timeout_s=0.3, attempts=2).complete(["slow", "quick"]) == ["", "QUICK"]


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "check the key"),
        (404, "check the address"),
        (400, "check the model name"),
        (418, "HTTP 418 no such thing"),
    ],
)
def test_refusals_end_it_with_one_clear_line(server, status, message):
    server.replies = {"a": [lambda handler: handler.raw(status, b"no such\nthing")]}
    with pytest.raises(InputError, match=message) as raised:
        model(server).complete(["a"])
    assert "\n" not in str(raised.value)
    assert len(server.asked) == 1


def test_no_server_and_no_address_are_said_to_be_so():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        with pytest.raises(InputError, match=r"no language model answers at .*start the server"):
            OpenAICompatible(base_url=f"http://127.0.0.1:{taken.getsockname()[1]}/v1", model="m").complete(["a"])
    with pytest.raises(InputError, match="begins with http"):
        OpenAICompatible(base_url="localhost:8000", model="m").complete(["a"])


def test_local_model_is_loaded_by_the_users_own_transformers(monkeypatch, tmp_path):
    def pipeline(task, model):
        assert (task, model) == ("text-generation", str(tmp_path))
        return lambda chat, **settings: [{"generated_text": [*chat, {"content": chat[0]["content"][::-1]}]}]

    fake = types.SimpleNamespace(pipeline=pipeline, set_seed=lambda seed: None)
    monkeypatch.setitem(sys.modules, "transformers", fake)
    assert LocalTransformers(tmp_path).complete(["abc", "de"]) == ["cba", "ed"]

    def broken(task, model):
        raise OSError("no config.json\nand more")

    monkeypatch.setattr(fake, "pipeline", broken)
    with pytest.raises(InputError, match=r"no language model that transformers can load \(no config.json\)"):
        LocalTransformers(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match="needs the packages transformers and torch"):
        LocalTransformers(tmp_path)
