"""Stressed words as a judge that `annotate` takes, over word times by the embedded voice's aligner."""

from importlib import resources
from pathlib import Path

from voxinstruct_jax.data.word_stress import open_stress_finder
from voxinstruct_jax.judges.judge import Clip, Measurement

__all__ = ["StressJudge"]


class StressJudge:
    """Its label is the indices of the stressed words, such as "2 3", empty for none; needs the `asr` extra."""

    attribute = "stress"
    unit = ""
    name = "acoustic-stress/2"

    def __init__(self) -> None:
        self._finder = open_stress_finder(Path(str(resources.files("voxinstruct_jax") / "release")))

    def measure(self, clip: Clip) -> Measurement | None:
        """None where the transcript cannot have been spoken in the clip."""
        times = self._finder.aligner.word_times(clip.samples, clip.sample_rate, clip.transcript)
        if times is None:
            return None
        found = self._finder.find(clip.samples, clip.sample_rate, clip.transcript, times)
        if found is None:
            return None
        return Measurement(
            label=" ".join(map(str, found.indices)),
            confidence=round(found.confidence, 3),
            probabilities=tuple(round(each, 4) for each in found.probabilities),
            word_times_s=tuple((round(start, 3), round(end, 3)) for start, end in times),
        )
