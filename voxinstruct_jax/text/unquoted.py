"""The words to be spoken of an instruction that quotes nothing: told by what describes a voice and what does not.

`slow male voice: good morning`, or the words on a line of their own: the text is cut at its seams (`text.seams`), and
of all stretches between two of them the likeliest is taken. Clues are words, marks and seams; what each speaks for was
learnt from requests of which the words are known (`training.unquoted`). Read `unquoted_content`.
"""

import functools
import io
import itertools
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from voxinstruct_jax.text.content import Content
from voxinstruct_jax.text.emphasis import stressed_spans
from voxinstruct_jax.text.lexicon import UNQUOTED_FILE, instruction_concepts, read_data
from voxinstruct_jax.text.normalizer import HAN, has_han
from voxinstruct_jax.text.seams import SEAMS, Pieces, cut
from voxinstruct_jax.text.words import listed_runs

__all__ = ["NUM_CLUES", "Clues", "read_clues", "seam_pairs", "unquoted_content"]

_NUM_PAIRS = len(SEAMS) ** 2
_NUM_HASHES = 2**17
NUM_CLUES = _NUM_PAIRS + _NUM_HASHES
"""Ids of clues: first every pair of seams around what is spoken, then all others, by their hash."""
_TOKEN = re.compile(rf"[a-z]+(?:'[a-z]+)*|\d+|[{HAN}]|[^\w\s]|\n")
_RUN = re.compile(rf"[a-z][a-z']*|[{HAN}]+")
_HANGING = ",，、 "
"""Marks that end no sentence."""
_STEM, _ENDING = 4, 3
"""Letters of an English word's beginning and end, which words of one family share."""
_FUNCTION_WORDS = (
    "a an the he she it they i you we him her them me us his its their my your our who that this these those there "
    "here in on at of to for from with without by as like and or but so not no is are was were be been am do does did "
    "have has had will would can could shall should may might must let one two please say said voice then than if "
    "when while what 的 地 得 着 了 过 说 道 他 她 它 我 你 您 们 请 用 把 被 这 那 一 位 个 是 不 没 有 在 就 也 都 "
    "要 会 像 以 给 让 吧 吗 呢 啊 声"
)
_ENDINGS = ("ing", "ed", "ly", "n't", "s")


@dataclass(frozen=True, kw_only=True)
class Clues:
    """What may tell which pieces of a text are spoken, as ids below `NUM_CLUES`."""

    pieces: Pieces
    inside: list[Int[np.ndarray, " _"]]
    """Of each piece's own words."""
    first: list[Int[np.ndarray, " _"]]
    """Around the beginning of each piece, if what is spoken begins with it."""
    last: list[Int[np.ndarray, " _"]]
    """Around the end of each piece, if what is spoken ends with it."""


def unquoted_content(instruction: str, weights: Float[np.ndarray, " clue"] | None = None) -> Content:
    """Finds the words to be spoken where no quotes say so.

    Args:
        instruction: As the user wrote it.
        weights: What each clue speaks for; None = as the package ships them.

    Returns:
        The content, its text equal to `instruction[start:end]`; None where all of it may be content.
    """
    clues = read_clues(instruction)
    spans = clues.pieces.spans
    if len(spans) < 2:
        return Content(text=None, start=0, end=0)
    scores = _scores(clues, _weights() if weights is None else weights)
    first, last = (int(piece) for piece in np.unravel_index(np.argmax(scores), scores.shape))
    if (first, last) == (0, len(spans) - 1):
        if not _stresses_what_precedes(instruction, spans[last][0]):
            return Content(text=None, start=0, end=0)
        last -= 1
    start, end = spans[first][0], spans[last][1]
    end = start + len(instruction[start:end].rstrip(_HANGING))
    return Content(text=instruction[start:end], start=start, end=end)


def _stresses_what_precedes(instruction: str, start: int) -> bool:
    """Whether what begins there asks for stress on words that stand before it."""
    return bool(stressed_spans(f"“{instruction[:start].strip()}” {instruction[start:]}"))


def read_clues(text: str) -> Clues:
    """Cuts a text at its seams and lists what may tell which pieces are spoken."""
    pieces = cut(text)
    spoken = [text[start:end] for start, end in pieces.spans]
    tokens = [["0" if token.isdigit() else token for token in _TOKEN.findall(_plain(piece))] for piece in spoken]
    scripts = [_script(piece) for piece in spoken]
    names = [SEAMS[kind] for kind in pieces.kinds]
    inside = [
        (*_word_clues(piece, own), *_form_clues(own, *names[at : at + 2]), _script_clue(scripts, at))
        for at, (piece, own) in enumerate(zip(spoken, tokens, strict=True))
    ]
    count = len(spoken)
    edged, marked = [["^"], *tokens, ["$"]], ["none", *scripts, "none"]
    around = [
        _first_clues(edged[at], edged[at + 1], names[at], f"{marked[at]}>{marked[at + 1]}", at) for at in range(count)
    ]
    behind = [
        _last_clues(edged[at + 1], edged[at + 2], names[at + 1], f"{marked[at + 1]}>{marked[at + 2]}", count - 1 - at)
        for at in range(count)
    ]
    return Clues(
        pieces=pieces,
        inside=[_ids(clues) for clues in inside],
        first=[_ids(clues) for clues in around],
        last=[_ids(clues) for clues in behind],
    )


def seam_pairs(pieces: Pieces) -> Int[np.ndarray, "first last"]:
    """The clue that the seams around each stretch are, by its first and its last piece."""
    kinds = np.array(pieces.kinds)
    return kinds[:-1, None] * len(SEAMS) + kinds[None, 1:]


