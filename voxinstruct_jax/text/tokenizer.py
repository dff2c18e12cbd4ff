"""The text tokenizer: an instruction becomes one row of ids a character, in several channels.

A few hours of speech can't teach spelling, so each character brings its pronunciation along, and words that describe
voices bring an id of their own. Read `PronunciationTokenizer`; the channels are listed there.
"""

import dataclasses
import functools
import hashlib
import re
import unicodedata
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Int32, Num

from voxinstruct_jax.config import InputError, fingerprint
from voxinstruct_jax.text.alignment import PHONES
from voxinstruct_jax.text.content import spoken_content
from voxinstruct_jax.text.emphasis import RULE_VERSION, STRESS_PATTERNS, stressed_spans
from voxinstruct_jax.text.lexicon import (
    INSTRUCTION_WORDS_FILE,
    LETTER_TO_SOUND_FILE,
    LEXICON_FILE,
    instruction_concepts,
    read_data,
)
from voxinstruct_jax.text.normalizer import HAN, HAN_CHARACTER, normalize
from voxinstruct_jax.text.pronunciation import FINALS, INITIALS, english_phones, letter_name, mandarin_syllables
from voxinstruct_jax.text.words import listed_runs

__all__ = [
    "INSIDE_QUOTES",
    "CONCEPT_CHANNEL",
    "OUTSIDE_QUOTES",
    "PHONE_CHANNELS",
    "QUOTE_CHANNEL",
    "SILENCE",
    "PronunciationTokenizer",
    "SpokenPhone",
    "TextForm",
    "TextTokenizer",
    "arrange_text",
    "content_rows",
    "phones_in_frames",
    "spread_durations",
    "stress_concept",
    "tokens_in_time",
]

TextForm = Literal["instruction", "content", "style_and_content", "style_vector_and_content"]
"""What a model reads. "instruction": all of it, as it was written. "content": what is in quotes, as phones. With style:
what is outside of the quotes, then the content as phones; of a "style_vector" the model keeps one vector, its mean."""

_NUM_HAN_BUCKETS = 2048
_PUNCTUATION = ".,!?;:'\"-()[]…—–~、。，！？；：“”‘’「」『』«»《》（）·/$£€¥*_"
_PAD, _END, _UNKNOWN, _SPACE = range(4)
_CHARACTERS = {c: i for i, c in enumerate(" abcdefghijklmnopqrstuvwxyz" + _PUNCTUATION, start=_SPACE)}
_FIRST_HAN = _SPACE + len(_CHARACTERS)
_LETTERS = [number for character, number in _CHARACTERS.items() if character.isalpha()]
_SILENT = 1
_FIRST_PHONES = {phone: i for i, phone in enumerate(PHONES + INITIALS, start=_SILENT + 1)}
_SECOND_PHONES = {phone: i for i, phone in enumerate(PHONES + FINALS, start=_SILENT + 1)}
OUTSIDE_QUOTES, INSIDE_QUOTES, _MARK = 1, 2, 3
PHONE_CHANNELS = slice(1, 3)
"""Channels of the first and the second phone."""
CONCEPT_CHANNEL = 3
_STRESS_WORD = "stress"
"""Instruction word whose concept marks stressed words of the content."""
QUOTE_CHANNEL = 4
"""Channel that says whether a character is outside the quotes, inside (spoken), or a quote mark itself."""
SILENCE = "silence"
"""Label of a pause among spoken phones."""

_SEGMENT = re.compile(rf"((?<![a-z])(?:[a-z]\.){{2,}})|([a-z](?:[a-z'’]*[a-z])?)|([{HAN}]+)|(.)", re.DOTALL)
_MAX_ACRONYM = 5

Rows = Int[np.ndarray, "text 4"]


