import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxinstruct_jax.text import number_words

MANDARIN = {
    0: "零",
    10: "十",
    12: "十二",
    20: "二十",
    105: "一百零五",
    110: "一百一十",
    200: "二百",
    1001: "一千零一",
    1010: "一千零一十",
    2000: "两千",
    10_000: "一万",
    10_500: "一万零五百",
    20_000: "两万",
    120_000: "十二万",
    100_000_001: "一亿零一",
    1_005_000_000: "十亿零五百万",
}


@pytest.mark.parametrize(("value", "spoken"), MANDARIN.items())
def test_mandarin_cardinals_place_zeros_and_liang(value, spoken):
    assert number_words.mandarin_cardinal(value) == spoken


@pytest.mark.parametrize(
    ("value", "spoken"),
    [
        (0, "zero"),
        (19, "nineteen"),
        (40, "forty"),
        (101, "one hundred one"),
        (1_000_000, "one million"),
        (-7, "minus seven"),
    ],
)
def test_english_cardinals(value, spoken):
    assert number_words.english_cardinal(value) == spoken


@pytest.mark.parametrize(
    ("value", "spoken"),
    [(5, "fifth"), (12, "twelfth"), (20, "twentieth"), (23, "twenty third"), (100, "one hundredth")],
)
def test_english_ordinals(value, spoken):
    assert number_words.english_ordinal(value) == spoken


@pytest.mark.parametrize(
    ("year", "spoken"),
    [(1066, "ten sixty six"), (1900, "nineteen hundred"), (2000, "two thousand"), (2010, "twenty ten")],
)
def test_years_are_read_in_pairs(year, spoken):
    assert number_words.english_year(year) == spoken


DIGITS = {character: value for value, character in enumerate("零一二三四五六七八九")} | {"两": 2}
UNITS = {"十": 10, "百": 100, "千": 1000}


def value_of(spoken: str) -> int:
    """Reads Mandarin numerals back, written apart from the code under test."""
    total = section = digit = 0
    for character in spoken:
        if character in DIGITS:
            digit = DIGITS[character]
        elif character in UNITS:
            section += (digit or 1) * UNITS[character]
            digit = 0
        else:
            total = (
                (total + section + digit) * {"万": 10**4, "亿": 10**8}[character]
                if character == "亿"
                else (total + (section + digit) * 10**4)
            )
            section = digit = 0
    return total + section + digit


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 10**12 - 1))
def test_mandarin_cardinals_read_back_as_their_value(value):
    assert value_of(number_words.mandarin_cardinal(value)) == value


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10**15 - 1), st.integers(0, 10**15 - 1))
def test_different_numbers_are_read_differently(one, other):
    assert (number_words.english_cardinal(one) == number_words.english_cardinal(other)) == (one == other)
