"""Loads the words and templates of the instruction grammar from `wording/LANGUAGE.toml`."""

import dataclasses
import functools
import tomllib
from collections.abc import Mapping
from importlib import resources
from typing import Any

from voxinstruct_jax.config import InputError, from_dict

__all__ = ["LANGUAGES", "Wording", "load_wording"]

LANGUAGES = ("en", "zh")

Phrases = tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wording:
    """All words of one language.

    Attributes:
        attributes: Name, then value, to phrases: nouns (gender), adjectives (pitch), adverbials (speed, energy).
        anybody: Nouns where the gender goes unsaid.
        with_pitch: Ways to join {noun} and {pitch}.
        article: Put before a noun phrase.
        space: Put before a manner.
        comma: Put before a manner that is set off.
        colon: Between a label and its value.
        joints: Between two manners.
        pronouns: By gender; "anybody" where it goes unsaid.
        tails: Closing remarks on the {manner}, with {pronoun}.
        scenes: Attribute, then value, to adverbials that call for it; neutral.any to others.
        labels: Attribute or "content" to label words.
        label_values: Attribute, then value, to the words behind a label.
        separators: Between the entries of a labelled list.
        quotes: Pairs of an opening and a closing mark.
        templates: Form, then position of the content, to templates.
    """

    attributes: dict[str, dict[str, Phrases]]
    anybody: Phrases
    with_pitch: Phrases
    article: str
    space: str
    comma: str
    colon: str
    joints: Phrases
    pronouns: dict[str, str]
    tails: Phrases
    scenes: dict[str, dict[str, Phrases]]
    labels: dict[str, Phrases]
    label_values: dict[str, dict[str, Phrases]]
    separators: Phrases
    quotes: Phrases
    templates: dict[str, dict[str, Phrases]]


@functools.cache
def load_wording(language: str) -> Wording:
    """Returns the words of a language.

    Raises:
        InputError: There are none for it.
    """
    if language not in LANGUAGES:
        raise InputError(f"instructions are written in {', '.join(LANGUAGES)}, not {language!r}")
    file = resources.files("voxinstruct_jax.data") / "wording" / f"{language}.toml"
    values: Mapping[str, Any] = tomllib.loads(file.read_text("utf-8"))
    return from_dict(Wording, values, path=f"wording/{language}.toml")
