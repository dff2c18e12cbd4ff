"""Requests of writers about other words, and fields: what they ask for is known, and the words stay findable."""

import numpy as np
import pytest

from voxinstruct_jax.attributes import STYLE_CLASSES, class_numbers
from voxinstruct_jax.data.described import asked_numbers, described_requests, rewrite_request, write_fields
from voxinstruct_jax.data.instruction_words import read_wording
from voxinstruct_jax.data.loose_wording import load_loose_phrases
from voxinstruct_jax.text.content import spoken_content
from voxinstruct_jax.text.normalizer import has_han
from voxinstruct_jax.text.sample_requests import SampleRequest

CONTENT = {"en": "The ferry doesn't run on Mondays.", "zh": "星期一没有渡船。"}


def test_an_eighth_of_the_requests_is_held_out_and_all_say_what_they_ask_for():
    known, held_out = described_requests(), described_requests(held_out=True)
    assert not {each.instruction for each in known} & {each.instruction for each in held_out}
    assert 0.1 < len(held_out) / (len(known) + len(held_out)) < 0.15
    asked = np.array([asked_numbers(each.asked) for each in (*known, *held_out)])
    for place, classes in enumerate(STYLE_CLASSES.values()):
        counts = [(asked[:, place] == number).sum() for number in range(1, len(classes) + 1)]
        assert min(counts) > 20, (place, counts)
    assert {has_han(each.before + each.after) for each in held_out} == {False, True}


def test_signs_are_numbers_of_classes():
    assert asked_numbers("m l ? -").tolist() == [2, 1, 0, -1]
    assert (
        asked_numbers("f h n s").tolist()
        == class_numbers({"gender": "female", "pitch": "high", "energy": "normal", "speed": "slow"}).tolist()
    )
    with pytest.raises(ValueError, match="'x' is not in list"):
        asked_numbers("m x - -")


def test_a_request_about_other_words_asks_for_the_same_and_perhaps_for_more():
    request = SampleRequest(before="Grandpa, barely audible: ", words="go home", after=" (unhurried)", asked="m - l s")
    generator, added = np.random.default_rng(1), 0
    for _ in range(60):
        numbers, text = rewrite_request(request, CONTENT["en"], generator)
        assert spoken_content(text).text == CONTENT["en"]
        assert numbers[[0, 2, 3]].tolist() == [2, 1, 1]
        if numbers[1] > 0:
            added += 1
            phrases = load_loose_phrases("en")["pitch"][STYLE_CLASSES["pitch"][numbers[1] - 1]]["clauses"]
            assert len(text) > len(request.instruction) + min(map(len, phrases))
    assert 10 < added < 40


@pytest.mark.parametrize("language", ["en", "zh"])
def test_fields_name_each_attribute_with_a_value_of_its_class(language):
    words, generator = read_wording("fields.toml")[language], np.random.default_rng(0)
    for _ in range(100):
        asked = {
            name: str(generator.choice(classes)) for name, classes in STYLE_CLASSES.items() if generator.random() < 0.6
        }
        text = write_fields(asked, CONTENT[language], language, generator)
        assert spoken_content(text).text == CONTENT[language]
        for name, value in asked.items():
            assert any(each in text for each in words[name]["names"])
            assert any(each in text for each in words[name][value])
