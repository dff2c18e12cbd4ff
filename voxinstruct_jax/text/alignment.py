"""Alignment of the letters of an English word with its phones.

Each letter speaks no phone, one, or two in a row ("x" is `K S`, the last "e" of "make" is silent). The probabilities of
such chunks are learned from a lexicon by expectation maximisation, all words at once; a word is then aligned by
Viterbi. Read `learn_chunk_log_probs` for the model and `ChunkTable.align` for its use.

Source: the one-to-many letter-phone alignment of Jiampojamarn, Kondrak and Sherif, NAACL 2007, with the sides swapped
as one letter with at most two phones.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

__all__ = ["LETTERS", "PHONES", "PLAIN_PHONES", "ChunkTable", "learn_chunk_log_probs", "strip_stress"]

VOWELS = ("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW")
CONSONANTS = (
    "B",
    "CH",
    "D",
    "DH",
    "F",
    "G",
    "HH",
    "JH",
    "K",
    "L",
    "M",
    "N",
    "NG",
    "P",
    "R",
    "S",
    "SH",
    "T",
    "TH",
    "V",
    "W",
    "Y",
    "Z",
    "ZH",
)
PHONES = tuple(vowel + stress for vowel in VOWELS for stress in "012") + CONSONANTS
"""The 69 ARPAbet phones of the lexicon; a vowel ends with its stress (0 none, 1 primary, 2 secondary)."""
PLAIN_PHONES = VOWELS + CONSONANTS
"""The 39 phones without stress: alignment does not depend on it."""
LETTERS = "abcdefghijklmnopqrstuvwxyz'"

_NUM_PHONES = len(PLAIN_PHONES)
_NUM_CHUNKS = 1 + _NUM_PHONES + _NUM_PHONES**2
_FLOOR = -30.0
"""Log probability of a chunk that was never seen: possible, so that every word of fitting length can be aligned."""


def strip_stress(phone: str) -> str:
    """Drops the stress digit of a vowel."""
    return phone.rstrip("012")


_PLAIN_INDEX = {phone: index for index, phone in enumerate(PLAIN_PHONES)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChunkTable:
    """Log probability of each chunk of phones for each letter.

    Attributes:
        log_probs: Natural logarithms; chunk 0 is silence, then single phones, then pairs, first phone major.
    """

    log_probs: Float[np.ndarray, "letter chunk"]

    def align(self, word: str, phones: tuple[str, ...]) -> tuple[tuple[str, ...], ...] | None:
        """Shares the phones of a word out over its letters.

        Args:
            word: Lower-case letters and apostrophes.
            phones: ARPAbet with stress digits.

        Returns:
            For each letter its 0, 1 or 2 phones; None if there are more than two phones a letter.
        """
        if len(phones) > 2 * len(word):
            return None
        ids = [_PLAIN_INDEX[strip_stress(phone)] for phone in phones]
        best = {0: (0.0, ())}
        for letter in word:
            row = self.log_probs[LETTERS.index(letter)]
            reached: dict[int, tuple[float, tuple[int, ...]]] = {}
            for start, (score, taken) in best.items():
                for length in range(min(2, len(ids) - start) + 1):
                    total = score + float(row[_chunk_id(ids[start : start + length])])
                    if start + length not in reached or total > reached[start + length][0]:
                        reached[start + length] = (total, (*taken, length))
            best = reached
        lengths = best[len(ids)][1]
        ends = np.cumsum(lengths)
        return tuple(phones[end - length : end] for end, length in zip(ends, lengths, strict=True))


def _chunk_id(ids: list[int]) -> int:
    if not ids:
        return 0
    return 1 + ids[0] if len(ids) == 1 else 1 + _NUM_PHONES + ids[0] * _NUM_PHONES + ids[1]


def learn_chunk_log_probs(
    pairs: list[tuple[str, tuple[str, ...]]], *, num_rounds: int = 8
) -> Float[np.ndarray, "letter chunk"]:
    """Learns the chunk table of a lexicon by expectation maximisation.

    Args:
        pairs: Words (`LETTERS` only) with their phones; those with more than two phones a letter are left out.
        num_rounds: Rounds of expectation and maximisation; the likelihood settles within eight.

    Returns:
        Table for `ChunkTable`, never below -30.
    """
    pairs = [(word, phones) for word, phones in pairs if len(phones) <= 2 * len(word)]
    letters, chunks = _padded_ids(pairs)
    num_letters = np.array([len(word) for word, _ in pairs])
    num_phones = np.array([len(phones) for _, phones in pairs])
    probs = np.full((len(LETTERS), _NUM_CHUNKS), 1.0)
    # The first round must not prefer pairs or silence, or it never leaves them: singles weigh more than both.
    probs[:, 0], probs[:, 1 + _NUM_PHONES :] = 0.1, 0.05
    for _ in range(num_rounds):
        counts = _expected_counts(np.maximum(probs, 1e-12), letters, chunks, num_letters, num_phones)
        probs = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-12)
    return np.maximum(np.log(np.maximum(probs, 1e-30)), _FLOOR).astype(np.float32)


def _padded_ids(
    pairs: list[tuple[str, tuple[str, ...]]],
) -> tuple[Int[np.ndarray, "word position"], Int[np.ndarray, "word end length"]]:
    """Letters of every word, and the chunk of 0, 1 or 2 phones that ends at each phone position."""
    widest = max(len(word) for word, _ in pairs)
    longest = max(len(phones) for _, phones in pairs)
    letters = np.zeros((len(pairs), widest), np.int32)
    chunks = np.full((len(pairs), longest + 1, 3), -1, np.int32)
    chunks[:, :, 0] = 0
    for row, (word, phones) in enumerate(pairs):
        letters[row, : len(word)] = [LETTERS.index(letter) for letter in word]
        ids = [_PLAIN_INDEX[strip_stress(phone)] for phone in phones]
        for end in range(1, len(ids) + 1):
            chunks[row, end, 1] = _chunk_id(ids[end - 1 : end])
            if end > 1:
                chunks[row, end, 2] = _chunk_id(ids[end - 2 : end])
    return letters, chunks


def _expected_counts(
    probs: Float[np.ndarray, "letter chunk"],
    letters: Int[np.ndarray, "word position"],
    chunks: Int[np.ndarray, "word end length"],
    num_letters: Int[np.ndarray, " word"],
    num_phones: Int[np.ndarray, " word"],
) -> Float[np.ndarray, "letter chunk"]:
    """One expectation step: forward and backward over letters, vectorised over words and phone positions."""
    num_words, width = letters.shape
    ends = chunks.shape[1]
    rows = np.arange(num_words)
    emit = [_emissions(probs, letters[:, step], chunks) for step in range(width)]
    forward = [np.zeros((num_words, ends))]
    forward[0][:, 0] = 1.0
    for step in range(width):
        reached = [_shift(forward[-1], length) * emit[step][:, :, length] for length in range(3)]
        forward.append(reached[0] + reached[1] + reached[2])
    backward = np.zeros((num_words, ends))
    total = _likelihood(forward, rows, num_letters, num_phones)
    counts = np.zeros(probs.shape)
    for step in reversed(range(width)):
        starts_here = num_letters == step + 1
        backward[starts_here] = 0.0
        backward[rows[starts_here], num_phones[starts_here]] = 1.0
        real = num_letters > step
        earlier = np.zeros_like(backward)
        for length in range(3):
            joint = backward * emit[step][:, :, length]
            posterior = (_shift(forward[step], length) * joint / total[:, None])[real]
            cells = (letters[real, step][:, None] * probs.shape[1] + np.maximum(chunks[real, :, length], 0)).ravel()
            counts += np.bincount(cells, posterior.ravel(), minlength=counts.size).reshape(counts.shape)
            earlier += _shift(joint, -length)
        backward = earlier
    return counts


def _likelihood(
    forward: list[Float[np.ndarray, "word end"]],
    rows: Int[np.ndarray, " word"],
    num_letters: Int[np.ndarray, " word"],
    num_phones: Int[np.ndarray, " word"],
) -> Float[np.ndarray, " word"]:
    """Likelihood of each word: all its letters read, all its phones spoken."""
    return np.maximum(np.stack(forward)[num_letters, rows, num_phones], 1e-300)


def _emissions(
    probs: Float[np.ndarray, "letter chunk"],
    letter: Int[np.ndarray, " word"],
    chunks: Int[np.ndarray, "word end length"],
) -> Float[np.ndarray, "word end length"]:
    return np.where(chunks >= 0, probs[letter[:, None, None], np.maximum(chunks, 0)], 0.0)


def _shift(values: Float[np.ndarray, "word end"], by: int) -> Float[np.ndarray, "word end"]:
    """Moves columns to the right (to the left if negative), zeros coming in."""
    if by == 0:
        return values
    moved = np.zeros_like(values)
    if by > 0:
        moved[:, by:] = values[:, :-by]
    else:
        moved[:, :by] = values[:, -by:]
    return moved
