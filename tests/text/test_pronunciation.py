import random

import pytest

from voxinstruct_jax.text.alignment import PHONES, ChunkTable, learn_chunk_log_probs
from voxinstruct_jax.text.lexicon import english_lexicon, letter_to_sound
from voxinstruct_jax.text.pronunciation import FINALS, INITIALS, english_phones, mandarin_syllables


def spoken(word, **options):
    return " ".join(phone for chunk in english_phones(word, **options) for phone in chunk)


@pytest.mark.parametrize(
    ("word", "phones"),
    [
        ("hello", "HH AH0 L OW1"),
        ("box", "B AA1 K S"),
        ("don't", "D OW1 N T"),
        ("sooo", "S OW1"),
        ("goood", "G UH1 D"),
        ("shhh", "SH"),
        ("psst", "P S T"),
    ],
)
def test_known_words_also_stretched_have_their_dictionary_phones(word, phones):
    assert spoken(word) == phones


@pytest.mark.parametrize(
    ("word", "chunks"),
    [
        ("make", (("M",), ("EY1",), ("K",), ())),
        ("cute", (("K",), ("Y", "UW1"), ("T",), ())),
        ("knight", ((), ("N",), ("AY1",), (), (), ("T",))),
    ],
)
def test_letters_are_aligned_with_the_phones_they_spell(word, chunks):
    assert english_phones(word) == chunks


def test_possessives_follow_the_last_sound():
    assert "cat's" in english_lexicon() or spoken("cat's").endswith("T S")
    unseen = "blorptastics"
    assert unseen not in english_lexicon()
    assert spoken(unseen + "'s").endswith("IH0 Z")


def test_acronyms_are_named_letter_by_letter():
    assert "cnt" not in english_lexicon()
    assert spoken("cnt", spelled=True) == "S IY1 EH1 N T IY1"


@pytest.mark.parametrize("word", ["zorbing", "blick", "florptastic", "voxinstruct", "a'b", "q", "w", "mr", "x" * 90])
def test_every_word_has_phones_for_its_letters(word):
    chunks = english_phones(word)
    assert len(chunks) == len(word)
    assert any(chunks)
    assert all(phone in PHONES for chunk in chunks for phone in chunk)


def test_letter_to_sound_reads_regular_unseen_words():
    assert spoken("blick") == "B L IH1 K"
    assert spoken("stramp") == "S T R AE1 M P"


def test_letter_to_sound_alone_is_right_for_most_phones_of_plain_words():
    words = ["cat", "ship", "blanket", "running", "happy", "winter", "garden", "market", "sudden", "simple"]
    predicted = letter_to_sound().predict(words)
    right = sum(
        [phone for chunk in chunks for phone in chunk] == english_lexicon()[word].split()
        for word, chunks in zip(words, predicted, strict=True)
    )
    assert right >= 8


def test_alignment_learns_silent_and_double_letters_from_few_words():
    table = ChunkTable(log_probs=learn_chunk_log_probs(_sample_words(), num_rounds=5))
    assert table.align("box", ("B", "AA1", "K", "S")) == (("B",), ("AA1",), ("K", "S"))
    assert table.align("made", ("M", "EY1", "D")) == (("M",), ("EY1",), ("D",), ())
    assert table.align("w", ("D", "AH1", "B")) is None


def _sample_words():
    words = random.Random(0).sample(sorted(english_lexicon().items()), 2000)
    return [(word, tuple(phones.split())) for word, phones in words]


@pytest.mark.parametrize(
    ("characters", "syllables"),
    [
        ("你好", [("n", "i2"), ("h", "ao3")]),
        ("银行", [("-", "in2"), ("h", "ang2")]),
        ("行走", [("x", "ing2"), ("z", "ou3")]),
        ("音乐", [("-", "in1"), ("-", "ve4")]),
        ("快乐", [("k", "uai4"), ("l", "e4")]),
        ("不要", [("b", "u2"), ("-", "iao4")]),
        ("我们", [("-", "uo3"), ("m", "en5")]),
        ("四十", [("s", "iz4"), ("sh", "ir2")]),
        ("去", [("q", "v4")]),
        ("嗯", [("-", "n2")]),
    ],
)
def test_mandarin_is_read_word_by_word(characters, syllables):
    assert list(mandarin_syllables(characters)) == syllables


def test_every_common_character_has_a_reading_of_the_tables():
    # GB 2312, level 1: the 3755 commonest characters; every 13th.
    cells = [
        bytes([row, cell]) for row in range(0xB0, 0xF8) for cell in range(0xA1, 0xFF) if (row, cell) < (0xD7, 0xFA)
    ]
    for character in (cell.decode("gb2312") for cell in cells[::13]):
        initial, final = mandarin_syllables(character)[0]
        assert initial in INITIALS, character
        assert final in FINALS, character
