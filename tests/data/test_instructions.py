import functools
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxinstruct_jax.config import InputError
from voxinstruct_jax.data.instruction_words import LANGUAGES, load_prosody_words, load_wording
from voxinstruct_jax.data.instructions import FORMS, POSITIONS, write_instruction, write_instructions
from voxinstruct_jax.text.content import spoken_content
from voxinstruct_jax.text.words import split_words

CONTENT = {"en": "The cat sat.", "zh": "猫坐下了。"}
VALUES = {
    "gender": ("female", "male"),
    "age": ("child", "teenager", "young", "middle-aged", "elderly"),
    "pitch": ("low", "normal", "high"),
    "speed": ("slow", "normal", "fast"),
    "energy": ("low", "normal", "high"),
    "emotion": tuple(load_wording("en").label_values["emotion"]),
}
CORE = ("gender", "pitch", "speed", "energy")
attributes = st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in VALUES.items()})
contents = st.sampled_from(
    [
        'Say "no" now!',
        "It's {odd}: \\1 \\g<0>.",
        "我说：“不”。",
        "Mixed 你好 <one|other>",
        "Zq",
        "don't stop, don't stop",
        "第一行\n第二行",
        "return x['key'] == \"y\"  # done",
        "مرحبا يا صديقي",
        'שלום, "עולם"!',
        "Well 👩‍👩‍👧 done 🎉",
        "She said “no” and 「不」 and «non»",
        "word " * 400 + "end.",
        "一二三四五六七八九十" * 200,
    ]
)


@functools.cache
def drawn(language, count=400):
    generator = np.random.default_rng(5)
    written = []
    for _ in range(count):
        chosen = {name: VALUES[name][generator.integers(len(VALUES[name]))] for name in CORE}
        if generator.random() < 0.4:
            chosen["stress"] = [int(generator.integers(3))]
        written += write_instructions(chosen, CONTENT[language], language, count=4, generator=generator)
    return written


def choices(line):
    """What a phrase with <one|other> may become."""
    found = re.search(r"<([^>]+)>", line)
    return [line.replace(found[0], one, 1) for one in found[1].split("|")] if found else [line]


@settings(deadline=None, max_examples=120)
@given(attributes, contents, st.sampled_from(LANGUAGES), st.sampled_from(FORMS), st.sampled_from(POSITIONS), st.data())
def test_content_is_found_again_whole_and_no_slot_stays_open(given, content, language, form, position, data):
    words = len(split_words(content))
    stress = data.draw(st.none() | st.lists(st.integers(0, words - 1), max_size=3))
    given |= {} if stress is None else {"stress": stress}
    generator = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    text = write_instruction(given, content, language, form, position, generator).text
    found = spoken_content(text)
    assert found.text == content
    around = text[: found.start] + "XYZ" + text[found.end :]
    assert not re.search(r"[{}<>|\x02\x03]", around.replace(" | ", ""))
    assert "  " not in around
    assert ",," not in around.replace(" ", "")
    assert "。。" not in around
    assert text == text.strip()


def test_content_that_no_quotes_can_hold_is_said_to_be_so():
    with pytest.raises(InputError, match="cannot be quoted: it has quote marks of every kind"):
        write_instruction({}, "”a\"b」c』d»e’ f' g", "en", "led", "last", np.random.default_rng(0))


@pytest.mark.parametrize("language", LANGUAGES)
def test_content_stands_where_it_was_asked_for(language):
    generator = np.random.default_rng(0)
    for form in FORMS:
        for position, low, high in (("first", 0.0, 0.5), ("last", 0.5, 1.0)):
            for _ in range(20):
                all_told = dict.fromkeys(("pitch", "energy"), "high") | {
                    "gender": "male",
                    "speed": "slow",
                    "stress": [0],
                }
                text = write_instruction(all_told, "XYZ Q", language, form, position, generator).text
                place = text.index("XYZ Q") / max(1, len(text) - 5)
                assert low <= place <= high, text


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_frame_no_template_and_no_text_is_frequent(language):
    """One in a hundred; half as much again is allowed, since 1600 draws scatter."""
    written = drawn(language)
    for counted in (Counter(i.frame for i in written), Counter(i.template for i in written)):
        assert counted.most_common(1)[0][1] / len(written) < 0.015
    assert len({instruction.template for instruction in written}) > 500
    assert len({instruction.text for instruction in written}) / len(written) > 0.98


