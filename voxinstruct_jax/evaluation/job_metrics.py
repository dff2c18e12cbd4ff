"""What a set of results says of the work behind it: how fast it was made, and how its codec's codes are used.

Read `job_rows`.

Source:
    Shannon 1948 (entropy); perplexity is exp of the entropy in nats, as in van den Oord et al. 2017, "VQ-VAE".
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from voxinstruct_jax.data.statistics import perplexity
from voxinstruct_jax.evaluation.items import Item
from voxinstruct_jax.evaluation.score import Findings
from voxinstruct_jax.evaluation.stages import SOUND
from voxinstruct_jax.evaluation.statistics import interval
from voxinstruct_jax.evaluation.summary import Row

__all__ = ["JOB_METRICS", "job_rows"]

PERCENTILES = (50, 95, 99)
JOB_METRICS = (
    *(f"latency.p{each}" for each in PERCENTILES),
    "throughput.wall",
    "codec.bitrate",
    "codec.entropy",
    "codec.used",
    "codec.perplexity",
)
_AS_SAID = "as the results have it"


def job_rows(everything: Sequence[tuple[Item, Findings]], seed: int) -> list[Row]:
    """Rows of those metrics that the results carry columns for.

    Args:
        everything: Items with their findings.
        seed: Of intervals.
    """
    return [*_latency(everything), *_wall(everything), *_codes(everything, seed)]


def _latency(everything: Sequence[tuple[Item, Findings]]) -> list[Row]:
    spent = [item.synthesis_s for item, _ in everything if item.synthesis_s is not None]
    return [
        Row(
            metric=f"latency.p{each}",
            value=float(np.percentile(spent, each)),
            evaluated=len(spent),
            total=len(everything),
            unit="s",
            better="lower",
            protocol=f"{each}th percentile of synthesis seconds an item; compile time may be in it",
            judge=_AS_SAID,
        )
        for each in PERCENTILES
        if spent
    ]


def _wall(everything: Sequence[tuple[Item, Findings]]) -> list[Row]:
    """Sound that all workers together made, from the first result to the last."""
    made = sorted(
        (item.finished_unix_s, findings[SOUND].get("whole_s", 0.0))
        for item, findings in everything
        if item.finished_unix_s is not None
    )
    if len(made) < 2 or made[-1][0] <= made[0][0]:
        return []
    return [
        Row(
            metric="throughput.wall",
            value=sum(seconds for _, seconds in made[1:]) / (made[-1][0] - made[0][0]),
            evaluated=len(made),
            total=len(everything),
            unit="s/s",
            better="higher",
            protocol="audio seconds of all items but the first over the time from the first finished to the last; "
            "opening and compiling are not in it, pauses of the job are",
            judge=_AS_SAID,
        )
    ]


def _codes(everything: Sequence[tuple[Item, Findings]], seed: int) -> list[Row]:
    """Over items whose results carry `codes`; a size of the codebooks is never guessed."""
    coded = [(item, findings[SOUND]["whole_s"]) for item, findings in everything if item.codes and _sounds(findings)]
    if not coded:
        return []
    books = [_counts(coded, book) for book in range(max(len(item.codes) for item, _ in coded))]
    perplexities = [perplexity(counts) for counts in books]
    seconds = sum(length for _, length in coded)
    bits = sum(float(counts.sum() * np.log2(each)) for counts, each in zip(books, perplexities, strict=True))
    rows = [
        ("codec.entropy", bits / seconds, "bits/s", "", "codes times the entropy of their codebook over seconds", ""),
        ("codec.perplexity", float(np.mean(perplexities)), "codes", "higher", "exp of the entropy of a codebook's use, "
         "mean over codebooks", _by_book(perplexities)),
    ]  # fmt: skip
    sized = [(item, length) for item, length in coded if item.codebook_size is not None]
    ends: tuple[float, float] | None = None
    if len(sized) == len(coded):
        shares = [np.count_nonzero(counts) / max(item.codebook_size or 1 for item, _ in sized) for counts in books]
        spent = [sum(map(len, item.codes)) * float(np.log2(item.codebook_size or 1)) for item, _ in sized]
        lengths = [length for _, length in sized]
        ends = interval(spent, lengths, range(len(sized)), seed=seed)
        rows += [
            ("codec.bitrate", sum(spent) / seconds, "bits/s", "", "codes times log2 of the codebook's size over "
             "seconds", ""),
            ("codec.used", float(np.mean(shares)), "fraction", "higher", "codes that occur over the codebook's size, "
             "mean over codebooks", _by_book(shares)),
        ]  # fmt: skip
    return [
        Row(
            metric=name,
            value=value,
            ci_low=ends[0] if ends and name == "codec.bitrate" else None,
            ci_high=ends[1] if ends and name == "codec.bitrate" else None,
            evaluated=len(coded),
            total=len(everything),
            unit=unit,
            better=better,
            protocol=protocol,
            judge=_AS_SAID,
            note=note,
        )
        for name, value, unit, better, protocol, note in sorted(rows)
    ]


def _sounds(findings: Findings) -> bool:
    return findings[SOUND]["status"] == "ok"


def _counts(coded: Sequence[tuple[Item, float]], book: int) -> Int[np.ndarray, " code"]:
    """How often each code of one codebook occurs."""
    return np.bincount(np.concatenate([np.array(i.codes[book], np.int64) for i, _ in coded if book < len(i.codes)]))


def _by_book(values: Sequence[float]) -> str:
    return "by codebook: " + ", ".join(f"{value:.3g}" for value in values)
