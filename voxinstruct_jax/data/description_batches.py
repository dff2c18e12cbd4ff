"""Batches of instructions beside what is known of their clips, without any audio: what a style reader is taught with.

`batches[step]` follows from (data, seed, step). Read `DescriptionBatch`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, Int32

from voxinstruct_jax.attributes import STYLE_CLASSES, class_numbers
from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.data.described import described_requests, rewrite_request, write_fields
from voxinstruct_jax.data.instructions import write_instructions
from voxinstruct_jax.data.loose_wording import write_loosely
from voxinstruct_jax.data.row_batches import RowBatches, draw_instruction
from voxinstruct_jax.data.shards import Example, is_stressed
from voxinstruct_jax.text.tokenizer import spread_durations
from voxinstruct_jax.vocabulary import HostOrDevice

__all__ = ["DescriptionBatch", "DescriptionBatches", "DescriptionData"]

NAMED_SHARE = 0.5
"""Of the attributes, in a description that is written anew."""
WAYS = {"grammar": 0.25, "loose": 0.25, "fields": 0.1, "requests": 0.4}
"""In which a description is written anew, and their shares."""
AGES = ("child", "teenager", "young", "middle-aged", "elderly")


@dataclass(frozen=True, kw_only=True)
class DescriptionData:
    """Prepared clips and the shape of a step.

    Raises:
        ConfigError: A number is out of range.
    """

    shards: str = "corpus/train"
    """Folder or URL that `prepare` wrote."""
    rows: int = 64
    text_width: int = 160
    """Tokens of an instruction; longer ones are left out."""
    written: float = 0.75
    """Share of rows whose instruction is written anew, for attributes that are drawn: so words are met that no clip is
    described with, such as those of age. Of clips with stressed words it always is, for their own."""

    def __post_init__(self) -> None:
        if min(self.rows, self.text_width) < 1:
            raise ConfigError(f"data: rows {self.rows} and text_width {self.text_width} must be at least 1")
        if not 0 <= self.written <= 1:
            raise ConfigError(f"data.written: {self.written} is not within [0, 1]")


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class DescriptionBatch:
    """Rows of a step; padding is 0."""

    text_tokens: Int32[HostOrDevice, "batch text channel"]
    text_segment_ids: Int32[HostOrDevice, "batch text"]
    """1 at text; 0 = padding."""
    attributes: Int32[HostOrDevice, "batch attribute"]
    """As of `attributes.class_numbers`; 0 = not known, -1 = not asked for: no class is to be read."""
    durations: Int32[HostOrDevice, "batch text"]
    """How long each token is spoken, in half frames; -1 = not known, as of what is written anew, and padding."""
    row_ids: Int32[HostOrDevice, " batch"]
    """Number of each row in the whole run."""


class DescriptionBatches(RowBatches[DescriptionBatch]):
    """An instruction a row."""

    batch_class = DescriptionBatch
    _data: DescriptionData

    def _row(self, step: int, row: int) -> dict[str, np.ndarray]:
        (attributes, spoken), text, _ = self._draw(step, row, self._describe)
        durations = np.full(self._data.text_width, -1, np.int32)
        if len(spoken):
            durations[: len(text)] = spread_durations(text, spoken)
        return {
            "text_tokens": self._padded(text),
            "text_segment_ids": (np.arange(self._data.text_width) < len(text)).astype(np.int32),
            "attributes": attributes,
            "durations": durations,
        }

    def _describe(
        self, example: Example, random: np.random.Generator
    ) -> tuple[tuple[Int32[np.ndarray, " attribute"], Int[np.ndarray, " character"]], str]:
        """An instruction; what is known of whom it describes, and durations where its words were so spoken."""
        known = class_numbers(example.attributes)
        if is_stressed(example):  # which prepared instructions seldom say
            return (known, example.durations), _write(example.attributes, example, random)
        if random.random() < self._data.written:
            numbers, text = _write_anew(example, random)
            return (numbers, example.durations[:0]), text
        return (known, example.durations), draw_instruction(example, random)


def _write_anew(example: Example, random: np.random.Generator) -> tuple[Int32[np.ndarray, " attribute"], str]:
    """Asks for anybody to speak the clip's words, in one of four ways."""
    way = str(random.choice(list(WAYS), p=list(WAYS.values())))
    if way == "requests":
        known = described_requests()
        return rewrite_request(known[int(random.integers(len(known)))], example.transcript, random)
    drawn, words = _draw_attributes(random), (example.transcript, example.language, random)
    match way:
        case "fields":
            text = write_fields(drawn, *words)
        case "loose":
            text = write_loosely(drawn, *words)
        case _:
            text = _write(drawn, example, random)
    numbers = class_numbers(drawn)
    return np.where(numbers == 0, -1, numbers), text


def _write(attributes: Mapping[str, Any], example: Example, random: np.random.Generator) -> str:
    options: dict[str, Any] = {"count": 1, "generator": random}
    return write_instructions(attributes, example.transcript, example.language, **options)[0].text


def _draw_attributes(random: np.random.Generator) -> dict[str, str | list[int]]:
    """Some of the attributes, each with one of its classes."""
    classes = {**STYLE_CLASSES, "age": AGES}
    return {
        name: values[int(random.integers(len(values)))]
        for name, values in classes.items()
        if random.random() < NAMED_SHARE
    }
