"""Writes instructions in loose wording: what people call a voice when they follow no grammar.

The grammar of `data.instructions` names an attribute in some dozens of ways; users have thousands, most of them said in
passing. Each phrase of `wording/loose.toml` tells one class of one attribute; here they are strung together in any
order. Read `write_loosely`.
"""

import functools
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from voxinstruct_jax.attributes import STYLE_CLASSES
from voxinstruct_jax.config import InputError
from voxinstruct_jax.data.instruction_words import load_wording, read_wording
from voxinstruct_jax.data.instructions import with_content

__all__ = ["load_loose_phrases", "write_loosely"]

Phrases = Mapping[str, Mapping[str, Mapping[str, tuple[str, ...]]]]
"""Attribute, class, kind ("people" or "manners", and "clauses")."""
CLAUSE_SHARE = 0.35
"""Of the attributes, said in a sentence of their own."""
JOINTS = {"en": (" ", ", ", " - ", "; "), "zh": ("", "，", "、", " ")}
"""Before what comes behind the first phrase of a sentence."""
NOBODY = {"en": ("someone", "a voice", "the speaker", ""), "zh": ("有人", "一个声音", "说话人", "")}


def write_loosely(attributes: Mapping[str, Any], transcript: str, language: str, generator: np.random.Generator) -> str:
    """Asks for a voice by its classes, each said once; the words to be spoken stand anywhere among the sentences.

    Args:
        attributes: Of `STYLE_CLASSES`; others are not said.
        transcript: The words to be spoken.
        language: Of the wording.
        generator: Draws everything.

    Raises:
        InputError: There are no words of the language, or no quotes leave the transcript findable.
    """
    phrases, said = load_loose_phrases(language), [name for name in STYLE_CLASSES if name in attributes]
    person, manners, sentences = str(generator.choice(NOBODY[language])), list[str](), list[str]()
    for name in generator.permutation(said):
        kinds = phrases[name][attributes[name]]
        if generator.random() < CLAUSE_SHARE:
            sentences.append(str(generator.choice(kinds["clauses"])))
        elif name == "gender":
            person = str(generator.choice(kinds["people"]))
        else:
            manners.append(str(generator.choice(kinds["manners"])))
    if manners or person not in NOBODY[language]:
        joints = generator.choice(JOINTS[language], len(manners)).tolist()
        behind = "".join(itertools.chain.from_iterable(zip(joints, manners, strict=True)))
        stop = "." if language == "en" else "。"
        line = (person + behind).strip(" ,-;，、")
        sentences.append(line[:1].upper() + line[1:] + stop)
    sentences = [sentences[place] for place in generator.permutation(len(sentences))]
    place, space = int(generator.integers(len(sentences) + 1)), " " if language == "en" else ""
    before, after = (
        "".join(each + space for each in sentences[:place]),
        "".join(space + each for each in sentences[place:]),
    )
    return with_content(before, transcript, after, load_wording(language), generator)


@functools.cache
def load_loose_phrases(language: str) -> Phrases:
    """Returns the phrases of a language.

    Raises:
        InputError: There are none for it.
    """
    found = read_wording("loose.toml").get(language)
    if found is None:
        raise InputError(f"wording/loose.toml has no phrases in {language!r}")
    return found
