"""Lhotse manifests: CutSets, or recordings with supervisions, as JSON lines.

The `lhotse` package is not needed: its manifests are plain JSON. What is said in one span of one channel of a file
becomes a row; cuts that mix, pad or transform audio have no such file behind them and are set aside.
"""

import dataclasses
import json
import os
import posixpath
from collections.abc import Iterator, Mapping
from typing import Any

from voxinstruct_jax.config import InputError
from voxinstruct_jax.data.importers.source import (
    DiskTable,
    ImportOptions,
    gender_name,
    is_folder,
    language_code,
    make_row,
    read_objects,
    walk,
)
from voxinstruct_jax.data.manifest import COLUMNS, Rejection, Row
from voxinstruct_jax.data.seen import Seen
from voxinstruct_jax.data.store import absolute

__all__ = ["read_lhotse"]

ENDINGS = (".jsonl", ".jsonl.gz")
ROUNDING_S = 0.02
"""Supervisions may stand out of their cut by this much."""
HARMLESS_TRANSFORMS = ("Resample",)
MOST_KEPT_CHARACTERS = 10_000


class _SetAsideError(Exception):
    """Why a cut or a supervision makes no row."""


def read_lhotse(source: str, options: ImportOptions) -> Iterator[Row | Rejection]:
    """Reads cuts, or supervisions whose recordings lie beside them under Lhotse's names.

    Args:
        source: `*cuts*.jsonl(.gz)`, `*supervisions*.jsonl(.gz)`, or a folder: of it cuts are read if there are any,
            else supervisions.
        options: `subset` picks the files whose names hold it between `_`, `-` and `.`.

    Raises:
        InputError: There is nothing to read, or supervisions without recordings.

    Source:
        Lhotse, "Cuts" and "Supervisions" (lhotse.readthedocs.io); checked with Lhotse 1.33.
    """
    ids = Seen()
    for location in _manifests(source, options.subset):
        folder = posixpath.dirname(location)
        for number, record in _cuts(location):
            if isinstance(record, Rejection):
                yield record
                continue
            for item in _cut_rows(number, record, folder, options.language):
                yield _with_own_id(item, str(record.get("id", number)), ids)


def _manifests(source: str, subset: str | None) -> list[str]:
    if not is_folder(source):
        if not source.endswith(ENDINGS):
            raise InputError(f"{source}: no JSON lines; convert it with `lhotse copy {source} cuts.jsonl.gz`")
        return [source]
    names = [name for name in next((names for _, names in walk(source)), []) if name.endswith(ENDINGS)]
    if subset is not None:
        names = [name for name in names if subset in name.replace("-", "_").replace(".", "_").split("_")]
    for kind in ("cuts", "supervisions"):
        if found := [posixpath.join(source, name) for name in names if kind in name]:
            return found
    part = f" of subset {subset}" if subset else ""
    raise InputError(f"{source}: holds no *cuts*.jsonl(.gz) or *supervisions*.jsonl(.gz){part}")


def _cuts(location: str) -> Iterator[tuple[int, dict[str, Any] | Rejection]]:
    """Yields the cuts of a file; a supervision is wrapped in a cut of its whole recording."""
    recordings: DiskTable | None = None
    for number, record in read_objects(location):
        if isinstance(record, Rejection) or "recording_id" not in record or "sources" in record:
            yield number, record
            continue
        if recordings is None:
            recordings = _recordings_beside(location)
        recording = recordings.get(str(record["recording_id"]))
        yield number, _whole_cut(record, recording)


def _recordings_beside(location: str) -> DiskTable:
    folder, name = posixpath.split(location)
    beside = posixpath.join(folder, name.replace("supervisions", "recordings"))
    if beside == location:
        raise InputError(
            f"{location}: holds supervisions; name it *supervisions*, its recordings likewise *recordings*"
        )
    return DiskTable(
        (str(record.get("id")), _json(record)) for _, record in read_objects(beside) if isinstance(record, dict)
    )


def _whole_cut(supervision: dict[str, Any], recording: str | None) -> dict[str, Any]:
    found = None if recording is None else json.loads(recording)
    return {
        "id": supervision.get("id"),
        "type": "MonoCut",
        "start": 0.0,
        "duration": found["duration"] if found else supervision.get("duration"),
        "channel": supervision.get("channel", 0),
        "supervisions": [supervision],
        "recording": found,
    }


