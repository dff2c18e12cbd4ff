"""The spoken content of an instruction: its quoted words.

A user writes the words to be spoken in quotes of any kind, anywhere in the instruction. Read `spoken_content` first.
"""

import dataclasses
import re

__all__ = ["Content", "quoted_spans", "spoken_content"]

_PAIRED = {"“": "”", "「": "」", "『": "』", "«": "»", "‘": "’"}
_CLOSING = {close: opening for opening, close in _PAIRED.items()}
_SINGLE = "'‘’"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Content:
    """What is to be spoken.

    Attributes:
        text: The words between the quote marks, without them; None if the instruction quotes nothing.
        start: Index of the first character of `text` in the instruction; 0 if there is none.
        end: Index behind its last character; 0 if there is none.
    """

    text: str | None
    start: int
    end: int


def spoken_content(instruction: str) -> Content:
    """Finds the words to be spoken.

    Quotes nested in others belong to the content. Of several quoted spans side by side the longest is the content
    (the first of equals). Forms: "", “”, '', ‘’, 「」, 『』, «». An apostrophe is no quote, nor a mark without partner.

    Args:
        instruction: As the user wrote it, or normalised.

    Returns:
        The content, its text equal to `instruction[start:end]`.
    """
    spans = [(start, end) for start, end in quoted_spans(instruction) if instruction[start:end].strip()]
    if not spans:
        return Content(text=None, start=0, end=0)
    start, end = max(spans, key=lambda span: (span[1] - span[0], -span[0]))
    return Content(text=instruction[start:end], start=start, end=end)


def quoted_spans(text: str) -> list[tuple[int, int]]:
    """Start and end of the inside of each quote that has both marks, in order of their ends; some lie within others."""
    spans: list[tuple[int, int]] = []
    stack: list[tuple[str, int]] = []
    marks = re.compile(r"[\"“”「」『』«»'‘’]")
    sloppy = _has_sloppy_double(text)
    for found in marks.finditer(text):
        mark, at = found[0], found.start()
        if mark == '"':
            _straight_double(text, at, stack, spans, sloppy)
        elif mark in _SINGLE:
            _single(text, at, stack, spans)
        elif mark in _PAIRED:
            stack.append((mark, at))
        else:
            _close(_CLOSING[mark], at, stack, spans)
    return spans


def _close(opening: str, at: int, stack: list[tuple[str, int]], spans: list[tuple[int, int]]) -> bool:
    """Ends the innermost open quote of this kind; quotes opened inside it and left open are forgotten."""
    for depth in range(len(stack) - 1, -1, -1):
        if stack[depth][0] == opening:
            spans.append((stack[depth][1] + 1, at))
            del stack[depth:]
            return True
    return False


def _straight_double(
    text: str, at: int, stack: list[tuple[str, int]], spans: list[tuple[int, int]], sloppy: bool
) -> None:
    closed = _close('"', at, stack, spans)
    # After an English letter or a digit a mark can only close (or means inches), unless the user never spaces them.
    if not closed and (sloppy or not _is_word(text, at - 1)):
        stack.append(('"', at))


def _has_sloppy_double(text: str) -> bool:
    """True if all straight double marks follow a letter, as in `says"Hello"`."""
    places = [at for at, character in enumerate(text) if character == '"']
    return len(places) > 1 and all(_is_word(text, at - 1) for at in places)


def _single(text: str, at: int, stack: list[tuple[str, int]], spans: list[tuple[int, int]]) -> None:
    opening = "'" if text[at] == "'" else "‘"
    is_open = any(mark == opening for mark, _ in stack)
    if is_open and text[at] != "‘" and _may_close(text, at):
        if not _is_possessive(text, at):
            _close(opening, at, stack, spans)
    elif text[at] != "’" and _may_open(text, at):
        stack.append((opening, at))


def _may_open(text: str, at: int) -> bool:
    return not _is_word(text, at - 1) and at + 1 < len(text) and not text[at + 1].isspace()


def _may_close(text: str, at: int) -> bool:
    return at > 0 and not text[at - 1].isspace() and not _is_word(text, at + 1)


def _is_possessive(text: str, at: int) -> bool:
    """True for the mark of "the dogs' food" if another mark further on can end the quote before a new one opens."""
    if text[at - 1] not in "sS" or text[at + 1 : at + 2] != " ":
        return False
    for later in range(at + 1, len(text)):
        if text[later] == "‘" and text[at] == "’" and _may_open(text, later):
            return False
        if text[later] == text[at]:
            if _may_open(text, later):
                return False
            if _may_close(text, later):
                return True
    return False


def _is_word(text: str, at: int) -> bool:
    return 0 <= at < len(text) and text[at].isascii() and text[at].isalnum()
