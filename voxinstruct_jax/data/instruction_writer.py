"""Writes the instructions of a manifest row: by the grammar, or by a language model whose answers are checked.

A language model never gets to copy the transcript: it sees a draft of the grammar with a mark in place of the quoted
words, and the words are put where the mark stands in its answer. What it answers is kept only if `check_rewriting`
finds nothing wrong; else the draft is kept. Read `write` first.

Source: VoxInstruct, sections 5.1 and 5.3 (a language model words what classifiers found).
"""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping

import numpy as np

from voxinstruct_jax.config import InputError
from voxinstruct_jax.data.instruction_words import LANGUAGES, load_wording
from voxinstruct_jax.data.instructions import Instruction, write_instructions
from voxinstruct_jax.data.language_models import LanguageModel
from voxinstruct_jax.data.manifest import Row
from voxinstruct_jax.text.content import spoken_content
from voxinstruct_jax.text.normalizer import HAN_CHARACTER

__all__ = ["MARK", "check_rewriting", "row_generator", "write"]

MARK = "[[WORDS]]"
"""Stands for the quoted content in what a language model reads and writes."""
LENGTH_LIMITS = (2, 600)
"""Characters that the description around the content may have."""

_LANGUAGE_NAMES = {"en": "English", "zh": "Mandarin Chinese (simplified characters)"}
_CONTEXT_CHARACTERS = 200
_LONGEST_STRESSED = 12
_PROMPT = """\
Rewrite an instruction to a speech synthesiser in fresh, natural words.

Instruction: {draft}

{mark} stands for the words to be spoken: {context}

Rules: Write in {language}. Keep {mark} exactly once, as it is, its quotation marks right beside it; it may stand \
anywhere. Keep every property of the voice and of the way of speaking that the instruction names, and add no \
other. Keep quoted words quoted. Answer with the rewritten instruction only, in one paragraph of at most 60 words."""
_PREAMBLE = re.compile(
    r"^\W*(sure|certainly|of course|here is|here's|rewritten|好的|当然|以下是|这是改写|改写)", re.IGNORECASE
)
_THOUGHT = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)
_OPENING, _CLOSING = "\"“'‘「『«", "\"”'’」』»"
_QUOTED_MARK = re.compile(rf"[{_OPENING}]{re.escape(MARK)}[{_CLOSING}]|{re.escape(MARK)}")
_QUOTED = re.compile(r"[\"“「『«]([^\"”」』»]+)[\"”」』»]|(?<![A-Za-z0-9])['‘]([^'’]+)['’](?![A-Za-z0-9])")


