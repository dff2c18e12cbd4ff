"""What a word is, wherever words are counted or marked: in `attributes.stress`, in word times, in reports."""

import re
from dataclasses import dataclass

__all__ = ["Word", "split_words"]

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_HAN}]|(?:(?![{_HAN}])\w)+(?:['’\-.](?:(?![{_HAN}])\w)+)*")


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
