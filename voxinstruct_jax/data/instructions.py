"""The instruction grammar: free-form English and Mandarin instructions that carry given attributes and given words.

Pure functions of (attributes, content, generator). Five forms (labelled list, attribute-led, request, scenario, bare),
the content first, in the middle or last, in every kind of quotes, and now and then in the other language than the
content. What is said of an attribute is drawn too: "normal" values mostly go unsaid, and what the frame sentence does
not hold goes into sentences of its own before or behind it. The content stands in quotes that `text.content` finds
again, or nothing is written. Read `write_instructions` first; the words and templates stand in `wording/`.

Source: VoxInstruct, section 3 (instructions hold content and description in one free text, of the whole or of one word)
and section 4.1 (they are written in many ways, from attribute lists to scenes).
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

import numpy as np

from voxinstruct_jax.config import InputError
from voxinstruct_jax.data.instruction_stress import CLOSE, OPEN, name_stressed, stressed_runs
from voxinstruct_jax.data.instruction_words import LANGUAGES, Wording, load_prosody_words, load_wording
from voxinstruct_jax.text.content import spoken_content

__all__ = ["FORMS", "POSITIONS", "Form", "Instruction", "Position", "write_instruction", "write_instructions"]

Form = Literal["led", "request", "scenario", "labels", "bare"]
Position = Literal["first", "middle", "last"]
FORMS: tuple[Form, ...] = ("led", "request", "scenario", "labels", "bare")
POSITIONS: tuple[Position, ...] = ("first", "middle", "last")

_FORM_SHARES = (0.27, 0.31, 0.26, 0.10, 0.06)
_OTHER_LANGUAGE_SHARE = 0.1
_TOLD_SHARE = 0.9
_TOLD_NORMAL_SHARE = 0.35
_TOLD_GENDER_SHARE = 0.95
_PROSODY_WORD_SHARE = 0.35
_ASIDE_SHARE = 0.17
_ASIDE_OF_GENDER_SHARE = 0.25
_OF_SPEAKER_SHARE = 0.65  # "a woman with a deep voice"; else "a woman speaks in a deep voice"
_BRIEF_SHARE = 0.45  # "a woman, slow pace: …"; else "a woman, slowly: …"
_OWN_SENTENCE_SHARE = 0.3
_STRESS_CLAUSE_SHARE = 0.4
_MOVED_FRAME_SHARE = 0.25  # the content comes to stand in the middle since a sentence follows or precedes
_REMARK_SHARE = 0.12
_NEUTRAL_SCENE_SHARE = 0.25

_ALL_QUOTES = ('""', "“”", "「」", "『』", "«»", "‘’", "''")
_FULL_STOPS = (".", "!", "?", "…", "。", "！", "？")
_CLOSING_MARKS = "\"”」』'’»"
_ASIDES = ("timbre", "timbre", "attitude", "attitude", "accent")  # repeats weigh more
_OF_SPEAKER = ("pitch", "speed", "energy", "timbre")
_MANNERS = ("speed", "energy", "pitch", "emotion", "manner", "timbre", "attitude", "accent")
_SPEAKER_SLOTS = ("{person}", "{who}", "{voice}")

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
    """One written instruction.

    Attributes:
        text: What the user would type.
        language: Of the describing words, not of the content.
        form: Way of describing.
        position: Where the content stands.
        frame: Which line of the wording was filled; for measuring variety.
        template: All fixed words: the frame after its choices, and the sentences around it, slots still open.
    """

    text: str
    language: str
    form: Form
    position: Position
    frame: str
    template: str


def write_instructions(
    attributes: Mapping[str, str | list[int]],
    content: str,
    content_language: str,
    *,
    count: int,
    generator: np.random.Generator,
    prosody_words: bool = True,
) -> list[Instruction]:
    """Writes several instructions for one clip, of different forms where `count` allows.

    Args:
        attributes: `gender` (female, male), `age` (child, teenager, young, middle-aged, elderly), `pitch`, `energy`
            (low, normal, high), `speed` (slow, normal, fast), `emotion` (neutral, happy, sad, angry, fearful,
            disgusted, surprised, contemptuous, calm, excited) and `stress` (indices into `split_words(content)`);
            any may be absent, and is then not spoken of. Other names are ignored.
        content: Words to be spoken; they stand in the text character by character.
        content_language: "en" or "zh"; one instruction in ten is written in the other one.
        count: How many.
        generator: Source of all choices.
        prosody_words: Whether words such as "tired" may stand for slow, low and soft (`wording/prosody_words.toml`),
            and words such as "warm", which nothing measures, be said of any clip.

    Raises:
        InputError: The language is unknown, the content empty or full of quote marks of all kinds, or an attribute has
            an unknown value.
    """
    load_wording(content_language)
    other = next(language for language in LANGUAGES if language != content_language)
    forms = generator.choice(len(FORMS), size=count, replace=count > len(FORMS), p=_FORM_SHARES)
    written = []
    for form in forms:
        language = other if generator.random() < _OTHER_LANGUAGE_SHARE else content_language
        position = _pick(POSITIONS, generator)
        written.append(
            write_instruction(
                attributes, content, language, FORMS[form], position, generator, prosody_words=prosody_words
            )
        )
    return written


def write_instruction(  # noqa: PLR0913 - all that one instruction is made of
    attributes: Mapping[str, str | list[int]],
    content: str,
    language: str,
    form: Form,
    position: Position,
    generator: np.random.Generator,
    *,
    prosody_words: bool = True,
    tell_all: bool = False,
) -> Instruction:
    """Writes one instruction of a given language, form and position; see `write_instructions`.

    With `tell_all` nothing goes unsaid, as tests need it that score every attribute asked for.
    """
    wording = load_wording(language)
    if not content.strip():
        raise InputError("the content of an instruction is empty: give it words to be spoken")
    told = _told(attributes, wording, generator, tell_all=tell_all)
    if prosody_words:
        told = _with_aside(_with_prosody_word(told, attributes, generator), wording, generator)
    stress = _stress(attributes.get("stress"), content, wording, generator, tell_all=tell_all)
    write = _write_labels if form == "labels" else _write_sentences
    before, after, frame, template = write(told, stress, wording, form, position, generator)
    return Instruction(
        text=with_content(before, content, after, wording, generator),
        language=language,
        form=form,
        position=position,
        frame=f"{language}/{frame}",
        template=template,
    )


# --- what is told ----------------------------------------------------------------------------------------------------


def _told(
    attributes: Mapping[str, str | list[int]], wording: Wording, generator: np.random.Generator, *, tell_all: bool
) -> dict[str, str]:
    """Draws which attributes the instruction speaks of; stress is drawn apart."""
    told = {}
    for name, values in wording.label_values.items():
        value = attributes.get(name)
        if value is None or name in ("manner", *_ASIDES):
            continue
        if not isinstance(value, str) or value not in values:
            raise InputError(f"attribute {name}: {value!r} is not one of {', '.join(values)}")
        plain = value in ("normal", "neutral")
        share = _TOLD_GENDER_SHARE if name == "gender" else _TOLD_NORMAL_SHARE if plain else _TOLD_SHARE
        if generator.random() < share or tell_all:
            told[name] = value
    return told


def _with_prosody_word(
    told: dict[str, str], attributes: Mapping[str, str | list[int]], generator: np.random.Generator
) -> dict[str, str]:
    """Now and then tells a word that stands for the measured classes; half the time it takes the place of each."""
    if generator.random() >= _PROSODY_WORD_SHARE:
        return told
    fitting = [
        word
        for word in load_prosody_words()
        if word.unless not in attributes
        and all(attributes.get(name) in classes for name, classes in word.needs.items())
    ]
    if not fitting:
        return told
    word = _pick(fitting, generator)
    kept = {name: value for name, value in told.items() if name not in word.needs or generator.random() < 0.5}
    return kept | {word.says: word.value}


def _with_aside(told: dict[str, str], wording: Wording, generator: np.random.Generator) -> dict[str, str]:
    """Now and then tells of a timbre, an attitude or an accent at random, so that a voice learns to read past them."""
    if generator.random() >= _ASIDE_SHARE:
        return told
    name = _pick(_ASIDES, generator)
    gender = told.get("gender")
    fits = gender in wording.label_values[name] and generator.random() < _ASIDE_OF_GENDER_SHARE
    return told | {name: gender if gender and fits else "any"}


def _stress(
    stress: str | list[int] | None, content: str, wording: Wording, generator: np.random.Generator, *, tell_all: bool
) -> str:
    """Draws a name for the stressed words; empty where they go unsaid."""
    if stress is None:
        return ""
    if isinstance(stress, str):
        raise InputError(f"attribute stress: expected a list of word indices, got {stress!r}")
    runs = stressed_runs(content, stress)
    if not runs or (generator.random() >= _TOLD_SHARE and not tell_all):
        return ""
    return name_stressed(content, runs, wording.stress, generator)


# --- sentences -------------------------------------------------------------------------------------------------------


def _write_sentences(
    told: Mapping[str, str],
    stress: str,
    wording: Wording,
    form: Form,
    position: Position,
    generator: np.random.Generator,
) -> tuple[str, str, str, str]:
    """Fills a frame and puts sentences around it: text before the content, text behind it, frame, template."""
    moved = position == "middle" and generator.random() < _MOVED_FRAME_SHARE
    place = _pick(("first", "last"), generator) if moved else position
    lines = wording.templates[form][place]
    needs_speaker = "gender" in told or "age" in told
    number = _pick([n for n, line in enumerate(lines) if not needs_speaker or _names_speaker(line)], generator)
    frame = _choose(lines[number], generator)
    values, sentences = _describe(told, stress, wording, frame, generator)
    if generator.random() < _REMARK_SHARE or (moved and not sentences):
        remark = _phrase(wording.remarks, generator)
        sentences.insert(int(generator.integers(len(sentences) + 1)), (remark, remark))
    before, after = (_fill(part, values) for part in frame.split("{content}"))
    texts, patterns = [text for text, _ in sentences], [pattern for _, pattern in sentences]
    leads = position == "last" or (position == "middle" and (place == "first" or generator.random() < 0.5))
    if place == "last" and moved:
        leads = False
    if leads:
        before = wording.space.join([*texts, before])
        template = wording.space.join([*patterns, frame])
    else:
        after = _ended(after, wording) + "".join(wording.space + text for text in texts) if texts else after
        template = wording.space.join([frame, *patterns])
    return before, after, f"{form}/{place}/{number}", template


def _describe(
    told: Mapping[str, str], stress: str, wording: Wording, frame: str, generator: np.random.Generator
) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Draws words for every slot of a frame, and sentences (each with its pattern) for what is left."""
    told, scene = dict(told), ""
    if "{scene}" in frame.lower():
        scene, implied = _scene(told, wording, generator)
        if implied and generator.random() < 0.5:  # the scene says it; half the time the manner says it too
            del told[implied]
    speaker = _speaker(told, _names_speaker(frame), wording, generator)
    names = [name for name in _MANNERS if name in told]
    names = [names[place] for place in generator.permutation(len(names))]
    sentences: list[tuple[str, str]] = []
    if len(names) > 1 and generator.random() < _OWN_SENTENCE_SHARE:
        cut = int(generator.integers(1, len(names)))
        sentences.append(_tail(names[cut:], told, wording, generator))
        names = names[:cut]
    takes_clause = "{comma_manner}" in frame or ("{manner}" in frame and wording.space)
    clause = ""
    if stress and takes_clause and generator.random() < _STRESS_CLAUSE_SHARE:
        clause = wording.comma + _pick(wording.stress.clauses, generator).format(word=stress)
    elif stress:
        pattern = _pick(wording.stress.sentences, generator)
        sentences.insert(int(generator.integers(len(sentences) + 1)), (pattern.format(word=stress), pattern))
    brief = "{comma_manner}" in frame and generator.random() < _BRIEF_SHARE
    manner = (_briefly if brief else _manner)(names, told, wording, generator)
    values = speaker | {
        "manner": (wording.space + manner if manner else "") + clause,
        "comma_manner": (wording.comma + manner if manner else "") + clause,
        "tail": wording.space + _tail(names, told, wording, generator)[0] if names else "",
        "scene": scene,
    }
    return values, [(_capital(text), pattern) for text, pattern in sentences]


