"""A synthesis job: requests spoken one by one, each committed as it ends, so a killed job goes on where it stopped.

Read `run_requests`. Its folder: `audio/`, `done/` (one JSON a finished request), `job.json`, and at the end
`results.parquet` and `rejected.jsonl`.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from voxinstruct_jax.config import InputError, VoxError, fingerprint, to_dict
from voxinstruct_jax.guidance import Guidance
from voxinstruct_jax.jobs.requests import RejectedRequest, Request, derive_seed
from voxinstruct_jax.jobs.results import (
    DONE_FOLDER,
    Result,
    check_sound,
    file_names,
    read_done,
    write_done,
    write_json,
    write_results,
)
from voxinstruct_jax.voice import Audio

__all__ = ["JOB_FILE", "REJECTED_FILE", "Report", "Speaker", "check_writable", "claim_folder", "run_requests", "speak"]

REJECTED_FILE = "rejected.jsonl"
AUDIO_FOLDER = "audio"
JOB_FILE = "job.json"

Report = Callable[[int, int], None]
"""(finished requests, all requests) → None; called at the start and after each request."""


@runtime_checkable
class Speaker(Protocol):
    """What a job needs of a voice."""

    @property
    def name(self) -> str: ...

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


def run_requests(
    voice: Speaker,
    requests: Sequence[Request],
    out: Path,
    *,
    job_seed: int,
    rejected: Sequence[RejectedRequest],
    report: Report,
) -> list[Result]:
    """Speaks all requests that `out` does not hold yet.

    Args:
        voice: The voice.
        requests: With distinct ids.
        out: Folder of the job; goes on where it stopped. What is finished, failed or not, is not done again.
        job_seed: Of the requests that name no seed.
        rejected: Rows that were set aside; listed in `rejected.jsonl`.
        report: Called with the progress.

    Returns:
        One result a request, in order; a request that cannot be spoken is a failed one.

    Raises:
        InputError: The folder cannot be written, or holds another job (voice, job seed or request).
    """
    claim_folder(out)
    _claim_job(out, {"voice": voice.name, "job_seed": job_seed})
    names = file_names([request.id for request in requests])
    marks = {request.id: fingerprint(request) for request in requests}
    results = {request.id: read_done(out, request.id, marks[request.id]) for request in requests}
    finished = sum(result is not None for result in results.values())
    report(finished, len(requests))
    for request in requests:
        if results[request.id] is not None:
            continue
        result = speak(voice, request, out, f"{AUDIO_FOLDER}/{names[request.id]}.wav", job_seed=job_seed)
        write_done(out, result, marks[request.id])
        results[request.id] = result
        finished += 1
        report(finished, len(requests))
    everything = [result for result in results.values() if result is not None]
    _write_rejected(out / REJECTED_FILE, rejected)
    write_results(out, everything)
    return everything


def speak(voice: Speaker, request: Request, folder: Path, audio: str, *, job_seed: int) -> Result:
    """Speaks one request into `folder / audio`; whatever goes wrong in it becomes a failed result.

    Raises:
        InputError: The sound cannot be written: a fault of the folder, not of the request.
    """
    seed = derive_seed(job_seed, request.id) if request.seed is None else request.seed
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
        spoken = _synthesize(voice, request, seed)
    except Exception as error:  # one bad request must not end the job
        return Result(status="failed", finish_reason="error", error=_one_line(error), **asked)
    spent = time.perf_counter() - began
    spoken.save(folder / audio)
    return Result(
        status="done",
        language_predicted=spoken.language,
        audio=audio,
        audio_sha256=hashlib.sha256((folder / audio).read_bytes()).hexdigest(),
        duration_s=spoken.duration_s,
        finish_reason=spoken.finish_reason,
        checks=check_sound(spoken.samples),
        timings={"synthesis_s": spent},
        notes=spoken.notes,
        **asked,
    )


def claim_folder(out: Path) -> None:
    """Makes the folder of a job, and clears away what a killed one left half-written.

    Raises:
        InputError: It cannot be written.
    """
    for folder in (out / AUDIO_FOLDER, out / DONE_FOLDER):
        check_writable(folder)
        for torn in [*folder.glob(".*.part.wav"), *folder.glob(".*.partial")]:
            torn.unlink()


def check_writable(folder: Path) -> None:
    """Makes a folder, and finds out that it is read-only before minutes are spent on speaking.

    Raises:
        InputError: It cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # that a folder is read-only shows only by writing
            pass
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); give another --out") from error


def _claim_job(out: Path, identity: dict[str, Any]) -> None:
    """Writes the job's identity and the machine it began on, or compares the identity with what is there."""
    path = out / JOB_FILE
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        changed = [name for name, value in identity.items() if found.get(name) != value]
        if changed:
            raise InputError(f"{out}: holds another job (its {', '.join(changed)} differs); give another --out")
        return
    machine = {"jax": jax.__version__, "device": jax.devices()[0].device_kind, "cpus": os.cpu_count()}
    write_json(path, {**identity, "machine": machine})


def _synthesize(voice: Speaker, request: Request, seed: int) -> Audio:
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
    return spoken


def _one_line(error: Exception) -> str:
    first = next(iter(str(error).splitlines()), "")
    return first if isinstance(error, VoxError) else f"{type(error).__name__}: {first}"


def _write_rejected(path: Path, rejected: Sequence[RejectedRequest]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    lines = [json.dumps(to_dict(row), ensure_ascii=False) + "\n" for row in rejected]
    partial.write_text("".join(lines), encoding="utf-8")
    partial.replace(path)
