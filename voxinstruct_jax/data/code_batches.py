"""Batches of codec codes beside what is said in each frame, a stretch of a clip a row, for denoisers of codec latents.

`batches[step]` follows from (data, seed, step). Read `CodeBatch`.
"""

import dataclasses
from dataclasses import dataclass
from typing import cast

import jax
import numpy as np
from jaxtyping import Int, Int32

from voxinstruct_jax.config import ConfigError, InputError, fingerprint
from voxinstruct_jax.data.shards import Example, ShardReader
from voxinstruct_jax.text.tokenizer import TextTokenizer
from voxinstruct_jax.vocabulary import HostOrDevice, expand

__all__ = ["CodeBatch", "CodeBatches", "CodeData", "units_of_frames"]


@dataclass(frozen=True, kw_only=True)
class CodeData:
    """Prepared clips and the shape of a step.

    Raises:
        ConfigError: A number is out of range.
    """

    shards: str = "corpus/train"
    """Folder or URL that `prepare` wrote."""
    frames: int = 96
    """Codec frames of a row; longer clips are cropped anywhere, shorter ones are followed by padding."""
    rows: int = 8
    text_width: int = 320
    """Tokens of an instruction; longer ones are left out."""

    def __post_init__(self) -> None:
        if min(self.frames, self.rows, self.text_width) < 1:
            raise ConfigError(
                f"data: frames {self.frames}, rows {self.rows} and text_width {self.text_width} must be at least 1"
            )


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class CodeBatch:
    """Rows of a step; padding is 0."""

    codes: Int32[HostOrDevice, "batch codebook time"]
    units: Int32[HostOrDevice, "batch time"]
    """Semantic unit of each codec frame, from 1."""
    num_frames: Int32[HostOrDevice, " batch"]
    text_tokens: Int32[HostOrDevice, "batch token channel"]
    """Of the instruction."""
    row_ids: Int32[HostOrDevice, " batch"]
    """Number of each row in the whole run."""


def units_of_frames(
    semantic_tokens: Int[np.ndarray, " run"],
    run_lengths: Int[np.ndarray, " length"],
    num_frames: int,
    *,
    semantic_rate: float = 1.0,
    frame_rate: float = 1.0,
) -> Int32[np.ndarray, " frame"]:
    """Undoes de-duplication, at the rate of codec frames: the unit that each frame's middle falls into, from 1.

    Args:
        semantic_tokens: De-duplicated units, from 0.
        run_lengths: Semantic frames that each lasts.
        num_frames: Codec frames; those behind the last unit have that unit.
        semantic_rate: Semantic frames a second (Hz).
        frame_rate: Codec frames a second (Hz).

    Raises:
        InputError: There is not one length a unit, a length is below 0, or all are 0.
    """
    if len(semantic_tokens) != len(run_lengths) or np.min(run_lengths, initial=0) < 0 or not np.sum(run_lengths):
        raise InputError(
            f"{len(semantic_tokens)} semantic tokens with {len(run_lengths)} lengths; give one each, none below 0"
        )
    units = expand(semantic_tokens, run_lengths)
    middles = np.floor((np.arange(num_frames) + 0.5) * semantic_rate / frame_rate).astype(np.int64)
    return units[np.minimum(middles, len(units) - 1)] + 1


class CodeBatches:
    """Rows by step, each drawn by a generator of its own."""

    def __init__(
        self,
        reader: ShardReader,
        tokenizer: TextTokenizer,
        data: CodeData,
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
    def frame_rate(self) -> float:
        """Codec frames a second (Hz)."""
        return self._reader.index.frame_rate

    @property
    def fingerprint(self) -> str:
        """Changes when any batch could change; the folder's place and the hosts do not matter."""
        shapes = dataclasses.replace(self._data, shards="")
        return fingerprint([self._reader.fingerprint, self._tokenizer.fingerprint, shapes])

    def __getitem__(self, step: int) -> CodeBatch:
        rows = [self._row(step, row) for row in range(*self._host_rows)]
        columns = {name: np.stack([row[name] for row in rows]).astype(np.int32) for name in rows[0]}
        columns["row_ids"] = (step * self._data.rows + np.arange(*self._host_rows)).astype(np.int32)
        # JAX arrays to an objective, NumPy arrays until they are put on a device
        return CodeBatch(**{name: cast("jax.Array", column) for name, column in columns.items()})

    def _row(self, step: int, row: int) -> dict[str, np.ndarray]:
        """Draws a clip, an instruction of it and a stretch; again where the instruction is too long.

        Raises:
            InputError: Nothing that is drawn fits.
        """
        data = self._data
        for attempt in range(20):
            random = np.random.default_rng((self._seed, step, row, attempt))
            example = self._reader[int(random.integers(len(self._reader)))]
            text = self._tokenizer.encode(example.instructions[int(random.integers(len(example.instructions)))])
            if len(text) <= data.text_width:
                break
        else:
            raise InputError(
                f"step {step}: 20 drawn instructions are longer than {data.text_width} tokens; give a larger "
                "data.text_width"
            )
        total = example.codes.shape[1]
        count = min(total, data.frames)
        start = int(random.integers(total - count + 1))
        padding = (0, data.frames - count)
        return {
            "codes": np.pad(example.codes[:, start : start + count], ((0, 0), padding)),
            "units": np.pad(self._units(example)[start : start + count], padding),
            "num_frames": np.array(count),
            "text_tokens": np.pad(text, ((0, data.text_width - len(text)), (0, 0))),
        }

    def _units(self, example: Example) -> Int32[np.ndarray, " frame"]:
        index = self._reader.index
        return units_of_frames(
            example.semantic_tokens,
            example.run_lengths,
            example.codes.shape[1],
            semantic_rate=index.semantic_rate or index.frame_rate,
            frame_rate=index.frame_rate,
        )
