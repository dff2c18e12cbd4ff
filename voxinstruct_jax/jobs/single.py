"""One request spoken into one file, without a job around it."""

import hashlib
import tempfile
import time
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from voxinstruct_jax.config import InputError
from voxinstruct_jax.guidance import Guidance
from voxinstruct_jax.jobs.quality import Inspector
from voxinstruct_jax.jobs.requests import Request
from voxinstruct_jax.jobs.results import Result
from voxinstruct_jax.jobs.settings import JobSettings
from voxinstruct_jax.jobs.units import one_line
from voxinstruct_jax.utterance import Audio

__all__ = ["SingleSpeaker", "check_writable", "speak"]


@runtime_checkable
class SingleSpeaker(Protocol):
    """What is needed of a voice."""

    def synthesize(  # noqa: PLR0913 - as `Voice.synthesize`
        self,
        instruction: str,
        *,
        prompt: str | None = None,
        prompt_transcript: str | None = None,
        transcript: str | None = None,
        language: str | None = None,
        guidance: Guidance | None = None,
        seed: int = 0,
        max_duration_s: float | None = None,
    ) -> Audio: ...


def speak(voice: SingleSpeaker, request: Request, place: Path) -> Result:
    """Speaks a request into a file; whatever goes wrong in it becomes a failed result.

    Args:
        voice: The voice.
        request: With a seed.
        place: The sound file; its suffix names the format.

    Raises:
        InputError: The sound cannot be written: a fault of the folder, not of the request.
    """
    seed = request.seed or 0
    asked = {
        "id": request.id,
        "instruction": request.instruction,
        "transcript": request.transcript,
        "language_asked": request.language,
        "prompt": request.prompt,
        "seed": seed,
        "attributes": request.attributes,
    }
    began = time.perf_counter()
    try:
        spoken = voice.synthesize(
            request.instruction,
            prompt=request.prompt,
            prompt_transcript=request.prompt_transcript,
            transcript=request.transcript,
            language=request.language,
            guidance=request.guidance,
            seed=seed,
            max_duration_s=request.max_duration_s,
        )
        if not np.isfinite(spoken.samples).all():
            raise InputError("the voice made samples that are not numbers; its weights are damaged")
    except Exception as error:
        return Result(status="failed", finish_reason="error", error=one_line(error), **asked)
    spent = time.perf_counter() - began
    verdict = Inspector(JobSettings(), None).inspect(spoken, request, None)
    spoken.save(place)
    return Result(
        status="done",
        language_predicted=spoken.language,
        audio=place.name,
        audio_sha256=hashlib.sha256(place.read_bytes()).hexdigest(),
        duration_s=spoken.duration_s,
        finish_reason=spoken.finish_reason,
        checks=verdict.faults,
        measures=verdict.measures,
        timings={"synthesis_s": spent},
        notes=spoken.notes,
        **asked,
    )


def check_writable(folder: Path) -> None:
    """Makes a folder, and finds out that it is read-only before time is spent on speaking.

    Raises:
        InputError: It cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # that a folder is read-only shows only by writing
            pass
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); give another --out") from error
