"""The sounds of a job as files: format, loudness, tar shards. The same sound gives the same bytes.

Start at `sound_bytes`.
"""

import dataclasses
import io
import math
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from voxinstruct_jax.jobs.settings import SoundFormat
from voxinstruct_jax.jobs.store import Store
from voxinstruct_jax.utterance import Audio

__all__ = [
    "AUDIO_FOLDER",
    "QUARANTINE_FOLDER",
    "SHARDS_FOLDER",
    "read_sound",
    "set_loudness",
    "shard_bytes",
    "sound_bytes",
]

AUDIO_FOLDER, SHARDS_FOLDER, QUARANTINE_FOLDER = "audio", "shards", "quarantine"
HIGHEST_PEAK = 10 ** (-1 / 20)
"""-1 dBFS: what a louder sound is kept below."""
BLOCK_S = 0.4
"""Loudness is measured over blocks of this length; a shorter sound is repeated."""


def sound_bytes(spoken: Audio, format_: SoundFormat) -> bytes:
    """Returns a sound file, with the tag that says that it is synthetic speech."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"sound.{format_}"
        spoken.save(path)
        return path.read_bytes()


def set_loudness(spoken: Audio, lufs: float) -> tuple[Audio, float | None]:
    """Brings a sound to a loudness, as far as its peaks stay below -1 dBFS.

    Args:
        spoken: A sound.
        lufs: Integrated loudness (ITU-R BS.1770-4).

    Returns:
        The sound, and the loudness it has now; None where it is silent, and left as it is.
    """
    found = _loudness(spoken.samples, spoken.sample_rate)
    if not math.isfinite(found):
        return spoken, None
    peak = float(np.abs(spoken.samples).max())
    gain = min(10 ** ((lufs - found) / 20), HIGHEST_PEAK / peak)
    louder = dataclasses.replace(spoken, samples=(spoken.samples * np.float32(gain)).astype(np.float32))
    return louder, found + 20 * math.log10(gain)


def shard_bytes(files: Iterable[tuple[str, bytes]]) -> bytes:
    """Returns a tar of files; times and owners are left out, so that the same files give the same bytes."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return target.getvalue()


def read_sound(store: Store, audio: str) -> bytes | None:
    """Returns the sound file that a result names, out of its shard if need be; None if it is gone."""
    shard, dot_tar, member = audio.partition(".tar/")
    if not dot_tar:
        return store.read(audio)
    content = store.read(f"{shard}.tar")
    if content is None:
        return None
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        found = tar.extractfile(member)
        return None if found is None else found.read()


def _loudness(samples: Float32[np.ndarray, " sample"], sample_rate: int) -> float:
    import pyloudnorm

    if not np.any(samples):
        return -math.inf
    least = math.ceil(BLOCK_S * sample_rate) + 1
    whole = np.resize(samples, least) if len(samples) < least else samples
    return float(pyloudnorm.Meter(sample_rate, block_size=BLOCK_S).integrated_loudness(whole.astype(np.float64)))
