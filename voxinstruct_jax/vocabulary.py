"""Token ids, parts and sequence layouts: the one home of id arithmetic.

A clip is `BOS LANG ST.. EOS1 AT.. EOS2`: language, de-duplicated semantic tokens (ST), acoustic tokens (AT).
The text stands before it as embeddings, so it has slots but no ids here. Read `Vocabulary`, then `build_layout`.
"""

import dataclasses
from typing import TYPE_CHECKING, TypeVar

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Num

from voxinstruct_jax.config import ConfigError, InputError

__all__ = [
    "ACOUSTIC",
    "NUM_PARTS",
    "HostOrDevice",
    "SEMANTIC",
    "TEXT",
    "Layout",
    "PackedBatch",
    "Prompt",
    "Vocabulary",
    "build_layout",
    "build_prompt",
    "audio_times",
    "deduplicate",
    "expand",
    "parse_layout",
    "prompt_semantic_length",
    "text_times",
]

if TYPE_CHECKING:
    HostOrDevice = Array  # what the models read; hosts fill a batch with NumPy arrays, which checks at run time allow
else:
    HostOrDevice = Array | np.ndarray

AnyArray = TypeVar("AnyArray", Array, np.ndarray)

TEXT, SEMANTIC, ACOUSTIC = 0, 1, 2
"""Part ids, the rows of the part embedding. SEMANTIC covers BOS, LANG, ST and EOS1; ACOUSTIC covers AT and EOS2."""

