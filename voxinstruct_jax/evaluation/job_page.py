"""The page of a synthesis job: figures, throughput over time, players of its slowest and its faulty requests.

It opens from the job's folder, whose sounds it plays. Texts come from strangers and are escaped. Read `write_job_page`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from voxinstruct_jax.config import InputError
from voxinstruct_jax.evaluation.pages import write_page
from voxinstruct_jax.evaluation.speech_plot import draw_histogram

__all__ = ["JobItem", "JobSection", "write_job_page"]

LONGEST_TEXT = 600
"""Characters shown of an instruction."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobItem:
    """A request on the page.

    Attributes:
        title: Its id.
        instruction: As asked.
        audio: Its sound file, relative to the page; None if there is none.
        problem: What is wrong; "" if nothing is.
        facts: Lines of the table.
    """

    title: str
    instruction: str
    audio: str | None
    problem: str
    facts: Mapping[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobSection:
    """Requests under one heading."""

    title: str
    introduction: str
    items: Sequence[JobItem]


def write_job_page(
    path: Path,
    title: str,
    facts: Mapping[str, str],
    counts: Mapping[str, Mapping[str, int]],
    throughput: tuple[Sequence[float], Sequence[float]],
    sections: Sequence[JobSection],
) -> None:
    """Writes one HTML file.

    Args:
        path: Of the file.
        title: Heading.
        facts: Lines of the table at the top.
        counts: By heading, how often each thing occurs.
        throughput: Edges of times (s), and seconds of sound a second between each two.
        sections: In order; empty ones are left out.

    Raises:
        InputError: It cannot be written.
    """
    edges, rates = throughput
    plot = (
        draw_histogram(edges, {"all": rates}, "time (s)", salt="throughput", what="audio s a second") if edges else ""
    )
    shown = [section for section in sections if section.items]
    try:
        write_page(
            path,
            "job.html",
            title=title,
            facts=facts,
            counts={heading: table for heading, table in counts.items() if table},
            plot=plot,
            sections=[{"section": one, "cards": [_card(item) for item in one.items]} for one in shown],
        )
    except OSError as error:
        raise InputError(f"{path}: the page cannot be written ({error})") from error


def _card(item: JobItem) -> dict[str, object]:
    text = item.instruction
    return {
        "item": item,
        "source": "" if item.audio is None else quote(item.audio),
        "instruction": text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…",
    }
