"""What clips are like: counts, hours, histograms, and how evenly tokens are used. Memory does not grow with the clips.

Make a `Tally`, `add` every clip, read `summary`.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from voxinstruct_jax.data.shards import Example

__all__ = ["EDGES", "Tally", "Trait", "perplexity"]

SECONDS_AN_HOUR = 3600


@dataclass(frozen=True, kw_only=True)
class Trait:
    """One of the numbers that every clip has."""

    unit: str
    edges: Float[np.ndarray, " edge"]
    """Of the bins; the first and the last bin hold all that is beyond."""


EDGES = {
    "duration": Trait(unit="s", edges=np.arange(0.0, 31.0)),
    "text_length": Trait(unit="characters", edges=np.arange(0.0, 410.0, 10)),
    "characters_a_second": Trait(unit="characters/s", edges=np.arange(0.0, 41.0)),
}


class Tally:
    """Counts clips."""

    def __init__(self) -> None:
        self.languages: Counter[str] = Counter()
        self.seconds = 0.0
        self.without_duration = 0
        self.histograms: dict[str, dict[str, Int[np.ndarray, " bin"]]] = {name: {} for name in EDGES}
        """Clips by trait, language and bin."""
        self.semantic: Counter[int] = Counter()
        self.codes: list[Counter[int]] = []
        """Of each codebook."""

    def add(self, language: str, transcript: str, seconds: float | None) -> None:
        """Counts a clip; without its duration only its text counts."""
        self.languages[language] += 1
        self._bin("text_length", language, float(len(transcript)))
        if seconds is None:
            self.without_duration += 1
            return
        self.seconds += seconds
        self._bin("duration", language, seconds)
        self._bin("characters_a_second", language, len(transcript) / max(seconds, 1e-3))

    def add_example(self, example: Example, frame_rate: float) -> None:
        """Counts a prepared clip with its tokens."""
        self.add(example.language, example.transcript, example.codes.shape[1] / frame_rate)
        self.semantic.update(example.semantic_tokens.tolist())
        self.codes += [Counter() for _ in range(len(example.codes) - len(self.codes))]
        for counter, codes in zip(self.codes, example.codes, strict=False):
            counter.update(codes.tolist())

    def summary(self) -> dict[str, Any]:
        """Returns it all as JSON values."""
        found: dict[str, Any] = {
            "clips": self.languages.total(),
            "hours": round(self.seconds / SECONDS_AN_HOUR, 4),
            "languages": dict(self.languages.most_common()),
            "histograms": {
                name: {
                    "unit": EDGES[name].unit,
                    "edges": EDGES[name].edges.tolist(),
                    "counts": {language: counts.tolist() for language, counts in by_language.items()},
                }
                for name, by_language in self.histograms.items()
            },
        }
        if self.codes:
            found["semantic_tokens"] = _usage(self.semantic)
            found["codebooks"] = [_usage(counter) for counter in self.codes]
        return found

    def _bin(self, name: str, language: str, value: float) -> None:
        edges = EDGES[name].edges
        counts = self.histograms[name].setdefault(language, np.zeros(len(edges) - 1, np.int64))
        counts[np.clip(np.searchsorted(edges, value, side="right") - 1, 0, len(counts) - 1)] += 1


def perplexity(counts: Int[np.ndarray, " symbol"]) -> float:
    """Returns exp of the entropy of a distribution given by counts: as many symbols evenly used say as much."""
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return float(np.exp(-np.sum(shares * np.log(shares))))


def _usage(counter: Counter[int]) -> dict[str, Any]:
    counts = np.array(list(counter.values()), np.int64)
    return {
        "used": len(counter),
        "perplexity": round(perplexity(counts), 2),
        "commonest": [[token, count] for token, count in counter.most_common(5)],
    }