NUM_PARTS = 3
LANGUAGE_SLOT = 1
"""Place of LANG in a layout."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Ids from sizes: padding, languages, semantic tokens, acoustic tokens, BOS, EOS1, EOS2, in this order.

    All codebooks share the acoustic ids. The NAR heads leave the first ids out: their class is `id - acoustic_offset`.

    Raises:
        ConfigError: A size is below 1, or the languages are not distinct names.

    Source:
        VoxInstruct, section 4.1; the order of ids is that of the release.
    """

    languages: tuple[str, ...] = ("en", "zh")
    """Names, in the order of their ids."""
    num_semantic: int = 500
    """Semantic units (k-means classes)."""
    codebook_size: int = 1024
    """Entries of a codebook."""
    num_codebooks: int = 8
    """Codebooks of the codec, the first one included."""

    def __post_init__(self) -> None:
        for name in ("num_semantic", "codebook_size", "num_codebooks"):
            if getattr(self, name) < 1:
                raise ConfigError(f"vocabulary.{name}: {getattr(self, name)} must be at least 1")
        if not self.languages or len(set(self.languages)) != len(self.languages):
            raise ConfigError(f"vocabulary.languages: {self.languages!r} must be one or more distinct names")

    @property
    def pad(self) -> int:
        """Padding, and the empty or masked token: its embedding is zero."""
        return 0

    @property
    def language_offset(self) -> int:
        """Id of the first language."""
        return 1

    @property
    def semantic_offset(self) -> int:
        """Id of semantic unit 0."""
        return self.language_offset + len(self.languages)

    @property
    def acoustic_offset(self) -> int:
        """Id of code 0 in every codebook."""
        return self.semantic_offset + self.num_semantic

    @property
    def bos(self) -> int:
        """Begins a clip."""
        return self.acoustic_offset + self.codebook_size

    @property
    def eos1(self) -> int:
        """Ends the semantic tokens."""
        return self.bos + 1

    @property
    def eos2(self) -> int:
        """Ends the acoustic tokens."""
        return self.bos + 2

    @property
    def size(self) -> int:
        """Number of ids."""
        return self.bos + 3

    @property
    def nar_head_size(self) -> int:
        """Classes of a NAR head: codes, BOS, EOS1, EOS2."""
        return self.codebook_size + 3

    def language_id(self, name: str) -> int:
        """Returns the token id of a language.

        Raises:
            InputError: The vocabulary does not know the language.
        """
        if name not in self.languages:
            raise InputError(f"language {name!r} is unknown; use one of {', '.join(self.languages)}")
        return self.language_offset + self.languages.index(name)

    def language_name(self, token_id: int) -> str:
        """Returns the language of a token id.

        Raises:
            InputError: The id is not that of a language.
        """
        if not self.language_offset <= token_id < self.semantic_offset:
            last = self.semantic_offset - 1
            raise InputError(f"token {token_id} is not a language; languages are {self.language_offset} to {last}")
        return self.languages[token_id - self.language_offset]

    def is_semantic(self, tokens: Int[Array | np.ndarray, "*shape"]) -> Bool[Array | np.ndarray, "*shape"]:
        """Tells which tokens are semantic units (ST)."""
        return (tokens >= self.semantic_offset) & (tokens < self.acoustic_offset)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """The audio part of one clip; text slots come before it."""

    tokens: Int32[np.ndarray, "codebook time"]
    """Ids; row 0 is the AR sequence. All rows are equal outside the acoustic tokens."""
    part_ids: Int32[np.ndarray, " time"]
    """`SEMANTIC` or `ACOUSTIC`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """What decoding starts from; without a voice prompt both carry no tokens of audio."""

    semantic_prefix: Int32[np.ndarray, " time"]
    """BOS LANG ST.., ids. LANG is padding where the language is still to be predicted."""
    acoustic_prefix: Int32[np.ndarray, "codebook frame"]
    """Ids that follow EOS1."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """Rows of several clips each: text in one array, the model's sequence in another, and an index between them.

    A clip's sequence is its text slots, then its layout. Widths are static; what is not used is padding.
    Hosts fill NumPy arrays; the models read them as JAX arrays.
    """

    text_tokens: Int32[HostOrDevice, "batch text channel"]
    """Ids of the text tokenizer; 0 = padding."""
    text_segment_ids: Int32[HostOrDevice, "batch text"]
    """Clip within the row, from 1; 0 = padding."""
    tokens: Int32[HostOrDevice, "batch codebook time"]
    """Ids of the `Vocabulary`; 0 at text slots and padding."""
    part_ids: Int32[HostOrDevice, "batch time"]
    """`TEXT`, `SEMANTIC` or `ACOUSTIC`; 0 at padding."""
    segment_ids: Int32[HostOrDevice, "batch time"]
    """Clip within the row, from 1; 0 = padding."""
    positions: Int32[HostOrDevice, "batch time"]
    """From 0 in each clip, text slots first."""
    text_index: Int32[HostOrDevice, "batch time"]
    """At text slots, the place on the text axis of the same row; 0 elsewhere."""
    clip_ids: Int32[HostOrDevice, " batch"]
    """Number of the row in the global batch: randomness follows from it, whatever the hosts."""
    prompted: Int32[HostOrDevice, "batch time"] | None = None
    """1 at acoustic tokens of another clip that stand before a clip's own as its voice prompt: shown, never predicted.
    None = no clip has one."""
    times: Float32[HostOrDevice, "batch time"] | None = None
    """When each slot is spoken, in codec frames (`text_times`, `audio_times`): the rotary position of aligned models.
    None = not known, and of no use to other models."""
    text_durations: Int32[HostOrDevice, "batch text"] | None = None
    """How long each text token is spoken, in half frames: what aligned models learn to tell. None as above."""
    text_attributes: Int32[HostOrDevice, "batch text attribute"] | None = None
    """At each text slot what is known of its clip (`attributes.class_numbers`); None = of no use to the model."""


def deduplicate(units: Int[np.ndarray, " frame"]) -> tuple[Int32[np.ndarray, " time"], Int32[np.ndarray, " time"]]:
    """Collapses runs of equal units.

    Returns:
        The semantic tokens (still units, without id offset) and their run lengths (frames).

    Source:
        VoxInstruct, section 4.1.
    """
    units = np.asarray(units, np.int32)
    starts = np.flatnonzero(np.r_[True, units[1:] != units[:-1]]) if units.size else np.zeros(0, np.int64)
    return units[starts], np.diff(np.r_[starts, units.size]).astype(np.int32)


def expand(
    semantic_tokens: Int[np.ndarray, " time"], run_lengths: Int[np.ndarray, " time"]
) -> Int32[np.ndarray, " frame"]:
    """Undoes `deduplicate`."""
    return np.repeat(np.asarray(semantic_tokens, np.int32), run_lengths)


def build_layout(
    vocabulary: Vocabulary,
    language: str,
    semantic_tokens: Int[np.ndarray, " unit"],
    codes: Int[np.ndarray, "codebook frame"],
) -> Layout:
    """Writes a clip as ids: BOS LANG ST EOS1 AT EOS2.

    Args:
        vocabulary: Its ids.
        language: A name it knows.
        semantic_tokens: De-duplicated units, from 0.
        codes: Of the codec, from 0.

    Raises:
        InputError: The language is unknown, or a unit, a code or the number of codebooks is out of range.

    Source:
        VoxInstruct, section 4.1 and figure 2. The NAR rows repeat the special tokens as in the release.
    """
    prompt = build_prompt(vocabulary, language, semantic_tokens, codes)
    head = np.r_[prompt.semantic_prefix, vocabulary.eos1]
    tail = np.full((vocabulary.num_codebooks, 1), vocabulary.eos2)
    rows = np.concatenate([np.tile(head, (vocabulary.num_codebooks, 1)), prompt.acoustic_prefix, tail], axis=1)
    part_ids = np.where(np.arange(rows.shape[1]) < len(head), SEMANTIC, ACOUSTIC)
    return Layout(tokens=rows.astype(np.int32), part_ids=part_ids.astype(np.int32))


def parse_layout(
    vocabulary: Vocabulary, layout: Layout
) -> tuple[str, Int32[np.ndarray, " unit"], Int32[np.ndarray, "codebook frame"]]:
    """Undoes `build_layout`.

    Returns:
        Language, semantic tokens (units from 0) and codes (from 0).

    Raises:
        InputError: The ids are not a whole layout.
    """
    tokens = np.asarray(layout.tokens)
    (ends,) = np.nonzero(tokens[0] == vocabulary.eos1) if tokens.ndim == 2 and len(tokens) else (np.zeros(0, int),)
    if len(ends) != 1 or ends[0] <= LANGUAGE_SLOT:
        raise InputError("layout needs one EOS1, after its language; expected BOS LANG ST EOS1 AT EOS2")
    end = int(ends[0])
    language = vocabulary.language_name(int(tokens[0, LANGUAGE_SLOT]))
    semantic_tokens = (tokens[0, LANGUAGE_SLOT + 1 : end] - vocabulary.semantic_offset).astype(np.int32)
    codes = (tokens[:, end + 1 : -1] - vocabulary.acoustic_offset).astype(np.int32)
    rebuilt = build_layout(vocabulary, language, semantic_tokens, codes)
    if not np.array_equal(rebuilt.tokens, tokens) or not np.array_equal(rebuilt.part_ids, layout.part_ids):
        raise InputError("layout is malformed: BOS, EOS2, the part ids or the rows of later codebooks do not fit")
    return language, semantic_tokens, codes


def build_prompt(
    vocabulary: Vocabulary,
    language: str | None,
    semantic_tokens: Int[np.ndarray, " unit"],
    codes: Int[np.ndarray, "codebook frame"],
) -> Prompt:
    """Writes what decoding starts from.

    Args:
        vocabulary: Its ids.
        language: A name it knows; None = to be predicted, its slot then holds padding.
        semantic_tokens: Units of the voice prompt that are kept (see `prompt_semantic_length`); empty without a prompt.
        codes: All codes of the voice prompt; no frames without a prompt.

    Raises:
        InputError: As `build_layout`.
    """
    units, codes = np.asarray(semantic_tokens), np.asarray(codes)
    if units.size and not (units.min() >= 0 and units.max() < vocabulary.num_semantic):
        raise InputError(
            f"semantic tokens run from {units.min()} to {units.max()}; allowed are 0 to {vocabulary.num_semantic - 1}"
        )
    if codes.ndim != 2 or len(codes) != vocabulary.num_codebooks:
        raise InputError(f"codes have shape {codes.shape}; expected {vocabulary.num_codebooks} codebooks x frames")
    if codes.size and not (codes.min() >= 0 and codes.max() < vocabulary.codebook_size):
        raise InputError(
            f"codes run from {codes.min()} to {codes.max()}; allowed are 0 to {vocabulary.codebook_size - 1}"
        )
    language_token = vocabulary.pad if language is None else vocabulary.language_id(language)
    prefix = np.r_[vocabulary.bos, language_token, units + vocabulary.semantic_offset]
    return Prompt(
        semantic_prefix=prefix.astype(np.int32), acoustic_prefix=(codes + vocabulary.acoustic_offset).astype(np.int32)
    )


def text_times(durations: Num[AnyArray, "*batch text"]) -> Float[AnyArray, "*batch text"]:
    """Returns the middle of each text token in time, in codec frames from the first.

    Args:
        durations: Half frames; 0 for what is not spoken.
    """
    return (durations.cumsum(axis=-1) - durations / 2) / 2


def audio_times(num_semantic: int, num_frames: int, prompt_frames: int) -> Float32[np.ndarray, " time"]:
    """Returns when the slots of a layout are spoken, in codec frames; its semantic tokens are not de-duplicated.

    The token that predicts a frame stands just before it, in both stages: a semantic token and the acoustic token of
    the same frame share their time, which attention finds at one distance wherever it is.

    Args:
        num_semantic: Semantic tokens, one a frame.
        num_frames: Acoustic tokens of the clip's own.
        prompt_frames: Acoustic tokens of a voice prompt before them; it ends where the clip begins.
    """
    semantic = np.arange(-2, num_semantic) + 0.5
    acoustic = np.arange(-prompt_frames - 1, num_frames + 1) + 0.5
    return np.concatenate([semantic, acoustic]).astype(np.float32)


def prompt_semantic_length(num_units: int, *, uneven: bool = False) -> int:
    """Returns how many units of a voice prompt are kept; the model says the rest anew.

    Args:
        num_units: De-duplicated units of the whole prompt.
        uneven: As the release, which lets short prompts keep more than longer ones (of 15 units 10, of 20 none).

    Source:
        The release, made monotone unless `uneven`: a negative end of its slice counted from the back.
    """
    kept = min(num_units * 4 // 5, num_units - 20)
    return max(0, kept + num_units) if uneven and kept < 0 else max(0, kept)
