"""Random crops of audio for codec training.

Clips are decoded once into one flat int16 file, which is then memory-mapped: ten hours at 24 kHz take 1.7 GB. A step's
crops are a pure function of (cache, seed, step). Read `build_cache`, then `SegmentBatches`.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import jax
import numpy as np
from jaxtyping import Float32, Int, Int16, Int32, Int64

from voxinstruct_jax.audio.waveform import read_audio
from voxinstruct_jax.config import InputError, VoxError
from voxinstruct_jax.data.progress import progress_bar
from voxinstruct_jax.data.store import write_json
from voxinstruct_jax.vocabulary import HostOrDevice

__all__ = ["AudioCache", "FrameTokens", "SegmentBatch", "SegmentBatches", "build_cache"]

FORMAT_VERSION = 1
CLIPS_A_CHECKPOINT = 256
INT16_SCALE = 32767.0


@dataclass(frozen=True, kw_only=True)
class AudioCache:
    """Decoded clips, one after another, in one memory-mapped file."""

    samples: Int16[np.ndarray, " sample"]
    """All clips, full scale = 32767."""
    offsets: Int64[np.ndarray, " clip_and_end"]
    """First sample of each clip, and the end of the last one."""
    sample_rate: int
    """Samples a second (Hz)."""
    rejected: tuple[tuple[str, str], ...] = ()
    """(path, reason) of clips that could not be read; they hold no samples."""

    @property
    def hours(self) -> float:
        return len(self.samples) / self.sample_rate / 3600

    def clip(self, index: int) -> Int16[np.ndarray, " sample"]:
        """Returns the samples of one clip, without copying."""
        return self.samples[self.offsets[index] : self.offsets[index + 1]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class SegmentBatch:
    """Crops of a step, and what is said in them."""

    samples: Float32[HostOrDevice, "batch sample"]
    units: Int32[HostOrDevice, "batch frame"]
    """Semantic unit of each frame; -1 = unknown. No frames where the data has no units."""
    features: Int32[HostOrDevice, "batch featured_frame feature"]
    """Linguistic features of each frame; -1 = unknown. None and no frames where the data has no features."""
    codes: Int32[HostOrDevice, "batch codebook coded_frame"]
    """What is to be decoded in place of the codec's own codes. No codebooks and no frames where there is nothing."""
    pitch: Float32[HostOrDevice, "batch pitch_frame"]
    """Hz; 0 = unvoiced. No frames where the data has no pitch."""


@dataclass(frozen=True, kw_only=True)
class FrameTokens:
    """Tokens of the clips of a cache, frame by frame."""

    units: Sequence[Int[np.ndarray, " _"]] = ()
    """Semantic units, one array a clip; empty = none."""
    features: Sequence[Int[np.ndarray, "_ feature"]] = ()
    """Linguistic features, one array a clip; empty = none."""
    codes: Sequence[Int[np.ndarray, "codebook _"]] = ()
    """Codes, one array a clip; empty = none."""
    pitch: Sequence[Float32[np.ndarray, " _"]] = ()
    """Pitch (Hz; 0 = unvoiced), some frames of it each frame, one array a clip; empty = none."""
    pitch_frames: int = 1
    """Frames of pitch in a frame."""
    frame_samples: int
    """Samples a frame; crops then begin with a frame."""


def build_cache(paths: Sequence[str | os.PathLike], folder: str | os.PathLike, sample_rate: int) -> AudioCache:
    """Decodes clips into `folder`, or opens what is already there.

    A build that was cut off goes on where it stopped. Clips that cannot be read are listed in `rejected` and skipped.

    Args:
        paths: Audio files; their order is the order of clips.
        folder: Local folder for `samples.int16` and `index.json`.
        sample_rate: Rate of the cache (Hz); clips are resampled to it.

    Raises:
        InputError: The folder holds other clips or another rate, or no clip could be read.
    """
    folder, names = Path(folder), [os.fspath(path) for path in paths]
    folder.mkdir(parents=True, exist_ok=True)
    identity = hashlib.sha256(json.dumps([FORMAT_VERSION, sample_rate, names]).encode()).hexdigest()
    index_path = folder / "index.json"
    if not index_path.exists():
        _decode_clips(names, folder, sample_rate, identity)
    index = json.loads(index_path.read_text())
    if index["identity"] != identity:
        raise InputError(f"{folder}: holds the audio of other files or another sample rate; give another cache folder")
    offsets = np.array(index["offsets"], np.int64)
    if offsets[-1] == 0:
        raise InputError(f"{folder}: none of the {len(names)} clips could be read; first: {index['rejected'][:1]}")
    samples = np.memmap(folder / "samples.int16", np.int16, "r", shape=(int(offsets[-1]),))
    rejected = tuple((name, reason) for name, reason in index["rejected"])
    return AudioCache(samples=samples, offsets=offsets, sample_rate=sample_rate, rejected=rejected)


def _decode_clips(names: list[str], folder: Path, sample_rate: int, identity: str) -> None:
    progress_path = folder / "progress.json"
    state = {"identity": identity, "offsets": [0], "rejected": []}
    if progress_path.exists():
        saved = json.loads(progress_path.read_text())
        state = saved if saved["identity"] == identity else state
    partial = folder / "samples.partial"
    partial.touch()
    done = len(state["offsets"]) - 1
    with partial.open("r+b") as file, progress_bar("Decoding audio", len(names), done=done) as advance:
        file.truncate(state["offsets"][-1] * 2)
        file.seek(0, os.SEEK_END)
        for index in range(done, len(names)):
            _append_clip(names[index], file, sample_rate, state)
            advance()
            if (index + 1) % CLIPS_A_CHECKPOINT == 0:
                file.flush()
                write_json(progress_path, state)
    partial.replace(folder / "samples.int16")
    write_json(folder / "index.json", state)
    progress_path.unlink(missing_ok=True)


