"""Reading, resampling and writing sound. Mono float32 in [-1, 1] everywhere inside the package."""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Num

from voxinstruct_jax.audio.ogg import fix_serial
from voxinstruct_jax.config import InputError

__all__ = ["OpenFile", "check_samples", "read_audio", "resample", "write_audio"]

MAX_OVERHANG_S = 0.1
"""A part may end this much after its file does: durations in manifests are rounded."""
SETTLE_S = 1.0
"""Decoding begins so much before a part (s): MP3 and others need what came before."""
OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)
"""Rates that Opus knows (Hz); others become the last one."""
UNKNOWN_FORMAT = 1
"""libsndfile's code for a file of a format that it does not know."""
STREAMED_BYTES = 2**31 - 2**16
"""A WAV header that promises more was written before the length was known."""
RIFF_DATA_SIZE = re.compile(r"^data : (\d+)(?: \(should be (\d+)\))?", re.MULTILINE)


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


@runtime_checkable
class OpenFile(Protocol):
    """What is read of an open binary file."""

    def read(self, size: int = -1) -> bytes: ...
    def seek(self, offset: int, whence: int = 0) -> int: ...
    def tell(self) -> int: ...


def read_audio(
    source: str | os.PathLike[str] | OpenFile,
    sample_rate: int,
    *,
    offset_s: float = 0.0,
    duration_s: float | None = None,
    limit_s: float | None = None,
    name: str = "",
) -> Float[np.ndarray, " sample"]:
    """Reads a sound file, or a part of it, as mono.

    libsndfile reads WAV, FLAC, Ogg Vorbis and Opus, MP3, AIFF and more; what it does not know (M4A, AAC, raw G.722 by
    its suffix `.g722`) goes to PyAV where that is installed. A part is found by seeking, so an hour around it costs
    neither time nor memory; it is cut out first and resampled then.

    Args:
        source: A local file, or an open one.
        sample_rate: Wanted rate, Hz; other rates are resampled, channels are averaged.
        offset_s: Start of the part (s).
        duration_s: Its length (s); None reads to the end. It may end `MAX_OVERHANG_S` after the file does.
        limit_s: Refuse what is longer (s), before it is decoded.
        name: What messages call an open file; its suffix tells formats that have no header.

    Returns:
        Float32 samples in [-1, 1].

    Raises:
        InputError: The file is missing, no sound file, cut short, empty, or the part does not lie in it.
    """
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        if not Path(source).is_file():
            raise InputError(f"{name}: no such audio file")
    part = _Part(name, offset_s, duration_s, limit_s)
    found = None if name.endswith(".g722") else _read_with_soundfile(source, part)
    samples, found_rate = found or _read_with_av(source, part)
    if not len(samples):
        raise InputError(f"{name}: holds no samples")
    if not np.isfinite(samples).all():
        raise InputError(f"{name}: holds samples that are not numbers")
    return resample(samples, found_rate, sample_rate)


@dataclasses.dataclass(frozen=True)
class _Part:
    """What is asked of a file, and the checks that need to know how much there is."""

    name: str
    offset_s: float
    duration_s: float | None
    limit_s: float | None

    def samples(self, total: int, rate: int) -> tuple[int, int]:
        """Returns the first sample and the number of samples, of `total` at `rate`."""
        total_s = total / rate
        end_s = total_s if self.duration_s is None else self.offset_s + self.duration_s
        if end_s > total_s + MAX_OVERHANG_S or (self.offset_s and self.offset_s >= total_s):
            raise InputError(f"{self.name}: lasts {total_s:.2f} s, the row asks for {self.offset_s:g} to {end_s:g} s")
        self.check_length(min(end_s, total_s) - self.offset_s)
        start = round(self.offset_s * rate)
        return start, max(0, min(round(end_s * rate), total) - start)

    def check_length(self, seconds: float) -> None:
        if self.limit_s is not None and seconds > self.limit_s:
            raise InputError(
                f"{self.name}: {seconds:.0f} s are more than a clip may last ({self.limit_s:g} s); "
                "give each sentence a row of its own with offset_s and duration_s"
            )


def _read_with_soundfile(source: Any, part: _Part) -> tuple[Float[np.ndarray, " sample"], int] | None:
    """Returns mono samples and their rate; None where libsndfile does not know the format."""
    import soundfile

    try:
        file = soundfile.SoundFile(source)
    except soundfile.LibsndfileError as error:
        if error.code == UNKNOWN_FORMAT:
            return None
        raise _unreadable(part.name, error) from error
    with file:
        if not file.frames and RIFF_DATA_SIZE.search(file.extra_info):
            return None  # a stream whose header was never completed; PyAV reads on to its end
        _check_whole(part.name, file)
        start, count = part.samples(file.frames, file.samplerate)
        lead = min(start, round(SETTLE_S * file.samplerate))
        try:
            file.seek(start - lead)
            # One call: soundfile seeks after each, and an MP3 then begins anew without what came before.
            found = file.read(lead + count, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, OSError) as error:
            raise _unreadable(part.name, error) from error
        if len(found) < lead + count:
            raise InputError(
                f"{part.name}: cut short: {(start - lead + len(found)) / file.samplerate:.2f} s can be read of "
                f"{file.frames / file.samplerate:.2f} s; copy it again"
            )
        return found[lead:].mean(axis=1), file.samplerate


