"""The text tokenizer of the paper: SentencePiece subwords of mT5, by the rules of the release."""

import dataclasses
import hashlib
import os
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from voxinstruct_jax.config import ConfigError, InputError, fingerprint

__all__ = ["SubwordRules", "SubwordTokenizer"]

PAD, END = 0, 1
_INSTALL = "SentencePiece is missing; run with `uv run --extra paper` in a clone, or install voxinstruct-jax[paper]"


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


class SubwordTokenizer:
    """A SentencePiece model file as a `TextTokenizer` with one channel.

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
            path: `spiece.model` of an mT5 folder.
            rules: By default nothing but subwords and the end.
            vocabulary_size: Rows of the embedding, where it has more than the model has pieces (mT5: 250112).

        Raises:
            InputError: The file is missing or no SentencePiece model of T5 (0 = padding, 1 = end), or it has more
                pieces than the embedding rows; or the library is not installed.
        """
        try:
            import sentencepiece
        except ModuleNotFoundError as error:
            raise InputError(_INSTALL) from error
        path = Path(path)
        if not path.is_file():
            raise InputError(f"{path}: no SentencePiece model here; it is the file spiece.model of google/mt5-base")
        data = path.read_bytes()
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=data)
        except RuntimeError as error:
            raise InputError(f"{path}: not a SentencePiece model; copy or download it again") from error
        pieces = self._model.get_piece_size()
        if (self._model.pad_id(), self._model.eos_id()) != (PAD, END):
            raise InputError(f"{path}: not a model of T5, which has padding at id {PAD} and the end at id {END}")
        if vocabulary_size is not None and vocabulary_size < pieces:
            raise InputError(f"{path}: has {pieces} pieces, but the embedding has {vocabulary_size} rows")
        self.rules = rules or SubwordRules()
        self.channel_sizes: tuple[int, ...] = (vocabulary_size or pieces,)
        self.fingerprint: str = fingerprint([hashlib.sha256(data).hexdigest(), self.rules, self.channel_sizes])

    def encode(self, text: str) -> Int32[np.ndarray, "text 1"]:
        """Turns an instruction into ids that end with the end, or with padding if the rules fill the slots."""
        text = text.strip()
        if self.rules.capitalize:
            text = text.capitalize()
        ids = [*self._model.encode(text)[: self.rules.max_tokens - 1], END]
        spare = self.rules.max_tokens - len(ids) if self.rules.fill else 0
        return np.array([*ids, *[PAD] * spare], np.int32)[:, None]
