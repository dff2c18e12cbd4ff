"""What a word is, wherever words are counted or marked: in `attributes.stress`, in word times, in reports."""

import re
import unicodedata
from collections.abc import Container, Iterator
from dataclasses import dataclass

from voxinstruct_jax.text.normalizer import HAN

__all__ = ["Word", "letters", "listed_runs", "split_words"]

_WORD = re.compile(rf"[{HAN}]|(?:(?![{HAN}])\w)+(?:['’\-.](?:(?![{HAN}])\w)+)*")


@dataclass(frozen=True, kw_only=True)
class Word:
    """A word and where it stands in the text."""

    text: str
    start: int
    """First character."""
    end: int
    """After the last one."""


def split_words(text: str) -> list[Word]:
    """Splits a text into words.

    A word is one Han character, or a run of letters and digits of other scripts; an apostrophe, hyphen or full stop
    between two of them belongs to it ("don't", "3.5", "well-known"). Mandarin is not segmented, since segmenters
    differ: a word of two characters is two words here.
    """
    return [Word(text=match.group(), start=match.start(), end=match.end()) for match in _WORD.finditer(text)]


def letters(text: str) -> str:
    """Returns letters and digits alone: the same for texts that differ in case, spaces or marks."""
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())


def listed_runs(characters: str, listed: Container[str], longest: int) -> Iterator[tuple[int, int]]:
    """Start and end of listed words in a script without spaces: from the left the longest one each time.

    Args:
        characters: The run of text.
        listed: The words.
        longest: Characters of the longest of them.
    """
    start = 0
    while start < len(characters):
        lengths = range(min(longest, len(characters) - start), 0, -1)
        length = next((n for n in lengths if characters[start : start + n] in listed), 0)
        if length:
            yield start, start + length
        start += max(length, 1)
