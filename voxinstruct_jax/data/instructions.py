"""The instruction grammar: free-form English and Mandarin instructions that carry given attributes and given words.

Pure functions of (attributes, content, generator). Five forms (labelled list, attribute-led, request, scenario, bare),
the content first, in the middle or last, in several quote styles, and now and then in the other language than the
content. What is said of an attribute is drawn too: "normal" values mostly go unsaid. Read `write_instructions` first;
the words and templates stand in `wording/LANGUAGE.toml`.

Source: VoxInstruct, section 3 (instructions hold content and description in one free text) and section 4.1 (they are
written in many ways, from attribute lists to scenes).
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

import numpy as np

from voxinstruct_jax.config import InputError
from voxinstruct_jax.data.instruction_words import LANGUAGES, Wording, load_wording

__all__ = ["FORMS", "POSITIONS", "Form", "Instruction", "Position", "write_instruction", "write_instructions"]

Form = Literal["led", "request", "scenario", "labels", "bare"]
Position = Literal["first", "middle", "last"]
FORMS: tuple[Form, ...] = ("led", "request", "scenario", "labels", "bare")
POSITIONS: tuple[Position, ...] = ("first", "middle", "last")

_FORM_SHARES = (0.28, 0.32, 0.24, 0.10, 0.06)
_OTHER_LANGUAGE_SHARE = 0.1
_TOLD_SHARE = 0.9
_TOLD_NORMAL_SHARE = 0.35
_TOLD_GENDER_SHARE = 0.95
_OPEN_END_SHARE = 0.1  # people leave the last full stop out
_UNQUOTED_SHARE = 0.25  # only where the content ends the text after a colon, so that its span stays clear

_FULL_STOPS = (".", "!", "?", "…", "。", "！", "？")
_CLOSING_MARKS = '"”」』'

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
    """One written instruction.

    Attributes:
        text: What the user would type.
        language: Of the describing words, not of the content.
        form: Way of describing.
        position: Where the content stands.
        template: Which template was filled; for measuring variety.
    """

    text: str
    language: str
    form: Form
    position: Position
    template: str


def write_instructions(
    attributes: Mapping[str, str], content: str, content_language: str, *, count: int, generator: np.random.Generator
) -> list[Instruction]:
    """Writes several instructions for one clip, of different forms where `count` allows.

    Args:
        attributes: `gender` (female, male), `pitch`, `energy` (low, normal, high), `speed` (slow, normal, fast); any
            may be absent, and is then not spoken of.
        content: Words to be spoken; one time in ten its last full stop is left out.
        content_language: "en" or "zh"; one instruction in ten is written in the other one.
        count: How many.
        generator: Source of all choices.

    Raises:
        InputError: The language is unknown, the content empty, or an attribute has an unknown value.
    """
    load_wording(content_language)
    other = next(language for language in LANGUAGES if language != content_language)
    forms = generator.choice(len(FORMS), size=count, replace=count > len(FORMS), p=_FORM_SHARES)
    written = []
    for form in forms:
        language = other if generator.random() < _OTHER_LANGUAGE_SHARE else content_language
        written.append(
            write_instruction(attributes, content, language, FORMS[form], _pick(POSITIONS, generator), generator)
        )
    return written


def write_instruction(
    attributes: Mapping[str, str],
    content: str,
    language: str,
    form: Form,
    position: Position,
    generator: np.random.Generator,
) -> Instruction:
    """Writes one instruction of a given language, form and position; see `write_instructions`."""
    wording = load_wording(language)
    if not content.strip():
        raise InputError("the content of an instruction is empty: give it words to be spoken")
    if generator.random() < _OPEN_END_SHARE and len(content) > 1 and content[-1] in ".。":
        content = content[:-1]
    told = _told(attributes, wording, generator)
    if form == "labels":
        return _write_labels(told, content, language, position, generator)
    templates = wording.templates[form][position]
    place = int(generator.integers(len(templates)))
    values = _values(told, wording, generator, with_scene=form == "scenario")
    text = _fill(templates[place], values, _quoted(content, templates[place], wording, generator))
    return Instruction(
        text=text, language=language, form=form, position=position, template=f"{language}/{form}/{position}/{place}"
    )


def _told(attributes: Mapping[str, str], wording: Wording, generator: np.random.Generator) -> dict[str, str]:
    """Draws which attributes the instruction speaks of."""
    told = {}
    for name, phrases in wording.attributes.items():
        value = attributes.get(name)
        if value is None:
            continue
        if value not in phrases:
            raise InputError(f"attribute {name}: {value!r} is not one of {', '.join(phrases)}")
        share = _TOLD_GENDER_SHARE if name == "gender" else _TOLD_NORMAL_SHARE if value == "normal" else _TOLD_SHARE
        if generator.random() < share:
            told[name] = value
    return told


def _values(
    told: Mapping[str, str], wording: Wording, generator: np.random.Generator, *, with_scene: bool
) -> dict[str, str]:
    """Draws words for every slot that a template may hold."""
    told = dict(told)
    scene = ""
    if with_scene:
        scene, implied = _scene(told, wording, generator)
        if implied and generator.random() < 0.5:  # the scene says it; half the time the manner says it too
            del told[implied]
    noun = _pick(wording.attributes["gender"][told["gender"]] if "gender" in told else wording.anybody, generator)
    who = noun
    if "pitch" in told:
        pitch = _pick(wording.attributes["pitch"][told["pitch"]], generator)
        who = _pick(wording.with_pitch, generator).format(noun=noun, pitch=pitch)
    manners = [_pick(wording.attributes[name][told[name]], generator) for name in ("speed", "energy") if name in told]
    if generator.random() < 0.5:
        manners.reverse()
    manner = _pick(wording.joints, generator).join(manners)
    pronoun = wording.pronouns[told.get("gender", "anybody")]
    tail = _pick(wording.tails, generator).format(pronoun=pronoun, manner=manner) if manner else ""
    return {
        "person": wording.article + who,
        "who": who,
        "manner": wording.space + manner if manner else "",
        "comma_manner": wording.comma + manner if manner else "",
        "tail": tail,
        "scene": scene,
    }


def _scene(told: Mapping[str, str], wording: Wording, generator: np.random.Generator) -> tuple[str, str]:
    """Draws a scene that calls for one of the told manners; neutral if none does. Returns it and what it implies."""
    fitting = [name for name in ("speed", "energy") if told.get(name) in wording.scenes[name]]
    if not fitting:
        return _pick(wording.scenes["neutral"]["any"], generator), ""
    implied = _pick(fitting, generator)
    return _pick(wording.scenes[implied][told[implied]], generator), implied


def _write_labels(
    told: Mapping[str, str], content: str, language: str, position: Position, generator: np.random.Generator
) -> Instruction:
    """Writes a list such as `Gender: female; Pitch: low; Text: "…"`, the labels in any order around the content."""
    wording = load_wording(language)
    entries = [
        f"{_pick(wording.labels[name], generator)}{wording.colon}{_pick(wording.label_values[name][value], generator)}"
        for name, value in told.items()
    ]
    order = [entries[place] for place in generator.permutation(len(entries))]
    cut = {"first": 0, "middle": (len(order) + 1) // 2, "last": len(order)}[position]
    separator = _pick(wording.separators, generator)
    ends = cut == len(order)
    label = _pick(wording.labels["content"], generator) + wording.colon
    spoken = label + _quoted(content, ": {content}" if ends else "", wording, generator)
    pieces = [*order[:cut], spoken, *order[cut:]]
    text = separator.join(pieces) + (separator.strip() if not ends and separator.strip() in ".。" else "")
    style = wording.separators.index(separator)
    return Instruction(
        text=text, language=language, form="labels", position=position, template=f"{language}/labels/{position}/{style}"
    )


def _quoted(content: str, template: str, wording: Wording, generator: np.random.Generator) -> str:
    if template.endswith((": {content}", "：{content}")) and generator.random() < _UNQUOTED_SHARE:
        return content
    styles = [pair for pair in wording.quotes if not set(pair) & set(content)] or list(wording.quotes)
    opening, closing = styles[int(generator.integers(len(styles)))]
    return f"{opening}{content}{closing}"


def _fill(template: str, values: Mapping[str, str], content: str) -> str:
    """Fills the slots; a slot name with a capital first letter capitalises its words."""

    def word(match: re.Match[str]) -> str:
        name = match.group(1)
        value = values[name.lower()]
        return value[:1].upper() + value[1:] if name[0].isupper() else value

    before, after = (re.sub(r"\{(\w+)\}", word, part) for part in template.split("{content}"))
    if content.rstrip(_CLOSING_MARKS).endswith(_FULL_STOPS) and after.startswith((".", "。")):
        after = after[1:]  # the content has brought its own
    return f"{before}{content}{after}"


def _pick(choices: Sequence[T], generator: np.random.Generator) -> T:
    return choices[int(generator.integers(len(choices)))]
