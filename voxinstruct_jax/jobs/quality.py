"""Is a sound what was asked for? Measures of one sound, the faults they show, and the order of several tries.

Bounds are wide on purpose: they find what is broken (runaways, cut speech, silence), not what is merely odd. Expected
lengths follow from the syllables to be spoken, as the evaluator's runaways do: three times too long, four times too
short. Read `Inspector.inspect`.
"""

import math
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32

from voxinstruct_jax.audio.waveform import read_audio
from voxinstruct_jax.config import InputError, VoxError
from voxinstruct_jax.jobs.requests import Request
from voxinstruct_jax.jobs.settings import JobSettings
from voxinstruct_jax.judges.asr import load_asr
from voxinstruct_jax.judges.pitch import EnergyTrack, active_level_dbfs, energy_track, spoken_seconds
from voxinstruct_jax.judges.speaker import embed_speaker, similarity
from voxinstruct_jax.judges.transcripts import error_counts
from voxinstruct_jax.text.fields import quoted_words
from voxinstruct_jax.text.lengths import syllables
from voxinstruct_jax.utterance import Audio

__all__ = ["FAULTS", "Inspector", "Listener", "Verdict", "open_inspector"]

FAULTS = {
    "silent": "its peak is below -60 dBFS",
    "clipped": "more than a thousandth of it is at full scale",
    "quiet": "its speech is below -55 dBFS",
    "cut": "decoding ended at a limit, not by itself (finish_reason)",
    "short": "less than a quarter of the time that its syllables take",
    "long": "more than three times the time that its syllables take",
    "lead": "more than 1 s of silence before the speech",
    "trail": "more than 1.5 s of silence after it",
    "pause": "more than 2.5 s of silence within it",
    "words": "the ASR judge hears more errors than --max-wer",
    "speaker": "its voice is less similar to the prompt's than --min-similarity",
}
SILENT_DBFS, QUIET_DBFS = -60.0, -55.0
CLIPPED_SHARE = 1e-3
SYLLABLE_S = 0.2
"""Five a second: ordinary speech in both languages."""
SHORT, LONG = 0.25, 3.0
ALLOWANCE_S = 1.0
"""Added to the longest time: pauses that the text asks for."""
LEAD_S, TRAIL_S, PAUSE_S = 1.0, 1.5, 2.5
ACTIVE_RANGE_DB = 40.0
HEARD_S = 60.0
"""The ASR judge hears no more of a runaway (s)."""
PROMPT_RATE = 16_000
PROMPTS_KEPT = 1024


