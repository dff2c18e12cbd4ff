"""Batches of rows that are drawn one by one, a clip and a text of it each: what they share whatever a row holds.

`batches[step]` follows from (data, seed, step). Read `RowBatches`.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Generic, Protocol, TypeVar, cast, runtime_checkable

import jax
import numpy as np
from jaxtyping import Int32

from voxinstruct_jax.config import InputError, fingerprint
from voxinstruct_jax.data.shards import Example, ShardReader
from voxinstruct_jax.text.tokenizer import TextTokenizer

__all__ = ["RowBatches", "RowData", "draw_instruction"]

DRAWS = 20
Batch = TypeVar("Batch")
Told = TypeVar("Told")


@runtime_checkable
class RowData(Protocol):
    """Settings of such batches: a dataclass with these and others."""

    @property
    def shards(self) -> str: ...
    @property
    def rows(self) -> int: ...
    @property
    def text_width(self) -> int: ...


class RowBatches(ABC, Generic[Batch]):
    """Rows by step, each drawn by a generator of its own."""

    batch_class: ClassVar[Callable[..., Any]]

    def __init__(
        self,
        reader: ShardReader,
        tokenizer: TextTokenizer,
        data: RowData,
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
        shapes = dataclasses.replace(cast("Any", self._data), shards="")
        return fingerprint([self._reader.fingerprint, self._tokenizer.fingerprint, shapes])

    def __getitem__(self, step: int) -> Batch:
        rows = [self._row(step, row) for row in range(*self._host_rows)]
        columns = {name: np.stack([row[name] for row in rows]).astype(np.int32) for name in rows[0]}
        columns["row_ids"] = (step * self._data.rows + np.arange(*self._host_rows)).astype(np.int32)
        # JAX arrays to an objective, NumPy arrays until they are put on a device
        return self.batch_class(**{name: cast("jax.Array", column) for name, column in columns.items()})

    @abstractmethod
    def _row(self, step: int, row: int) -> dict[str, np.ndarray]:
        """Fields of one row but for `row_ids`."""

    def _draw(
        self, step: int, row: int, describe: Callable[[Example, np.random.Generator], tuple[Told, str]]
    ) -> tuple[Told, Int32[np.ndarray, "text channel"], np.random.Generator]:
        """Draws a clip and a text of it; again where the text is too long.

        Args:
            step: Of the run.
            row: Of the step.
            describe: What a clip is known by, and its text.

        Returns:
            What the clip is known by, its text, and the generator for whatever else is drawn.

        Raises:
            InputError: Nothing that is drawn fits.
        """
        width = self._data.text_width
        for attempt in range(DRAWS):
            random = np.random.default_rng((self._seed, step, row, attempt))
            told, text = describe(self._reader[int(random.integers(len(self._reader)))], random)
            tokens = self._tokenizer.encode(text)
            if len(tokens) <= width:
                return told, tokens, random
        raise InputError(
            f"step {step}: {DRAWS} drawn instructions are longer than {width} tokens; give a larger data.text_width"
        )

    def _padded(self, text: Int32[np.ndarray, "text channel"]) -> Int32[np.ndarray, "width channel"]:
        return np.pad(text, ((0, self._data.text_width - len(text)), (0, 0)))


def draw_instruction(example: Example, random: np.random.Generator) -> str:
    """One of a clip's instructions."""
    return example.instructions[int(random.integers(len(example.instructions)))]
