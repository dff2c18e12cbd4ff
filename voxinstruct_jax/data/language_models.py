"""Language models that rewrite instructions: whatever completes prompts, and a client for OpenAI-compatible servers.

This package has no language model of its own. One behind a server (vLLM, llama.cpp, Ollama, `transformers serve`, or a
hosted one) is reached by `OpenAICompatible`; `LocalTransformers` runs one in this process with the `transformers` that
its user installed. Any other object with `complete` does as well.
"""

import email.utils
import http.client
import importlib
import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol, runtime_checkable

from voxinstruct_jax.config import InputError

__all__ = ["LanguageModel", "LocalTransformers", "OpenAICompatible"]

_LOG = logging.getLogger(__name__)
_LONGEST_WAIT_S = 60.0
_REFUSALS = {
    400: "check the model name and its limits",
    401: "check the key",
    403: "check the key and what it may use",
    404: "check the address (it mostly ends in /v1) and the model name",
}


@runtime_checkable
class LanguageModel(Protocol):
    """What rewrites instructions."""

    def complete(self, prompts: Sequence[str]) -> list[str]:
        """Answers each prompt, in order; an empty text where there was no answer.

        Raises:
            InputError: It cannot be used at all, as set up.
        """
        ...


class _TransientError(Exception):
    """An answer that may be better next time."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


@dataclass(frozen=True, kw_only=True)
class OpenAICompatible:
    """A model behind a server that speaks the OpenAI chat protocol (`POST BASE_URL/chat/completions`)."""

    base_url: str
    """Such as http://localhost:8000/v1."""
    model: str
    """As the server names it."""
    api_key_env: str = ""
    """Environment variable that holds the key; none is sent where this is empty."""
    temperature: float = 0.8
    max_tokens: int = 400
    seed: int = 0
    """Sent along; servers that honour it answer alike every time."""
    timeout_s: float = 60.0
    """For one answer (s)."""
    attempts: int = 4
    """Tries a prompt gets where the server is busy, fails, or cuts its answer off."""
    first_wait_s: float = 1.0
    """Before the second try (s); twice as long before each further one, unless the server names a time."""
    parallel: int = 8
    """Requests under way at once."""

    def complete(self, prompts: Sequence[str]) -> list[str]:
        """Answers each prompt; see `LanguageModel`.

        Raises:
            InputError: The key is missing, the server refuses the request as it stands, or none can be reached.
        """
        headers = {"Content-Type": "application/json", **self._authorization()}
        with ThreadPoolExecutor(self.parallel) as pool:
            return list(pool.map(lambda prompt: self._answer(prompt, headers), prompts))

    def _authorization(self) -> dict[str, str]:
        if not self.api_key_env:
            return {}
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise InputError(f"the environment variable {self.api_key_env} holds no key for {self.base_url}; set it")
        return {"Authorization": f"Bearer {key}"}

    def _answer(self, prompt: str, headers: Mapping[str, str]) -> str:
        for attempt in range(self.attempts):
            try:
                return self._ask(prompt, headers)
            except _TransientError as error:
                _LOG.warning("%s: %s", self.base_url, error)
                wait_s = self.first_wait_s * 2**attempt if error.wait_s is None else error.wait_s
            except ConnectionRefusedError as error:
                raise InputError(
                    f"no language model answers at {self.base_url} ({error}); start the server or mend the address"
                ) from error
            if attempt + 1 < self.attempts:
                time.sleep(min(wait_s, _LONGEST_WAIT_S))
        return ""

    def _ask(self, prompt: str, headers: Mapping[str, str]) -> str:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
        }
        url = f"{self.base_url.rstrip('/')}/chat/completions"
        if not url.startswith(("http://", "https://")):
            raise InputError(f"language model address {self.base_url!r}: give one that begins with http:// or https://")
        request = urllib.request.Request(url, json.dumps(body).encode(), dict(headers))
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as reply:
                return _text_of(_read(reply, time.monotonic() + self.timeout_s))
        except urllib.error.HTTPError as error:
            raise self._failure(error) from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, ConnectionRefusedError):
                raise error.reason from error
            if isinstance(error.reason, OSError) and not isinstance(error.reason, TimeoutError | ConnectionError):
                raise InputError(f"{self.base_url}: {error.reason}; mend the address of the language model") from error
            raise _TransientError(str(error.reason)) from error
        except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
            raise _TransientError(str(error) or type(error).__name__) from error

    def _failure(self, error: urllib.error.HTTPError) -> Exception:
        with error:
            said = " ".join(error.read(2000).decode("utf-8", "replace").split())[:200]
        if error.code in (408, 409, 425, 429) or error.code >= 500:
            return _TransientError(f"HTTP {error.code}: {said}", _retry_after_s(error.headers.get("Retry-After")))
        advice = _REFUSALS.get(error.code, "check address, model and key")
        return InputError(f"{self.base_url} refuses model {self.model!r}: HTTP {error.code} {said}; {advice}")


def _read(reply: http.client.HTTPResponse, deadline_s: float) -> bytes:
    """Reads a whole reply; the socket's own limit would let one drip on for ever."""
    parts = []
    while part := reply.read1(2**16):
        parts.append(part)
        if time.monotonic() > deadline_s:
            raise TimeoutError("the answer took too long")
    return b"".join(parts)


def _text_of(reply: bytes) -> str:
    """Takes the answer out of a reply.

    Raises:
        _TransientError: The reply is cut off, of another form, or was ended by the length limit.
    """
    try:
        choice = json.loads(reply)["choices"][0]
        text, reason = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _TransientError(f"no chat completion: {reply[:80]!r}") from error
    if reason == "length":
        raise _TransientError("the answer was cut by its length limit")
    return text if isinstance(text, str) else ""


def _retry_after_s(value: str | None) -> float | None:
    """Reads a Retry-After header: seconds, or a date."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        until = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (until - datetime.now(UTC)).total_seconds())


class LocalTransformers:
    """A chat model in a local folder, run in this process by the `transformers` package of the user's environment.

    That package brings PyTorch, which this project neither needs nor installs; a server of its own
    (`OpenAICompatible`) keeps the two apart and is quicker.
    """

    def __init__(self, folder: str | os.PathLike[str], *, max_tokens: int = 400, seed: int = 0) -> None:
        """Loads the model.

        Args:
            folder: As `save_pretrained` wrote it, tokenizer included.
            max_tokens: At most this long an answer.
            seed: Of the sampling.

        Raises:
            InputError: `transformers` is not installed, or the folder holds no such model.
        """
        try:
            transformers: Any = importlib.import_module("transformers")
        except ImportError as error:
            raise InputError(
                "a local transformers model needs the packages transformers and torch: install them, or serve the "
                "model and use an OpenAI-compatible address"
            ) from error
        try:
            self._pipeline = transformers.pipeline("text-generation", model=os.fspath(folder))
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"{os.fspath(folder)}: no language model that transformers can load ({reason})") from error
        self._set_seed = transformers.set_seed
        self._max_tokens, self._seed = max_tokens, seed

    def complete(self, prompts: Sequence[str]) -> list[str]:
        """Answers each prompt; see `LanguageModel`.

        Raises:
            InputError: The model has no chat template.
        """
        return [self._answer(prompt) for prompt in prompts]

    def _answer(self, prompt: str) -> str:
        self._set_seed(self._seed)
        chat = [{"role": "user", "content": prompt}]
        try:
            (found,) = self._pipeline(chat, max_new_tokens=self._max_tokens, do_sample=True)
        except ValueError as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"the local language model cannot answer ({reason}); take one made for chat") from error
        return found["generated_text"][-1]["content"]
