import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxinstruct_jax.data.instruction_stress import CLOSE, OPEN, name_stressed, stressed_runs
from voxinstruct_jax.data.instruction_words import load_wording
from voxinstruct_jax.text.words import split_words


def names(content, stress, language, draws=60):
    """All names that are drawn, quote marks as []."""
    wording, runs = load_wording(language).stress, stressed_runs(content, stress)
    return {
        name_stressed(content, runs, wording, np.random.default_rng(seed)).replace(OPEN, "[").replace(CLOSE, "]")
        for seed in range(draws)
    }


@pytest.mark.parametrize(
    ("content", "stress", "runs"),
    [
        ("Not again.", [1], [range(1, 2)]),
        ("Do not go there", [2, 1], [range(1, 3)]),
        ("Do, not go", [0, 1], [range(1), range(1, 2)]),
        ("图书馆开门了", [0, 1, 2], [range(3)]),
        ("Again", [0], []),
        ("Go on", [0, 1], []),
        ("a, b, c, d, e, f, g, h", [0, 2, 4, 6], []),
        ("Go on", [], []),
    ],
)
def test_neighbours_are_named_together_and_what_marks_nothing_out_is_not_named(content, stress, runs):
    assert stressed_runs(content, stress) == runs


def test_a_word_is_named_by_itself_or_by_its_place():
    assert names("I never said that.", [1], "en") == {"[never]", "the word [never]", "the second word"}
    assert names("I never said that.", [3], "en") == {"[that]", "the word [that]", "the last word"}
    assert names("今天下雨", [1], "zh") == {"[天]字", "[天]这个字", "[天]", "第二个字"}
    assert names("今天下雨", [2, 3], "zh") == {"[下雨]", "[下雨]这个词", "[下雨]一词"}


def test_a_word_that_comes_again_gets_its_number():
    content = "Again and again and again he came."
    for index, ordinal in ((0, "first"), (2, "second"), (4, "last")):
        found = names(content, [index], "en")
        assert all(ordinal in name or "word" in name for name in found), found
        assert any("gain]" in name for name in found)
    assert all("第二个" in name or "第二次" in name or "字" in name for name in names("再说一再说再", [3], "zh"))


def test_places_are_not_counted_where_counts_differ():
    assert not any("word" in name and "[" not in name for name in names("我们用 Excel 吧", [0], "zh"))
    assert names("word " * 30 + "end", [12], "en") == {""}  # "the thirteenth" of thirty helps nobody


@given(st.lists(st.sampled_from(["go", "Go", "stop", "再", "见", "don't"]), min_size=2, max_size=8), st.data())
def test_what_is_quoted_stands_in_the_content(words, data):
    content = ", ".join(words)
    index = data.draw(st.integers(0, len(split_words(content)) - 1))
    name = name_stressed(content, stressed_runs(content, [index]), load_wording("en").stress, np.random.default_rng(0))
    if OPEN in name:
        assert name[name.index(OPEN) + 1 : name.index(CLOSE)] == split_words(content)[index].text
