"""The report of an evaluation: one folder that opens from disk, fast with thousands of items.

`index.html` has the summary with intervals, plots, confusions, and a table of items, the worst first, that filters as
you type; `data.js` holds the numbers (a page opened from disk may not fetch a file), `audio/` the sounds, `figures/` a
picture (mel, pitch, energy, words) of each of the worst items. All texts are foreign and are escaped. Read `Page`, then
`write_evaluation_page`.

Source: VoxInstruct, figure 3, for the picture of an item.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
from jaxtyping import Float

from voxinstruct_jax.audio.waveform import read_audio
from voxinstruct_jax.config import InputError
from voxinstruct_jax.evaluation.pages import write_page
from voxinstruct_jax.evaluation.speech_plot import draw_intervals, draw_speech
from voxinstruct_jax.text.words import split_words

__all__ = ["Align", "Confusion", "Page", "PageItem", "SummaryRow", "write_evaluation_page"]

PLOT_RATE = 24_000
_INK = "#33373d"

OPEN, CLOSE = "\x02", "\x03"
"""Stand around stressed words in `data.js`."""

Direction = Literal["lower", "higher", ""]
Align = Callable[[Float[np.ndarray, " sample"], int, str], Sequence[tuple[float, float]] | None]
"""(samples, sample rate, transcript) → start and end of each word (s), as `split_words` has them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SummaryRow:
    """One figure of the summary."""

    system: str
    slice: str
    """all, or a part such as `language=en`."""
    metric: str
    value: float | None
    """None where nothing could be evaluated."""
    low: float | None
    high: float | None
    """95 % interval."""
    evaluated: int
    total: int
    unit: str = ""
    direction: Direction = ""
    """Which way is better."""
    judge: str = ""
    note: str = ""
    """Why items were left out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Confusion:
    """How often a class that was asked for was judged as another."""

    attribute: str
    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    """A row an asked class, a column a judged one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PageItem:
    """One utterance."""

    id: str
    system: str
    language: str
    instruction: str
    transcript: str
    audio: Path | None
    heard: str | None = None
    """By the ASR judge; None where it was not judged."""
    flags: tuple[str, ...] = ()
    """What is wrong: runaway, silent ..."""
    tags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """What can be filtered by, beside system and language."""
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    stress: tuple[int, ...] = ()
    """Indices into `split_words(transcript)` of the words that were to be stressed."""
    error: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Page:
    """All that the page shows."""

    title: str
    paragraphs: Sequence[str]
    summary: Sequence[SummaryRow]
    confusions: Sequence[Confusion]
    items: Sequence[PageItem]
    judges: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Name and version of each judge; or why it was left out."""
    worst_by: str = ""
    """The metric that items are ordered by at first."""


def write_evaluation_page(
    folder: Path,
    page: Page,
    *,
    figures: int = 40,
    align: Align | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Writes the page and returns the path of its `index.html`.

    Args:
        folder: Made if missing; sounds are linked (or copied) into it.
        page: What to show.
        figures: Of the worst items to draw, about half a second each.
        align: Finds the words that the figures show; None = they show none.
        report: Called with the figures drawn and all.

    Raises:
        InputError: The folder cannot be written.
    """
    try:
        (folder / "audio").mkdir(parents=True, exist_ok=True)
        (folder / "figures").mkdir(exist_ok=True)
        worst = set(_worst(page)[:figures])
        drawn = 0
        items = []
        for number, item in enumerate(page.items):
            source = _linked(item.audio, folder / "audio", number)
            figure = ""
            if number in worst:
                figure = _figure(item, folder / "figures" / f"{number:05d}.svg", number, align)
                drawn += 1
                report(drawn, len(worst))
            items.append(_record(item, source, figure))
        data = {
            "summary": [dataclasses.asdict(row) for row in page.summary],
            "confusions": [dataclasses.asdict(confusion) for confusion in page.confusions],
            "worst_by": page.worst_by,
            "items": items,
        }
        text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        (folder / "data.js").write_text(f"window.DATA = {text.replace('<', chr(92) + 'u003c')};\n", encoding="utf-8")
        index = folder / "index.html"
        write_page(
            index,
            "evaluation.html",
            title=page.title,
            paragraphs=page.paragraphs,
            judges=page.judges,
            plots=_plots(page.summary),
        )
    except OSError as error:
        raise InputError(f"{folder}: the report cannot be written ({error}); choose another folder") from error
    return index


