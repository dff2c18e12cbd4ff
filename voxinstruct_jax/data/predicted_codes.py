"""Codes that a voice predicts for clips, in a file of their own: what a decoder is trained on. Read `read_codes`."""

import dataclasses
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from voxinstruct_jax.audio.codec import CodecConfig
from voxinstruct_jax.audio.linguistic import NUM_FEATURES
from voxinstruct_jax.config import InputError

__all__ = ["PredictedClip", "read_codes", "write_codes"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictedClip:
    """What a voice predicts of a clip."""

    codes: Int[np.ndarray, "codebook frame"]
    features: Int[np.ndarray, "frame feature"]
    """Linguistic features (`audio.linguistic.NUM_FEATURES`); -1 = unknown."""


def write_codes(file: Path, clips: Sequence[tuple[str, PredictedClip]]) -> None:
    """Writes clips, each with its id, for `read_codes`; the file appears whole or not at all."""
    lengths = [clip.codes.shape[1] for _, clip in clips]
    partial = file.with_name(f".{file.name}.partial.npz")
    np.savez_compressed(
        partial,
        ids=np.array([name for name, _ in clips], str),
        offsets=np.cumsum([0, *lengths]),
        codes=np.concatenate([clip.codes for _, clip in clips], axis=1).astype(np.int16),
        features=np.concatenate([clip.features for _, clip in clips]).astype(np.int16),
    )
    partial.replace(file)


def read_codes(file: str, config: CodecConfig) -> dict[str, PredictedClip]:
    """Clips by id, from a file of `ids`, `codes` and `features` of all clips one after another, and their `offsets`.

    Raises:
        InputError: It is no such file, or its codes are not this codec's.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            ids, codes, features, offsets = (arrays[name] for name in ("ids", "codes", "features", "offsets"))
        cuts = offsets[1:-1]
        parts = zip(ids.tolist(), np.split(codes, cuts, axis=1), np.split(features, cuts), strict=True)
        clips = {name: PredictedClip(codes=codes_of, features=said) for name, codes_of, said in parts}
    except (OSError, ValueError, KeyError, TypeError, IndexError, zipfile.BadZipFile) as error:
        raise InputError(f"{file}: no file of codes ({error}); make it with launch/predict_codes.py") from error
    if (
        len(codes) > config.num_codebooks
        or np.min(codes, initial=0) < 0
        or np.max(codes, initial=0) >= config.codebook_size
        or features.shape[1:] != (NUM_FEATURES,)
        or (config.feature_sizes and (features >= config.feature_sizes).any())
    ):
        ours = f"{config.num_codebooks} x {config.codebook_size} and features of {list(config.feature_sizes)}"
        raise InputError(f"{file}: codes of another codec; this one has {ours}")
    return clips
