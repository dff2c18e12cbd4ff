"""A report to listen to: one HTML folder that opens from disk, with a player, facts and a plot an item.

Nothing is loaded from elsewhere: plots are inline SVG, audio lies beside the page. All texts are foreign and escaped.
The look stands in `templates/report.html`; the curves in `speech_plot.py`. Read `write_report` first.
"""

import dataclasses
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from voxinstruct_jax.audio.waveform import read_audio
from voxinstruct_jax.config import InputError
from voxinstruct_jax.evaluation.pages import write_page
from voxinstruct_jax.evaluation.speech_plot import draw_speech

__all__ = ["ReportItem", "ReportSection", "write_report"]

PLOT_RATE = 24_000
_LANGUAGE_NAMES = {"en": "English", "zh": "Mandarin"}
_FINISH_WORDS = {
    "stop": "stop (ended by itself)",
    "max_semantic": "max_semantic (cut: too many semantic tokens)",
    "max_acoustic": "max_acoustic (cut: too many acoustic tokens)",
    "max_total": "max_total (cut: too long in all)",
    "error": "error",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportItem:
    """One utterance.

    Attributes:
        title: Short name of the case.
        instruction: As the user wrote it.
        audio: Sound file, in the report's folder or elsewhere (then it is copied); None where there is none.
        language: Of the speech ("en", "zh").
        seed: It was spoken with.
        finish_reason: Why decoding ended.
        heard: What the ASR judge heard; None where it was not judged.
        judgement: How well that fits ("1 error in 8 words"), or why it was not judged, or why there is no audio.
        facts: Further lines of the table, name to value.
        stress_s: Start and end of the stressed word, s, where they are known.
    """

    title: str
    instruction: str
    audio: Path | None
    language: str = ""
    seed: int | None = None
    finish_reason: str = ""
    heard: str | None = None
    judgement: str = ""
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    stress_s: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportSection:
    """Items under one heading.

    Attributes:
        title: Heading.
        introduction: What to listen for.
        items: In order; the page sets them side by side where there is room.
    """

    title: str
    introduction: str
    items: Sequence[ReportItem]


def write_report(
    folder: str | os.PathLike[str], title: str, introduction: str, sections: Sequence[ReportSection]
) -> Path:
    """Writes `report.html` into a folder and returns its path; audio from elsewhere is copied to `audio/`.

    An item whose audio is missing or unreadable stays on the page and says so.

    Args:
        folder: Made if missing.
        title: Heading of the page.
        introduction: What the page shows; blank lines part paragraphs.
        sections: In order; none gives a page that says that there is nothing to show.

    Raises:
        InputError: The folder cannot be written.
    """
    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
        number, shown = 0, []
        for section in sections:
            cards = []
            for item in section.items:
                number += 1
                cards.append(_card(item, number, place))
            shown.append({"title": section.title, "paragraphs": _paragraphs(section.introduction), "cards": cards})
        report = place / "report.html"
        write_page(report, "report.html", title=title, paragraphs=_paragraphs(introduction), sections=shown)
    except OSError as error:
        raise InputError(f"{place}: the report cannot be written ({error}); choose another folder") from error
    return report


def _card(item: ReportItem, number: int, folder: Path) -> dict[str, Any]:
    """Gathers what the template shows of an item."""
    source, plot, duration_s, problem = "", "", None, ""
    if item.audio is not None:
        try:
            samples = read_audio(item.audio, PLOT_RATE)
        except InputError as error:
            problem = str(error)
        else:
            source = quote(_beside(item.audio, folder, number))
            duration_s = len(samples) / PLOT_RATE
            plot = draw_speech(samples, PLOT_RATE, salt=f"item-{number}", stress_s=item.stress_s)
    facts = {
        "Language": _LANGUAGE_NAMES.get(item.language, item.language),
        "Duration": "" if duration_s is None else f"{duration_s:.2f} s",
        "Finish": _FINISH_WORDS.get(item.finish_reason, item.finish_reason),
        "Seed": "" if item.seed is None else str(item.seed),
        **item.facts,
    }
    return {
        "item": item,
        "number": number,
        "source": source,
        "problem": problem or ("" if source else item.judgement or "no audio was made"),
        "plot": plot,
        "facts": {name: value for name, value in facts.items() if value},
        "cut": item.finish_reason not in ("", "stop"),
    }


def _beside(audio: Path, folder: Path, number: int) -> str:
    """Returns the file's path from the report's folder; copies it there if it lies elsewhere."""
    if audio.resolve().is_relative_to(folder.resolve()):
        return audio.resolve().relative_to(folder.resolve()).as_posix()
    (folder / "audio").mkdir(exist_ok=True)
    target = folder / "audio" / f"{number:03d}_{audio.name}"
    partial = target.with_name(f".{target.name}.part")
    shutil.copyfile(audio, partial)
    partial.replace(target)
    return target.relative_to(folder).as_posix()


def _paragraphs(text: str) -> list[str]:
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", text) if part.strip()]
