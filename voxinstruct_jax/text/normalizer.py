"""Text normalisation: numbers, dates, money and units become words, in English and Mandarin, piece by piece.

The same function prepares training text and user requests. Quotes and punctuation stay as they are, since they say
which words are spoken. The written forms themselves live in `spoken_forms`. Read `normalize` first.
"""

import functools
import re
import unicodedata

from voxinstruct_jax.text.spoken_forms import RULES, Rule

__all__ = ["HAN", "HAN_CHARACTER", "has_han", "normalize"]

HAN = "\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Chinese characters, as the inside of a regular expression's brackets."""
HAN_CHARACTER = re.compile(f"[{HAN}]")
_PLAIN = re.compile(rf"[A-Za-z \-!\"'(),.:;?{HAN}，。！？；：、“”‘’「」『』«»《》（）…—]*")
"""Text of these characters alone needs no cleaning and holds no number."""
_ABBREVIATED = re.compile(r"\b(?:Mrs?|Ms|Dr|Prof|vs|etc|e\.g|i\.e)\b")
_SPACES = re.compile(r"\s+")
_MAX_SCAN = 60
"""Characters to look through on either side for a letter that tells the language of a number."""
_MAX_PASSES = 8

_REPLACED = {
    **{
        chr(code): chr(code - 0xFEE0)
        for code in [*range(0xFF10, 0xFF1A), *range(0xFF21, 0xFF3B), *range(0xFF41, 0xFF5B)]
    },
    "％": "%",
    "＄": "$",
    "￥": "¥",
    "￡": "£",
    "＃": "#",
    "＆": "&",
    "＋": "+",
    "＝": "=",
    "＠": "@",
    "＂": '"',
    "＇": "'",
    "℃": "°C",
    "℉": "°F",
    "㎏": "kg",
    "㎞": "km",
    "㎝": "cm",
    "㎜": "mm",
}
_DROPPED_CATEGORIES = ("Cc", "Cf", "Cs", "Co", "Cn", "So", "Me")


def has_han(text: str) -> bool:
    """Whether a text holds a Chinese character."""
    return HAN_CHARACTER.search(text) is not None


def _is_han(character: str) -> bool:
    """True for a Chinese character."""
    return HAN_CHARACTER.match(character) is not None


def _is_latin(character: str) -> bool:
    """True for a letter of the English alphabet, in either case."""
    return character.isascii() and character.isalpha()


@functools.lru_cache(maxsize=4096)
def normalize(text: str) -> str:
    """Writes out what is read aloud differently from how it is written.

    Numbers take the language of the nearest letter, or of a Chinese unit behind them; with no letter near, English.
    Emoji and control characters vanish, runs of spaces become one. Applying it twice changes nothing.

    Args:
        text: Any text, in English, Mandarin or both.

    Returns:
        The text without digits.
    """
    text = _SPACES.sub(" ", text).strip()
    if _PLAIN.fullmatch(text) and not _ABBREVIATED.search(text):
        return text
    # One pass settles ordinary text; odd character strings may need another, and idempotence must hold for them too.
    for _ in range(_MAX_PASSES):
        again = _pass(text)
        if again == text:
            break
        text = again
    return text


def _pass(text: str) -> str:
    text = _clean(text)
    for rule in RULES:
        text = _apply(rule, text)
    return _SPACES.sub(" ", text).strip()


def _clean(text: str) -> str:
    return _SPACES.sub(" ", "".join(map(_clean_character, unicodedata.normalize("NFC", text)))).strip()


@functools.lru_cache(maxsize=65536)
def _clean_character(character: str) -> str:
    """The character, its plain form, a space, or nothing."""
    if character in _REPLACED:
        return _REPLACED[character]
    category = unicodedata.category(character)
    if character.isspace():
        return " "
    if category == "Nd":
        return str(unicodedata.decimal(character))
    if category == "No" and character not in "²³":
        plain = unicodedata.normalize("NFKC", character).replace("\u2044", "/")
        return f" {plain}" if plain.isascii() else ""
    is_skin_tone_or_selector = "\ufe00" <= character <= "\ufe0f" or "\U0001f3fb" <= character <= "\U0001f3ff"
    if (category in _DROPPED_CATEGORIES and character != "°") or is_skin_tone_or_selector:
        return ""
    return character


def _apply(rule: Rule, text: str) -> str:
    def spoken(match: re.Match[str]) -> str:
        words = rule.read(match, _reads_mandarin(text, match.start(), match.end()))
        if words is None:
            return match[0]
        before, after = text[: match.start()][-1:], text[match.end() :][:1]
        left = " " if _needs_space(before, words[:1]) else ""
        right = " " if _needs_space(words[-1:], after) else ""
        return left + words + right

    return rule.pattern.sub(spoken, text)


def _needs_space(left: str, right: str) -> bool:
    """True between English letters, or a letter and a digit, that a rule put side by side."""
    return all(side != "" and side.isascii() and side.isalnum() for side in (left, right))


def _reads_mandarin(text: str, start: int, end: int) -> bool:
    """True if the letter nearest to `text[start:end]` is Chinese; at equal distance Chinese wins."""
    for distance in range(_MAX_SCAN):
        sides = (
            text[max(start - 1 - distance, 0) : max(start - distance, 0)] + text[end + distance : end + distance + 1]
        )
        if any(_is_han(character) for character in sides):
            return True
        if any(_is_latin(character) for character in sides):
            return False
    return False
