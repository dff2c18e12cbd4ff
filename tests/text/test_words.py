import pytest

from voxinstruct_jax.text.words import split_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("We won't, at 3.5 to well-known!", ["We", "won't", "at", "3.5", "to", "well-known"]),
        ("我们去 New York 吧。", ["我", "们", "去", "New", "York", "吧"]),
        ("A股涨了2点", ["A", "股", "涨", "了", "2", "点"]),
        ("שלום עולם … 𠮷", ["שלום", "עולם", "𠮷"]),
        ("— … !", []),
    ],
)
def test_words_stand_where_they_say(text, words):
    found = split_words(text)
    assert [word.text for word in found] == words
    assert all(text[word.start : word.end] == word.text for word in found)
