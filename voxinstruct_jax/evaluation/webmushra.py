"""A MUSHRA test for webMUSHRA, a widely used page for listening tests, and the answers that it keeps.

webMUSHRA takes a YAML file below its `configs/` and writes `mushra.csv`; it hides the reference among the samples by
itself. Read `webmushra_config`, then `read_webmushra`.

Source: Schoeffler et al. 2018, "webMUSHRA: a comprehensive framework for web-based listening tests"; its
doc/experimenter.md and service/write.php at 07130f2.
"""

import csv
import html
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from voxinstruct_jax.config import InputError

__all__ = ["REFERENCE_NAME", "read_webmushra", "webmushra_config"]

REFERENCE_NAME = "reference"
"""What it calls the reference that it hides."""
LONGEST_LINE = 10**9
"""Its parser knows no folded lines."""
_COLUMNS = ("session_test_id", "session_uuid", "trial_id", "rating_stimulus", "rating_score")


def webmushra_config(
    test: str, question: str, pages: Sequence[Mapping[str, Any]], folder: str, hidden: Container[str]
) -> str:
    """Returns the YAML file of a test.

    Args:
        test: Its name; the answers carry it.
        question: What is asked.
        pages: Each with `instruction`, `transcript`, `reference` and `samples`, which name files in `audio/`.
        folder: Of the test, as it is called below `configs/`.
        hidden: Samples that are the hidden reference; webMUSHRA adds its own.
    """
    trials: list[Any] = [
        {
            "type": "mushra",
            "id": str(number),
            "name": "Listen and rate",
            "content": f"{html.escape(question)}<br/>{html.escape(page['instruction'] or page['transcript'])}",
            "showWaveform": False,
            "enableLooping": True,
            "strict": False,  # speech may last longer than the 12 s of the recommendation
            "reference": _place(folder, page["reference"]),
            "createAnchor35": False,
            "createAnchor70": False,
            "randomize": True,
            "stimuli": {name: _place(folder, name) for name in page["samples"] if name not in hidden},
        }
        for number, page in enumerate(pages)
    ]
    config = {
        "testname": "Listening test",
        "testId": test,
        "bufferSize": 2048,
        "stopOnErrors": True,
        "showButtonPreviousPage": True,
        "remoteService": "service/write.php",
        "pages": [
            ["random", *trials],
            {"type": "finish", "name": "Thank you", "content": "", "showResults": False, "writeResults": True},
        ],
    }
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=LONGEST_LINE)


def read_webmushra(path: Path, test: str) -> dict[str, list[dict[str, Any]]]:
    """Reads the `mushra.csv` of a test.

    Returns:
        By listener (its session), pages as `listening_answers` has them: `page`, `samples`, `scores`.

    Raises:
        InputError: The file is unreadable, or holds no answers to this test.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({error}); give the mushra.csv of webMUSHRA") from error
    found: dict[str, dict[str, list[tuple[str, float]]]] = {}
    for number, row in enumerate(rows, 2):
        if any(row.get(name) is None for name in _COLUMNS):
            raise InputError(f"{path}, line {number}: lacks one of {', '.join(_COLUMNS)}; give webMUSHRA's mushra.csv")
        if row["session_test_id"] == test:
            pages = found.setdefault(row["session_uuid"], {})
            pages.setdefault(row["trial_id"], []).append((row["rating_stimulus"], _score(path, number, row)))
    if not found:
        raise InputError(f"{path}: holds no answers to test {test}")
    return {
        session: [
            {"page": page, "samples": [name for name, _ in scores], "scores": scores} for page, scores in pages.items()
        ]
        for session, pages in found.items()
    }


def _score(path: Path, number: int, row: Mapping[str, str]) -> float:
    try:
        return float(row["rating_score"])
    except ValueError as error:
        raise InputError(f"{path}, line {number}: rating_score {row['rating_score']!r} is no number") from error


def _place(folder: str, name: str) -> str:
    return f"configs/{folder}/audio/{name}"
