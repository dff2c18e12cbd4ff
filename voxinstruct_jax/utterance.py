"""What any voice is given and what it gives back, and what is checked first."""

import dataclasses
import os
import re

import numpy as np
from jaxtyping import Float32, Int32

from voxinstruct_jax.audio.waveform import write_audio
from voxinstruct_jax.config import InputError
from voxinstruct_jax.guidance import Guidance
from voxinstruct_jax.text.content import Content, spoken_content
from voxinstruct_jax.text.emphasis import asks_for_stress
from voxinstruct_jax.text.fields import plain_fields, with_colons
from voxinstruct_jax.text.unquoted import unquoted_content
from voxinstruct_jax.text.words import split_words

__all__ = [
    "Audio",
    "Cost",
    "Utterance",
    "check_instruction",
    "checked_seed",
    "with_quotes",
]

MAX_CHARACTERS = 2000
"""Of an instruction."""
_SHOWN_CHARACTERS = 60
_MARKS = (('"', '"'), ("“", "”"), ("「", "」"), ("«", "»"), ("『", "』"))
_SPEAKING = re.compile(r"(?:\b(?:say|says|said|read|reads|speak|speaks)|[说念读喊])[\s:：,，]*$", re.IGNORECASE)
"""Verbs right before a quote."""
_FENCED = re.compile(r"(?P<fence>```|'''|\"\"\"|`)\s*(?P<words>(?:(?!(?P=fence)).)*[^\s`])\s*(?P=fence)", re.DOTALL)
"""Words set off as Markdown and programs do."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audio:
    """What was spoken, and how it came about."""

    samples: Float32[np.ndarray, " sample"]
    sample_rate: int
    semantic: Int32[np.ndarray, " unit"]
    """De-duplicated semantic tokens, from 0."""
    acoustic: Int32[np.ndarray, "codebook frame"]
    """Codes of all codebooks."""
    language: str
    """As asked, or as predicted."""
    finish_reason: str
    """stop, max_semantic, max_acoustic or max_total: see `decoding.requests.FinishReason`."""
    seed: int
    notes: tuple[str, ...] = ()
    """What the user should know: no quoted words, a prompt that was cut ..."""
    model: str = ""

    @property
    def duration_s(self) -> float:
        """Seconds."""
        return len(self.samples) / self.sample_rate

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the sound with a tag that says it is synthetic speech, by which model and seed.

        Raises:
            InputError: The file cannot be written.
        """
        tag = f"synthetic speech; voxinstruct_jax; model {self.model}; seed {self.seed}"
        write_audio(path, self.samples, self.sample_rate, tag=tag)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """What speech of a given length takes to make, for systems to be compared by."""

    evaluations: int
    """Forward passes, one after another; guidance branches are not counted."""
    operations: float
    """Multiplications and additions of all products."""
    seconds: float
    """Of the speech."""

    @property
    def operations_per_s(self) -> float:
        """A second of speech."""
        return self.operations / self.seconds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Utterance:
    """One thing to speak; the arguments of `Voice.synthesize`, which says what each means."""

    instruction: str
    prompt: str | os.PathLike[str] | None = None
    prompt_transcript: str | None = None
    transcript: str | None = None
    language: str | None = None
    guidance: Guidance | None = None
    seed: int = 0
    max_duration_s: float | None = None


def check_instruction(instruction: str) -> str:
    """Returns the instruction as it is, if it can be spoken at all.

    Raises:
        InputError: It holds no words, or too many.
    """
    if not any(character.isalnum() for character in instruction):
        raise InputError("the instruction holds no words; write what to say in quotes, and how")
    if len(instruction) > MAX_CHARACTERS:
        raise InputError(f"the instruction has {len(instruction)} characters, at most {MAX_CHARACTERS}; split it")
    return instruction


def checked_seed(seed: int) -> int:
    """Returns the seed.

    Raises:
        InputError: It is below 0 or has more than 32 bits.
    """
    if not 0 <= seed < 2**32:
        raise InputError(f"seed {seed} must be a whole number from 0 to {2**32 - 1}")
    return seed


def with_quotes(instruction: str, transcript: str | None, notes: list[str]) -> str:
    """Quotes what is to be spoken, for models that speak nothing else; what is guessed is added to `notes`."""
    return with_colons(_with_quotes(instruction, transcript, notes))


def _with_quotes(instruction: str, transcript: str | None, notes: list[str]) -> str:
    instruction = plain_fields(_unfenced(instruction))
    quoted = spoken_content(instruction)
    if quoted.text is not None:
        stressed = _may_be_stressed_word(instruction, quoted)
        if not stressed or (transcript is not None and not _holds(transcript, quoted.text)):
            return instruction
    if transcript is not None:
        before, there, after = instruction.partition(transcript)
        return _quote(before, transcript, after) if there else _quote(f"{instruction} ", transcript, "")
    found = unquoted_content(instruction)
    if found.text is not None and (quoted.text is None or _is_named_in(found, quoted)):
        notes.append(f"no quotes around what is to be spoken: taken to be {_shortened(found.text)!r}")
        return _quote(instruction[: found.start], found.text, instruction[found.end :])
    if quoted.text is not None:
        return instruction
    notes.append("no quoted words and no transcript: the whole instruction is spoken")
    return _quote("", instruction, "")


def _unfenced(instruction: str) -> str:
    """Quotes what stands between fences, where there are no quotes besides."""
    fenced = _FENCED.search(instruction)
    if fenced is None:
        return instruction
    before, after = instruction[: fenced.start()], instruction[fenced.end() :]
    return instruction if spoken_content(before + after).text is not None else _quote(before, fenced["words"], after)


def _quote(before: str, content: str, after: str) -> str:
    """Puts marks around the content that it has not itself."""
    tried = [f"{before}{opening}{content}{closing}{after}" for opening, closing in _MARKS]
    return next((text for text in tried if spoken_content(text).text == content), tried[0])


def _may_be_stressed_word(instruction: str, quoted: Content) -> bool:
    """Whether what is quoted may be but a word to be stressed: `stress "my": it was my idea`."""
    return _SPEAKING.search(instruction[: quoted.start - 1]) is None and asks_for_stress(instruction)


def _is_named_in(content: Content, quoted: Content) -> bool:
    """Whether what is quoted stands in the content as well."""
    apart = quoted.end < content.start or quoted.start > content.end
    return apart and _holds(content.text or "", quoted.text or "")


def _holds(text: str, part: str) -> bool:
    """Whether the words of a text are those of the part and more."""
    words, named = ([word.text.lower() for word in split_words(each)] for each in (text, part))
    length = len(named)
    return length < len(words) and any(words[at : at + length] == named for at in range(len(words) - length + 1))


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
