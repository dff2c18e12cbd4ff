"""Names the stressed words of a content: by the word, by which of several, or by its place ("the second word")."""

from collections.abc import Sequence

import numpy as np

from voxinstruct_jax.config import InputError
from voxinstruct_jax.data.instruction_words import StressWording
from voxinstruct_jax.text.normalizer import HAN_CHARACTER
from voxinstruct_jax.text.words import Word, split_words

__all__ = ["CLOSE", "MAX_STRESSED", "OPEN", "name_stressed", "stressed_runs"]

OPEN, CLOSE = "\x02", "\x03"
"""Stand for the quote marks around a word until it is known which marks leave the content findable."""
MAX_STRESSED = 3
"""Stretches that can be named in one breath."""

_PLACED_SHARE = 0.15


def stressed_runs(content: str, stress: Sequence[int]) -> list[range]:
    """Groups the stressed words into stretches of neighbours with nothing but a space between them.

    Args:
        content: The words to be spoken.
        stress: Indices into `split_words(content)`.

    Returns:
        Ranges of indices, in order; none where the content has one word only, or all are stressed, or there are more
        than `MAX_STRESSED` stretches: then there is nothing worth saying.

    Raises:
        InputError: An index is outside the content.
    """
    words = split_words(content)
    chosen = sorted(set(stress))
    if chosen and chosen[-1] >= len(words):
        raise InputError(
            f"attribute stress: word {chosen[-1]} of {len(words)}; give indices from 0, as split_words has"
        )
    if len(chosen) == len(words):
        return []
    runs: list[range] = []
    for index in chosen:
        if runs and runs[-1].stop == index and content[words[index - 1].end : words[index].start] in ("", " "):
            runs[-1] = range(runs[-1].start, index + 1)
        else:
            runs.append(range(index, index + 1))
    return runs if len(runs) <= MAX_STRESSED else []


def name_stressed(content: str, runs: Sequence[range], wording: StressWording, generator: np.random.Generator) -> str:
    """Names the stretches so that a reader finds them, such as `the second “again”` where "again" occurs twice.

    Returns:
        Their names, quoted words between `OPEN` and `CLOSE`; empty where one of them takes too high a number.
    """
    words = split_words(content)
    names = [_name(content, words, run, wording, generator) for run in runs]
    return wording.joint.join(names) if all(names) else ""


def _name(
    content: str, words: Sequence[Word], run: range, wording: StressWording, generator: np.random.Generator
) -> str:
    by_place = _by_place(words, run, wording)
    if by_place and generator.random() < _PLACED_SHARE:
        return by_place[int(generator.integers(len(by_place)))]
    text = content[words[run.start].start : words[run.stop - 1].end]
    quoted = f"{OPEN}{text}{CLOSE}"
    starts = _occurrences(words, run)
    if len(starts) > 1:
        ordinal = _ordinal(starts.index(run.start), len(starts), wording)
        pattern = wording.again[int(generator.integers(len(wording.again)))]
        return pattern.format(word=quoted, ordinal=ordinal) if ordinal else ""
    patterns = wording.character if _is_han(text) else wording.once
    return patterns[int(generator.integers(len(patterns)))].format(word=quoted)


def _by_place(words: Sequence[Word], run: range, wording: StressWording) -> list[str]:
    """Ways to name one word by its place; none where readers may count the words in another way."""
    han = [_is_han(word.text) for word in words]
    ordinal = _ordinal(run.start, len(words), wording)
    if len(run) > 1 or not ordinal or (any(han) and not all(han)):
        return []
    return [pattern.format(ordinal=ordinal) for pattern in (wording.placed_character if all(han) else wording.placed)]


def _occurrences(words: Sequence[Word], run: range) -> list[int]:
    plain = [word.text.casefold() for word in words]
    wanted = plain[run.start : run.stop]
    return [start for start in range(len(plain)) if plain[start : start + len(wanted)] == wanted]


def _ordinal(index: int, count: int, wording: StressWording) -> str:
    if index == count - 1:
        return wording.last
    return wording.ordinals[index] if index < len(wording.ordinals) else ""


def _is_han(text: str) -> bool:
    return HAN_CHARACTER.fullmatch(text) is not None