def row_generator(row_id: str, seed: int) -> np.random.Generator:
    """Returns the generator of a row's instructions: it follows from id and seed alone, on any machine."""
    digest = hashlib.sha256(f"{seed}\n{row_id}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))


def write(
    row: Row,
    count: int,
    generator: np.random.Generator,
    language_model: LanguageModel | None = None,
    *,
    prosody_words: bool = True,
    tally: Counter[str] | None = None,
) -> tuple[str, ...]:
    """Writes instructions for a row, each holding its transcript character by character, in quotes.

    Args:
        row: Its `attributes` are spoken of; see `write_instructions` for the values.
        count: How many.
        generator: Source of all choices, such as `row_generator(row.id, seed)`.
        language_model: Rewrites what the grammar wrote; answers that fail the check are replaced by the grammar's text.
        prosody_words: See `write_instructions`.
        tally: Where given, counts "grammar", "language model" and "language model: REASON" (answers that failed).

    Raises:
        InputError: The language has no grammar, an attribute has an unknown value, the transcript cannot be quoted, or
            the language model cannot be used at all.
    """
    tally = Counter() if tally is None else tally
    try:
        drafts = write_instructions(
            row.attributes, row.transcript, row.language, count=count, generator=generator, prosody_words=prosody_words
        )
    except InputError as error:
        raise InputError(f"row {row.id!r}: {error}") from error
    if language_model is None:
        tally["grammar"] += len(drafts)
        return tuple(draft.text for draft in drafts)
    answers = language_model.complete([_prompt(draft, row.transcript) for draft in drafts])
    if len(answers) != len(drafts):
        raise InputError(
            f"the language model gave {len(answers)} answers to {len(drafts)} prompts; mend its `complete`"
        )
    return tuple(_checked(draft, answer, row, tally) for draft, answer in zip(drafts, answers, strict=True))


def check_rewriting(text: str, draft: Instruction, transcript: str, attributes: Mapping[str, str | list[int]]) -> str:
    """Says what is wrong with a rewritten instruction.

    Args:
        text: The whole instruction, content in place.
        draft: What it was made from.
        transcript: The content.
        attributes: Of the row.

    Returns:
        One of "transcript", "length", "language", "form", "stress", "contradiction"; empty if all is well.
    """
    around = _around(text)
    if spoken_content(text).text != transcript or _repeats(around, transcript):
        return "transcript"
    if not LENGTH_LIMITS[0] <= len(around.strip("\0 ")) <= LENGTH_LIMITS[1]:
        return "length"
    preamble = _PREAMBLE.match(text) and not _PREAMBLE.match(draft.text)
    if preamble or re.search(r"[\[{<]{2}|```|</?\w+>|\n\s*\n", around.strip()):
        return "form"
    if not _is_written_in(draft.language, _QUOTED.sub("", around)):
        return "language"
    if _quoted_words(_around(draft.text)) != _quoted_words(around):
        return "stress"
    return "contradiction" if _contradicts(around, draft, attributes) else ""


def _prompt(draft: Instruction, transcript: str) -> str:
    return _PROMPT.format(
        draft=_marked(draft.text),
        mark=MARK,
        context=" ".join(transcript[:_CONTEXT_CHARACTERS].split())
        + ("…" if len(transcript) > _CONTEXT_CHARACTERS else ""),
        language=_LANGUAGE_NAMES[draft.language],
    )


def _marked(text: str) -> str:
    content = spoken_content(text)
    return f"{text[: content.start]}{MARK}{text[content.end :]}"


def _checked(draft: Instruction, answer: str, row: Row, tally: Counter[str]) -> str:
    """Puts the transcript into an answer; the draft where that is not possible or something is wrong with it."""
    text, problem = _assembled(answer, draft.text, row.transcript), "no answer"
    if text:
        problem = check_rewriting(text, draft, row.transcript, row.attributes)
    elif answer.strip():
        problem = "transcript"
    tally[f"language model: {problem}" if problem else "language model"] += 1
    tally["grammar"] += bool(problem)
    return draft.text if problem else text


def _assembled(answer: str, draft: str, transcript: str) -> str:
    """Puts the transcript in the place of the mark, in the draft's quotes; empty where the mark is not there once."""
    answer = _THOUGHT.sub("", answer).strip()
    if answer.count(MARK) != 1:
        return answer if not answer.count(MARK) and transcript in answer else ""
    content = spoken_content(draft)
    quoted = draft[content.start - 1 : content.end + 1]
    return _QUOTED_MARK.sub(lambda _: quoted, answer)


def _around(text: str) -> str:
    """The instruction with a null character in place of its content and the quotes of it."""
    content = spoken_content(text)
    return text if content.text is None else f"{text[: content.start - 1]}\0{text[content.end + 1 :]}"


def _repeats(around: str, transcript: str) -> bool:
    """Whether the words stand once more; a short one may, since stress names it."""
    words = transcript.strip(" .。")
    return len(words) > _LONGEST_STRESSED and words in around


def _quoted_words(around: str) -> set[str]:
    """Quoted words, which are the stressed ones."""
    spans = [first or second for first, second in _QUOTED.findall(around)]
    return {span.strip(" .,，。").casefold() for span in spans if span.strip(" .,，。")}


def _is_written_in(language: str, around: str) -> bool:
    letters = [character for character in around if character.isalpha()]
    if not letters:
        return False
    han = sum(HAN_CHARACTER.match(letter) is not None for letter in letters) / len(letters)
    latin = sum(letter.isascii() for letter in letters) / len(letters)
    return latin > 0.9 if language == "en" else han > 0.8


def _contradicts(around: str, draft: Instruction, attributes: Mapping[str, str | list[int]]) -> bool:
    """Whether the description gives away a value that is neither the row's nor in the draft."""
    known, said = _QUOTED.sub("", _around(draft.text)), _QUOTED.sub("", around)
    return any(
        _holds(said, sign) and not _holds(known, sign)
        for language in LANGUAGES
        for name, values in load_wording(language).signs.items()
        for value, words in values.items()
        if attributes.get(name) != value
        for sign in words
    )


def _holds(text: str, sign: str) -> bool:
    if sign.isascii():
        return re.search(rf"(?<![a-z]){re.escape(sign)}(?![a-z])", text, re.IGNORECASE) is not None
    return sign in text