def _check_whole(name: str, file: Any) -> None:
    """A WAV file counts for libsndfile as long as its bytes last; what its header promised is in the log."""
    found = RIFF_DATA_SIZE.search(file.extra_info)
    if found is not None and found[2] is not None and int(found[2]) < int(found[1]) < STREAMED_BYTES:
        raise InputError(f"{name}: cut short: holds {found[2]} of {found[1]} bytes; copy it again")


def _read_with_av(source: Any, part: _Part) -> tuple[Float[np.ndarray, " sample"], int]:
    """As `_read_with_soundfile`, by FFmpeg's decoders."""
    try:
        import av
        from av.error import FFmpegError
    except ModuleNotFoundError as error:
        raise InputError(
            f"{part.name}: not readable as sound by libsndfile; give WAV, FLAC, Ogg or MP3, "
            "or install voxinstruct-jax[prepare] for M4A, AAC and G.722"
        ) from error
    raw = "g722" if part.name.endswith(".g722") else None
    try:
        if hasattr(source, "seek"):
            source.seek(0)
        with av.open(source, format=raw) as container:
            if not container.streams.audio:
                raise InputError(f"{part.name}: holds no sound")
            return _decode(container, part)
    except (FFmpegError, OSError, ValueError) as error:
        raise _unreadable(part.name, error) from error


def _decode(container: Any, part: _Part) -> tuple[Float[np.ndarray, " sample"], int]:
    """Decodes from a little before the part to its end: coders with a memory settle by then."""
    stream = container.streams.audio[0]
    rate = stream.rate
    if part.offset_s > SETTLE_S:
        container.seek(int((part.offset_s - SETTLE_S) * 1e6))
    if part.duration_s is not None:
        part.check_length(part.duration_s)
    elif stream.duration is not None:
        part.check_length(float(stream.duration * stream.time_base) - part.offset_s)
    begin = round(part.offset_s * rate)
    end = None if part.duration_s is None else begin + round(part.duration_s * rate)
    pieces, at, kept = [], 0, 0
    for frame in container.decode(stream):
        at = round(frame.time * rate) if frame.time is not None else at
        piece = _mono(frame)[max(0, begin - at) :]
        at += frame.samples
        if len(piece):
            pieces.append(piece)
            kept += len(piece)
        part.check_length(kept / rate)
        if end is not None and at >= end:
            break
    samples = np.concatenate([*pieces, np.zeros(0, np.float32)])
    if (end is not None and at < end - MAX_OVERHANG_S * rate) or (begin and not kept):
        part.samples(at, rate)  # raises, and says how much there is
    return (samples if end is None else samples[: end - begin]), rate


def _mono(frame: Any) -> Float[np.ndarray, " sample"]:
    values = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(frame.samples, -1).T
    if np.issubdtype(values.dtype, np.integer):
        middle = 128 if values.dtype == np.uint8 else 0
        values = (values.astype(np.float32) - middle) / 2 ** (8 * values.dtype.itemsize - 1)
    return values.mean(axis=0).astype(np.float32)


def _unreadable(name: str, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or error
    return InputError(f"{name}: not readable as sound ({reason}); give WAV, FLAC, Ogg or MP3")


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

    The same samples give the same bytes.

    Args:
        path: Target; `.wav`, `.flac`, `.ogg` (Vorbis) and `.opus` are usual.
        samples: Clipped to [-1, 1].
        sample_rate: Hz.
        tag: Comment stored in the file: that it is synthetic speech, by which model and seed.

    Raises:
        InputError: The folder cannot be written.
    """
    import soundfile

    place = Path(path)
    partial = place.with_name(f".{place.stem}.part{place.suffix}")
    suffix = place.suffix.lower()
    kind: dict[str, Any] = {"format": "OGG", "subtype": "OPUS"} if suffix == ".opus" else {}
    if kind and sample_rate not in OPUS_RATES:
        samples, sample_rate = resample(samples, sample_rate, OPUS_RATES[-1]), OPUS_RATES[-1]
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with soundfile.SoundFile(partial, "w", sample_rate, channels=1, **kind) as sink:
            sink.comment = tag
            sink.write(np.clip(samples, -1.0, 1.0))
        if suffix in (".opus", ".ogg", ".oga"):
            partial.write_bytes(fix_serial(partial.read_bytes()))
        partial.replace(place)
    except (OSError, RuntimeError, TypeError, ValueError) as error:  # TypeError: soundfile knows no such suffix
        if partial.is_file():
            partial.unlink()
        raise InputError(f"{place}: cannot be written ({error}); choose another folder or suffix") from error
