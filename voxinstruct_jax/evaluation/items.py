"""What is evaluated: one `Item` an utterance, joined from results of a job, a manifest or a folder of sound files.

A row that cannot be used is set aside with the reason; an item whose sound is missing stays, and counts against its
system. Read `Item`, then `read_items`.
"""

import hashlib
import json
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from voxinstruct_jax.config import InputError, fingerprint
from voxinstruct_jax.data.manifest import Rejection, iter_records
from voxinstruct_jax.text.fields import quoted_words
from voxinstruct_jax.text.normalizer import HAN_CHARACTER

__all__ = ["Item", "file_digest", "read_items", "request_digest"]

TABLES = ("results.parquet", "manifest.jsonl", "manifest.parquet")
"""Names that a folder's table may have, in the order in which they are looked for."""
SOUND_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".aiff")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One utterance, what was asked for, and what it is compared with."""

    id: str
    audio: str | None = None
    """Sound file; None where the system made none."""
    offset_s: float = 0.0
    duration_s: float | None = None
    """Part of the file (s); None = to its end."""
    transcript: str = ""
    """The words that were to be spoken; empty where nobody knows them."""
    language: str = ""
    """Asked for, else that of the transcript's script."""
    instruction: str = ""
    seed: int | None = None
    speaker: str = ""
    prompt: str | None = None
    """Sound file whose voice was to be continued."""
    reference_audio: str | None = None
    """Sound file of the same words, said as was asked."""
    attributes: dict[str, Any] = field(default_factory=dict)
    """Classes asked for, such as gender; `stress` = indices of stressed words."""
    language_predicted: str | None = None
    finish_reason: str = ""
    synthesis_s: float | None = None
    finished_unix_s: float | None = None
    codes: tuple[tuple[int, ...], ...] = ()
    """Codec tokens that the sound was decoded from, a row a codebook."""
    codebook_size: int | None = None
    """Codes of each codebook."""
    error: str = ""
    """Why the system failed, in its own words."""


def read_items(source: Path, requests: Path | None = None) -> tuple[list[Item], list[Rejection]]:
    """Reads what is to be evaluated, sorted by id.

    Args:
        source: A folder with `results.parquet` (of `synthesize`) or a `manifest.jsonl`, such a file itself, or, with
            `requests`, a folder of sound files named after the ids.
        requests: Table joined by `id`: it adds columns that the source lacks; its own `audio` is then the
            `reference_audio`. Rows that the source lacks are items without sound.

    Returns:
        The items, and the rows that were set aside.

    Raises:
        InputError: There is nothing of the kind, or not one usable row.
    """
    table = _table(source)
    if table is None and requests is None:
        raise InputError(
            f"{source}: holds no {', '.join(TABLES)}; give a folder of results or a manifest, or name the words of a "
            "folder of sound files by --requests"
        )
    rejected: list[Rejection] = []
    asked = {row["id"]: _as_request(row) for row in _rows(requests, rejected)} if requests else {}
    found = {row["id"]: row for row in (_rows(table, rejected) if table else _sound_files(source))}
    if requests and not table:
        found = {name: row for name, row in found.items() if name in asked}
    items = []
    for name in sorted({*asked, *found}):
        try:
            items.append(_item({**asked.get(name, {}), **found.get(name, {"id": name})}))
        except InputError as error:
            rejected.append(Rejection(row=0, id=name, reason=str(error)))
    if not items and rejected:
        raise InputError(f"{table or requests}: no usable row: {rejected[0].reason}")
    return items, rejected


def request_digest(item: Item) -> str:
    """Names what was asked for: instruction, words, language and voice prompt; equal wherever these are."""
    prompt = file_digest(item.prompt) if item.prompt else ""
    return fingerprint([item.instruction, item.transcript, item.language, prompt])


def file_digest(path: str) -> str | None:
    """SHA-256 of a file; None where it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _table(source: Path) -> Path | None:
    if source.is_dir():
        return next((source / name for name in TABLES if (source / name).is_file()), None)
    if not source.is_file():
        raise InputError(f"{source}: no such folder or file; give results of `synthesize` or a manifest")
    return source


def _rows(path: Path, rejected: list[Rejection]) -> Iterator[dict[str, Any]]:
    """Columns that hold something, paths joined to the table's folder; the first row of an id counts."""
    seen: set[str] = set()
    for number, parse in iter_records(str(path)):
        try:
            row = {name: value for name, value in parse().items() if value is not None}
            if not isinstance(row.get("id"), str) or not row["id"]:
                raise InputError("column 'id': missing or no text; every row needs one of its own")
            if row["id"] in seen:
                raise InputError(f"column 'id': {row['id']!r} stands in an earlier row already; make ids unique")
        except InputError as error:
            rejected.append(Rejection(row=number, id="", reason=f"{path}: {error}"))
            continue
        seen.add(row["id"])
        folder = str(path.parent)
        located = ("audio", "prompt", "reference_audio")
        yield row | {name: _located(folder, row[name]) for name in located if isinstance(row.get(name), str)}


