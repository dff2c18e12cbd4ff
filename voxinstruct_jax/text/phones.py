"""Ids of what is spoken, for networks that read phones beside an instruction."""

import functools
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from voxinstruct_jax.config import InputError
from voxinstruct_jax.text.alignment import PHONES
from voxinstruct_jax.text.pronunciation import FINALS, INITIALS
from voxinstruct_jax.text.tokenizer import SILENCE, PronunciationTokenizer

__all__ = ["NUM_PHONES", "NUM_SPEAKERS", "phone_ids", "turns_of"]

NUM_SPEAKERS = 2
"""Marks of whose turn it is; ids 1 and 2, before 0 = padding is left out."""

_MARK = re.compile(r"\[S(\d+)\]")
_LABELS = (SILENCE, *(f"en {phone}" for phone in PHONES), *(f"zh {phone}" for phone in INITIALS + FINALS))
_IDS = {label: number for number, label in enumerate(_LABELS, start=1 + NUM_SPEAKERS)}

NUM_PHONES = 1 + NUM_SPEAKERS + len(_IDS)
"""Padding, marks of turns, silence, English phones with stress, initials and toned finals of Mandarin."""


def phone_ids(turns: Sequence[tuple[int, str]], tokenizer: PronunciationTokenizer) -> Int32[np.ndarray, " phone"]:
    """Spells out turns of speech: the mark of the speaker, then the phones; pauses stand where marks and spaces do.

    One turn is plain speech, or a song's lyrics; two speakers in turn are a dialogue, each turn in its own language.

    Args:
        turns: (speaker from 0, what is said).
        tokenizer: Knows pronunciations.

    Raises:
        InputError: A speaker is out of range.

    Source:
        InstructAudio, figure 2 and section 2.3: "[S0] ... [S1] ...".
    """
    found: list[int] = []
    for speaker, words in turns:
        if not 0 <= speaker < NUM_SPEAKERS:
            raise InputError(f"speaker {speaker}: a dialogue has speakers 0 to {NUM_SPEAKERS - 1}")
        found += [1 + speaker, *_ids(words, tokenizer)]
    return np.array(found, np.int32)


def turns_of(words: str) -> list[tuple[int, str]]:
    """Takes what is said apart into turns: "[S0] Hello. [S1] 你好。" is two; without marks all of it is speaker 0's."""
    before, *marked = _MARK.split(words)
    turns = [(int(speaker), said.strip()) for speaker, said in zip(marked[::2], marked[1::2], strict=True)]
    return [(0, before.strip()), *turns] if before.strip() or not turns else turns


@functools.lru_cache(maxsize=4096)
def _ids(words: str, tokenizer: PronunciationTokenizer) -> tuple[int, ...]:
    inside = words.replace('"', " ")
    return tuple(_IDS.get(phone.label, _IDS[SILENCE]) for phone in tokenizer.spoken_phones(f'"{inside}"'))
