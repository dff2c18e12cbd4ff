"""Where the words to be spoken may begin and end in an instruction that quotes nothing: at its seams.

A seam is a mark, a line break, a label, a verb of saying. Cutting at more of them than needed costs little: what is
told of the pieces decides (`text.unquoted`). Read `cut`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from voxinstruct_jax.text.normalizer import HAN

__all__ = ["CONTENT_LABELS", "SEAMS", "Pieces", "cut"]

CONTENT_LABELS = (
    "text|input|input_text|content|line|lines|words|script|sentence|transcript|message|say|says|read|"
    "台词|内容|文本|文字|原文|正文|句子|话|词|说|念|读|朗读|说什么|读什么|念什么"
)
"""Keys and labels that stand before what is to be spoken, as alternatives of a regular expression."""
_SAYING = (
    "says?|saying|said|reads?|reading|going|goes|announc(?:es?|ing)|shout(?:s|ing)?|whisper(?:s|ing)?|utter(?:s|ing)?|"
    "yell(?:s|ing)?|mutter(?:s|ing)?|murmur(?:s|ing)?|barks?|breathes?|pronounces?|call(?:s|ing)?|cry|cries|screams?|"
    "sighs?|growls?|hear|tells?|ask(?:s|ing)?|declares?|recites?|delivers?|speaks?|mumbles?|chants?|states?|me|them|us|"
    "the (?:words?|phrase|lines?|sentence|text|intro|message)(?: to (?:say|read|be (?:said|read|spoken)))?"
    "(?: is| are)?|"
    "(?:words|lines) are|(?:word|line|sentence|text|phrase) is"
)
_SPEAK, _NO_OBJECT = "说念读讲喊", "(?![出来得地着过完法话起一下成了于])"
_AT_ONCE = "出来|出去|得|完|成|一遍|给"
_LATIN_WORD = "[A-Za-z'’]+"
_NO_TITLE = r"(?<!\b[DM]r\.)(?<!\bMrs\.)(?<!\bM[st]\.)(?<!\bSt\.)(?<!\bProf\.)(?<!(?<!\.)\b[A-Za-z]\.)"
"""Behind a full stop: it does not belong to a title or a letter that stands for a word."""
_PATTERNS: Sequence[tuple[str, str]] = (
    (
        "label",
        rf"(?:(?<![\w])|(?<=[{HAN}])(?<!重))(?:{CONTENT_LABELS})(?:\s*[（(][^()（）]*[)）])?\s*[:：=＝](?!//)\s*"
        rf"|(?:^|(?<=\n))[ \t]*(?:{CONTENT_LABELS})[ \t]+(?=[{HAN}])|[【\[](?:{CONTENT_LABELS})[】\]]\s*",
    ),
    ("blank line", r"\s*】?\s*\n[ \t]*\n\s*【?\s*"),
    ("line", r"\s*】?\s*\n\s*【?\s*"),
    ("colon", r"\s*(?<!\d)[:：](?!//)\s*|\s*[:：](?!\d|//)\s*|\s+=\s+|\s*＝\s*"),
    ("bracket", r"\s*(?:[\[(（【〈《{]|<(?!-))\s*"),
    ("bracket end", r"\s*[\])）】>〉》}]\s*"),
    (
        "dash",
        rf"\s+[-–|/~]+\s+|\s*—+\s*|\s*[|｜]\s*|\s*-{{2,}}\s*|\s*[-=]>\s*|\s*[→⇒]\s*|(?<=[{HAN}])[/·](?=[{HAN}])",
    ),
    ("sentence", rf"(?<=[.!?;。！？；…~～])(?![.!?…]){_NO_TITLE}\s*"),
    (
        "comma and who",
        r"(?<=[，,])\s*(?=这[句段行几]|以上)"
        r"|(?<=,)\s+(?=(?:he|she|they|the [\w-]+) (?!is|are|was|has|will)\w+(?:s|ed)\b|said\b)",
    ),
    ("comma", r"(?<=[,，、])\s*"),
    ("picture", r"\s*[\U0001F300-\U0001FAFF\u2600-\u27BF\u2B00-\u2BFF\uFE0F]+\s*"),
    ("space", rf"(?<=[{HAN}])\s+(?=[{HAN}])"),
    (
        "script",
        rf"(?<=[{HAN}])\s*(?={_LATIN_WORD}(?:[ ,]+{_LATIN_WORD}){{2}})|(?<=[A-Za-z])\s*(?=[{HAN}]{{3}})"
        rf"|(?<=[A-Za-z] [A-Za-z])\s*(?=[{HAN}])|(?<=[{HAN}]{{3}})\s*(?={_LATIN_WORD}[ ,]+{_LATIN_WORD})",
    ),
    ("saying", rf"(?<![\w])(?:{_SAYING})(?P<seam>\s+)(?=\w)"),
    (
        "说",
        rf"(?<=[{HAN}][{_SPEAK}])(?<![就阅]读)(?=[{HAN}A-Za-z]){_NO_OBJECT}"
        rf"|(?:(?<=[{_SPEAK}录叫问答][一两][句声下遍])|(?<=[{_SPEAK}][句声道出下])|(?<=[吼报咕]))\s*(?=[{HAN}A-Za-z])"
        r"|(?<=[话词句容本文字说][是为])|(?<=[说念读]的是)",
    ),
    ("把", rf"(?<=把)(?=[^。！？\n]{{2,40}}?[{_SPEAK}](?:{_AT_ONCE}))"),
    ("就好", rf"(?=就(?:行|好|可以|成)了?(?![{HAN}]))|(?=(?:行不行|好不好|可以吗|给我听|的时候))"),
    ("把 end", rf"(?=(?:轻声|大声|小声|慢慢|[{HAN}]{{2,4}}地)?[{_SPEAK}](?:{_AT_ONCE}))|(?=这[句段行几]话?)"),
)
_SEAMS = [re.compile(pattern, re.IGNORECASE) for _, pattern in _PATTERNS]
_AFTER_SAYING = re.compile(
    r"\s+(?=(?:in|with|without|like|as|by|be|spoken|said|read|and|while|until|so|please|pls|thanks|thank|for|to|at|but|"
    r"across|from|through|over|into|under|he|she|they|using|who|up|thx|ty|right|the way)\b"
    r"|(?:(?:very|really|quite|so|as) )?(?:\w+ly|loud|aloud|slow|fast|soft)\s*"
    r"(?:[,.!?;]|$|(?:and|please|for|to|like|as|at)\b))",
    re.IGNORECASE,
)
"""Where words that a verb of saying stands before may end, within a sentence."""
_SENTENCE_END = re.compile(rf"[.!?;\n]{_NO_TITLE}")
SEAMS = (*(name for name, _ in _PATTERNS), "end of saying", "edge")
"""Kinds of seams, strongest first; at last the edge of the text."""
_SAID, _END_OF_SAYING, _EDGE = (SEAMS.index(name) for name in ("saying", "end of saying", "edge"))
_BRACKETED = re.compile(r"【[^【】]*】|\[[^\[\]]*\]|[（(][^()（）]*[)）]")
_INNER = re.compile(r"[\n,，、.;!?；。！？…]")
"""What is no seam between brackets: words in them belong together."""


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """Stretches of a text between its seams."""

    spans: list[tuple[int, int]]
    """First character of each piece, and the one behind it."""
    kinds: list[int]
    """Index in `SEAMS` of what stands before each piece, and at last of what stands behind them all."""


def cut(text: str) -> Pieces:
    """Cuts a text at its seams; marks of a seam belong to no piece, but for those that end a sentence."""
    taken = np.zeros(len(text) + 1, bool)
    seams: list[tuple[int, int, int]] = []

    def take(start: int, end: int, kind: int) -> None:
        if start > 0 and not taken[start : end + 1].any():
            taken[start : end + 1] = True
            seams.append((start, end, kind))
        elif start == 0 < end and not taken[:end].any():  # a label or a bracket at the very beginning
            taken[:end] = True
            seams.append((0, end, kind))

    plain = _BRACKETED.sub(lambda found: _INNER.sub("\0", found[0]), text)
    for kind, pattern in enumerate(_SEAMS):
        for match in pattern.finditer(plain):
            take(*match.span("seam" if kind == _SAID else 0), kind)
    for _, begin, _ in [seam for seam in seams if seam[2] == _SAID]:
        stop = _SENTENCE_END.search(plain, begin)
        for match in _AFTER_SAYING.finditer(plain, begin, stop.start() if stop else len(plain)):
            take(*match.span(), _END_OF_SAYING)
    seams.sort()
    starts = [(0, _EDGE), *((end, kind) for _, end, kind in seams)]
    ends = [*(start for start, _, _ in seams), len(text.rstrip())]
    found = [((start, end), kind) for (start, kind), end in zip(starts, ends, strict=True) if text[start:end].strip()]
    return Pieces(spans=[span for span, _ in found], kinds=[*(kind for _, kind in found), _EDGE])