def _scores(clues: Clues, weights: Float[np.ndarray, " clue"]) -> Float[np.ndarray, "first last"]:
    """How likely each stretch is to be what is spoken, as a logit."""

    def told(lists: Sequence[Int[np.ndarray, " _"]]) -> Float[np.ndarray, " piece"]:
        return np.array([weights[ids].sum() / max(len(ids), 1) ** 0.5 for ids in lists])

    passed = np.concatenate([[0.0], np.cumsum(told(clues.inside))])
    result = passed[None, 1:] - passed[:-1, None] + told(clues.first)[:, None] + told(clues.last)[None, :]
    result += weights[seam_pairs(clues.pieces)]
    return np.where(np.triu(np.ones_like(result)) > 0, result, -np.inf)


def _word_clues(piece: str, tokens: list[str]) -> Iterator[str]:
    """Words, pairs and triples of neighbours, beginnings and endings, headings in the list of instruction words."""
    marked = ["^", *tokens, "$"]
    yield from (f"i:{token}" for token in marked)
    yield from (f"i:{a} {b}" for a, b in itertools.pairwise(marked))
    yield from (f"i:{a} {b} {c}" for a, b, c in zip(marked, marked[1:], marked[2:], strict=False) if has_han(b))
    for token in tokens:
        if token.isascii() and token.isalpha() and len(token) > _STEM:
            yield f"i:{token[:_STEM]}-"
            yield f"i:-{token[-_ENDING:]}"
    headings, longest = _headings()
    for run in _RUN.findall(_plain(piece)):
        if run.isascii():
            yield f"h:{headings.get(run, '')}"
            continue
        found = list(listed_runs(run, headings, longest))
        yield from (f"h:{headings[run[start:end]]}" for start, end in found)
        if 2 * sum(end - start for start, end in found) < len(run):
            yield "h:han"


def _form_clues(tokens: list[str], before: str, after: str) -> Iterator[str]:
    """How a piece begins and ends once its words are left out, how long it is, and what it stands between."""
    shapes = [_shape(token) for token in tokens]
    yield from (f"s^{' '.join(shapes[:size])}" for size in (2, 3, 4))
    yield from (f"s${' '.join(shapes[-size:])}" for size in (2, 3))
    yield from (f"k:{before}>{after}", f"k:{after}:{min(len(tokens), 6)}", f"l:{len(tokens).bit_length()}", "piece")


def _script_clue(scripts: list[str], at: int) -> str:
    """A piece in letters of its own is likely the one in another language."""
    others = set(scripts) - {"none", scripts[at]}
    return f"alone:{scripts[at]}" if others else "same"


def _first_clues(before: list[str], own: list[str], seam: str, scripts: str, at: int) -> Iterator[str]:
    shapes, ahead = ([_shape(token) for token in each] for each in (own[:3], before[-3:]))
    yield from (f"b:{seam}", f"b:{seam}:{min(at, 2)}", f"b:{scripts}")
    yield from (f"b1:{before[-1:]}", f"b1:{seam}:{before[-1:]}", f"b2:{before[-2:]}", f"b3:{before[-3:]}")
    yield from (f"b+:{own[:1]}", f"b+:{seam}:{own[:2]}")
    yield from (f"bs:{seam}:{shapes[:2]}", f"bs:{seam}:{shapes}", f"bs-:{seam}:{ahead[-2:]}", f"bs-:{seam}:{ahead}")


def _last_clues(own: list[str], after: list[str], seam: str, scripts: str, to_come: int) -> Iterator[str]:
    shapes, behind = ([_shape(token) for token in each] for each in (own[-2:], after[:4]))
    yield from (f"e:{seam}", f"e:{seam}:{min(to_come, 2)}", f"e:{scripts}")
    yield from (f"e1:{after[:1]}", f"e1:{seam}:{after[:1]}", f"e2:{after[:2]}", f"e3:{after[:3]}", f"e-:{own[-1:]}")
    yield from (f"es:{seam}:{behind[:2]}", f"es:{seam}:{behind[:3]}", f"es:{seam}:{behind}", f"es-:{seam}:{shapes}")


def _shape(token: str) -> str:
    """What remains of a token whose meaning does not matter: itself if a mark or a function word, else its ending."""
    if token in _function_words() or not token.replace("'", "").isalpha():
        return token
    if not token.isascii():
        return "H"
    return next((ending for ending in _ENDINGS if token.endswith(ending)), "w")


def _script(text: str) -> str:
    han, latin = has_han(text), re.search("[A-Za-z]", text) is not None
    return {(True, True): "both", (True, False): "han", (False, True): "latin"}.get((han, latin), "none")


def _plain(text: str) -> str:
    return text.lower().replace("’", "'")


def _ids(clues: Iterable[str]) -> Int[np.ndarray, " clue"]:
    return np.array([_NUM_PAIRS + zlib.crc32(clue.encode()) % _NUM_HASHES for clue in clues], np.int32)


@functools.cache
def _function_words() -> frozenset[str]:
    return frozenset(_FUNCTION_WORDS.split())


@functools.cache
def _headings() -> tuple[dict[str, str], int]:
    """The heading over each word of the list of instruction words, and characters of the longest one in Mandarin."""
    headings = {form: heading for heading, forms in instruction_concepts() for form in forms}
    return headings, max(len(form) for form in headings if not form.isascii())


@functools.cache
def _weights() -> Float[np.ndarray, " clue"]:
    with np.load(io.BytesIO(read_data(UNQUOTED_FILE)), allow_pickle=False) as archive:
        return archive["weights"].astype(np.float32) * archive["scale"]
