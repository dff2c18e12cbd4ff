"""What a model is fed that reads style and content apart."""

import numpy as np
import pytest

from voxinstruct_jax.config import InputError
from voxinstruct_jax.text.tokenizer import (
    INSIDE_QUOTES,
    OUTSIDE_QUOTES,
    QUOTE_CHANNEL,
    PronunciationTokenizer,
    arrange_text,
    spread_durations,
)

TOKENIZER = PronunciationTokenizer()
SPACE = TOKENIZER.encode(" a b")[1, 0]
PHONES = slice(1, 3)
CASES = {
    "content first": ('"Hello there," says a sad man.', "says a sad man.", '"Hello there,"'),
    "content last": ('A sad man says: "Hello there,"', "A sad man says:", '"Hello there,"'),
    "in the middle": ('Say "hello there," slowly', "Say slowly", '"hello there,"'),
    "Mandarin first": ("“你好吗？”他悲伤地说。", "他悲伤地说。", "“你好吗？”"),
    "Mandarin last": ("他悲伤地说：“你好吗？”", "他悲伤地说：", "“你好吗？”"),
    "Mandarin between": ("请把“你好吗？”说得慢一点", "请把说得慢一点", "“你好吗？”"),
    "mixed": ("用英语说“Good morning”，声音要低", "用英语说，声音要低", "“Good morning”"),
}


def arranged(instruction, form):
    return arrange_text(TOKENIZER.encode(instruction), form)


def letters(rows):
    """Rows without spaces, which taking the content out of a text may double."""
    return rows[rows[:, 0] != SPACE]


@pytest.fixture(params=CASES, ids=str)
def case(request):
    return CASES[request.param]


@pytest.mark.parametrize("form", ["style_and_content", "style_vector_and_content"])
def test_style_comes_first_and_then_the_content_wherever_it_stood(case, form):
    instruction, style, content = case
    rows = arranged(instruction, form)
    assert len(rows) == len(TOKENIZER.encode(instruction))
    end = int(np.flatnonzero(rows[:, QUOTE_CHANNEL] == OUTSIDE_QUOTES)[-1])
    np.testing.assert_array_equal(letters(rows[: end + 1]), letters(TOKENIZER.encode(style)))
    np.testing.assert_array_equal(rows[end + 1 :], arranged(content, "content")[1:])


def test_content_alone_says_how_it_is_pronounced_whatever_stands_around_it(case):
    instruction, _, content = case
    rows, plain = arranged(instruction, "content"), TOKENIZER.encode(content)
    np.testing.assert_array_equal(rows, arranged(content, "content"))
    np.testing.assert_array_equal(rows[0], plain[-1])  # end of text
    np.testing.assert_array_equal(rows[1:, PHONES], plain[:-1, PHONES])
    np.testing.assert_array_equal(rows[1:, QUOTE_CHANNEL], plain[:-1, QUOTE_CHANNEL])


@pytest.mark.parametrize(("one", "other"), [("my son", "my sun"), ("他", "她")])
def test_words_that_sound_alike_are_the_same_content_and_other_instructions(one, other):
    np.testing.assert_array_equal(arranged(f'"{one}"', "content"), arranged(f'"{other}"', "content"))
    assert not np.array_equal(TOKENIZER.encode(f'"{one}"'), TOKENIZER.encode(f'"{other}"'))


def test_a_word_that_describes_voices_describes_none_inside_the_content():
    concepts = TOKENIZER.encode('Sadly: "sadly"')[:, 3]
    assert (concepts > 0).sum() == 2 * len("sadly")
    assert (arranged('Sadly: "sadly"', "style_and_content")[:, 3] > 0).sum() == len("sadly")
    assert not arranged('Sadly: "sadly"', "content")[:, 3].any()


def test_pauses_keep_their_places_and_durations_go_with_the_content(case):
    instruction, _, content = case
    plain = TOKENIZER.encode(content)
    inside = plain[plain[:, QUOTE_CHANNEL] == INSIDE_QUOTES]
    durations = np.arange(1, len(inside) + 3)
    for form in ("content", "style_and_content"):
        rows = arranged(instruction, form)
        spread = spread_durations(rows, durations)
        assert spread[-len(durations) :].tolist() == durations.tolist()
        assert not spread[: -len(durations)].any()
        spoken = rows[rows[:, QUOTE_CHANNEL] == INSIDE_QUOTES]
        assert ((spoken[:, 0] == SPACE) == (inside[:, 0] == SPACE)).all()


def test_an_instruction_stays_as_it_is_and_without_quotes_nothing_can_stand_apart():
    rows = TOKENIZER.encode("Say well")
    assert arrange_text(rows, "instruction") is rows
    with pytest.raises(InputError, match="quotes nothing"):
        arrange_text(rows, "content")
