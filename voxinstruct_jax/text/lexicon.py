"""The data files of this room: English lexicon, letter-to-sound weights, list of instruction words."""

import functools
import importlib.resources
import lzma
from collections.abc import Mapping

from voxinstruct_jax.text.letter_to_sound import LetterToSound

__all__ = [
    "DESCRIBED_FILE",
    "INSTRUCTION_WORDS_FILE",
    "LETTER_TO_SOUND_FILE",
    "LEXICON_FILE",
    "REQUESTS_FILE",
    "UNQUOTED_FILE",
    "english_lexicon",
    "instruction_concepts",
    "letter_to_sound",
    "read_data",
]

DESCRIBED_FILE = "described.jsonl.bz2"
INSTRUCTION_WORDS_FILE = "instruction_words.txt"
LEXICON_FILE = "cmudict.txt.xz"
LETTER_TO_SOUND_FILE = "letter_to_sound.npz"
REQUESTS_FILE = "requests.jsonl.bz2"
UNQUOTED_FILE = "unquoted.npz"


def read_data(name: str) -> bytes:
    """Returns a file that the package ships in `text/data`."""
    return importlib.resources.files("voxinstruct_jax.text").joinpath("data", name).read_bytes()


@functools.cache
def english_lexicon() -> Mapping[str, str]:
    """Phones of some 125,000 English words, ARPAbet with stress digits, joined by spaces.

    Source: the CMU Pronouncing Dictionary, first pronunciations (BSD-2-Clause, `data/cmudict.LICENSE`).
    """
    lines = lzma.decompress(read_data(LEXICON_FILE)).decode("ascii").splitlines()
    return dict(line.split(" ", 1) for line in lines)


@functools.cache
def instruction_concepts() -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Concepts of the list of instruction words in their order, each as the heading over it and its forms."""
    heading, concepts = "", list[tuple[str, tuple[str, ...]]]()
    for line in read_data(INSTRUCTION_WORDS_FILE).decode("utf-8").splitlines():
        if line.startswith("#"):
            heading = line.removeprefix("#").strip()
        elif line:
            concepts.append((heading, tuple(line.split())))
    return tuple(concepts)


@functools.cache
def letter_to_sound() -> LetterToSound:
    """The trained letter-to-sound classifier with its alignment table."""
    return LetterToSound.from_bytes(read_data(LETTER_TO_SOUND_FILE))
