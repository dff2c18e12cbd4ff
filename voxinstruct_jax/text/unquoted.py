"""The words to be spoken of an instruction that quotes nothing: told by where it stops describing a voice.

`slow male voice: good morning`, or the words on a line of their own: the text is cut where such writing has a seam, and
the stretch is taken that describes a voice least while what is left does most. Read `unquoted_content`.
"""

import functools
import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from numpy import ndarray

from voxinstruct_jax.text.content import Content
from voxinstruct_jax.text.lexicon import instruction_concepts
from voxinstruct_jax.text.normalizer import HAN
from voxinstruct_jax.text.words import listed_runs

__all__ = ["CONTENT_LABELS", "unquoted_content"]

_LEFT_OUT = ("age", "languages", "frame words")
"""Headings of the list of instruction words that stand over what speech itself is full of."""
_PRONOUNS = ("he", "she", "they", "it", "i", "you", "we")
CONTENT_LABELS = (
    "text|input|input_text|content|line|lines|words|script|sentence|transcript|message|say|says|read|"
    "台词|内容|文本|文字|原文|正文|句子|话|词|说|念|读|朗读|说什么|读什么|念什么"
)
"""Keys and labels that stand before what is to be spoken, as alternatives of a regular expression."""
_EVERYDAY = (
    "hello hi hey good great morning evening night afternoon today tonight now ladies gentlemen welcome please thank "
    "thanks sorry yes no ok love like well back 你好 您好 大家 再 再见 谢谢 早上 晚上 今天 "
    "晚安 欢迎 请 爱 好 坚持 喂 嘘"
)
"""Instruction words that speech is as full of."""


class _Seam(NamedTuple):
    """What a cut speaks for."""

    before: float
    """For content that ends there."""
    after: float
    """For content that begins there."""
    whole: bool
    """Whether content in lines of its own may end or begin there."""
    least: float = 0.2
    """How much of what is left must describe a voice."""


_SAID = _Seam(0.3, -0.2, False, 0.4)
"""Before who says it, and how."""
_END = _Seam(0.0, 0.0, True, 1.0)
_LABELLED = 2.0
_SEAMS: Sequence[tuple[re.Pattern[str], _Seam]] = [
    (re.compile(pattern, re.IGNORECASE), seam)
    for pattern, seam in (
        (
            rf"(?:(?<![\w])|(?<=[{HAN}])(?<!重))(?:{CONTENT_LABELS})(?:\s*[（(][^()（）]*[)）])?\s*[:：=](?!//)\s*",
            _Seam(0.0, _LABELLED, True, 0.0),
        ),
        (r"\s*(?<!\d)[:：](?!//)\s*|\s*[:：](?!\d|//)\s*|\s+=\s+", _Seam(-1.0, 0.5, True)),
        (r"\s*】?\s*\n\s*【?\s*", _Seam(0.1, 0.2, True)),
        (
            r"\s+[-–|/]+\s+|\s*—+\s*|\s*[|｜]\s*|\s*-{2,}\s*|\s*->\s*|\s*[→⇒]\s*|\s*[\[(（【]\s*|\s*[\])）】]\s*",
            _Seam(0.1, 0.1, True),
        ),
        (r",\s+(?=(?:he|she|the \w+) (?:said|says|murmur|whisper|shout|mutter|cried|call|ask|repli|answer))", _SAID),
        (r"[，,]\s*(?=这句|这段|这行)", _SAID),
        (r"(?<=[.!?;。！？；…])\s*", _Seam(0.0, 0.0, False, 0.4)),
        (r"(?<=[,，])\s*", _Seam(-0.1, -0.1, False, 0.8)),
        (
            rf"(?<=[声音气吻调腔][说念读讲喊])(?=[{HAN}A-Za-z])(?![出来得地着过完法话起一下成了于])",
            _Seam(-0.1, 0.3, False, 0.4),
        ),
        (
            rf"(?<=[{HAN}](?:说|念|读|讲|喊))(?<![就阅]读)(?=[{HAN}A-Za-z])(?![出来得地着过完法话起一下成了于])"
            rf"|(?:(?<=[说念读讲喊]一[句声])|(?<=[说念读讲喊][句声道]))\s*(?=[{HAN}A-Za-z])",
            _Seam(-0.1, 0.0, False, 0.4),
        ),
        (r"(?:(?<=^)|(?<=[.;!?,]\s))the (?:lines?|words?|text|sentence) (?:is|are)\s+", _Seam(0.0, 0.3, True)),
        (
            r"(?<=\bsay)\s+|(?<=\bsays)\s+|(?<=\bsaying)\s+|(?<=\bread)\s+|(?<=\bvoice going)\s+",
            _Seam(-0.1, 0.0, False, 0.4),
        ),
        (r"\s+(?=(?:in|with) an? (?:[\w-]+,? ){0,4}(?:voice|tone)\b)", _Seam(0.0, -0.1, False, 0.4)),
    )
]
"""Where a text may be cut, strongest first."""
_BRACKETED = re.compile(r"【[^【】]*】")
_LEAST = 0.15
_AT_AN_END = 0.1
_LONG = 0.1
_WITHIN_A_LINE = 0.3


