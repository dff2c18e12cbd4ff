"""The page of a synthesis job, made of what its parts hold."""

import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from voxinstruct_jax.evaluation.job_page import JobItem
    from voxinstruct_jax.jobs.progress import Progress
    from voxinstruct_jax.jobs.results import Result
    from voxinstruct_jax.jobs.store import Store

__all__ = ["PAGE", "write_page"]

PAGE = "job.html"
SECONDS_AN_HOUR = 3600


def write_page(store: "Store", progress: "Progress", price_per_hour: float | None) -> None:
    """Writes `job.html` into a job's place; sounds that lie in shards are copied out for it, into `page/`.

    Args:
        store: The job's place.
        progress: Of the job, at its end.
        price_per_hour: Of a worker; None shows no cost.
    """
    from voxinstruct_jax.evaluation.job_page import JobSection, write_job_page
    from voxinstruct_jax.jobs.quality import FAULTS
    from voxinstruct_jax.jobs.report import gather

    report = gather(store, progress.plan)
    sections = [
        JobSection(title=title, introduction=introduction, items=[_item(store, result) for result in results])
        for title, introduction, results in (
            ("Failed", "Requests that could not be spoken; these are the first.", report.failed),
            ("Quarantined", "Every try had a fault; the best is kept. These are the first.", report.quarantined),
            ("Slowest", "By the time that all tries took.", report.slowest),
        )
    ]
    faults = {f"{name}: {FAULTS.get(name, '')}": count for name, count in report.faults.items()}
    counts = {"Finish reasons": report.finish_reasons, "Faults": faults, "Languages": report.languages}
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / PAGE
        throughput = (report.edges_s, report.audio_s_per_s)
        write_job_page(page, store.place, _facts(progress, price_per_hour), counts, throughput, sections)
        store.write_file(PAGE, page)


def _facts(progress: "Progress", price_per_hour: float | None) -> dict[str, str]:
    found = progress.figures()
    hours = found["synthesis_s"] / SECONDS_AN_HOUR
    facts = {
        "Requests": f"{found['requests']}: {found['done']} done, {found['failed']} failed, "
        f"{found['quarantined']} quarantined; {found['rejected']} rows rejected",
        "Sound": f"{found['audio_hours']:.3f} h",
        "Synthesis": f"{hours:.3f} worker-hours, {_share(found['discarded_s'], found['synthesis_s'])} of it on tries "
        "that were not kept",
        "Judging": f"{found['judging_s'] / SECONDS_AN_HOUR:.3f} h, beside it",
        "Further tries": str(found["retries"]),
    }
    if hours:
        facts["Speed of a worker"] = f"{found['audio_hours'] / hours:.2f} s of sound a second"
    if price_per_hour is not None and found["audio_hours"]:
        facts["Cost of an hour of sound"] = (
            f"{hours * price_per_hour / found['audio_hours']:.4g} at {price_per_hour:g} a worker-hour"
        )
    return facts


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole else "0 %"


def _item(store: "Store", result: "Result") -> "JobItem":
    from voxinstruct_jax.evaluation.job_page import JobItem

    duration = "" if result.duration_s is None else f"{result.duration_s:.2f} s"
    facts = {
        "Finish": result.finish_reason,
        "Duration": duration,
        "Synthesis": f"{result.timings.get('synthesis_s', 0.0):.2f} s in {result.attempts} tries",
        "Language": result.language_predicted or "",
        "Seed": str(result.seed),
        "Notes": "; ".join(result.notes),
    }
    return JobItem(
        title=result.id,
        instruction=result.instruction,
        audio=_playable(store, result.audio),
        problem=result.error or ", ".join(result.checks),
        facts={name: value for name, value in facts.items() if value},
    )


def _playable(store: "Store", audio: str | None) -> str | None:
    """A file that a browser can open."""
    from voxinstruct_jax.jobs.audio_files import read_sound

    if audio is None or ".tar/" not in audio:
        return audio
    content = read_sound(store, audio)
    if content is None:
        return None
    name = f"page/{PurePosixPath(audio).name}"
    store.write(name, content)
    return name
