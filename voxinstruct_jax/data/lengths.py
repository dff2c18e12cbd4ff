"""The line from syllables to seconds that a manifest's clips follow."""

import itertools
import os

import soundfile

from voxinstruct_jax.data.manifest import Row, iter_manifest
from voxinstruct_jax.text.lengths import LengthLine, fit_length_line, syllables

__all__ = ["fit_lengths"]

MOST_CLIPS = 20_000
"""The first ones tell enough."""


def fit_lengths(manifest: str | os.PathLike[str]) -> LengthLine:
    """Fits the line on the clips of a manifest; the usual one where none of them tells how long it is.

    Raises:
        InputError: The manifest cannot be read.
    """
    rows = itertools.islice(iter_manifest(manifest), MOST_CLIPS)
    known = [(syllables(row.transcript), seconds) for row in rows if (seconds := _seconds(row))]
    return fit_length_line(*zip(*known, strict=True)) if known else LengthLine()


def _seconds(row: Row) -> float | None:
    if row.duration_s is not None:
        return row.duration_s
    try:
        return soundfile.info(row.audio).duration - row.offset_s
    except (OSError, soundfile.SoundFileError):
        return None
