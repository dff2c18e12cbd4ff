"""The text tokenizer of the paper: SentencePiece subwords of mT5, by the rules of the release.

The model is a file of SentencePiece (`spiece.model`) or of Hugging Face's tokenizers (`tokenizer.json`).
"""

import base64
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from voxinstruct_jax.config import ConfigError, InputError, fingerprint
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer, TextTokenizer

__all__ = ["MODEL_FILES", "SubwordRules", "SubwordTokenizer", "find_model", "open_tokenizer"]

MODEL_FILES = ("spiece.model", "tokenizer.json")
"""Of an mT5 folder, in this order of preference."""

PAD, END = 0, 1
PAD_PIECE, END_PIECE = "<pad>", "</s>"
_INSTALL = "is missing; run with `uv run --extra paper` in a clone, or install voxinstruct-jax[paper]"

Splitter = Callable[[str], list[int]]
"""Text to ids, without the end."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubwordRules:
    """How a text becomes a row of ids.

    Raises:
        ConfigError: There is no room for a token and the end.
    """

    capitalize: bool = False
    """Upper-cases the first character and lower-cases all others, "NASA" included, before anything else."""
    max_tokens: int = 512
    """Longer texts are cut; the end is counted."""
    fill: bool = False
    """Always gives `max_tokens` rows, padding behind the end."""

    def __post_init__(self) -> None:
        if self.max_tokens < 2:
            raise ConfigError(f"max_tokens: {self.max_tokens} must be at least 2: a token and the end")

    @classmethod
    def release(cls, slots: int = 512) -> "SubwordRules":
        """What the release of VoxInstruct does, in training and inference: 512 slots whatever the text."""
        return cls(capitalize=True, max_tokens=slots, fill=True)


def open_tokenizer(path: str | os.PathLike[str], vocabulary_size: int | None = None) -> TextTokenizer:
    """Opens what training and preparing read text with: subwords by the plain rules, or this package's tokenizer.

    Args:
        path: As of `SubwordTokenizer`; empty = `PronunciationTokenizer`.
        vocabulary_size: As of `SubwordTokenizer`.

    Raises:
        InputError: As `SubwordTokenizer`.
    """
    return SubwordTokenizer(path, vocabulary_size=vocabulary_size) if path else PronunciationTokenizer()


def find_model(path: str | os.PathLike[str]) -> Path:
    """Returns the model file at a path, which may be a folder that holds one.

    Raises:
        InputError: There is none.
    """
    path = Path(path)
    found = path if path.is_file() else next((path / name for name in MODEL_FILES if (path / name).is_file()), None)
    if found is None:
        raise InputError(f"{path}: no tokenizer here; it is the file {' or '.join(MODEL_FILES)} of google/mt5-base")
    return found


class SubwordTokenizer:
    """A model of subwords as a `TextTokenizer` with one channel.

    Attributes:
        channel_sizes: Rows of the embedding that the ids are for.
        fingerprint: Changes with the file and the rules.
        rules: How a text becomes ids.
    """

    def __init__(
        self, path: str | os.PathLike[str], rules: SubwordRules | None = None, *, vocabulary_size: int | None = None
    ) -> None:
        """Opens a model.

        Args:
            path: `spiece.model` or `tokenizer.json` of an mT5 folder, or the folder.
            rules: By default nothing but subwords and the end.
            vocabulary_size: Rows of the embedding, where it has more than the model has pieces (mT5: 250112).

        Raises:
            InputError: The file is missing or no model of T5 (0 = padding, 1 = end), or it has more pieces than the
                embedding rows; or the library is not installed.
        """
        path = find_model(path)
        data = path.read_bytes()
        self._split, pieces = (_open_json if data.lstrip()[:1] == b"{" else _open_sentencepiece)(data, path)
        if vocabulary_size is not None and vocabulary_size < pieces:
            raise InputError(f"{path}: has {pieces} pieces, but the embedding has {vocabulary_size} rows")
        self.rules = rules or SubwordRules()
        self.channel_sizes: tuple[int, ...] = (vocabulary_size or pieces,)
        self.fingerprint: str = fingerprint([hashlib.sha256(data).hexdigest(), self.rules])

    def encode(self, text: str) -> Int32[np.ndarray, "text 1"]:
        """Turns an instruction into ids that end with the end, or with padding if the rules fill the slots."""
        text = text.strip()
        if self.rules.capitalize:
            text = text.capitalize()
        ids = [*self._split(text)[: self.rules.max_tokens - 1], END]
        spare = self.rules.max_tokens - len(ids) if self.rules.fill else 0
        return np.array([*ids, *[PAD] * spare], np.int32)[:, None]


def _open_sentencepiece(data: bytes, path: Path) -> tuple[Splitter, int]:
    """Returns what splits a text, and the number of pieces."""
    try:
        import sentencepiece
    except ModuleNotFoundError as error:
        raise InputError(f"SentencePiece {_INSTALL}") from error
    try:
        model = sentencepiece.SentencePieceProcessor(model_proto=data)
    except RuntimeError as error:
        raise InputError(f"{path}: not a SentencePiece model; copy or download it again") from error
    _check_ids(path, model.pad_id(), model.eos_id())
    return model.encode, model.get_piece_size()


def _open_json(data: bytes, path: Path) -> tuple[Splitter, int]:
    """The same of a `tokenizer.json`."""
    try:
        import tokenizers
    except ModuleNotFoundError as error:
        raise InputError(f"the package tokenizers {_INSTALL}") from error
    try:
        settings = json.loads(data)
        kind, names = settings["model"]["type"], _hide_control_pieces(settings)
        _check_maps(settings.get("normalizer"))
        model = tokenizers.Tokenizer.from_str(json.dumps(settings))
    except Exception as error:  # the library's errors have no class of their own
        what = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        raise InputError(f"{path}: not a tokenizer.json ({what}); copy or download it again") from error
    if kind != "Unigram":
        raise InputError(f"{path}: a tokenizer of kind {kind}; that of mT5 is of kind Unigram")
    _check_ids(path, *(names.index(name) if name in names else None for name in (PAD_PIECE, END_PIECE)))
    model.no_padding()
    model.no_truncation()
    space = model.token_to_id("▁")

    def split(text: str) -> list[int]:
        ids = model.encode(text, add_special_tokens=False).ids
        # SentencePiece drops spaces at the end, those that other characters become included; the library keeps them.
        return ids[:-1] if ids and ids[-1] == space else ids

    return split, len(names)


def _hide_control_pieces(settings: dict[str, Any]) -> list[str]:
    """Returns the pieces, and makes "</s>" in a text a text, as it is to SentencePiece; other kinds are left alone."""
    model = settings["model"]
    if model["type"] != "Unigram":
        return []
    names = [piece for piece, _ in model["vocab"]]
    unknown = names[model["unk_id"]]
    hidden = {name: f"\0{name}" for name in (PAD_PIECE, END_PIECE, unknown)}
    model["vocab"] = [[hidden.get(piece, piece), score] for piece, score in model["vocab"]]
    settings["added_tokens"] = []
    settings["post_processor"] = None
    return names


def _check_maps(rule: Any) -> None:
    """Looks into tables of characters, at whose damage the library would end the program: a size, a trie, texts."""
    if isinstance(rule, dict):
        for inner in rule.get("normalizers", ()):
            _check_maps(inner)
        if rule.get("type") == "Precompiled":
            table = base64.b64decode(rule["precompiled_charsmap"], validate=True)
            size = int.from_bytes(table[:4], "little")
            if len(table) < 4 + size or size < 4 or size % 4:
                raise ValueError("its table of characters is damaged")


def _check_ids(path: Path, pad: int | None, end: int | None) -> None:
    if (pad, end) != (PAD, END):
        raise InputError(f"{path}: not a model of T5, which has padding at id {PAD} and the end at id {END}")
