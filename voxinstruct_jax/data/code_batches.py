"""Batches of codec codes beside what is said in each frame, a stretch of a clip a row, for denoisers of codec latents.

`batches[step]` follows from (data, seed, step). Read `CodeBatch`.
"""

from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Int, Int32

from voxinstruct_jax.config import ConfigError, InputError
from voxinstruct_jax.data.row_batches import RowBatches, draw_instruction
from voxinstruct_jax.data.shards import Example
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


class CodeBatches(RowBatches[CodeBatch]):
    """A stretch of a clip a row, and one of its instructions."""

    batch_class = CodeBatch
    _data: CodeData

    @property
    def frame_rate(self) -> float:
        """Codec frames a second (Hz)."""
        return self._reader.index.frame_rate

    def _row(self, step: int, row: int) -> dict[str, np.ndarray]:
        data = self._data
        example, text, random = self._draw(
            step, row, lambda example, random: (example, draw_instruction(example, random))
        )
        total = example.codes.shape[1]
        count = min(total, data.frames)
        start = int(random.integers(total - count + 1))
        padding = (0, data.frames - count)
        return {
            "codes": np.pad(example.codes[:, start : start + count], ((0, 0), padding)),
            "units": np.pad(self._units(example)[start : start + count], padding),
            "num_frames": np.array(count),
            "text_tokens": self._padded(text),
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