def _scene(told: Mapping[str, str], wording: Wording, generator: np.random.Generator) -> tuple[str, str]:
    """Draws a scene that calls for one of the told manners; neutral if none does. Returns it and what it implies."""
    fitting = [name for name in ("speed", "energy") if told.get(name) in wording.scenes[name]]
    if not fitting or generator.random() < _NEUTRAL_SCENE_SHARE:
        return _phrase(wording.scenes["neutral"]["any"], generator), ""
    implied = _pick(fitting, generator)
    return _phrase(wording.scenes[implied][told[implied]], generator), implied


def _speaker(told: dict[str, str], spoken_of: bool, wording: Wording, generator: np.random.Generator) -> dict[str, str]:
    """Draws noun phrases for whoever speaks, and for the voice; an attribute that they carry is taken out of `told`."""
    gender, age = told.get("gender", "anybody"), told.get("age", "")
    who = _phrase(wording.people[age or "any"][gender], generator)
    voice = _phrase(wording.voice_words[gender][: 1 if age else None], generator)
    grown = _phrase(wording.voice_words[age], generator) if age else ""
    carried = [name for name in _OF_SPEAKER if name in told]
    if spoken_of and carried and generator.random() < _OF_SPEAKER_SHARE:
        name = _pick(carried, generator)
        adjective = _phrase(wording.attributes[name][told.pop(name)], generator)
        who = _pick(wording.people_with[name], generator).format(noun=who, adjective=adjective)
        voice = _pick(wording.voices_with[name], generator).format(age=grown, voice=voice, adjective=adjective)
    else:
        voice = grown + wording.space + voice
    voice = " ".join(voice.split())
    return {
        "who": who,
        "person": _article(who, wording, generator) + who,
        "voice": _article(voice, wording, generator) + voice if wording.article_before_vowel else voice,
    }


