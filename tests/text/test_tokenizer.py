import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxinstruct_jax.text.tokenizer import PronunciationTokenizer

TOKENIZER = PronunciationTokenizer()
END = 1


def test_rows_are_the_characters_and_an_end():
    ids = TOKENIZER.encode('He said: "Hi."')
    assert ids.shape == (15, 5)
    assert ids.dtype == np.int32
    assert ids[-1, 0] == END
    assert (ids[:-1, 0] != END).all()


def test_an_empty_text_is_the_end_alone():
    assert TOKENIZER.encode("").shape == (1, 5)
    assert TOKENIZER.encode(" \n😀").shape == (1, 5)


def test_quote_states_mark_the_content_that_is_spoken():
    states = TOKENIZER.encode('Stress "hi": "Oh hi"')[:, 4].tolist()
    assert states == [1] * 13 + [3] + [2] * 5 + [3] + [1]


def test_letters_fold_case_and_accents():
    np.testing.assert_array_equal(TOKENIZER.encode("CAFÉ Naïve")[:, 0], TOKENIZER.encode("cafe naive")[:, 0])


def test_numbers_are_read_before_they_are_tokenised():
    np.testing.assert_array_equal(TOKENIZER.encode("3 cats"), TOKENIZER.encode("three cats"))


def test_forms_of_a_concept_share_its_id_across_languages():
    slowly, slow, zh = (TOKENIZER.encode(word)[0, 3] for word in ("slowly", "slow", "慢慢地"))
    assert slowly == slow == zh > 0
    assert TOKENIZER.encode("quickly")[0, 3] != slowly
    assert TOKENIZER.encode("zebra")[0, 3] == 0


def test_mandarin_words_are_found_longest_first():
    concepts = TOKENIZER.encode("高兴")[:2, 3]
    happy = TOKENIZER.encode("happy")[0, 3]
    assert concepts.tolist() == [happy, happy]
    assert TOKENIZER.encode("高")[0, 3] not in (0, happy)


@pytest.mark.parametrize(
    ("text", "phones"),
    [
        ("Hi, cat", ["HH AY1", "K AE1 T"]),
        ("你好world", ["n i2", "h ao3", "W ER1 L D"]),
        ("5 p.m.", ["F AY1 V", "P IY1 EH1 M"]),
        ("the U.S.", ["DH AH0", "Y UW1 EH1 S"]),
        ("CNN", ["S IY1 EH1 N EH1 N"]),
        ("don’t", ["D OW1 N T"]),
        ("", []),
    ],
)
def test_pronounce_shows_words_and_characters(text, phones):
    assert TOKENIZER.pronounce(text) == phones


@pytest.mark.parametrize(
    ("text", "syllables"),
    [('Say slowly: "Hello again"', 4), ("说：“你好吗”", 3), ("hello", 2), ("我 love 你", 3), ("", 0), ("かな", 2)],
)
def test_length_units_are_the_syllables_to_be_spoken(text, syllables):
    assert TOKENIZER.text_length_units(text) == syllables


def test_fingerprint_is_the_same_for_every_instance():
    assert PronunciationTokenizer().fingerprint == TOKENIZER.fingerprint
    assert PronunciationTokenizer().channel_sizes == TOKENIZER.channel_sizes


def assert_valid(ids):
    assert ids.ndim == 2
    assert (ids >= 0).all()
    assert (ids < np.array(TOKENIZER.channel_sizes)).all()
    assert (ids[:, [0, 1, 2, 4]] > 0).all(), "0 is padding"
    assert ids[-1, 0] == END


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=30))
def test_any_unicode_gives_ids_within_the_channels(text):
    assert_valid(TOKENIZER.encode(text))
    assert TOKENIZER.text_length_units(text) >= 0
    TOKENIZER.pronounce(text)


@settings(deadline=None, max_examples=40)
@given(st.text(alphabet="aAbéqzZ'’.“”\"我行不一々 🙂7$%ßİÆ①\ud800\u0301", max_size=25))
def test_awkward_characters_give_ids_within_the_channels(text):
    assert_valid(TOKENIZER.encode(text))


def test_long_text_is_encoded():
    assert_valid(TOKENIZER.encode("a" * 2500 + "慢" * 2500))
