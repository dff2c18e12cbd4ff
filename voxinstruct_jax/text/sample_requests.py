"""Requests that this package ships to learn from: what of each is to be spoken, and which voice it asks for.

Language models wrote them as users would; which voice each asks for, others said of `data/requests.jsonl.bz2`, and the
writers themselves of `data/described.jsonl.bz2`. Read `read_samples`.
"""

import bz2
import json
from dataclasses import dataclass

__all__ = ["SampleRequest", "read_samples"]


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """A request and what of it is to be spoken."""

    before: str
    words: str
    after: str
    asked: str = ""
    """Gender, pitch, energy and speed, a sign each with spaces between: the first letter of its class, "-" where
    nothing is said of it, "?" where nobody can be sure. Empty = not known."""

    @property
    def instruction(self) -> str:
        """As the user wrote it."""
        return self.before + self.words + self.after


def read_samples(data: bytes) -> list[SampleRequest]:
    """Reads requests of a compressed file, a JSON list a line: before, words, after and, if known, what is asked."""
    rows = [json.loads(line) for line in bz2.decompress(data).decode("utf-8").splitlines()]
    return [SampleRequest(**dict(zip(("before", "words", "after", "asked"), row, strict=False))) for row in rows]