def unquoted_content(instruction: str) -> Content:
    """Finds the words to be spoken where no quotes say so.

    Args:
        instruction: As the user wrote it.

    Returns:
        The content, its text equal to `instruction[start:end]`; None where all of it may be content.
    """
    pieces = _pieces(instruction)
    letters = np.array([character.isalnum() for character in instruction], bool)
    num_letters = np.concatenate([[0], np.cumsum(letters)])
    num_telling = np.concatenate([[0], np.cumsum(letters & _telling(instruction))])
    passed = np.cumsum([0.0, *(max(seam.after, 0.0) for _, _, seam in pieces)])
    in_lines = "\n" in instruction.strip()
    best, found = _LEAST, None
    for first, last in itertools.combinations_with_replacement(range(len(pieces)), 2):
        (start, _, before), (_, end, _) = pieces[first], pieces[last]
        after = pieces[last + 1][2] if last + 1 < len(pieces) else _END
        inside, telling = (int(each[end] - each[start]) for each in (num_letters, num_telling))
        outside, telling_outside = num_letters[-1] - inside, num_telling[-1] - telling
        told = telling_outside / max(outside, 1)
        of_itself = telling / max(inside, 1)
        if not inside or not telling_outside or told < min(before.least, after.least):
            continue
        if of_itself == 1 and before.after != _LABELLED:
            continue
        score = told - of_itself + before.after + after.before + _LONG * inside / num_letters[-1]
        score -= passed[last + 1] - passed[first + 1]
        if in_lines:
            score -= _WITHIN_A_LINE * (not (before.whole and after.whole))
        else:
            score += _AT_AN_END * (first == 0 or last == len(pieces) - 1)
        if score > best:
            best, found = score, (start, end)
    if found is None:
        return Content(text=None, start=0, end=0)
    return Content(text=instruction[found[0] : found[1]], start=found[0], end=found[1])


def _pieces(text: str) -> list[tuple[int, int, _Seam]]:
    """Start and end of each stretch between seams, and what the seam before it speaks for."""
    taken = np.zeros(len(text) + 1, bool)
    seams: list[tuple[int, int, _Seam]] = []
    text = _BRACKETED.sub(lambda found: found[0].replace("\n", " "), text)  # lines within brackets belong together
    for pattern, seam in _SEAMS:
        for match in pattern.finditer(text):
            start, end = match.span()
            if start > 0 and not taken[start : end + 1].any():
                taken[start : end + 1] = True
                seams.append((start, end, seam))
            elif start == 0 < end and not taken[:end].any():  # a label or a bracket at the very beginning
                taken[:end] = True
                seams.append((0, end, seam))
    seams.sort(key=lambda each: each[:2])
    starts = [(0, _END), *((end, seam) for _, end, seam in seams)]
    ends = [*(start for start, _, _ in seams), len(text.rstrip())]
    return [(start, end, seam) for (start, seam), end in zip(starts, ends, strict=True) if text[start:end].strip()]


def _telling(text: str) -> Bool[ndarray, " character"]:
    """Characters of words that describe voices."""
    words, found = _telling_words(), np.zeros(len(text), bool)
    longest = max(len(word) for word in words if not word.isascii())
    for match in re.finditer(rf"[A-Za-z][A-Za-z'’]*|[{HAN}]+", text):
        start, run = match.start(), match[0].lower().replace("’", "'")
        if run.isascii():
            found[start : match.end()] = run in words
            continue
        for first, end in listed_runs(run, words, longest):
            found[start + first : start + end] = True
    return found


@functools.cache
def _telling_words() -> frozenset[str]:
    """Instruction words but for those that speech itself is full of."""
    told = [
        forms
        for heading, forms in instruction_concepts()
        if not heading.startswith(_LEFT_OUT) and forms[0] not in _PRONOUNS
    ]
    return frozenset(form for forms in told for form in forms) - set(_EVERYDAY.split())
