"""Pronunciation: the phones of English words letter by letter, and pinyin of Chinese characters.

English comes from the lexicon, with letter-to-sound for all other words; Mandarin from pypinyin, which looks at whole
words for characters of several readings. Read `english_phones` and `mandarin_syllables`.
"""

import functools
import re
from typing import Any

from voxinstruct_jax.text.alignment import strip_stress
from voxinstruct_jax.text.lexicon import english_lexicon, letter_to_sound

__all__ = ["FINALS", "INITIALS", "english_phones", "letter_name", "mandarin_syllables"]

Chunks = tuple[tuple[str, ...], ...]

_INITIAL_NAMES = "b p m f d t n l g k h j q x zh ch sh r z c s"
_FINAL_NAMES = (
    "a ai an ang ao e ei en eng er i ia ian iang iao ie in ing iong iou ir iz m n ng o ong ou u ua uai uan uang uei "
    "uen ueng uo v van ve vn ê"
)
INITIALS = ("-", *_INITIAL_NAMES.split())
"""Pinyin initials; "-" stands for none."""
FINALS = tuple(final + tone for final in _FINAL_NAMES.split() for tone in "12345")
"""Pinyin finals with tone (5 neutral), unabbreviated (`iou`, `uen`); v is ü, `iz` and `ir` the vowels of si and shi."""

_LETTER_NAMES = {"a": ("EY1",), "q": ("K", "UW1"), "w": ("D", "AH1"), "x": ("EH1", "K")}
"""Names of letters that the lexicon reads otherwise, or with more phones than a letter has room for."""
_INTERJECTIONS = {
    "brr": "B ER1",
    "grr": "G ER1",
    "pfft": "P F T",
    "pst": "P S T",
    "psst": "P S T",
    "tsk": "T S K",
    "zz": "Z",
}
"""Words without a vowel, of which letter-to-sound can't know that nobody spells them out."""
_STRETCH = re.compile(r"([a-z])\1{2,}")
_MAX_WORD = 40
"""Longer strings of letters are pronounced in pieces: they are no words."""
_SIBILANTS = ("S", "Z", "SH", "ZH", "CH", "JH")
_VOICELESS = ("P", "T", "K", "F", "TH")
_APICAL = {"z": "iz", "c": "iz", "s": "iz", "zh": "ir", "ch": "ir", "sh": "ir", "r": "ir"}


@functools.lru_cache(maxsize=65536)
def english_phones(word: str, *, spelled: bool = False) -> Chunks:
    """Pronounces an English word.

    Args:
        word: Letters a to z, with apostrophes inside.
        spelled: Name its letters one by one, unless the lexicon knows the word.

    Returns:
        For each letter its 0, 1 or 2 ARPAbet phones, vowels with a stress digit.
    """
    if len(word) > _MAX_WORD:
        return english_phones(word[:_MAX_WORD]) + english_phones(word[_MAX_WORD:])
    phones = _known_phones(word)
    if phones is not None:
        aligned = letter_to_sound().table.align(word, phones)
        return aligned if aligned is not None else _spread(word, phones)
    if spelled:
        return tuple(letter_name(letter) for letter in word)
    stem = word.removesuffix("'s")
    if stem != word and stem:
        return _with_possessive(english_phones(stem))
    return letter_to_sound().predict([word])[0]


def _known_phones(word: str) -> tuple[str, ...] | None:
    """Phones of a word of the lexicon, also when its letters are stretched ("sooo", "goood")."""
    doubled, single = _STRETCH.sub(r"\1\1", word), _STRETCH.sub(r"\1", word)
    # Three letters with a double vowel are rather a stretched short word ("noo") than a name of the lexicon.
    likely = (single, doubled) if re.fullmatch(r"[^aeiou]?([aeiou])\1", doubled) else (doubled, single)
    for spelling in (word, *likely):
        phones = english_lexicon().get(spelling) or _INTERJECTIONS.get(spelling)
        if phones:
            return tuple(phones.split())
    return None


def letter_name(letter: str) -> tuple[str, ...]:
    """Phones of a letter's name, two at most; a point or an apostrophe has none."""
    return _LETTER_NAMES.get(letter) or tuple(english_lexicon().get(letter, "").split())


def _spread(word: str, phones: tuple[str, ...]) -> Chunks:
    """Two phones a letter as far as they go, for abbreviations that say more than they spell ("mr", "w")."""
    if word in _LETTER_NAMES:
        return (_LETTER_NAMES[word],)
    return tuple(phones[2 * i : 2 * i + 2] for i in range(len(word)))


def _with_possessive(stem: Chunks) -> Chunks:
    last = strip_stress(next((chunk[-1] for chunk in reversed(stem) if chunk), ""))
    if last in _SIBILANTS:
        return (*stem, ("IH0",), ("Z",))
    return (*stem, (), ("S",) if last in _VOICELESS else ("Z",))


@functools.lru_cache(maxsize=65536)
def mandarin_syllables(characters: str) -> tuple[tuple[str, str], ...]:
    """Reads a run of Chinese characters.

    Tones follow the words that pypinyin knows, with its sandhi of 一, 不 and third tones.

    Args:
        characters: Chinese characters only.

    Returns:
        Initial and final with tone of each character, of `INITIALS` and `FINALS`; empty strings if it has no reading.
    """
    from pypinyin import Style, lazy_pinyin

    unread: Any = _unread  # pypinyin's own type leaves lists out, which its documentation allows
    initials = lazy_pinyin(characters, style=Style.INITIALS, strict=True, errors=unread, tone_sandhi=True)
    finals = lazy_pinyin(
        characters,
        style=Style.FINALS_TONE3,
        strict=True,
        errors=unread,
        neutral_tone_with_five=True,
        tone_sandhi=True,
    )
    return tuple(map(_syllable, characters, initials, finals))


def _unread(characters: str) -> list[str]:
    return [""] * len(characters)


def _syllable(character: str, initial: str, final: str) -> tuple[str, str]:
    if not final:
        final = _syllabic_consonant(character)
    if final[:-1] == "i":
        final = _APICAL.get(initial, "i") + final[-1]
    return (initial or "-", final) if final in FINALS else ("", "")


def _syllabic_consonant(character: str) -> str:
    """The final of 嗯 and its like, which pypinyin gives only in its loose style."""
    from pypinyin import Style, lazy_pinyin

    finals = lazy_pinyin(
        character, style=Style.FINALS_TONE3, strict=False, errors="ignore", neutral_tone_with_five=True
    )
    return "".join(finals)
