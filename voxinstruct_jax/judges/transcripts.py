"""What was heard against what should have been said: tokens, alignment and error counts. No recogniser here.

English is counted in words (WER), Mandarin in characters (CER) and in toneless pinyin syllables, since most errors of a
small recogniser are homophones. A code-switched text counts a Han character or a Latin word as one token. Two published
protocols have units of their own. Read `error_counts` first.

Source:
    Seed-TTS-eval (Anastassiou et al. 2024), `run_wer.py` at 752f429, for the units "seed_en" and "seed_zh".
"""

import dataclasses
import functools
import re
import string
import unicodedata
import warnings
from importlib import import_module, util
from typing import Any, Literal

from rapidfuzz.distance import Levenshtein

from voxinstruct_jax.config import InputError
from voxinstruct_jax.text.normalizer import HAN
from voxinstruct_jax.text.normalizer import normalize as spoken_form

__all__ = ["Edit", "ErrorCounts", "Unit", "align", "error_counts", "normalise", "normaliser_name", "tokens"]

Unit = Literal["word", "character", "pinyin", "mixed", "seed_en", "seed_zh"]
Edit = tuple[str, str, str]
"""`("=", "S", "D" or "I"; token of the reference or ""; token that was heard or "")`."""

_UNIT_TOKEN = re.compile(rf"[{HAN}]|[^\W{HAN}]+(?:'[^\W{HAN}]+)*")
_CJK_MARKS = (
    "＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､\u3000、〃〈〉《》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿"
    "–—‘’‛“”„‟…‧﹏﹑﹔·！？｡。"
)
_BRACKETS = re.compile(r"[\[\](){}<>]")
_SEED_REMOVED = str.maketrans("", "", (_CJK_MARKS + string.punctuation).replace("'", ""))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ErrorCounts:
    """Errors of one item, kept as counts so that any set of items adds up exactly.

    Attributes:
        substitutions: Tokens heard as others.
        deletions: Tokens not heard.
        insertions: Tokens heard that nobody should have said.
        length: Tokens of the reference.
        heard: Tokens of what was heard.
        unit: What a token is.
    """

    substitutions: int
    deletions: int
    insertions: int
    length: int
    heard: int
    unit: Unit

    @property
    def errors(self) -> int:
        """All three kinds."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors a reference token; above 1 when much was inserted."""
        return self.errors / max(self.length, 1)


def error_counts(reference: str, heard: str, language: str, unit: Unit | None = None) -> ErrorCounts:
    """Counts the errors in what was heard.

    Args:
        reference: What should have been said.
        heard: What the judge wrote.
        language: "en" or "zh": chooses the unit when none is given (words, characters).
        unit: "word" (WER), "character" (CER), "pinyin" (toneless syllables), "mixed" (Han characters and Latin words),
            "seed_en", "seed_zh" (Seed-TTS-eval: no numbers written out, marks taken away).

    Raises:
        InputError: The language is neither, or the reference holds nothing that can be said.
    """
    if language not in ("en", "zh"):
        raise InputError(f"language {language!r}: the ASR judge counts errors for en and zh only")
    unit = unit or ("word" if language == "en" else "character")
    edits = align(reference, heard, unit)
    kinds = [kind for kind, _, _ in edits]
    length = len(kinds) - kinds.count("I")
    if not length:
        raise InputError(f"reference {reference!r} holds no words to compare with; give the item a transcript")
    return ErrorCounts(
        substitutions=kinds.count("S"),
        deletions=kinds.count("D"),
        insertions=kinds.count("I"),
        length=length,
        heard=len(kinds) - kinds.count("D"),
        unit=unit,
    )


def align(reference: str, heard: str, unit: Unit) -> list[Edit]:
    """Fewest edits that turn the reference into what was heard (Levenshtein), token by token, in order."""
    expected, found = tokens(reference, unit), tokens(heard, unit)
    edits: list[Edit] = []
    for step in Levenshtein.opcodes(expected, found):
        own, others = expected[step.src_start : step.src_end], found[step.dest_start : step.dest_end]
        if step.tag == "delete":
            edits += [("D", token, "") for token in own]
        elif step.tag == "insert":
            edits += [("I", "", token) for token in others]
        else:
            kind = "=" if step.tag == "equal" else "S"
            edits += [(kind, token, other) for token, other in zip(own, others, strict=True)]
    return edits


@functools.lru_cache(maxsize=1024)
def normalise(text: str, unit: Unit) -> str:
    """Returns the text as it is compared: NFKC, plain apostrophes, lower case.

    Words go through Whisper's English rules, but for what stands in brackets: the rules leave it out as a remark on the
    sound, while in a text to be spoken it is spoken. Elsewhere numbers are written out, since a recogniser may write
    digits ("第69名"), and Mandarin is put into simplified characters where OpenCC is installed.
    """
    if unit in ("seed_en", "seed_zh"):
        plain = text.translate(_SEED_REMOVED).replace("  ", " ")
        return plain.lower() if unit == "seed_en" else _simplified()(plain)
    plain = unicodedata.normalize("NFKC", text).replace("’", "'").replace("‘", "'").casefold()
    return _english_normaliser()(_BRACKETS.sub(" ", plain)) if unit == "word" else _simplified()(spoken_form(plain))


def normaliser_name(unit: Unit) -> str:
    """Names the normaliser in use, for reports: rates under different ones don't compare."""
    if unit == "seed_en":
        return "seed-tts-eval"
    if unit == "word":
        return "whisper-english+brackets" if util.find_spec("whisper_normalizer") else "casefold"
    rules = "seed-tts-eval" if unit == "seed_zh" else "nfkc+spoken-numbers"
    return rules + ("+opencc-t2s" if util.find_spec("opencc") else "")


def tokens(text: str, unit: Unit) -> list[str]:
    """What is counted of a text."""
    plain = normalise(text, unit)
    if unit == "seed_en":
        return plain.split()
    if unit == "seed_zh":
        return [character for character in plain if not character.isspace()]
    if unit == "word":
        return [token for token in plain.split() if any(character.isalnum() for character in token)]
    found = _UNIT_TOKEN.findall(plain)
    if unit == "mixed":
        return found
    if unit == "character":
        return list("".join(found))
    return [syllable for token in found for syllable in import_module("pypinyin").lazy_pinyin(token)]


@functools.cache
def _english_normaliser() -> Any:
    if util.find_spec("whisper_normalizer"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its docstrings hold invalid escapes, an error where warnings are
            return import_module("whisper_normalizer.english").EnglishTextNormalizer()
    return lambda text: " ".join(_UNIT_TOKEN.findall(text))


@functools.cache
def _simplified() -> Any:
    """Traditional characters to simplified ones."""
    if util.find_spec("opencc"):
        return import_module("opencc").OpenCC("t2s").convert
    return lambda text: text
