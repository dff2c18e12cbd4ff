"""Numbers read aloud: English and Mandarin words for integers, ordinals, decimals, years and digit strings.

Words only, no symbols and no digits: `normalizer` finds the numbers in a text and decides how each is read.
"""

from collections.abc import Callable

__all__ = [
    "MAX_CARDINAL_DIGITS",
    "english_cardinal",
    "english_decimal",
    "english_digits",
    "english_ordinal",
    "english_year",
    "mandarin_cardinal",
    "mandarin_decimal",
    "mandarin_digits",
]

MAX_CARDINAL_DIGITS = 15
"""Longer integers are read digit by digit."""

_ONE_NAMES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_ONES = _ONE_NAMES.split()
_TENS = ["zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_SCALES = ("", "thousand", "million", "billion", "trillion")
_ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}
_MANDARIN_DIGITS = "零一二三四五六七八九"
_MANDARIN_UNITS = ("", "十", "百", "千")
_MANDARIN_SCALES = ("", "万", "亿", "万亿")


def english_cardinal(value: int) -> str:
    """Reads an integer: 105 is "one hundred five"; no hyphens, no "and"."""
    if value < 0:
        return "minus " + english_cardinal(-value)
    if value >= 10**MAX_CARDINAL_DIGITS:
        return english_digits(str(value))
    if value < 20:
        return _ONES[value]
    groups, scale = [], 0
    while value:
        value, rest = divmod(value, 1000)
        if rest:
            groups.append(f"{_english_below_thousand(rest)} {_SCALES[scale]}".strip())
        scale += 1
    return " ".join(reversed(groups))


def _english_below_thousand(value: int) -> str:
    hundreds, rest = divmod(value, 100)
    words = [_ONES[hundreds], "hundred"] if hundreds else []
    if rest >= 20:
        tens, rest = divmod(rest, 10)
        words.append(_TENS[tens])
    if rest:
        words.append(_ONES[rest])
    return " ".join(words)


def english_ordinal(value: int) -> str:
    """Reads a position: 21 is "twenty first"."""
    *front, last = english_cardinal(value).split()
    last = last[:-1] + "ieth" if last.endswith("y") else _ORDINALS.get(last, last + "th")
    return " ".join([*front, last])


def english_year(value: int) -> str:
    """Reads a year of four digits in pairs: 1905 is "nineteen oh five", 2007 "two thousand seven"."""
    high, low = divmod(value, 100)
    if high % 10 == 0 and low < 10:
        return english_cardinal(value)
    if low == 0:
        return f"{english_cardinal(high)} hundred"
    return f"{english_cardinal(high)} {'oh ' if low < 10 else ''}{english_cardinal(low)}"


def english_digits(digits: str) -> str:
    """Reads digits one by one."""
    return " ".join(_ONES[int(digit)] for digit in digits)


def english_decimal(number: str) -> str:
    """Reads digits with at most one point: "3.14" is "three point one four"."""
    return _decimal(number, english_cardinal, english_digits, " point ")


def mandarin_cardinal(value: int) -> str:
    """Reads an integer: 105 is 一百零五, 12 is 十二, 2000 is 两千."""
    if value < 0:
        return "负" + mandarin_cardinal(-value)
    if value >= 10**MAX_CARDINAL_DIGITS:
        return mandarin_digits(str(value))
    if value == 0:
        return _MANDARIN_DIGITS[0]
    text, scale, gap = "", 0, False
    while value:
        value, group = divmod(value, 10_000)
        if group:
            spoken = _mandarin_below_ten_thousand(group)
            if spoken == "二" and scale:
                spoken = "两"
            text = spoken + _MANDARIN_SCALES[scale] + ("零" if gap and text else "") + text
            gap = group < 1000
        else:
            gap = True
        scale += 1
    return text.removeprefix("一") if text.startswith("一十") else text


def _mandarin_below_ten_thousand(value: int) -> str:
    text, pending_zero = "", False
    for place in (3, 2, 1, 0):
        digit = value // 10**place % 10
        if digit:
            spoken = "两" if digit == 2 and place >= 3 else _MANDARIN_DIGITS[digit]
            text += ("零" if pending_zero and text else "") + spoken + _MANDARIN_UNITS[place]
            pending_zero = False
        else:
            pending_zero = True
    return text


def mandarin_digits(digits: str, *, telephone: bool = False) -> str:
    """Reads digits one by one; in telephone numbers 1 is 幺."""
    text = "".join(_MANDARIN_DIGITS[int(digit)] for digit in digits)
    return text.replace("一", "幺") if telephone else text


def mandarin_decimal(number: str) -> str:
    """Reads digits with at most one point: "3.14" is 三点一四."""
    return _decimal(number, mandarin_cardinal, mandarin_digits, "点")


def _decimal(number: str, cardinal: Callable[[int], str], spell: Callable[[str], str], point: str) -> str:
    whole, _, fraction = number.partition(".")
    whole_words = spell(whole) if len(whole) > MAX_CARDINAL_DIGITS else cardinal(int(whole or "0"))
    return whole_words + (f"{point}{spell(fraction)}" if fraction else "")
