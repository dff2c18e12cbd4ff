"""What a job is asked to do beside its requests; part of its identity, so it may not change half-way."""

from dataclasses import dataclass
from typing import Literal

from voxinstruct_jax.config import ConfigError

__all__ = ["FORMATS", "JobSettings", "SoundFormat"]

SoundFormat = Literal["wav", "flac", "opus"]
FORMATS: tuple[SoundFormat, ...] = ("wav", "flac", "opus")
LOUDNESS_LUFS = (-70.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class JobSettings:
    """Settings of a job.

    Raises:
        ConfigError: A number is out of range.
    """

    job_seed: int = 0
    """Requests that name no seed derive theirs from it and their id."""
    format: SoundFormat = "wav"
    shards: bool = False
    """Sounds go into one tar a work unit instead of a file each."""
    loudness_lufs: float | None = None
    """Integrated loudness (ITU-R BS.1770) that sounds are brought to; None leaves them as they are."""
    attempts: int = 3
    """Sounds tried, each with a seed of its own, before a request is quarantined."""
    candidates: int = 1
    """Sounds tried in any case, of which the best is kept."""
    max_wer: float | None = None
    """Highest error rate of what the ASR judge hears: words in English, characters in Mandarin."""
    min_similarity: float | None = None
    """Lowest similarity of the voice to the prompt's."""

    def __post_init__(self) -> None:
        for name in ("attempts", "candidates"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is not at least 1")
        if self.max_wer is not None and not self.max_wer >= 0:
            raise ConfigError(f"max_wer: {self.max_wer} is not a rate from 0 up, such as 0.2")
        if self.min_similarity is not None and not 0 <= self.min_similarity <= 1:
            raise ConfigError(f"min_similarity: {self.min_similarity} is not from 0 to 1")
        low, high = LOUDNESS_LUFS
        if self.loudness_lufs is not None and not low <= self.loudness_lufs <= high:
            raise ConfigError(f"loudness_lufs: {self.loudness_lufs} is not from {low:g} to {high:g}, such as -23")

    @property
    def tries(self) -> int:
        """Sounds tried at most."""
        return max(self.attempts, self.candidates)
