"""Batches of instructions beside what is known of their clips, without any audio: what a style reader is taught with.

`batches[step]` follows from (data, seed, step). Read `DescriptionBatch`.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import jax
import numpy as np
from jaxtyping import Int32

from voxinstruct_jax.attributes import STYLE_CLASSES, class_numbers
from voxinstruct_jax.config import ConfigError, InputError, fingerprint
from voxinstruct_jax.data.instructions import write_instructions
from voxinstruct_jax.data.shards import Example, ShardReader
from voxinstruct_jax.text.tokenizer import TextTokenizer
from voxinstruct_jax.vocabulary import HostOrDevice

__all__ = ["DescriptionBatch", "DescriptionBatches", "DescriptionData"]

DRAWS = 20
NAMED_SHARE = 0.5
"""Of the attributes, in a description that is written anew."""
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
    written: float = 0.5
    """Share of rows whose instruction is written anew, by the grammar, for attributes that are drawn: so words are met
    that no clip is described with, such as those of age."""

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
    """As of `attributes.class_numbers`; 0 = not known."""
    row_ids: Int32[HostOrDevice, " batch"]
    """Number of each row in the whole run."""


class DescriptionBatches:
    """Rows by step, each drawn by a generator of its own."""

    def __init__(
        self,
        reader: ShardReader,
        tokenizer: TextTokenizer,
        data: DescriptionData,
        seed: int,
        *,
        host_rows: tuple[int, int] | None = None,
    ) -> None:
        """Prepares the draw.

        Args:
            reader: Of the clips.
            tokenizer: Of instructions.
            data: Shapes.
            seed: Of all draws.
            host_rows: First and last (exclusive) row that this host makes; all by default.
        """
        self._reader, self._tokenizer, self._data, self._seed = reader, tokenizer, data, seed
        self._host_rows = host_rows or (0, data.rows)

    @property
    def fingerprint(self) -> str:
        """Changes when any batch could change; the folder's place and the hosts do not matter."""
        shapes = dataclasses.replace(self._data, shards="")
        return fingerprint([self._reader.fingerprint, self._tokenizer.fingerprint, shapes])

    def __getitem__(self, step: int) -> DescriptionBatch:
        rows = [self._row(step, row) for row in range(*self._host_rows)]
        columns = {name: np.stack([row[name] for row in rows]).astype(np.int32) for name in rows[0]}
        columns["row_ids"] = (step * self._data.rows + np.arange(*self._host_rows)).astype(np.int32)
        # JAX arrays to an objective, NumPy arrays until they are put on a device
        return DescriptionBatch(**{name: cast("jax.Array", column) for name, column in columns.items()})

    def _row(self, step: int, row: int) -> dict[str, np.ndarray]:
        """Draws a clip and an instruction of it; again where the instruction is too long.

        Raises:
            InputError: Nothing that is drawn fits.
        """
        width = self._data.text_width
        for attempt in range(DRAWS):
            random = np.random.default_rng((self._seed, step, row, attempt))
            example = self._reader[int(random.integers(len(self._reader)))]
            attributes, instruction = self._describe(example, random)
            text = self._tokenizer.encode(instruction)
            if len(text) <= width:
                break
        else:
            raise InputError(
                f"step {step}: {DRAWS} drawn instructions are longer than {width} tokens; give a larger data.text_width"
            )
        return {
            "text_tokens": np.pad(text, ((0, width - len(text)), (0, 0))),
            "text_segment_ids": (np.arange(width) < len(text)).astype(np.int32),
            "attributes": class_numbers(attributes),
        }

    def _describe(self, example: Example, random: np.random.Generator) -> tuple[Mapping[str, Any], str]:
        """An instruction, and what is known of whom it describes."""
        if random.random() < self._data.written:
            drawn = _draw_attributes(random)
            options: dict[str, Any] = {"count": 1, "generator": random}
            return drawn, write_instructions(drawn, example.transcript, example.language, **options)[0].text
        return example.attributes, example.instructions[int(random.integers(len(example.instructions)))]


def _draw_attributes(random: np.random.Generator) -> dict[str, str | list[int]]:
    """Some of the attributes, each with one of its classes."""
    classes = {**STYLE_CLASSES, "age": AGES}
    return {
        name: values[int(random.integers(len(values)))]
        for name, values in classes.items()
        if random.random() < NAMED_SHARE
    }
