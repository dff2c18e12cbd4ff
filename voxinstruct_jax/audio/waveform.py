"""Reading, resampling and writing sound. Mono float32 in [-1, 1] everywhere inside the package."""

import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Num

from voxinstruct_jax.config import InputError

__all__ = ["check_samples", "read_audio", "resample", "write_audio"]


def check_samples(samples: Num[Array | np.ndarray, "batch sample"]) -> Float[Array, "batch sample"]:
    """Returns samples as float32, as models take them; louder ones than 1 pass.

    While a program is traced nothing is known of their values, which are then not looked at.

    Raises:
        InputError: They are no table, there are none, or they are whole numbers or not all finite.
    """
    shape, kind = samples.shape, samples.dtype
    if len(shape) != 2:
        raise InputError(f"samples have the shape {shape}; give [batch, sample], for one clip samples[None]")
    if not min(shape):
        raise InputError("there are no samples; give at least one")
    if not jnp.issubdtype(kind, jnp.floating):
        raise InputError(f"samples are {kind}; give floats from -1 to 1, of 16-bit sound samples / 32768")
    if not isinstance(samples, Tracer) and not np.isfinite(np.asarray(samples, np.float32)).all():
        raise InputError("samples hold NaN or infinity; mend the sound before it is encoded")
    return jnp.asarray(samples, jnp.float32)


def read_audio(path: str | os.PathLike[str], sample_rate: int) -> Float[np.ndarray, " sample"]:
    """Reads any format that libsndfile knows (WAV, FLAC, Ogg Vorbis and Opus, MP3, AIFF ...) as mono.

    Args:
        path: A local file.
        sample_rate: Wanted rate, Hz; other rates are resampled, channels are averaged.

    Returns:
        Float32 samples in [-1, 1].

    Raises:
        InputError: The file is missing, no sound file, or empty.
    """
    import soundfile

    place = Path(path)
    if not place.is_file():
        raise InputError(f"{place}: no such audio file")
    try:
        samples, found_rate = soundfile.read(place, dtype="float32", always_2d=True)
    except (RuntimeError, OSError) as error:
        raise InputError(f"{place}: not readable as sound ({error}); give WAV, FLAC, Ogg or MP3") from error
    if not len(samples):
        raise InputError(f"{place}: holds no samples")
    if not np.isfinite(samples).all():
        raise InputError(f"{place}: holds samples that are not numbers")
    return resample(samples.mean(axis=1), found_rate, sample_rate)


def resample(samples: Float[np.ndarray, " sample"], from_hz: int, to_hz: int) -> Float[np.ndarray, " resampled"]:
    """Changes the sample rate (soxr, high quality); equal rates return the input."""
    if from_hz == to_hz:
        return samples.astype(np.float32, copy=False)
    import soxr

    return soxr.resample(samples, from_hz, to_hz).astype(np.float32)


def write_audio(
    path: str | os.PathLike[str], samples: Float[np.ndarray, " sample"], sample_rate: int, *, tag: str
) -> None:
    """Writes 16-bit sound in the format that the suffix names; the file appears whole or not at all.

    Args:
        path: Target; `.wav`, `.flac` and `.ogg` are usual.
        samples: Clipped to [-1, 1].
        sample_rate: Hz.
        tag: Comment stored in the file: that it is synthetic speech, by which model and seed.

    Raises:
        InputError: The folder cannot be written.
    """
    import soundfile

    place = Path(path)
    partial = place.with_name(f".{place.stem}.part{place.suffix}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with soundfile.SoundFile(partial, "w", sample_rate, channels=1) as sink:
            sink.comment = tag
            sink.write(np.clip(samples, -1.0, 1.0))
        partial.replace(place)
    except (OSError, RuntimeError, TypeError, ValueError) as error:  # TypeError: soundfile knows no such suffix
        if partial.is_file():
            partial.unlink()
        raise InputError(f"{place}: cannot be written ({error}); choose another folder or suffix") from error