@runtime_checkable
class Listener(Protocol):
    """What can hear: `judges.asr.Asr`, or a stand-in."""

    fingerprint: str

    def transcribe(self, samples: Float[np.ndarray, " sample"], sample_rate: int, language: str | None = None) -> str:
        """Returns the words that are heard."""
        ...


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was found of one sound."""

    faults: tuple[str, ...] = ()
    """Keys of `FAULTS`."""
    measures: dict[str, float] = field(default_factory=dict)
    """Some of `results.MEASURES`."""
    notes: tuple[str, ...] = ()
    """What could not be judged, and why."""

    @property
    def rank(self) -> tuple[float, float, float]:
        """The lower the better: faults, then errors heard, then distance from the expected length."""
        count, spoken = self.measures.get("syllables", 0.0), self.measures.get("speech_s", 0.0)
        distance = abs(math.log(max(spoken, 0.01) / (count * SYLLABLE_S))) if count else 0.0
        return float(len(self.faults)), self.measures.get("wer", 0.0), round(distance, 6)


class Inspector:
    """Inspects sounds by the settings of a job; make one with `open_inspector`."""

    def __init__(self, settings: JobSettings, listener: Listener | None) -> None:
        self._settings, self._listener = settings, listener
        self._prompts: dict[str, np.ndarray | None] = {}

    def inspect(self, spoken: Audio, request: Request, prompt: str | None) -> Verdict:
        """Measures a sound and names its faults.

        Args:
            spoken: The sound.
            request: What it was made for.
            prompt: Local file of the voice prompt.
        """
        content = request.transcript or quoted_words(request.instruction)
        measures = _measure(spoken.samples, spoken.sample_rate)
        notes: list[str] = []
        if content is not None:
            measures["syllables"] = syllables(content)
            if self._listener is not None:
                self._listen(self._listener, spoken, content, measures, notes)
        if self._settings.min_similarity is not None and prompt is not None:
            self._compare(spoken, prompt, measures, notes)
        return Verdict(
            faults=_faults(measures, spoken.finish_reason, self._settings), measures=measures, notes=tuple(notes)
        )

    def _listen(
        self, listener: Listener, spoken: Audio, content: str, measures: dict[str, float], notes: list[str]
    ) -> None:
        heard = listener.transcribe(
            spoken.samples[: int(HEARD_S * spoken.sample_rate)], spoken.sample_rate, spoken.language
        )
        try:
            measures["wer"] = error_counts(content, heard, spoken.language).rate
        except VoxError as error:  # a language that the judge does not know
            notes.append(f"its words were not judged: {error}")

    def _compare(self, spoken: Audio, prompt: str, measures: dict[str, float], notes: list[str]) -> None:
        if prompt not in self._prompts:
            if len(self._prompts) >= PROMPTS_KEPT:
                self._prompts.clear()
            self._prompts[prompt] = embed_speaker(read_audio(prompt, PROMPT_RATE), PROMPT_RATE)
        wanted, found = self._prompts[prompt], embed_speaker(spoken.samples, spoken.sample_rate)
        if wanted is None:
            notes.append("its voice was not judged: the prompt holds less than .3 s of speech")
        else:
            measures["similarity"] = 0.0 if found is None else similarity(wanted, found)


def open_inspector(settings: JobSettings, *, threads: int = 0) -> Inspector:
    """Opens the judges that a job needs: the ASR judge for `max_wer` and for choosing among candidates.

    Args:
        settings: Of the job.
        threads: CPU threads of the ASR judge; 0 takes all.

    Raises:
        InputError: The `asr` extra is needed and not installed.
    """
    if settings.max_wer is None and settings.candidates == 1:
        return Inspector(settings, None)
    try:
        return Inspector(settings, load_asr(num_threads=threads))
    except InputError as error:
        what = "--max-wer" if settings.max_wer is not None else "--candidates"
        raise InputError(f"{what}: {error}") from error


def _measure(samples: Float32[np.ndarray, " sample"], sample_rate: int) -> dict[str, float]:
    level = np.abs(samples)
    peak = float(level.max(initial=0.0))
    track = energy_track(samples, sample_rate)
    leading, trailing, pause = _silences(track, len(samples) / sample_rate)
    return {
        "peak_dbfs": round(20 * math.log10(max(peak, 1e-5)), 3),
        "level_dbfs": round(active_level_dbfs(track), 3),
        "clipped_share": float(np.mean(level >= 1.0)) if len(level) else 0.0,
        "speech_s": round(spoken_seconds(track), 3),
        "leading_s": round(leading, 3),
        "trailing_s": round(trailing, 3),
        "longest_pause_s": round(pause, 3),
    }


def _silences(track: EnergyTrack, duration_s: float) -> tuple[float, float, float]:
    """Seconds before the first frame within 40 dB of the loudest one, after the last, and of the longest gap."""
    if not len(track.level_dbfs):
        return 0.0, 0.0, 0.0
    times = track.times_s[track.level_dbfs > track.level_dbfs.max() - ACTIVE_RANGE_DB]
    gaps = np.diff(times)
    return float(times[0]), max(0.0, duration_s - float(times[-1])), float(gaps.max(initial=0.0))


def _faults(measures: dict[str, float], finish_reason: str, settings: JobSettings) -> tuple[str, ...]:
    if measures["peak_dbfs"] < SILENT_DBFS:
        return ("silent",)
    expected = measures.get("syllables", 0.0) * SYLLABLE_S
    spoken = measures["speech_s"]
    found = {
        "clipped": measures["clipped_share"] > CLIPPED_SHARE,
        "quiet": measures["level_dbfs"] < QUIET_DBFS,
        "cut": finish_reason != "stop",
        "short": spoken < SHORT * expected,
        "long": bool(expected) and spoken > LONG * expected + ALLOWANCE_S,
        "lead": measures["leading_s"] > LEAD_S,
        "trail": measures["trailing_s"] > TRAIL_S,
        "pause": measures["longest_pause_s"] > PAUSE_S,
        "words": settings.max_wer is not None and measures.get("wer", 0.0) > settings.max_wer,
        "speaker": settings.min_similarity is not None and measures.get("similarity", 1.0) < settings.min_similarity,
    }
    return tuple(name for name, wrong in found.items() if wrong)
