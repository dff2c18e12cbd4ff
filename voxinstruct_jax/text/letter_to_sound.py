"""Letter-to-sound: phones for English words that no lexicon holds.

A small perceptron reads a word from left to right. For each letter it sees the letters around it and the chunks of
phones it gave to the letters before, and names the letter's chunk: silence, one phone or two. The weights come from
`train_letter_to_sound`; this file only runs them, in numpy. Read `LetterToSound.predict` first.
"""

import dataclasses
import io

import numpy as np
from jaxtyping import Float, Int

from voxinstruct_jax.text.alignment import LETTERS, ChunkTable

__all__ = ["CONTEXT", "HISTORY", "LetterToSound", "letter_windows"]

CONTEXT = 5
"""Letters seen on either side."""
HISTORY = 3
"""Chunks seen of those already given."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LetterToSound:
    """The trained classifier and the alignment table learned with it.

    Attributes:
        chunks: Phones of each class; class 0 stands for "before the word" and is never named.
        weights: Arrays by name, as `train_letter_to_sound` saves them.
        table: Letter-phone probabilities, to align words whose phones are known.
    """

    chunks: tuple[tuple[str, ...], ...]
    weights: dict[str, Float[np.ndarray, "..."]]
    table: ChunkTable

    @classmethod
    def from_bytes(cls, data: bytes) -> "LetterToSound":
        """Reads the archive that the training script writes."""
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        chunks = tuple(tuple(str(name).split("_")) if name else () for name in arrays.pop("chunks"))
        table = ChunkTable(log_probs=arrays.pop("log_probs").astype(np.float32))
        return cls(chunks=chunks, weights={k: v.astype(np.float32) for k, v in arrays.items()}, table=table)

    def predict(self, words: list[str]) -> list[tuple[tuple[str, ...], ...]]:
        """Gives every letter of every word its phones, greedily from left to right.

        Args:
            words: Lower-case letters and apostrophes (`LETTERS`).

        Returns:
            For each word, for each letter, its 0, 1 or 2 phones. A word with a vowel has a primary stress.
        """
        if not words:
            return []
        width = max(len(word) for word in words)
        windows = letter_windows(words, width)
        history = np.zeros((len(words), HISTORY), np.int32)
        stressed = np.zeros(len(words), np.float32)
        is_primary = np.array([any(phone.endswith("1") for phone in chunk) for chunk in self.chunks])
        named = np.zeros((len(words), width), np.int32)
        for step in range(width):
            scores = self._scores(windows[:, step], history, stressed)
            scores[:, 0] = -np.inf
            named[:, step] = scores.argmax(axis=1)
            history = np.concatenate([history[:, 1:], named[:, step : step + 1]], axis=1)
            stressed = np.maximum(stressed, is_primary[named[:, step]])
        spoken = [[self.chunks[i] for i in row[: len(word)]] for row, word in zip(named, words, strict=True)]
        return [_with_primary_stress(chunks) for chunks in spoken]

    def _scores(
        self,
        windows: Int[np.ndarray, "word context"],
        history: Int[np.ndarray, "word history"],
        stressed: Float[np.ndarray, " word"],
    ) -> Float[np.ndarray, "word chunk"]:
        w = self.weights
        seen = [w["letter_embedding"][windows], w["chunk_embedding"][history]]
        inputs = np.concatenate([part.reshape(len(windows), -1) for part in seen] + [stressed[:, None]], axis=1)
        hidden = np.maximum(inputs @ w["hidden_kernel"] + w["hidden_bias"], 0)
        hidden = np.maximum(hidden @ w["second_kernel"] + w["second_bias"], 0)
        return hidden @ w["output_kernel"] + w["output_bias"]


def letter_windows(words: list[str], width: int) -> Int[np.ndarray, "word letter context"]:
    """Letter ids around each letter: 0 beyond the word, `LETTERS` from 1."""
    ids = np.zeros((len(words), width + 2 * CONTEXT), np.int32)
    for row, word in enumerate(words):
        ids[row, CONTEXT : CONTEXT + len(word)] = [LETTERS.index(letter) + 1 for letter in word]
    return np.lib.stride_tricks.sliding_window_view(ids, 2 * CONTEXT + 1, axis=1)


def _with_primary_stress(chunks: list[tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
    """Raises the first stressed vowel, else the first full vowel, else the first, if no vowel bears primary stress."""
    vowels = [(i, j, phone) for i, chunk in enumerate(chunks) for j, phone in enumerate(chunk) if phone[-1].isdigit()]
    if not vowels or any(phone[-1] == "1" for _, _, phone in vowels):
        return tuple(chunks)
    secondary = [v for v in vowels if v[2][-1] == "2"]
    full = [v for v in vowels if v[2][:2] not in ("AH", "IH", "ER")]
    row, column, phone = (secondary or full or vowels)[0]
    raised = list(chunks[row])
    raised[column] = phone[:-1] + "1"
    return (*chunks[:row], tuple(raised), *chunks[row + 1 :])
