"""Filters of manifest rows: what is too short, too fast, doubtful, repeated or in another language is set aside.

`filter_rows` passes rejections on and adds its own; `write_rows` writes what is left, lists the rejections, and counts
both.
"""

import json
import math
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from voxinstruct_jax.config import ConfigError, InputError, to_dict
from voxinstruct_jax.data.manifest import Rejection, Row, whole_file, write_manifest
from voxinstruct_jax.data.seen import Seen
from voxinstruct_jax.text.words import split_words

__all__ = ["REJECTED_FILE", "FilterConfig", "Summary", "filter_rows", "write_rows"]

REJECTED_FILE = "rejected.jsonl"
LONGEST_WORD = 45
"""Letters; no English word that is spoken has more. Web addresses, keys and noise of character recognition have."""
HAN = "CJK"
SCRIPTS = {
    "LATIN": (
        "en",
        "de",
        "fr",
        "es",
        "it",
        "pt",
        "nl",
        "pl",
        "sv",
        "da",
        "fi",
        "no",
        "cs",
        "tr",
        "vi",
        "id",
        "ms",
        "tl",
    ),
    HAN: ("zh", "ja", "yue"),
    "HIRAGANA": ("ja",),
    "KATAKANA": ("ja",),
    "HANGUL": ("ko",),
    "CYRILLIC": ("ru", "uk", "bg"),
    "ARABIC": ("ar", "fa", "ur"),
    "HEBREW": ("he",),
    "GREEK": ("el",),
    "THAI": ("th",),
    "DEVANAGARI": ("hi", "mr"),
}
"""Languages by the script that they are written in, as the first word of its letters' Unicode names."""
_LANGUAGES_WITH_SCRIPT = frozenset(language for languages in SCRIPTS.values() for language in languages)
_DAMAGED = re.compile(r"[\x00-\x08\x0e-\x1f\x7f\ufffd\ue000-\uf8ff]")


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """What rows must be like. The defaults only drop what can't be used or repeats.

    VoxInstruct keeps clips of at least 3 s and good quality (section 5.1).
    """

    min_duration_s: float = 0.0
    """Shortest clip (s); one whose duration is unknown passes."""
    max_duration_s: float = math.inf
    """Longest clip (s)."""
    min_words_per_s: dict[str, float] = field(default_factory=dict)
    """Slowest speech by language, such as en 0.5 zh 1 (words/s; in Mandarin characters/s)."""
    max_words_per_s: dict[str, float] = field(default_factory=dict)
    """Fastest speech by language, such as en 6 zh 9; faster "speech" has another transcript."""
    min_values: dict[str, float] = field(default_factory=dict)
    """Least value of columns that hold numbers, such as dnsmos 3 or confidence 0.95; rows without one are dropped."""
    languages: tuple[str, ...] = ()
    """Keep these; all if empty."""
    min_script_share: float = 0.5
    """Least share of the transcript's words in the script of its language; 0 switches this off."""
    max_repeats: int | None = None
    """How often one speaker may say the same words; any number if None."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_duration_s <= self.max_duration_s:
            raise ConfigError(
                f"filter.min_duration_s: {self.min_duration_s:g} must be between 0 and max_duration_s "
                f"({self.max_duration_s:g})"
            )
        if not 0 <= self.min_script_share <= 1:
            raise ConfigError(f"filter.min_script_share: {self.min_script_share:g} must be between 0 and 1")
        if self.max_repeats is not None and self.max_repeats < 1:
            raise ConfigError(f"filter.max_repeats: {self.max_repeats} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What was written and what was not."""

    rows: int
    hours: float
    """Of rows whose duration is known."""
    without_duration: int
    languages: Mapping[str, int]
    rejected: Mapping[str, int]
    """By kind of reason, the most frequent first."""


def filter_rows(rows: Iterable[Row | Rejection], config: FilterConfig) -> Iterator[Row | Rejection]:
    """Passes on each row that fits, and a rejection for each that does not.

    Args:
        rows: In any number, taken one by one; rejections among them are passed on.
        config: What must hold.
    """
    ids, spans, spoken = Seen(), Seen(), Seen()
    for row in rows:
        if isinstance(row, Rejection):
            yield row
            continue
        reason = (
            _unusable_text(row, words := [word.text for word in split_words(row.transcript)])
            or _wrong_language(row, words, config)
            or _wrong_duration(row, len(words), config)
            or _low_value(row, config)
            or _repeated(row, config, ids, spans, spoken)
        )
        yield row if reason is None else Rejection(row=0, id=row.id, reason=reason)


