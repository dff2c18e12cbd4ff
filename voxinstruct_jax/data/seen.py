"""A set of names at eight bytes each, to find what repeats among millions."""

import hashlib

import numpy as np
from jaxtyping import UInt64

__all__ = ["Seen"]

NEWEST = 2**11


class Seen:
    """Which names were seen: digests in sorted arrays, the newest few in a set."""

    def __init__(self) -> None:
        self._newest = set[int]()
        self._sorted: list[np.ndarray] = []

    def add(self, name: str) -> bool:
        """Returns whether it is new."""
        if name in self:
            return False
        self._newest.add(_digest(name))
        if len(self._newest) == NEWEST:
            merged = np.fromiter(self._newest, np.uint64, len(self._newest))
            while self._sorted and len(self._sorted[-1]) <= len(merged):
                merged = np.concatenate([self._sorted.pop(), merged])
            merged.sort()
            self._sorted.append(merged)
            self._newest.clear()
        return True

    def __contains__(self, name: str) -> bool:
        digest = _digest(name)
        return digest in self._newest or any(_contains(known, digest) for known in self._sorted)


def _digest(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _contains(ordered: UInt64[np.ndarray, " id"], digest: int) -> bool:
    place = int(np.searchsorted(ordered, np.uint64(digest)))
    return place < len(ordered) and int(ordered[place]) == digest