def _json(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False)


def _cut_rows(number: int, cut: dict[str, Any], folder: str, language: str | None) -> Iterator[Row | Rejection]:
    name = str(cut.get("id", ""))
    try:
        kind = cut.get("type", "MonoCut")
        if kind != "MonoCut":
            raise _SetAsideError(f"kind of cut: a {kind} is not a span of one channel of one file")
        audio = _audio(cut, folder)
        supervisions = cut.get("supervisions") or []
        if not supervisions:
            raise _SetAsideError("no text: the cut has no supervision")
    except _SetAsideError as reason:
        yield Rejection(row=number, id=name, reason=str(reason))
        return
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        yield Rejection(row=number, id=name, reason=f"no valid cut: {error!r}")
        return
    for supervision in supervisions:
        try:
            yield _row(number, cut, supervision, audio, language)
        except _SetAsideError as reason:
            yield Rejection(row=number, id=str(supervision.get("id", name)), reason=str(reason))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            yield Rejection(row=number, id=name, reason=f"no valid cut: {error!r}")


def _audio(cut: Mapping[str, Any], folder: str) -> str:
    """Returns where the cut's channel lies."""
    recording, channel = cut.get("recording"), cut.get("channel", 0)
    if not recording:
        raise _SetAsideError("no audio file: the cut has no recording")
    changed = [step.get("name", "") for step in recording.get("transforms") or []]
    if set(changed) - set(HARMLESS_TRANSFORMS):
        raise _SetAsideError(f"transformed audio: {', '.join(changed)}; save the audio with lhotse first")
    channel = channel[0] if isinstance(channel, list) and len(channel) == 1 else channel
    sources = [item for item in recording["sources"] if channel in item["channels"]]
    if not sources:
        raise _SetAsideError(f"no audio file: no source has channel {channel}")
    if len(sources[0]["channels"]) > 1:
        raise _SetAsideError("several channels: one file holds them all; write each channel as a file")
    kind, place = sources[0]["type"], sources[0]["source"]
    if kind not in ("file", "url"):
        raise _SetAsideError(f"kind of source: {kind!r} is neither file nor url; save the audio with lhotse first")
    return place if "://" in place else _local(place, folder)


def _local(place: str, folder: str) -> str:
    """Relative paths mean the folder where Lhotse ran: the working folder here, else that of the manifest."""
    return absolute(place) if os.path.isfile(place) else posixpath.join(folder, place)  # noqa: PTH113


def _row(
    number: int, cut: Mapping[str, Any], supervision: Mapping[str, Any], audio: str, language: str | None
) -> Row | Rejection:
    start_s, duration_s = float(supervision["start"]), float(supervision["duration"])
    if start_s < -ROUNDING_S or start_s + duration_s > float(cut["duration"]) + ROUNDING_S:
        raise _SetAsideError("cut off: the supervision reaches beyond its cut")
    gender = gender_name(supervision.get("gender"))
    return make_row(
        number,
        str(supervision["id"]),
        audio=audio,
        language=language_code(supervision.get("language")) or language,
        transcript=supervision.get("text") or "",
        offset_s=round(max(float(cut["start"]) + start_s, 0.0), 6),
        duration_s=round(min(duration_s, float(cut["duration"])), 6),
        speaker=str(supervision.get("speaker") or ""),
        attributes={"gender": gender} if gender else {},
        extra=_extra(cut.get("custom")) | _extra(supervision.get("custom")),
    )


def _extra(custom: Any) -> dict[str, Any]:
    """What a recipe adds, but for arrays and features: they lie elsewhere. Names of our columns get a prefix."""
    kept = {key: value for key, value in (custom or {}).items() if not _stored_elsewhere(value)}
    return {f"custom_{key}" if key in COLUMNS else key: value for key, value in kept.items() if value is not None}


def _stored_elsewhere(value: Any) -> bool:
    arrays = isinstance(value, dict) and ("storage_type" in value or "array" in value or "sources" in value)
    return arrays or len(_json({"": value})) > MOST_KEPT_CHARACTERS


def _with_own_id(item: Row | Rejection, cut_id: str, ids: Seen) -> Row | Rejection:
    """Supervisions in two cuts may share their id; the later one then carries that of its cut too."""
    if isinstance(item, Rejection) or ids.add(item.id):
        return item
    return dataclasses.replace(item, id=f"{cut_id}-{item.id}")