@runtime_checkable
class TextTokenizer(Protocol):
    """What the models need of a tokenizer of instructions.

    Attributes:
        channel_sizes: Vocabulary size of each channel; id 0 is padding in every channel.
        fingerprint: Changes when the ids of any text may change.
    """

    channel_sizes: tuple[int, ...]
    fingerprint: str

    def encode(self, text: str) -> Int[np.ndarray, "text channel"]:
        """Turns an instruction into int32 ids that end with an end-of-text row."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpokenPhone:
    """A phone of the content and the row of `encode` that it belongs to."""

    label: str
    """Language and phone as the tokenizer has it, stress or tone included: "en AH0", "zh ang3"; or `SILENCE`."""
    row: int
    optional: bool = False
    """True for silence, which may last no time."""

    @property
    def base_label(self) -> str:
        """Without stress or tone."""
        return self.label.rstrip("012345")


def content_rows(rows: Int[np.ndarray, "text channel"]) -> Int[np.ndarray, "character channel"]:
    """Rows of `PronunciationTokenizer.encode` between the quotes."""
    return rows[rows[:, QUOTE_CHANNEL] == INSIDE_QUOTES]


def arrange_text(rows: Int[np.ndarray, "text channel"], form: TextForm) -> Int[np.ndarray, "arranged channel"]:
    """Turns an instruction into what a model of this form reads: style, end of text, then the content in its quotes.

    Content that stands apart is phones: spelling and the ids of instruction words are left out; spaces and marks, where
    a speaker may pause, and letters that are not spoken keep their rows.

    Args:
        rows: Of `PronunciationTokenizer.encode`; of any tokenizer where the form is "instruction".
        form: Of the model.

    Returns:
        At most as many rows.

    Raises:
        InputError: The content is to stand apart, and nothing is quoted.
    """
    if form == "instruction":
        return rows
    outside = rows[:, QUOTE_CHANNEL] == OUTSIDE_QUOTES
    style, content = rows[outside], rows[~outside].copy()
    if not len(content):
        raise InputError("the instruction quotes nothing; this model reads the words to be spoken apart from it")
    letter = (content[:, 0] >= _FIRST_HAN) | np.isin(content[:, 0], _LETTERS)
    content[letter, 0], content[:, CONCEPT_CHANNEL] = _UNKNOWN, 0
    return np.concatenate([style[-1:] if form == "content" else style, content])


def stress_concept() -> int:
    """Id that words of the content have which are to be stressed, and no others of it (`CONCEPT_CHANNEL`)."""
    return _instruction_words()[_STRESS_WORD]


def spread_durations(
    rows: Int[np.ndarray, "text channel"], durations: Int[np.ndarray, " character"]
) -> Int32[np.ndarray, " text"]:
    """Gives each row of an instruction its duration: that of its character and, to the quotes, the silence around.

    Args:
        rows: Of `PronunciationTokenizer.encode`.
        durations: Of the opening quote, the content, the closing quote.

    Raises:
        InputError: The content has another length.
    """
    (inside,) = np.nonzero(rows[:, QUOTE_CHANNEL] == INSIDE_QUOTES)
    if len(inside) + 2 != len(durations):
        raise InputError(f"{len(durations) - 2} durations for {len(inside)} characters; prepare the data again")
    spread = np.zeros(len(rows), np.int32)
    spread[inside[0] - 1 : inside[-1] + 2] = durations
    return spread


def tokens_in_time(durations: Num[np.ndarray, " text"], num_half_frames: int) -> Int[np.ndarray, " half_frame"]:
    """Returns which text token is spoken in each half frame; behind the last one, -1.

    Args:
        durations: Half frames of each token; 0 for what is not spoken.
        num_half_frames: Of the clip.
    """
    spoken = np.searchsorted(np.cumsum(durations), np.arange(num_half_frames) + 0.5)
    return np.where(spoken < len(durations), spoken, -1)


def phones_in_frames(
    rows: Int[np.ndarray, "text channel"], durations: Num[np.ndarray, " text"], frames: int
) -> Int32[np.ndarray, "frame phone"]:
    """Returns the first and second phone of what is spoken in each frame's first half, and of that in its second half.

    Args:
        rows: Of `PronunciationTokenizer.encode`; another tokenizer has no phones.
        durations: Half frames of each row.
        frames: Of the clip.

    Returns:
        Ids of the phone channels, four a frame; -1 where nothing is known.
    """
    unknown = np.full((frames, 4), -1, np.int32)
    if rows.shape[1] <= QUOTE_CHANNEL:
        return unknown
    spoken = tokens_in_time(durations, 2 * frames)
    phones = np.where(spoken[:, None] >= 0, rows[spoken, PHONE_CHANNELS], -1)
    return phones.reshape(frames, 4).astype(np.int32)


class PronunciationTokenizer:
    """Characters with their pronunciation.

    Channels of `encode`, one row a character of the normalised text, 0 = padding:

    0. character: end, unknown, space, folded letters, punctuation; Chinese characters share 2048 hashed ids;
    1. first phone of the letter (ARPAbet with stress) or pinyin initial; 1 = silent;
    2. second phone of the letter, or pinyin final with tone; 1 = none;
    3. the concept of its word in the list of instruction words; 0 = not listed. The forms of a word, and its English
       and Mandarin names where both are listed, share one id. Words of the content that are to be stressed
       (`stressed_spans`) have the concept of "stress", and no other word of the content has it;
    4. quotes: 1 outside, 2 spoken content, 3 the marks around the content.

    Attributes:
        channel_sizes: Vocabulary size of each channel.
        fingerprint: Changes with any table: characters, phones, lexicon, letter-to-sound, instruction words, and with
            the rules that find stressed words.
    """

    def __init__(self) -> None:
        self.channel_sizes: tuple[int, ...] = (
            _FIRST_HAN + _NUM_HAN_BUCKETS,
            _SILENT + 1 + len(_FIRST_PHONES),
            _SILENT + 1 + len(_SECOND_PHONES),
            max(_instruction_words().values()) + 1,
            _MARK + 1,
        )
        files = (LEXICON_FILE, LETTER_TO_SOUND_FILE, INSTRUCTION_WORDS_FILE)
        tables = [list(_CHARACTERS), list(_FIRST_PHONES), list(_SECOND_PHONES), _NUM_HAN_BUCKETS]
        hashes = [hashlib.sha256(read_data(name)).hexdigest() for name in files]
        self.fingerprint: str = fingerprint([*tables, *hashes, list(STRESS_PATTERNS), RULE_VERSION])

    def encode(self, text: str) -> Int[np.ndarray, "text channel"]:
        """Turns an instruction into ids.

        Args:
            text: Any text; it is normalised first (`normalize`).

        Returns:
            int32 rows that end with an end-of-text row; an empty text gives that row alone.
        """
        text = normalize(text)
        parts = [rows for _, rows in _segments(text)]
        columns = np.concatenate([*parts, np.array([[_END, _SILENT, _SILENT, 0]], np.int32)])
        quotes = np.full((len(columns), 1), OUTSIDE_QUOTES, np.int32)
        content = spoken_content(text)
        if content.text is not None:
            quotes[content.start - 1 : content.end + 1] = _MARK
            quotes[content.start : content.end] = INSIDE_QUOTES
            stress = stress_concept()
            concepts = columns[content.start : content.end, CONCEPT_CHANNEL]
            concepts[concepts == stress] = 0
            for start, end in stressed_spans(text):
                columns[start:end, CONCEPT_CHANNEL] = stress
        return np.concatenate([columns, quotes], axis=1)

    def pronounce(self, text: str) -> list[str]:
        """Shows how a text is read: a string of phones for each English word and each Chinese character."""
        spoken = []
        for segment, rows in _segments(normalize(text)):
            names = [
                [table[i] for table, i in ((_FIRST_NAMES, first), (_SECOND_NAMES, second)) if i > _SILENT]
                for first, second in rows[:, 1:3].tolist()
            ]
            if _is_han_run(segment):
                spoken += [" ".join(pair) for pair in names if pair]
            elif any(names):
                spoken.append(" ".join(phone for pair in names for phone in pair))
        return spoken

    def spoken_phones(self, text: str) -> list["SpokenPhone"]:
        """Lists what is said, phone by phone, for an aligner.

        Silence may stand at both ends and wherever a space or a mark does. Rows of Chinese characters without a
        reading, and characters of unknown scripts, are silence too.

        Args:
            text: An instruction with its content in quotes; the rest of it is not listed.
        """
        rows = self.encode(text)
        (inside,) = np.nonzero(rows[:, QUOTE_CHANNEL] == INSIDE_QUOTES)
        if not len(inside):
            return []
        found = [_pause(int(inside[0]) - 1)]
        for row in inside.tolist():
            phones = [
                SpokenPhone(label=label, row=row)
                for channel, names in ((1, _FIRST_NAMES), (2, _SECOND_NAMES))
                if (label := _phone_label(rows[row], channel, names)) is not None
            ]
            if not phones and not _is_letter(int(rows[row, 0])) and not found[-1].optional:
                phones = [_pause(row)]
            found += phones
        last = _pause(int(inside[-1]) + 1)
        return [*found[:-1], last] if found[-1].optional and len(found) > 1 else [*found, last]

    def text_length_units(self, text: str) -> float:
        """Counts the syllables to be spoken, roughly; a letter of an unknown script counts as one.

        Args:
            text: An instruction; without quotes all of it counts.
        """
        rows = self.encode(text)[:-1]
        if (rows[:, 4] == INSIDE_QUOTES).any():
            rows = rows[rows[:, 4] == INSIDE_QUOTES]
        vowels = sum(np.isin(rows[:, channel], _VOWEL_IDS).sum() for channel in (1, 2))
        return float(vowels + (rows[:, 0] >= _FIRST_HAN).sum() + (rows[:, 0] == _UNKNOWN).sum())


_FIRST_NAMES = {i: phone for phone, i in _FIRST_PHONES.items()}
_SECOND_NAMES = {i: phone for phone, i in _SECOND_PHONES.items()}
_VOWEL_IDS = [i for phone, i in _FIRST_PHONES.items() if phone in PHONES and phone[-1].isdigit()]


def _pause(row: int) -> SpokenPhone:
    return SpokenPhone(label=SILENCE, row=row, optional=True)


def _phone_label(row: Int[np.ndarray, " channel"], channel: int, names: dict[int, str]) -> str | None:
    name = names.get(int(row[channel]), "-")
    return None if name == "-" else f"{'zh' if row[0] >= _FIRST_HAN else 'en'} {name}"


def _is_letter(character: int) -> bool:
    """Whether a character belongs to a word, and so is no place for a pause even if it is silent."""
    return _CHARACTERS["a"] <= character <= _CHARACTERS["z"] or character in map(_CHARACTERS.get, "'’")


@functools.cache
def _instruction_words() -> dict[str, int]:
    """Concept id of each listed form: its concept's number in the list, from 1."""
    return {form: number for number, (_, forms) in enumerate(instruction_concepts(), start=1) for form in forms}