def test_variety_benchmark_agrees(tmp_path):
    root = Path(__file__).parents[2]
    command = [sys.executable, root / "benchmarks/instruction_variety.py", "--count", "300", "--json", tmp_path / "f"]
    shown = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    figures = json.loads((tmp_path / "f").read_text())
    assert figures.keys() == set(LANGUAGES)
    assert figures["en"]["content found again"] == figures["zh"]["content found again"] == "100.00%"
    assert "commonest frame" in shown


@pytest.mark.parametrize("language", LANGUAGES)
def test_positions_are_even_and_one_in_ten_is_in_the_other_language(language):
    written = drawn(language)
    positions = Counter(instruction.position for instruction in written)
    assert min(positions.values()) / len(written) > 0.28
    other = sum(instruction.language != language for instruction in written) / len(written)
    assert 0.07 < other < 0.13


@pytest.mark.parametrize("language", LANGUAGES)
def test_opposite_attributes_never_share_a_text(language):
    """What is told can be told apart: no wording of one value is a wording of another."""
    wording = load_wording(language)
    for table in (wording.attributes, wording.manners, wording.clauses):
        for values in table.values():
            phrases = [phrase for phrases in values.values() for phrase in set(phrases)]
            assert len(phrases) == len(set(phrases))


@pytest.mark.parametrize("language", LANGUAGES)
def test_all_values_have_words_in_every_table(language):
    wording = load_wording(language)
    for name in ("pitch", "speed", "energy", "emotion", "manner", "timbre", "attitude", "accent"):
        assert wording.manners[name].keys() == wording.label_values[name].keys()
        assert wording.briefs[name]
    for name, patterns in wording.people_with.items():
        assert wording.attributes[name].keys() == wording.label_values[name].keys()
        assert patterns
        assert wording.voices_with[name]
    assert wording.label_values.keys() == load_wording("en").label_values.keys()
    for name, values in wording.label_values.items():
        assert values.keys() == load_wording("en").label_values[name].keys()
    assert wording.people.keys() == {"any", *wording.label_values["age"]}
    for word in load_prosody_words():
        assert word.value in wording.label_values[word.says]
        assert all(set(classes) < set(wording.label_values[name]) for name, classes in word.needs.items())


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("form", FORMS)
def test_told_value_is_in_the_text_and_another_is_not(language, form):
    generator = np.random.default_rng(1)
    wording = load_wording(language)
    briefs, labels = wording.briefs["energy"], wording.label_values["energy"]
    tables = (wording.manners["energy"], wording.clauses["energy"], *([labels] if form == "labels" else []))
    said = {
        value: [phrase for table in tables for line in table[value] for phrase in choices(line)]
        for value in ("low", "normal", "high")
    }
    short = [brief.format(value=phrase) for brief in briefs for line in labels["high"] for phrase in choices(line)]
    short += wording.attributes["energy"]["high"]
    told = 0
    for _ in range(60):
        text = write_instruction(
            {"energy": "high"}, "XYZ", language, form, "last", generator, prosody_words=False
        ).text.casefold()
        told += any(phrase in text for phrase in (*said["high"], *short))
        assert not any(phrase in text for phrase in (*said["low"], *said["normal"])), text
    assert told > (20 if form == "scenario" else 40)


def test_age_emotion_and_prosody_words_need_a_reason():
    """Without age and emotion in the row, their words need classes that fit, and leave."""
    words = [phrase for name in ("emotion", "manner") for phrases in load_wording("en").manners[name].values()
             for phrase in phrases]  # fmt: skip
    words += ["young", "elderly", "old man", "old woman", "teen", "child", "middle-aged", "girl", "boy"]
    slow = {"speed": "slow", "pitch": "low", "energy": "low"}

    def found(given, *, allowed):
        generator = np.random.default_rng(3)
        texts = [
            write_instruction(given, "XYZ", "en", "led", "last", generator, prosody_words=allowed).text.casefold()
            for _ in range(150)
        ]
        return {word for word in words if any(re.search(rf"\b{word}\b", text) for text in texts)}

    assert not found(slow, allowed=False)
    assert not found({"gender": "female"}, allowed=True)
    assert not found(slow | {"emotion": "neutral", "age": "child"}, allowed=True) & {"wearily", "sadly", "elderly"}
    with_words = found(slow, allowed=True)
    assert with_words & {"wearily", "sounding tired", "as if worn out"}
    assert not with_words & {"excitedly", "hurriedly", "in a lively way", "young"}