def _article(noun: str, wording: Wording, generator: np.random.Generator) -> str:
    article = _pick(wording.articles, generator)
    return wording.article_before_vowel if wording.article_before_vowel and noun[0] in "aeiou" else article


def _manner(names: Sequence[str], told: Mapping[str, str], wording: Wording, generator: np.random.Generator) -> str:
    """Joins an adverbial for each."""
    words = [_phrase(wording.manners[name][told[name]], generator) for name in names]
    last = _pick(wording.last_joins, generator)
    return last.join([wording.join.join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def _briefly(names: Sequence[str], told: Mapping[str, str], wording: Wording, generator: np.random.Generator) -> str:
    """Joins a noun phrase such as "slow pace" for each."""
    words = [
        _pick(wording.briefs[name], generator).format(value=_phrase(wording.label_values[name][told[name]], generator))
        for name in names
    ]
    return wording.comma.join(words)


def _tail(
    names: Sequence[str], told: Mapping[str, str], wording: Wording, generator: np.random.Generator
) -> tuple[str, str]:
    """Writes a sentence on how to speak; returns it and its pattern."""
    orders = [wording.clauses.get(name, {}).get(told[name], ()) for name in names]
    if all(orders) and generator.random() < 0.5:
        pattern = _pick(wording.clause_tails, generator)
        clauses = [_phrase(phrases, generator) for phrases in orders]
        joined = (wording.last_joins[0] if wording.space else wording.comma).join(clauses)
        return pattern.format(clauses=joined, Clauses=_capital(joined)), pattern
    pattern = _pick(wording.tails, generator)
    pronoun = wording.pronouns[told.get("gender", "anybody")]
    return pattern.format(pronoun=pronoun, manner=_manner(names, told, wording, generator)), pattern


# --- labels ----------------------------------------------------------------------------------------------------------


def _write_labels(
    told: Mapping[str, str],
    stress: str,
    wording: Wording,
    form: Form,
    position: Position,
    generator: np.random.Generator,
) -> tuple[str, str, str, str]:
    """Writes a list such as `Gender: female; Pitch: low; Text: "…"`, the labels in any order around the content."""
    entries = [(name, _phrase(wording.label_values[name][value], generator)) for name, value in told.items()]
    entries += [("stress", stress)] if stress else []
    order = [entries[place] for place in generator.permutation(len(entries))]
    pieces = [_pick(wording.labels[name], generator) + wording.colon + words for name, words in order]
    cut = {"first": 0, "middle": (len(order) + 1) // 2, "last": len(order)}[position]
    style = int(generator.integers(len(wording.separators)))
    separator = wording.separators[style]
    start = _pick(wording.label_starts, generator) if cut else ""
    label = _pick(wording.labels["content"], generator)
    before = start + "".join(piece + separator for piece in pieces[:cut]) + label + wording.colon
    after = "".join(separator + piece for piece in pieces[cut:])
    if after and separator.strip() in ".。" and separator.strip():
        after += separator.strip()
    names = [name for name, _ in order]
    template = separator.join([start, *names[:cut], f"{label}: {{content}}", *names[cut:]])
    return before, after, f"{form}/{position}/{style}", template


# --- text ------------------------------------------------------------------------------------------------------------


def with_content(before: str, content: str, after: str, wording: Wording, generator: np.random.Generator) -> str:
    """Puts the content in quotes that leave it findable, the same ones around stressed words.

    Raises:
        InputError: No quotes do: the content has unpaired marks of every kind.
    """
    drawn = [wording.quotes[place] for place in generator.permutation(len(wording.quotes))]
    if content.rstrip(_CLOSING_MARKS).endswith(_FULL_STOPS) and after.startswith((".", "。")):
        after = after[1:]  # the content has brought its own
    absent = [pair for pair in drawn if not set(pair) & set(content)]  # easier to read than nested ones of a kind
    for opening, closing in (*absent, *drawn, *_ALL_QUOTES):
        start, end = (part.replace(OPEN, opening).replace(CLOSE, closing) for part in (before, after))
        text = f"{start}{opening}{content}{closing}{end}"
        found = spoken_content(text)
        if found.text == content and found.start == len(start + opening):
            return text
    raise InputError(
        f"the content {content[:40]!r} cannot be quoted: it has quote marks of every kind without their partners; "
        "remove some of them"
    )


@functools.cache
def _names_speaker(line: str) -> bool:
    lowered = line.lower()
    return any(slot in lowered for slot in _SPEAKER_SLOTS)


def _phrase(phrases: Sequence[str], generator: np.random.Generator) -> str:
    return _choose(_pick(phrases, generator), generator)


def _choose(line: str, generator: np.random.Generator) -> str:
    """Decides each <one|other>."""
    if "<" not in line:
        return line
    return re.sub(r"<([^>]+)>", lambda found: _pick(found[1].split("|"), generator), line)


def _fill(template: str, values: Mapping[str, str]) -> str:
    """Fills the slots; a slot name with a capital first letter capitalises its words."""

    def word(match: re.Match[str]) -> str:
        name = match.group(1)
        value = values[name.lower()]
        return _capital(value) if name[0].isupper() else value

    return re.sub(r"\{(\w+)\}", word, template)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _ended(text: str, wording: Wording) -> str:
    """With a full stop, if words stand there without one."""
    if not text.strip() or text.rstrip()[-1] in ".!?。！？)）]】*":
        return text
    return text + ("." if wording.space else "。")


def _pick(choices: Sequence[T], generator: np.random.Generator) -> T:
    return choices[int(generator.integers(len(choices)))]