def _worst(page: Page) -> list[int]:
    """Numbers of the items with a sound, the worst by the page's metric first, those without a value last."""
    higher = any(row.metric == page.worst_by and row.direction == "higher" for row in page.summary)

    def badness(number: int) -> tuple[bool, float]:
        value = page.items[number].metrics.get(page.worst_by)
        return value is None, 0.0 if value is None else value if higher else -value

    return sorted((n for n, item in enumerate(page.items) if item.audio is not None), key=badness)


def _record(item: PageItem, source: str, figure: str) -> dict[str, Any]:
    """What the page's script reads of an item; short names, since there may be thousands."""
    shown = {
        "id": item.id,
        "system": item.system,
        "language": item.language,
        "instruction": item.instruction,
        "transcript": _marked(item),
        "heard": item.heard,
        "flags": list(item.flags),
        "tags": dict(item.tags),
        "metrics": {name: round(value, 4) for name, value in item.metrics.items()},
        "audio": source,
        "figure": figure,
        "error": item.error,
    }
    return {name: value for name, value in shown.items() if value not in ("", None, [], {})}


def _linked(audio: Path | None, folder: Path, number: int) -> str:
    """Puts a sound into the folder, as a second name of the same file where that is possible."""
    if audio is None or not audio.is_file():
        return ""
    target = folder / f"{number:05d}{audio.suffix}"
    target.unlink(missing_ok=True)
    try:
        os.link(audio.resolve(), target)
    except OSError:  # another file system
        shutil.copyfile(audio, target)
    return quote(f"audio/{target.name}")


def _marked(item: PageItem) -> str:
    """The transcript with signs around the words that were to be stressed."""
    text = item.transcript
    words = split_words(text)
    for index in sorted(item.stress, reverse=True):
        if index < len(words):
            start, end = words[index].start, words[index].end
            text = f"{text[:start]}{OPEN}{text[start:end]}{CLOSE}{text[end:]}"
    return text


def _figure(item: PageItem, path: Path, number: int, align: Align | None) -> str:
    """Draws an item; empty where its sound cannot be read."""
    if item.audio is None:
        return ""
    try:
        samples = read_audio(item.audio, PLOT_RATE)
    except InputError:
        return ""
    times = align(samples, PLOT_RATE, item.transcript) if align is not None and item.transcript else None
    words = [
        (word.text, start, end)
        for word, (start, end) in zip(split_words(item.transcript), times or (), strict=False)
        if end > start
    ]
    stressed = [times[index] for index in item.stress if times is not None and index < len(times)]
    stress_s = (stressed[0][0], stressed[-1][1]) if stressed else None
    drawn = draw_speech(samples, PLOT_RATE, salt=f"item-{number}", stress_s=stress_s, words=words)
    # A picture of its own has no page whose colour it could take.
    path.write_text(drawn.replace("currentColor", _INK), encoding="utf-8")
    return quote(f"figures/{path.name}")


def _plots(summary: Sequence[SummaryRow]) -> list[dict[str, str]]:
    """A plot a metric that has more than one row: systems and slices with their intervals."""
    by_metric: dict[str, list[SummaryRow]] = {}
    for row in summary:
        if row.value is not None:
            by_metric.setdefault(row.metric, []).append(row)
    plots = []
    for metric, rows in by_metric.items():
        if len(rows) > 1:
            points = [(_label(row), row.value or 0.0, row.low, row.high) for row in rows]
            name = f"{metric} ({rows[0].unit})" if rows[0].unit else metric
            plots.append({"metric": metric, "svg": draw_intervals(points, name, salt=f"plot-{metric}")})
    return plots


def _label(row: SummaryRow) -> str:
    return " · ".join(part for part in (row.system, row.slice if row.slice != "all" else "") if part) or "all"
