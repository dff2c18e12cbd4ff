"""A page on data: histograms, and clips to listen to with their tokens against time.

One HTML folder that opens from disk. Texts come from strangers and are escaped. Start at `write_data_report`.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from voxinstruct_jax.config import InputError
from voxinstruct_jax.evaluation.pages import write_page
from voxinstruct_jax.evaluation.speech_plot import draw_histogram, draw_tokens

__all__ = ["DataExample", "write_data_report"]

PAGE = "report.html"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataExample:
    """A clip on the page.

    Attributes:
        title: Short name.
        before, content, after: The instruction, parted at the words to be spoken.
        samples: Mono; None where there is no audio to play.
        sample_rate: Hz.
        problem: Why there is no audio.
        semantic: Semantic tokens, one a frame; empty where unknown.
        first_codes: First codebook; empty where unknown.
        frame_rate: Of both, Hz.
        spans: Words or characters with start and end, s.
        facts: Lines of the table.
    """

    title: str
    before: str
    content: str
    after: str
    samples: Float[np.ndarray, " sample"] | None
    sample_rate: int
    problem: str = ""
    semantic: Int[np.ndarray, " frame"] = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
    first_codes: Int[np.ndarray, " frame"] = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
    frame_rate: float = 25.0
    spans: Sequence[tuple[str, float, float]] = ()
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)


def write_data_report(
    folder: str | os.PathLike[str],
    title: str,
    facts: Mapping[str, str],
    histograms: Mapping[str, Mapping[str, Any]],
    examples: Sequence[DataExample],
) -> Path:
    """Writes `report.html` and `audio/` into a folder and returns the page's path.

    Args:
        folder: Made if missing.
        title: Heading.
        facts: Lines of the table at the top.
        histograms: As `data.statistics.Tally.summary` has them: `unit`, `edges` and `counts` by language.
        examples: In order.

    Raises:
        InputError: The folder cannot be written.
    """
    place = Path(folder)
    try:
        (place / "audio").mkdir(parents=True, exist_ok=True)
        plots = [
            {
                "name": name.replace("_", " "),
                "plot": draw_histogram(one["edges"], one["counts"], one["unit"], salt=name),
            }
            for name, one in histograms.items()
        ]
        cards = [_card(example, number, place) for number, example in enumerate(examples, 1)]
        write_page(place / PAGE, "data.html", title=title, facts=facts, plots=plots, cards=cards)
    except OSError as error:
        raise InputError(f"{place}: the page cannot be written ({error}); choose another folder") from error
    return place / PAGE


def _card(example: DataExample, number: int, folder: Path) -> dict[str, Any]:
    import soundfile

    source = ""
    if example.samples is not None and len(example.samples):
        source = f"audio/{number:03d}.wav"
        samples = np.clip(example.samples, -1, 1)
        soundfile.write(folder / source, samples, example.sample_rate, subtype="PCM_16", format="WAV")
    plot = draw_tokens(
        example.samples if source else None,
        example.sample_rate,
        salt=f"clip-{number}",
        tracks={"semantic": example.semantic, "codebook 1": example.first_codes},
        frame_rate=example.frame_rate,
        spans=example.spans,
    )
    return {"example": example, "number": number, "source": source, "plot": plot}
