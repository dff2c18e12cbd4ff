"""Makes the page of one or more systems from what `evaluate` wrote about them. Read `read_page`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from voxinstruct_jax.config import InputError
from voxinstruct_jax.evaluation.evaluation_page import Confusion, Page, PageItem, SummaryRow

__all__ = ["read_page"]

ERROR_RATE = "error rate"
"""Of an item, whichever its language allows; orders the items."""
ERROR_RATES = ("wer.vox", "cer.vox", "mer.vox")


def read_page(folders: Mapping[str, Path], title: str) -> Page:
    """Reads evaluated folders.

    Args:
        folders: Of each system, by its name.
        title: Heading of the page.

    Raises:
        InputError: A folder holds no finished evaluation.
    """
    summary: list[SummaryRow] = []
    confusions: list[Confusion] = []
    items: list[PageItem] = []
    judges: dict[str, str] = {}
    paragraphs = []
    for name, folder in folders.items():
        found = _read(folder)
        summary += [_summary_row(name, row) for row in found["summary"]["rows"]]
        of_system = f" ({name})" if len(folders) > 1 else ""
        confusions += [_confusion(f"{a}{of_system}", table) for a, table in found["summary"]["confusion"].items()]
        items += [_item(name, record, found["sources"]["audio"]) for record in found["items"]]
        judges |= found["judges"]["judges"]
        judges |= {judge: f"left out: {reason}" for judge, reason in found["judges"]["missing"].items()}
        count, rejected = found["summary"]["items"], found["summary"]["rejected"]
        paragraphs.append(
            f"{name}: {count} item{'' if count == 1 else 's'}" + (f", {rejected} rows set aside" if rejected else "")
        )
    return Page(
        title=title,
        paragraphs=paragraphs,
        summary=summary,
        confusions=confusions,
        items=items,
        judges=dict(sorted(judges.items())),
        worst_by=ERROR_RATE if any(ERROR_RATE in item.metrics for item in items) else "",
    )


def _read(folder: Path) -> dict[str, Any]:
    try:
        found = {name: json.loads((folder / f"{name}.json").read_text("utf-8")) for name in FILES}
        lines = (folder / "items.jsonl").read_text("utf-8").splitlines()
        return found | {"items": [json.loads(line) for line in lines]}
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: no finished evaluation ({error}); run `voxinstruct evaluate` first") from error


FILES = ("summary", "judges", "sources")


def _summary_row(system: str, row: Mapping[str, Any]) -> SummaryRow:
    return SummaryRow(
        system=system,
        slice=row["slice"],
        metric=row["metric"],
        value=row["value"],
        low=row["ci_low"],
        high=row["ci_high"],
        evaluated=row["evaluated"],
        total=row["total"],
        unit=row["unit"],
        direction=row["better"],
        judge=row["judge"],
        note=row["note"],
    )


def _confusion(attribute: str, table: Mapping[str, Mapping[str, int]]) -> Confusion:
    classes = tuple(dict.fromkeys([*table, *(judged for counts in table.values() for judged in counts)]))
    counts = tuple(tuple(table.get(asked, {}).get(judged, 0) for judged in classes) for asked in classes)
    return Confusion(attribute=attribute, classes=classes, counts=counts)


def _item(system: str, record: Mapping[str, Any], audio: Mapping[str, str]) -> PageItem:
    evidence = record["evidence"]
    tags = dict(tag.partition("=")[::2] for tag in record["tags"])
    stress: Sequence[int] = record["attributes"].get("stress") or ()
    metrics = {name: score["value"] for name, score in record["metrics"].items() if score["value"] is not None}
    rates = [metrics[name] for name in ERROR_RATES if name in metrics]
    return PageItem(
        id=record["id"],
        system=system,
        language=tags.pop("language", record["language"]),
        instruction=record["instruction"],
        transcript=record["transcript"],
        audio=Path(audio[record["id"]]) if record["id"] in audio else None,
        heard=evidence.get("asr", {}).get("heard"),
        flags=tuple(evidence["flags"]),
        tags=tags,
        metrics=metrics | ({ERROR_RATE: rates[0]} if rates else {}),
        stress=tuple(stress),
        error=record["error"] or evidence["sound"].get("problem", ""),
    )