def aside_phrases(language, *values):
    wording = load_wording(language)
    return {
        phrase
        for name in ("timbre", "attitude", "accent")
        for value, lines in wording.manners[name].items()
        if value in values
        for line in lines
        for phrase in choices(line)
    }


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_nothing_measures_is_said_of_any_clip_now_and_then_and_of_the_right_gender(language):
    generator, given = np.random.default_rng(6), {"gender": "male", "speed": "fast"}

    def texts(*, allowed):
        return [
            write_instruction(given, "XYZ", language, "request", "last", generator, prosody_words=allowed).text
            for _ in range(600)
        ]

    asides = aside_phrases(language, "any", "male")
    with_asides, without = texts(allowed=True), texts(allowed=False)
    assert 0.05 < sum(any(phrase in text for phrase in asides) for text in with_asides) / 600 < 0.17
    assert not any(phrase in text for phrase in asides for text in without)
    assert any(phrase in text for phrase in aside_phrases(language, "male") for text in with_asides)
    assert not any(phrase in text for phrase in aside_phrases(language, "female") for text in with_asides)


@pytest.mark.parametrize(
    ("gender", "pitch", "singer"),
    [("female", "high", "soprano"), ("female", "low", "alto"), ("male", "high", "tenor"), ("male", "low", "baritone")],
)
def test_a_singer_is_named_for_gender_and_pitch_together(gender, pitch, singer):
    generator, names = np.random.default_rng(7), ("soprano", "alto", "tenor", "baritone")
    texts = [
        write_instruction({"gender": gender, "pitch": pitch}, "XYZ", "en", "labels", "last", generator).text.casefold()
        for _ in range(400)
    ]
    assert {name for name in names for text in texts if re.search(rf"\b{name}\b", text)} == {singer}


@pytest.mark.parametrize("language", LANGUAGES)
def test_stressed_word_is_named(language):
    content, generator = {"en": "Not again, never again.", "zh": "再来一次，再见。"}[language], np.random.default_rng(4)
    named = 0
    for _ in range(200):
        text = write_instruction(
            {"gender": "male", "stress": [3]}, content, language, "request", "middle", generator
        ).text.replace(content, "")
        named += {"en": "again" in text or "word" in text, "zh": "次" in text or "字" in text}[language]
        if language == "en" and "again" in text:
            assert "last" in text, text
    assert named > 160


def test_several_instructions_of_a_clip_have_different_forms():
    generator = np.random.default_rng(2)
    for _ in range(20):
        written = write_instructions({"gender": "male"}, "Hello.", "en", count=4, generator=generator)
        assert len({instruction.form for instruction in written}) == 4


def test_same_seed_writes_the_same():
    texts = [
        [i.text for i in write_instructions({"pitch": "low"}, "Hi.", "en", count=3, generator=np.random.default_rng(9))]
        for _ in range(2)
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_template_has_the_slots_that_carry_all_attributes(language):
    for form, by_position in load_wording(language).templates.items():
        for templates in by_position.values():
            assert sum("person" in line or "who" in line.lower() for line in templates) > 3
            assert len(set(templates)) == len(templates)
            for template in templates:
                slots = [slot.lower() for slot in re.findall(r"\{(\w+)\}", template)]
                assert slots.count("content") == 1, template
                assert sum(slot in ("person", "who", "voice") for slot in slots) <= 1, template
                assert sum(slot in ("manner", "comma_manner", "tail") for slot in slots) == 1, template
                assert slots.count("scene") == (form == "scenario"), template


@pytest.mark.parametrize(
    ("given_attributes", "content", "language", "message"),
    [
        ({"pitch": "shrill"}, "Hi.", "en", "attribute pitch: 'shrill'"),
        ({"emotion": "smug"}, "Hi.", "en", "attribute emotion: 'smug' is not one of neutral, happy"),
        ({"stress": [2]}, "Hi you.", "en", "attribute stress: word 2 of 2"),
        ({"stress": "you"}, "Hi you.", "en", "attribute stress: expected a list"),
        ({}, " ", "en", "content of an instruction is empty"),
        ({}, "Salut.", "fr", "not 'fr'"),
    ],
)
def test_wrong_input_is_one_clear_line(given_attributes, content, language, message):
    with pytest.raises(InputError, match=message):
        write_instructions(given_attributes, content, language, count=1, generator=np.random.default_rng(0))