@functools.cache
def _longest_mandarin_word() -> int:
    return max((len(form) for form in _instruction_words() if not form.isascii()), default=0)


def _segments(text: str) -> list[tuple[str, Rows]]:
    """Words, runs of Chinese characters and single other characters, each with its rows, in order."""
    folded = "".join(map(_fold, text))
    found = []
    for match in _SEGMENT.finditer(folded):
        dotted, word, han, _ = match.groups()
        segment = match[0]
        if word is not None:
            found.append((segment, _word_rows(segment, _is_acronym(text[match.start() : match.end()]))))
        elif han is not None:
            found.append((segment, _han_rows(segment)))
        elif dotted is not None:
            found.append((segment, _dotted_rows(segment)))
        else:
            found.append((segment, _mark_rows(segment)))
    return found


@functools.lru_cache(maxsize=65536)
def _fold(character: str) -> str:
    """Lower case without accents; always one character for one."""
    base = unicodedata.normalize("NFKD", character)[0]
    if base.isascii() and base.isalpha():
        return base.lower()
    return character


def _is_acronym(word: str) -> bool:
    return 2 <= len(word) <= _MAX_ACRONYM and word.isupper() and not set(word) & set("AEIOUY")


def _is_han_run(segment: str) -> bool:
    return HAN_CHARACTER.match(segment) is not None


