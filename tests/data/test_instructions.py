import functools
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxinstruct_jax.config import InputError
from voxinstruct_jax.data.instruction_words import LANGUAGES, load_wording
from voxinstruct_jax.data.instructions import FORMS, POSITIONS, write_instruction, write_instructions

CONTENT = {"en": "The cat sat.", "zh": "猫坐下了。"}
VALUES = {
    "gender": ("female", "male"),
    "pitch": ("low", "normal", "high"),
    "speed": ("slow", "normal", "fast"),
    "energy": ("low", "normal", "high"),
}
attributes = st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in VALUES.items()})


@functools.cache
def drawn(language, count=400):
    generator = np.random.default_rng(5)
    written = []
    for _ in range(count):
        chosen = {name: values[generator.integers(len(values))] for name, values in VALUES.items()}
        written += write_instructions(chosen, CONTENT[language], language, count=4, generator=generator)
    return written


@settings(deadline=None, max_examples=80)
@given(
    attributes,
    st.sampled_from(LANGUAGES),
    st.sampled_from(FORMS),
    st.sampled_from(POSITIONS),
    st.sampled_from(['Say "no" now!', "It's {odd}: \\1 \\g<0>.", "我说：“不”。", "Mixed 你好", "Zq"]),
    st.integers(0, 10_000),
)
def test_instruction_holds_the_words_whole_and_no_open_slot(given_attributes, language, form, position, content, seed):
    text = write_instruction(given_attributes, content, language, form, position, np.random.default_rng(seed)).text
    assert content.rstrip(".。") in text
    around = text.replace(content.rstrip(".。"), "", 1)
    assert not re.search(r"[{}]", around)
    assert "  " not in around
    assert ",," not in around.replace(" ", "")
    assert text == text.strip()


@pytest.mark.parametrize("language", LANGUAGES)
def test_content_stands_where_it_was_asked_for(language):
    generator = np.random.default_rng(0)
    for form in FORMS:
        for position, low, high in (("first", 0.0, 0.5), ("last", 0.5, 1.0)):
            for _ in range(20):
                all_told = dict.fromkeys(("pitch", "energy"), "high") | {"gender": "male", "speed": "slow"}
                text = write_instruction(all_told, "XYZ", language, form, position, generator).text
                place = text.index("XYZ") / max(1, len(text) - 3)
                assert low <= place <= high, text


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_template_and_no_text_is_frequent(language):
    written = drawn(language)
    templates = Counter(instruction.template for instruction in written)
    assert templates.most_common(1)[0][1] / len(written) < 0.03
    assert len({instruction.text for instruction in written}) / len(written) > 0.95


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
    for values in load_wording(language).attributes.values():
        phrases = [phrase for phrases in values.values() for phrase in set(phrases)]
        assert len(phrases) == len(set(phrases))


def test_told_value_is_in_the_text_and_another_is_not():
    generator = np.random.default_rng(1)
    wording = load_wording("en").attributes["energy"]
    told = 0
    for _ in range(60):
        text = write_instruction({"energy": "high"}, "XYZ", "en", "led", "last", generator).text
        told += any(phrase in text for phrase in wording["high"])
        assert not any(phrase in text for phrase in (*wording["low"], *wording["normal"]))
    assert told > 40


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
        for template in (template for templates in by_position.values() for template in templates):
            slots = [slot.lower() for slot in re.findall(r"\{(\w+)\}", template)]
            assert slots.count("content") == 1, template
            assert sum(slot in ("person", "who") for slot in slots) == 1, template
            assert sum(slot in ("manner", "comma_manner", "tail") for slot in slots) == 1, template
            assert slots.count("scene") == (form == "scenario"), template


@pytest.mark.parametrize(
    ("given_attributes", "content", "language", "message"),
    [
        ({"pitch": "shrill"}, "Hi.", "en", "attribute pitch: 'shrill'"),
        ({}, " ", "en", "content of an instruction is empty"),
        ({}, "Salut.", "fr", "not 'fr'"),
    ],
)
def test_wrong_input_is_one_clear_line(given_attributes, content, language, message):
    with pytest.raises(InputError, match=message):
        write_instructions(given_attributes, content, language, count=1, generator=np.random.default_rng(0))
