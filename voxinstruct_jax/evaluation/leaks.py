"""Whether a test set was seen in training: speakers and sentences of the one in the manifest of the other.

Run before any score. Read `find_leaks`; a sentence leaks if its letters are the same, or if most of its n-grams stand
in one training transcript (MinHash finds the candidates, the exact Jaccard index decides).
"""

import dataclasses
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt64

from voxinstruct_jax.data.manifest import Row
from voxinstruct_jax.text.words import letters

__all__ = ["Leak", "find_leaks"]

NEAR = 0.8
"""Jaccard index of n-grams from which a sentence counts as seen."""
GRAM = 4
"""Characters of an n-gram; letters only, so it serves both languages."""
_BANDS, _BAND_ROWS = 16, 4
_PRIME = np.uint64(2**61 - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leak:
    """A test item that training has seen."""

    id: str
    kind: str
    """speaker, sentence or near_sentence."""
    train_id: str
    similarity: float
    """Of the sentences, 1 = the same letters; 1 for speakers."""


def find_leaks(items: Iterable[Mapping[str, Any]], training: Iterable[Row]) -> list[Leak]:
    """Returns what the test items share with training, in the order of the items.

    Args:
        items: Rows with `id`, `transcript` and, in `attributes` or beside them, `speaker`.
        training: The training manifest; read once, in a stream.

    Returns:
        At most one leak of each kind an item, the first one met in training.
    """
    index = _Index.of([_Test.of(item) for item in items])
    found: dict[tuple[int, str], Leak] = {}
    for row in training:
        for number, kind, similarity in index.shared(row):
            leak = Leak(id=index.tests[number].id, kind=kind, train_id=row.id, similarity=similarity)
            found.setdefault((number, kind), leak)
    return [found[key] for key in sorted(found)]


@dataclasses.dataclass(frozen=True)
class _Test:
    """What of a test item may leak."""

    id: str
    letters: str
    grams: frozenset[str]
    speaker: str

    @classmethod
    def of(cls, item: Mapping[str, Any]) -> "_Test":
        said = letters(item.get("transcript") or "")
        speaker = item.get("speaker") or (item.get("attributes") or {}).get("speaker") or ""
        return cls(str(item["id"]), said, _grams(said), str(speaker))


@dataclasses.dataclass(frozen=True)
class _Index:
    """The test items by what they may share with training."""

    tests: list[_Test]
    by_letters: dict[str, list[int]]
    by_speaker: dict[str, list[int]]
    by_band: dict[tuple[int, bytes], list[int]]

    @classmethod
    def of(cls, tests: list[_Test]) -> "_Index":
        index = cls(tests, {}, {}, {})
        for number, test in enumerate(tests):
            if test.letters:
                index.by_letters.setdefault(test.letters, []).append(number)
            if test.speaker:
                index.by_speaker.setdefault(test.speaker, []).append(number)
            for band in _signature_bands(test.grams) if test.letters else ():
                index.by_band.setdefault(band, []).append(number)
        return index

    def shared(self, row: Row) -> Iterator[tuple[int, str, float]]:
        """Yields the number of each test item that a training row gives away, how, and how much of it."""
        said = letters(row.transcript)
        seen = _grams(said)
        yield from ((number, "speaker", 1.0) for number in self.by_speaker.get(row.speaker, ()))
        yield from ((number, "sentence", 1.0) for number in self.by_letters.get(said, ()))
        for number in {number for band in _signature_bands(seen) for number in self.by_band.get(band, ())}:
            grams = self.tests[number].grams
            similarity = len(seen & grams) / len(seen | grams)
            if similarity >= NEAR and self.tests[number].letters != said:
                yield number, "near_sentence", similarity


def _grams(said: str) -> frozenset[str]:
    return frozenset(said[start : start + GRAM] for start in range(max(len(said) - GRAM + 1, 1)))


def _signature_bands(grams: frozenset[str]) -> list[tuple[int, bytes]]:
    """Keys that two sets of n-grams share with a probability near 1 if they are alike, near 0 if not.

    Source: Broder 1997, minwise hashing; the banding of Leskovec et al., Mining of Massive Datasets, section 3.4.
    """
    hashes = np.array([zlib.crc32(gram.encode()) for gram in grams], np.uint64)
    multipliers, offsets = _coefficients()
    smallest = ((hashes[:, None] * multipliers + offsets) % _PRIME).min(axis=0)
    return [(band, row.tobytes()) for band, row in enumerate(smallest.reshape(_BANDS, _BAND_ROWS))]


def _coefficients() -> tuple[UInt64[np.ndarray, " hash"], UInt64[np.ndarray, " hash"]]:
    generator = np.random.default_rng(0)
    # Small enough that a product with a 32-bit hash does not overflow.
    size = _BANDS * _BAND_ROWS
    return generator.integers(1, 2**28, size, np.uint64), generator.integers(1, 2**28, size, np.uint64)