def write_rows(out: str, items: Iterable[Row | Rejection]) -> Summary:
    """Writes rows as a manifest, and rejections into `rejected.jsonl` beside it; both appear whole or not at all.

    Args:
        out: `.parquet`, or any other name for JSON lines; an absolute path or an fsspec URL.
        items: As `filter_rows` gives them.

    Raises:
        InputError: Not one row is left; the reasons stand in `rejected.jsonl`.
    """
    languages, rejected = Counter[str](), Counter[str]()
    seconds: list[float] = [0.0]
    unknown = Counter[bool]()
    beside = posixpath.join(posixpath.dirname(out), REJECTED_FILE)

    def rows() -> Iterator[Row]:
        with whole_file(beside) as listed:
            for item in items:
                if isinstance(item, Row):
                    languages[item.language] += 1
                    seconds[0] += item.duration_s or 0.0
                    unknown[item.duration_s is None] += 1
                    yield item
                else:
                    rejected[item.reason.partition(": ")[0]] += 1
                    listed.write(
                        (json.dumps(to_dict(item), ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
                    )
        if not languages:
            raise InputError(f"{out}: no row is left ({_listed(rejected) or 'the source is empty'}); see {beside}")

    count = write_manifest(out, rows())
    return Summary(
        rows=count,
        hours=seconds[0] / 3600,
        without_duration=unknown[True],
        languages=dict(sorted(languages.items())),
        rejected=dict(rejected.most_common()),
    )


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in counts.most_common())


def _unusable_text(row: Row, words: Sequence[str]) -> str | None:
    if _DAMAGED.search(row.transcript):
        return "damaged text: holds control or replacement characters"
    if not words:
        return "only marks: the transcript holds no word"
    longest = max(words, key=len)
    return f"unpronounceable: a word of {len(longest)} letters" if len(longest) > LONGEST_WORD else None


def _wrong_language(row: Row, words: Sequence[str], config: FilterConfig) -> str | None:
    if config.languages and row.language not in config.languages:
        return f"language: {row.language} is not asked for"
    if not config.min_script_share or row.language not in _LANGUAGES_WITH_SCRIPT:
        return None
    letters = [letter for word in words if (letter := _first_letter(word))]
    fitting = sum(row.language in SCRIPTS.get(_script(letter), ()) for letter in letters)
    if fitting < config.min_script_share * len(letters):
        return f"language: {fitting} of {len(letters)} words are written as {row.language} is"
    return None


def _first_letter(word: str) -> str | None:
    """Digits are at home in every language."""
    return next((letter for letter in word if letter.isalpha()), None)


def _script(letter: str) -> str:
    return unicodedata.name(letter, "").partition(" ")[0]


def _wrong_duration(row: Row, num_words: int, config: FilterConfig) -> str | None:
    if row.duration_s is None:
        return None
    if row.duration_s < config.min_duration_s:
        return f"too short: {row.duration_s:.2f} s"
    if row.duration_s > config.max_duration_s:
        return f"too long: {row.duration_s:.2f} s"
    slowest, fastest = (limits.get(row.language) for limits in (config.min_words_per_s, config.max_words_per_s))
    if slowest is None and fastest is None:
        return None
    words_per_s = num_words / row.duration_s
    if slowest is not None and words_per_s < slowest:
        return f"too slow: {words_per_s:.2f} words/s"
    if fastest is not None and words_per_s > fastest:
        return f"too fast: {words_per_s:.2f} words/s"
    return None


def _low_value(row: Row, config: FilterConfig) -> str | None:
    for name, least in config.min_values.items():
        value: Any = row.extra.get(name)
        if not isinstance(value, int | float):
            return f"no {name}: the row has no such number"
        if not value >= least:
            return f"low {name}: {value:g}"
    return None


def _repeated(row: Row, config: FilterConfig, ids: Seen, spans: Seen, spoken: Seen) -> str | None:
    if not ids.add(row.id):
        return f"repeated id: {row.id!r} stands in an earlier row"
    if not spans.add(f"{row.audio}\n{row.offset_s:.3f} {row.duration_s}"):
        return f"repeated audio: {row.audio} from {row.offset_s:g} s stands in an earlier row"
    if config.max_repeats is None:
        return None
    words = "\n".join((row.speaker, row.language, *(word.text.lower() for word in split_words(row.transcript))))
    if any(spoken.add(f"{number}\n{words}") for number in range(config.max_repeats)):
        return None
    return f"repeated words: said {config.max_repeats} times by this speaker already"
