"""Writes instructions of which it is known what they ask for: requests of writers with other words in them, and fields.

The grammar and the loose phrases (`data.loose_wording`) never meet how people really put a request; the requests of
`text.sample_requests` do, and are few. So each is met with many contents, now and then with a further phrase, now and
then misspelt. Read `rewrite_request` and `write_fields`.
"""

import functools
import re
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int32

from voxinstruct_jax.attributes import STYLE_CLASSES
from voxinstruct_jax.data.instruction_words import load_wording, read_wording
from voxinstruct_jax.data.instructions import with_content
from voxinstruct_jax.data.loose_wording import load_loose_phrases
from voxinstruct_jax.text.lexicon import DESCRIBED_FILE, REQUESTS_FILE, read_data
from voxinstruct_jax.text.normalizer import has_han
from voxinstruct_jax.text.sample_requests import SampleRequest, read_samples

__all__ = ["asked_numbers", "described_requests", "rewrite_request", "write_fields"]

HELD_OUT_OF = 8
"""One request in so many is never met in training."""
ADDED_SHARE = 0.4
"""Of the requests, that get a phrase for an attribute of which they say nothing."""
MISSPELT_SHARE = 0.15
VALUE_FIRST_SHARE = 0.3
_SIGNS = {name: ["-", "?", *(each[0] for each in classes)] for name, classes in STYLE_CLASSES.items()}
_LONG_WORD = re.compile(r"[A-Za-z]{5,}")


@functools.cache
def described_requests(*, held_out: bool = False) -> tuple[SampleRequest, ...]:
    """The requests of which it is known what they ask for, without those that are held out, or these alone."""
    known = [request for name in (REQUESTS_FILE, DESCRIBED_FILE) for request in read_samples(read_data(name))]
    return tuple(
        request for request in known if (zlib.crc32(request.instruction.encode("utf-8")) % HELD_OUT_OF == 0) == held_out
    )


def asked_numbers(asked: str) -> Int32[np.ndarray, " attribute"]:
    """Classes as of `attributes.class_numbers`: -1 = not asked for, 0 = nobody can be sure.

    Args:
        asked: As `SampleRequest.asked`.
    """
    found = [signs.index(sign) - 1 for signs, sign in zip(_SIGNS.values(), asked.split(), strict=True)]
    return np.array(found, np.int32)


def rewrite_request(
    request: SampleRequest, transcript: str, generator: np.random.Generator
) -> tuple[Int32[np.ndarray, " attribute"], str]:
    """The request about other words, changed as people would; and what it asks for then.

    Args:
        request: From `described_requests`.
        transcript: The words to be spoken.
        generator: Draws everything.

    Raises:
        InputError: No quotes leave the transcript findable.
    """
    numbers, before, after = asked_numbers(request.asked), request.before, request.after
    language = "zh" if has_han(before + after) else "en"
    if generator.random() < ADDED_SHARE and (numbers <= 0).any():
        place = int(generator.choice(np.flatnonzero(numbers <= 0)))
        name = list(STYLE_CLASSES)[place]
        chosen = int(generator.integers(len(STYLE_CLASSES[name])))
        phrase = str(generator.choice(load_loose_phrases(language)[name][STYLE_CLASSES[name][chosen]]["clauses"]))
        numbers[place], space = chosen + 1, " " if language == "en" else ""
        before, after = (
            (f"{phrase}{space}{before}", after) if generator.random() < 0.5 else (before, f"{after}{space}{phrase}")
        )
    if generator.random() < MISSPELT_SHARE:
        before, after = _misspelt(before, generator), _misspelt(after, generator)
    return numbers, with_content(before, transcript, after, load_wording(language), generator)


def write_fields(attributes: Mapping[str, Any], transcript: str, language: str, generator: np.random.Generator) -> str:
    """Asks for classes as fields: "pitch: low, speaking rate = high", "at a reduced volume", "语速放慢，音高偏低".

    Args:
        attributes: Of `STYLE_CLASSES`; others are not said.
        transcript: The words to be spoken.
        language: Of the wording.
        generator: Draws everything.

    Raises:
        InputError: No quotes leave the transcript findable.
    """
    words = read_wording("fields.toml")[language]
    said = [str(name) for name in generator.permutation([name for name in STYLE_CLASSES if name in attributes])]
    sign, joint = str(generator.choice(words["signs"])), str(generator.choice(words["joints"]))
    fields = []
    for name in said:
        called, value = (str(generator.choice(words[name][key])) for key in ("names", attributes[name]))
        if generator.random() < VALUE_FIRST_SHARE:
            lead = str(generator.choice(words["before"]))
            fields.append(f"{lead}{value}{' ' if language == 'en' else '的'}{called}")
        else:
            fields.append(f"{called}{sign}{value}")
    line, first = joint.join(fields), generator.random() < 0.5
    space = str(generator.choice([" ", "\n", ": " if language == "en" else "："]))
    before, after = (f"{line}{space}", "") if first else ("", f" {line}")
    return with_content(before, transcript, after, load_wording(language), generator)


def _misspelt(text: str, generator: np.random.Generator) -> str:
    """Every third long word with two letters in each other's place, one left out or one twice."""

    def change(found: re.Match[str]) -> str:
        word, at = found[0], int(generator.integers(1, len(found[0]) - 1))
        way = int(generator.integers(9))
        changed = (
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
            word[:at] + word[at + 1 :],
            word[:at] + word[at] + word[at:],
        )
        return changed[way] if way < len(changed) else word

    return _LONG_WORD.sub(change, text)