def _append_clip(name: str, file: BinaryIO, sample_rate: int, state: dict) -> None:
    samples = np.zeros(0, np.float32)
    try:
        samples = read_audio(name, sample_rate)
    except (VoxError, OSError) as error:
        state["rejected"].append([name, str(error)])
    file.write(np.round(np.clip(samples, -1, 1) * INT16_SCALE).astype(np.int16).tobytes())
    state["offsets"].append(state["offsets"][-1] + len(samples))


class SegmentBatches:
    """Random crops: `batches[step]` is a pure function of (cache, seed, step).

    Every moment of audio is about equally likely: a clip is drawn by its length (at least one segment), then a crop in
    it. Clips shorter than a segment are followed by zeros.
    """

    def __init__(
        self,
        cache: AudioCache,
        segment_samples: int,
        rows: int,
        seed: int,
        *,
        gain_db: float = 0.0,
        tokens: FrameTokens | None = None,
        host_rows: tuple[int, int] | None = None,
    ) -> None:
        """Prepares the draw.

        Args:
            cache: From `build_cache`.
            segment_samples: Length of a crop.
            rows: Crops in a step, over all hosts.
            seed: Draws clips, crops and gains.
            gain_db: Each crop is scaled by a gain drawn from [-gain_db, gain_db] (dB), less where it would clip.
            tokens: Of the clips; crops then have whole frames.
            host_rows: First and last (exclusive) row that this host reads; all by default.
        """
        self._tokens, self._frames = tokens, segment_samples // tokens.frame_samples if tokens else 0
        self._cache, self._segment_samples, self._seed, self._gain_db = cache, segment_samples, seed, gain_db
        self._host_rows = host_rows or (0, rows)
        lengths = np.diff(cache.offsets)
        weights = np.where(lengths > 0, np.maximum(lengths, segment_samples), 0)
        self._bounds = np.cumsum(weights)

    def __getitem__(self, step: int) -> SegmentBatch:
        crops = [self._crop(np.random.default_rng((self._seed, step, row))) for row in range(*self._host_rows)]
        # Any: the fields are JAX arrays to an objective and NumPy arrays until they are put on a device.
        return SegmentBatch(**{name: cast("Any", np.stack([crop[name] for crop in crops])) for name in crops[0]})

    def _crop(self, random: np.random.Generator) -> dict[str, np.ndarray]:
        clip_index = int(np.searchsorted(self._bounds, random.integers(self._bounds[-1]), side="right"))
        clip = self._cache.clip(clip_index)
        grid = self._tokens.frame_samples if self._tokens else 1
        start = grid * int(random.integers(max(len(clip) - self._segment_samples, 0) // grid + 1))
        crop = np.zeros(self._segment_samples, np.float32)
        part = clip[start : start + self._segment_samples]
        crop[: len(part)] = part / INT16_SCALE
        gain = 10 ** (random.uniform(-self._gain_db, self._gain_db) / 20)
        peak = float(np.abs(crop).max())
        samples = (crop * min(gain, 1 / max(peak, 1e-9))).astype(np.float32)
        place = clip_index, start // grid
        return {
            "samples": samples,
            "units": self._crop_units(*place),
            "features": self._crop_features(*place),
            "codes": self._crop_codes(*place),
            "pitch": self._crop_pitch(*place),
        }

    def _crop_units(self, clip_index: int, first: int) -> Int32[np.ndarray, " frame"]:
        if self._tokens is None or not self._tokens.units:
            return np.zeros(0, np.int32)
        return self._crop_ids(self._tokens.units[clip_index], first)

    def _crop_features(self, clip_index: int, first: int) -> Int32[np.ndarray, "featured_frame feature"]:
        if self._tokens is None or not self._tokens.features:
            return np.zeros((0, 0), np.int32)
        return self._crop_ids(self._tokens.features[clip_index], first)

    def _crop_ids(self, ids: Int[np.ndarray, "..."], first: int) -> Int32[np.ndarray, "..."]:
        """Behind the end of a clip nothing is known."""
        found = np.full((self._frames, *ids.shape[1:]), -1, np.int32)
        part = ids[first : first + self._frames]
        found[: len(part)] = part
        return found

    def _crop_codes(self, clip_index: int, first: int) -> Int32[np.ndarray, "codebook coded_frame"]:
        """Behind the end of a clip its last codes go on: silence, as a rule."""
        if self._tokens is None or not self._tokens.codes:
            return np.zeros((0, 0), np.int32)
        part = self._tokens.codes[clip_index][:, first : first + self._frames].astype(np.int32)
        return np.pad(part, ((0, 0), (0, self._frames - part.shape[1])), mode="edge")

    def _crop_pitch(self, clip_index: int, first: int) -> Float32[np.ndarray, " pitch_frame"]:
        if self._tokens is None or not self._tokens.pitch:
            return np.zeros(0, np.float32)
        rate = self._tokens.pitch_frames
        found = np.zeros(self._frames * rate, np.float32)
        part = self._tokens.pitch[clip_index][first * rate : first * rate + len(found)]
        found[: len(part)] = part
        return found
