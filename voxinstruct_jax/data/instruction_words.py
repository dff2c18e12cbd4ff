"""Loads what the instruction grammar is made of: `wording/LANGUAGE.toml` and `wording/prosody_words.toml`."""

import dataclasses
import functools
import tomllib
from collections.abc import Mapping
from importlib import resources
from typing import Any, Literal

from voxinstruct_jax.config import InputError, from_dict

__all__ = ["LANGUAGES", "ProsodyWord", "StressWording", "Wording", "load_prosody_words", "load_wording", "read_wording"]

LANGUAGES = ("en", "zh")

Phrases = tuple[str, ...]
Table = dict[str, dict[str, Phrases]]
"""Attribute, then value, to phrases."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StressWording:
    """How stressed words are asked for.

    Attributes:
        sentences: Whole sentences with {word}, which is what the next five make.
        clauses: Closing clauses with {word}.
        once: Ways to name a quoted {word} that occurs once in the content.
        again: Ways to name one of several, with {ordinal}.
        placed: Ways to name a word by its place, with {ordinal}.
        character: As `once`, for a single Chinese character.
        placed_character: As `placed`, for content that is all Chinese characters.
        ordinals: "first" and so on.
        last: Stands for the ordinal of the last one.
        joint: Between two stressed words.
    """

    sentences: Phrases
    clauses: Phrases
    once: Phrases
    again: Phrases
    placed: Phrases
    character: Phrases
    placed_character: Phrases
    ordinals: Phrases
    last: str
    joint: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wording:
    """All words of one language.

    Most phrases may hold <one|other> choices. Timbre, attitude and accent have the value "any", and words that go with
    one gender only: nothing measures them, so they are said of any clip.

    Attributes:
        articles: Put before a noun phrase.
        article_before_vowel: Put before one that begins with a vowel.
        space: Between sentences, and before a manner.
        comma: Put before a manner that is set off.
        colon: Between a label and its value.
        join: Between manners, but for the last two.
        last_joins: Between the last two manners.
        people_with: Ways to join {noun} and an {adjective}, by attribute.
        voices_with: Ways to join {age}, {voice} and an {adjective}, by attribute.
        tails: Closing sentences on the {manner}, with {pronoun}.
        clause_tails: Closing sentences made of {clauses}.
        remarks: Sentences that say nothing of the voice.
        pronouns: By gender; "anybody" where it goes unsaid.
        people: Age ("any" where it goes unsaid), then gender ("anybody"), to nouns.
        voice_words: Nouns for a voice by gender, the first of which takes an age; adjectives by age.
        attributes: Adjectives of pitch, speed, energy and timbre.
        manners: Adverbials.
        briefs: By attribute, noun phrases made of a {value} of `label_values`.
        clauses: Short orders.
        stress: How stressed words are asked for.
        scenes: Attribute, then value, to adverbials that call for it; neutral.any to others.
        labels: Attribute or "content" to label words.
        label_values: The words behind a label; every value that can be told is listed here.
        label_starts: What may stand before the first label.
        separators: Between the entries of a labelled list.
        quotes: Pairs of an opening and a closing mark.
        templates: Form, then position of the content, to templates.
        signs: Words that give a value away.
    """

    articles: Phrases
    article_before_vowel: str
    space: str
    comma: str
    colon: str
    join: str
    last_joins: Phrases
    people_with: dict[str, Phrases]
    voices_with: dict[str, Phrases]
    tails: Phrases
    clause_tails: Phrases
    remarks: Phrases
    pronouns: dict[str, str]
    people: Table
    voice_words: dict[str, Phrases]
    attributes: Table
    manners: Table
    briefs: dict[str, Phrases]
    clauses: Table
    stress: StressWording
    scenes: Table
    labels: dict[str, Phrases]
    label_values: Table
    label_starts: Phrases
    separators: Phrases
    quotes: Phrases
    templates: Table
    signs: Table


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProsodyWord:
    """A word for a way of speaking and the measured classes that it stands for; an empty class list allows all.

    Attributes:
        says: Which list of `Wording` has its words. An emotion or an age here is prosody, not a judgement.
        value: Key in that list.
        speed: Classes that the clip may have; the other two likewise.
        pitch: See `speed`.
        energy: See `speed`.
        gender: See `speed`.
    """

    says: Literal["manner", "emotion", "age"]
    value: str
    speed: Phrases = ()
    pitch: Phrases = ()
    energy: Phrases = ()
    gender: Phrases = ()

    @property
    def unless(self) -> str:
        """Attribute that forbids the word where it was judged: a judged "neutral" would contradict "lively"."""
        return "age" if self.says == "age" else "emotion"

    @property
    def needs(self) -> dict[str, Phrases]:
        """Attribute to the classes that it must be one of."""
        needs = {"speed": self.speed, "pitch": self.pitch, "energy": self.energy, "gender": self.gender}
        return {name: classes for name, classes in needs.items() if classes}


@functools.cache
def load_wording(language: str) -> Wording:
    """Returns the words of a language.

    Raises:
        InputError: There are none for it.
    """
    if language not in LANGUAGES:
        raise InputError(f"instructions are written in {', '.join(LANGUAGES)}, not {language!r}")
    return from_dict(Wording, read_wording(f"{language}.toml"), path=f"wording/{language}.toml")


@functools.cache
def load_prosody_words() -> tuple[ProsodyWord, ...]:
    """Returns the words that stand for a bundle of speed, pitch and loudness."""
    lines = read_wording("prosody_words.toml")["prosody"]
    return tuple(from_dict(ProsodyWord, line, path="wording/prosody_words.toml") for line in lines)


def read_wording(name: str) -> Mapping[str, Any]:
    """Reads a file of `wording/`."""
    return tomllib.loads((resources.files("voxinstruct_jax.data") / "wording" / name).read_text("utf-8"))
