"""Loose wording: phrases of one class each, and instructions that leave their content findable."""

import itertools
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from voxinstruct_jax.attributes import STYLE_CLASSES
from voxinstruct_jax.config import InputError
from voxinstruct_jax.data.loose_wording import load_loose_phrases, write_loosely
from voxinstruct_jax.text.content import spoken_content
from voxinstruct_jax.text.emphasis import asks_for_stress

LANGUAGES = ("en", "zh")
SETS = Path(__file__).parents[2] / "voxinstruct_jax" / "evaluation" / "shipped_sets"
CONTENT = {"en": "The ferry doesn't run on Mondays.", "zh": "星期一没有渡船。"}


def all_phrases(language):
    """(attribute, class, phrase) of everything."""
    for name, classes in load_loose_phrases(language).items():
        for value, kinds in classes.items():
            yield from ((name, value, phrase) for phrase in itertools.chain(*kinds.values()))


def plain(text):
    return re.sub(r"[\W_]+", " ", text.lower()).strip()


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_class_has_phrases_and_no_phrase_has_two(language):
    found = load_loose_phrases(language)
    assert {name: tuple(sorted(found[name])) for name in found} == {
        name: tuple(sorted(classes)) for name, classes in STYLE_CLASSES.items()
    }
    counted = Counter(plain(phrase) for _, _, phrase in all_phrases(language))
    assert counted.most_common(1)[0][1] == 1
    assert len(counted) > 1000


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_phrase_asks_for_stress_or_holds_quotes(language):
    assert not [phrase for _, _, phrase in all_phrases(language) if asks_for_stress(phrase)]
    assert not [phrase for _, _, phrase in all_phrases(language) if re.search('["“”‘「」『』«»]', phrase)]


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_wording_was_taken_from_the_test_sets(language):
    """Phrases of four words and more (five characters in Mandarin) that an instruction holds as they are."""
    lines = [json.loads(line) for path in SETS.glob("*.jsonl") for line in path.read_text("utf-8").splitlines()]
    told = "\n".join(plain(line["instruction"]) for line in lines)
    long = [plain(phrase) for _, _, phrase in all_phrases(language)]
    long = [text for text in long if (len(text.split()) > 3 if language == "en" else len(text) > 4)]
    assert len(long) > 300
    assert [text for text in long if text in told] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_instructions_say_each_class_once_and_leave_the_content_findable(language):
    generator, content = np.random.default_rng(0), CONTENT[language]
    phrases = load_loose_phrases(language)
    places = set()
    for _ in range(200):
        asked = {
            name: str(generator.choice(classes)) for name, classes in STYLE_CLASSES.items() if generator.random() < 0.5
        }
        text = write_loosely(asked, content, language, generator)
        found = spoken_content(text)
        assert found.text == content
        places.add((found.start < 3, found.end > len(text) - 3))
        for name, value in asked.items():
            said = [
                phrase for kind in phrases[name][value].values() for phrase in kind if phrase.lower() in text.lower()
            ]
            assert said, (text, name, value)
    assert places == set(itertools.product((False, True), repeat=2))


def test_a_language_without_phrases_is_refused():
    with pytest.raises(InputError, match="no phrases in 'de'"):
        load_loose_phrases("de")
