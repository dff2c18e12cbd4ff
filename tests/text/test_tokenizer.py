import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxinstruct_jax.config import InputError
from voxinstruct_jax.text.tokenizer import (
    INSIDE_QUOTES,
    PHONE_CHANNELS,
    QUOTE_CHANNEL,
    SILENCE,
    PronunciationTokenizer,
    SpokenPhone,
    content_rows,
    phones_in_frames,
    spread_durations,
    tokens_in_time,
)

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


def pause(row):
    return SpokenPhone(label=SILENCE, row=row, optional=True)


def spoken(*pairs):
    return [SpokenPhone(label=label, row=row) for label, row in pairs]


def test_spoken_phones_of_english_are_those_of_its_letters():
    """`Say: "` are rows 0 to 5; the end mark leaves the pause to the closing quote."""
    found = TOKENIZER.spoken_phones('Say: "Don’t sit, Ann." softly')
    assert found == [
        pause(5),
        *spoken(("en D", 6), ("en OW1", 7), ("en N", 8), ("en T", 10)),  # the apostrophe is no place for a pause
        pause(11),
        *spoken(("en S", 12), ("en IH1", 13), ("en T", 14)),
        pause(15),  # the comma; the space behind it is no other one
        *spoken(("en AE1", 17), ("en N", 19)),  # the first N is silent
        pause(21),
    ]
    assert [phone.base_label for phone in found[:3]] == ["silence", "en D", "en OW"]


def test_spoken_phones_of_mandarin_are_initials_and_finals():
    found = TOKENIZER.spoken_phones("说：“你好，安猫！”")
    assert found == [
        pause(2),
        *spoken(("zh n", 3), ("zh i2", 3), ("zh h", 4), ("zh ao3", 4)),
        pause(5),
        *spoken(("zh an1", 6), ("zh m", 7), ("zh ao1", 7)),  # no initial in the first
        pause(9),
    ]
    assert found[2].base_label == "zh i"


def test_without_words_or_quotes_nothing_is_spoken():
    assert TOKENIZER.spoken_phones("Say nothing") == []
    assert all(phone.optional for phone in TOKENIZER.spoken_phones('"?!"'))


@settings(deadline=None, max_examples=60)
@given(st.text(alphabet="aAbé.tz'’ ,!-7你好行不一ゆ🙂", min_size=1, max_size=15))
def test_spoken_phones_go_forward_from_quote_to_quote_with_single_pauses(text):
    rows, phones = TOKENIZER.encode(f"Say “{text}”"), TOKENIZER.spoken_phones(f"Say “{text}”")
    if not len(content_rows(rows)):
        assert phones == []
        return
    (inside,) = np.nonzero(rows[:, QUOTE_CHANNEL] == INSIDE_QUOTES)
    assert [phones[0], phones[-1]] == [pause(int(inside[0]) - 1), pause(int(inside[-1]) + 1)]
    places = [phone.row for phone in phones]
    assert places == sorted(places)
    assert all(phone.optional == (phone.label == SILENCE) for phone in phones)
    assert all(phone.row in inside for phone in phones[1:-1])
    if len(phones) > 2:
        assert not any(one.optional and other.optional for one, other in itertools.pairwise(phones))
    spoken_there = {phone.row for phone in phones if not phone.optional}
    pronounced = (rows[:, 1:3] > 1).any(axis=1) & (rows[:, QUOTE_CHANNEL] == INSIDE_QUOTES)
    assert spoken_there == set(np.flatnonzero(pronounced).tolist())


def test_durations_go_to_the_content_and_its_quotes():
    rows = TOKENIZER.encode('Say "hi" now')
    found = spread_durations(rows, np.array([7, 3, 5, 2]))
    assert found.tolist() == [0, 0, 0, 0, 7, 3, 5, 2, 0, 0, 0, 0, 0]
    assert found.dtype == np.int32
    with pytest.raises(InputError, match="3 durations for 2 characters; prepare the data again"):
        spread_durations(rows, np.ones(5, int))
    with pytest.raises(InputError, match="2 durations for 0 characters"):
        spread_durations(TOKENIZER.encode("hi"), np.ones(4, int))


def test_content_rows_do_not_depend_on_the_quotes_or_what_stands_around():
    np.testing.assert_array_equal(
        content_rows(TOKENIZER.encode("Loudly: “3 cats”, he said")), content_rows(TOKENIZER.encode('"three cats"'))
    )


def test_each_half_frame_has_the_phones_of_its_character():
    """The quote is silence of one half frame, the first character lasts two, the second one; then nothing is known."""
    rows = TOKENIZER.encode('"你a"')
    durations = np.array([1, 2, 1, 0, 0])
    np.testing.assert_array_equal(tokens_in_time(durations, 6), [0, 1, 1, 2, -1, -1])
    quote, han, letter = (rows[number, PHONE_CHANNELS].tolist() for number in range(3))
    expected = [quote + han, han + letter, [-1] * 4]
    np.testing.assert_array_equal(phones_in_frames(rows, durations, 3), expected)


def test_what_has_no_durations_or_no_phones_is_unknown():
    rows = TOKENIZER.encode('"a"')
    assert (phones_in_frames(rows, np.zeros(len(rows)), 2) == -1).all()
    assert (phones_in_frames(rows[:, :1], np.ones(len(rows)), 2) == -1).all()