def _located(folder: str, path: str) -> str:
    """Beside the table; results name a prompt as it was named to the job."""
    joined = posixpath.join(folder, path)
    return path if Path(path).is_file() and not Path(joined).is_file() else joined


def _as_request(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row that says what was asked for: sound in it is what it should have been like."""
    rest = {name: value for name, value in row.items() if name not in ("audio", "offset_s", "duration_s")}
    whole = "offset_s" not in row
    return ({"reference_audio": row["audio"]} if "audio" in row and whole else {}) | rest


def _sound_files(folder: Path) -> Iterable[dict[str, Any]]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SOUND_SUFFIXES)
    return [{"id": path.stem, "audio": str(path)} for path in paths]


def _item(row: Mapping[str, Any]) -> Item:
    instruction = _text(row, "instruction")
    if not instruction and isinstance(row.get("instructions"), list) and row["instructions"]:
        instruction = str(row["instructions"][0])
    transcript = _text(row, "transcript") or (quoted_words(instruction) or "").strip()
    language = _text(row, "language_asked") or _text(row, "language") or _language(transcript)
    timings = row["timings"] if isinstance(row.get("timings"), Mapping) else {}
    return Item(
        id=row["id"],
        audio=_text(row, "audio") or None,
        offset_s=_number(row, "offset_s") or 0.0,
        duration_s=_number(row, "duration_s") if "offset_s" in row else None,  # elsewhere how long the file is
        transcript=transcript,
        language=language,
        instruction=instruction,
        seed=row["seed"] if isinstance(row.get("seed"), int) else None,
        speaker=_text(row, "speaker"),
        prompt=_text(row, "prompt") or None,
        reference_audio=_text(row, "reference_audio") or None,
        attributes=_attributes(row),
        language_predicted=_text(row, "language_predicted") or None,
        finish_reason=_text(row, "finish_reason"),
        synthesis_s=_number(timings, "synthesis_s"),
        finished_unix_s=_number(timings, "finished_unix_s"),
        codes=_codes(row.get("codes")),
        codebook_size=row["codebook_size"] if isinstance(row.get("codebook_size"), int) else None,
        error=_text(row, "error"),
    )


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name, "")
    if not isinstance(value, str):
        raise InputError(f"column {name!r}: expected text, got {value!r}")
    return value.strip()


def _number(row: Mapping[str, Any], name: str) -> float | None:
    value = row.get(name)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < float("inf"):
        raise InputError(f"column {name!r}: {value!r} is no time; give seconds from 0 up")
    return float(value)


def _attributes(row: Mapping[str, Any]) -> dict[str, Any]:
    found = row.get("attributes", {})
    if isinstance(found, str):  # as results hold them
        try:
            found = json.loads(found)
        except ValueError as error:
            raise InputError(f"column 'attributes': no valid JSON ({error})") from error
    if not isinstance(found, Mapping):
        raise InputError(f'column \'attributes\': expected an object such as {{"gender": "female"}}, got {found!r}')
    kept = {str(name): value for name, value in found.items() if value is not None}
    stress = kept.get("stress", [])
    if not isinstance(stress, list) or any(type(index) is not int or index < 0 for index in stress):
        raise InputError(f"column 'attributes.stress': expected a list of word indices, got {stress!r}")
    return kept


def _codes(value: Any) -> tuple[tuple[int, ...], ...]:
    rows = value or ()
    whole = isinstance(rows, list | tuple) and all(isinstance(book, list | tuple) and book for book in rows)
    if not whole or any(type(code) is not int or code < 0 for book in rows for code in book):
        raise InputError("column 'codes': expected a list of lists of whole numbers from 0 up, one a codebook")
    return tuple(tuple(book) for book in rows)


def _language(transcript: str) -> str:
    return "zh" if HAN_CHARACTER.search(transcript) else "en"