@functools.lru_cache(maxsize=65536)
def _word_rows(word: str, spelled: bool) -> Rows:
    plain = word.replace("’", "'")
    words = _instruction_words()
    concept = words.get(plain) or words.get(plain.removesuffix("'s"), 0)  # "in a dad's voice"
    return _letter_rows(plain, english_phones(plain, spelled=spelled), concept)


@functools.lru_cache(maxsize=4096)
def _dotted_rows(acronym: str) -> Rows:
    """Rows of "p.m." or "U.S.": names of letters, silent points."""
    return _letter_rows(acronym, tuple(letter_name(letter) for letter in acronym), 0)


def _letter_rows(letters: str, chunks: tuple[tuple[str, ...], ...], concept: int) -> Rows:
    rows = np.full((len(letters), 4), _SILENT, np.int32)
    rows[:, 0] = [_CHARACTERS[letter] for letter in letters]
    rows[:, 3] = concept
    for row, chunk in zip(rows, chunks, strict=True):
        if chunk:
            row[1] = _FIRST_PHONES[chunk[0]]
        if len(chunk) > 1:
            row[2] = _SECOND_PHONES[chunk[1]]
    return rows


@functools.lru_cache(maxsize=65536)
def _han_rows(characters: str) -> Rows:
    rows = np.full((len(characters), 4), _SILENT, np.int32)
    rows[:, 0] = [_FIRST_HAN + (ord(c) * 2654435761 >> 12) % _NUM_HAN_BUCKETS for c in characters]
    syllables = mandarin_syllables(characters)
    rows[:, 1] = [_FIRST_PHONES.get(initial, _SILENT) for initial, _ in syllables]
    rows[:, 2] = [_SECOND_PHONES.get(final, _SILENT) for _, final in syllables]
    rows[:, 3] = _mandarin_concepts(characters)
    return rows


def _mandarin_concepts(characters: str) -> list[int]:
    """Concept of each character, by the longest listed word from the left."""
    words, found = _instruction_words(), [0] * len(characters)
    for start, end in listed_runs(characters, words, _longest_mandarin_word()):
        found[start:end] = [words[characters[start:end]]] * (end - start)
    return found


@functools.lru_cache(maxsize=4096)
def _mark_rows(character: str) -> Rows:
    return np.array([[_CHARACTERS.get(character, _UNKNOWN), _SILENT, _SILENT, 0]], np.int32)
