"""Measures the clips of a manifest and names what was measured: attributes with value, class, confidence and judge.

Clips are measured in units of rows, each unit's findings in a file of their own; then the values give boundaries (or
given ones are read), and the manifest is written with classes and, if asked for, instructions. Files of a run lie in
`OUT.work` until all is done, so that a run that was cut off goes on there; it ends with the same bytes. Nothing depends
on the number of processes. Start at `annotate`.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import posixpath
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from voxinstruct_jax.config import InputError, VoxError, from_dict, to_dict
from voxinstruct_jax.data.clips import read_clip
from voxinstruct_jax.data.durations import quoted
from voxinstruct_jax.data.engines import Engine
from voxinstruct_jax.data.instruction_words import LANGUAGES
from voxinstruct_jax.data.instruction_writer import row_generator, write
from voxinstruct_jax.data.language_models import LanguageModel
from voxinstruct_jax.data.manifest import Annotation, Rejection, Row, iter_manifest, write_manifest
from voxinstruct_jax.data.progress import progress_bar
from voxinstruct_jax.judges.bins import CLASSES, Bins, Value, classify, fit_bins, group, load_bins, save_bins
from voxinstruct_jax.judges.judge import Clip, Judge, Measurement
from voxinstruct_jax.judges.registry import find_judges
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer

__all__ = [
    "JUDGED_RATE",
    "Annotated",
    "Finding",
    "Request",
    "annotate",
    "as_clip",
    "count_syllables",
    "measure_row",
    "spoken_clip",
]

FORMAT_VERSION = "1"
JUDGED_RATE = 16_000
"""What judges are given (Hz)."""
UNIT_ROWS = 32
NOT_JUDGED = "not judged"
_QUOTES = re.compile(r"[\"“”„‟«»「」『』]")  # marks of speech within a transcript would end the quoted content


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for; workers get it with every unit."""

    manifest: str
    out: str
    attributes: tuple[str, ...]
    judges: dict[str, str]
    """`module:class` of each attribute, as `judges.registry.judge_places` gives."""
    bins: str | None = None
    """Boundaries to use; None = terciles of this manifest."""
    instructions: int = 0
    """How many to write for each row that has none."""
    seed: int = 0
    """Of the instructions."""
    language_model: LanguageModel | None = None
    """Rewrites them; workers get a copy. What it answers may differ from run to run, what is finished is kept."""

    @property
    def work(self) -> Path:
        """Folder of unfinished work."""
        return Path(self.out + ".work")

    @property
    def folder(self) -> Path:
        """Where the manifest goes, with `bins.json` and `rejected.jsonl`."""
        return Path(self.out).parent


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was measured of one row."""

    id: str
    measured: dict[str, Measurement] = field(default_factory=dict)
    """By attribute; those that could not be judged are absent."""
    duration_s: float = 0.0
    reason: str = ""
    """Why the row was set aside, if it was."""


@dataclass(frozen=True, kw_only=True)
class Annotated:
    """What became of a manifest."""

    rows: int
    hours: float
    rejected: int
    classes: dict[str, dict[str, int]]
    """Rows of each class, by attribute; "not judged" where there is none."""
    bins: Bins
    without_instructions: int
    """Rows that have none and got none: of languages, with attribute values or words that the grammar can't put."""


@dataclass(frozen=True)
class _Unit:
    request: Request
    number: int
    rows: tuple[Row, ...]


def annotate(request: Request, engine: Engine[Any], *, progress: bool = True) -> Annotated:
    """Annotates a manifest, or goes on where an earlier run stopped.

    Writes `out`, and beside it `bins.json` (the boundaries that were used) and `rejected.jsonl` (rows set aside, with
    the reason). Attributes and instructions that a row has are kept; attributes of an earlier annotation are replaced.

    Args:
        request: What to do.
        engine: Where to do it, from `engines.open_engine`.
        progress: Whether to draw bars.

    Raises:
        InputError: The manifest cannot be read or holds no usable row, the boundaries don't fit the judges, or the work
            folder holds another run.
    """
    judges = find_judges(request.attributes, request.judges)
    given = load_bins(request.bins) if request.bins else None
    if given:
        _check_bins(given, judges, request.bins or "")
    total, digest = _survey(request.manifest)
    _claim(request, judges, given, digest)
    _run(request, engine, _measure, "measured", total, progress)
    bins = given or _fit(request, judges)
    save_bins(request.work / "bins.json", bins)
    if request.instructions:
        _run(request, engine, _write, "written", total, progress)
    return _finish(request, judges, bins)


def measure_row(row: Row, judges: Mapping[str, Judge]) -> Finding:
    """Measures one row; attributes that a person gave are left alone."""
    try:
        clip = spoken_clip(row)
        measured = {name: _judged(judge, clip) for name, judge in judges.items() if not _is_given(row, name)}
    except VoxError as error:
        return Finding(id=row.id, reason=str(error))
    return Finding(
        id=row.id,
        measured={name: found for name, found in measured.items() if found is not None},
        duration_s=len(clip.samples) / JUDGED_RATE,
    )


def spoken_clip(row: Row) -> Clip:
    """Reads what judges are given of a row.

    Raises:
        InputError: The sound cannot be read.
    """
    return as_clip(read_clip(row, JUDGED_RATE), row.language, row.transcript)


def as_clip(samples: Float[np.ndarray, " sample"], language: str, transcript: str) -> Clip:
    """What judges are given of samples at `JUDGED_RATE`."""
    return Clip(
        samples=samples,
        sample_rate=JUDGED_RATE,
        language=language,
        transcript=transcript,
        syllables=count_syllables(transcript),
    )


def count_syllables(transcript: str) -> float:
    """Syllables that a transcript has when it is spoken."""
    return _tokenizer().text_length_units(quoted(_QUOTES.sub(" ", transcript)))


def _judged(judge: Judge, clip: Clip) -> Measurement | None:
    try:
        return judge.measure(clip)
    except Exception as error:  # a judge may be anybody's; its clip is set aside and the rest goes on
        raise InputError(f"{judge.attribute}: {judge.name} failed ({type(error).__name__}: {error})") from error


def _is_given(row: Row, name: str) -> bool:
    return name in row.attributes and name not in row.annotations


def _survey(manifest: str) -> tuple[int, str]:
    """Counts the usable rows and takes a digest of them."""
    digest, total = hashlib.sha256(), 0
    for row in iter_manifest(manifest, rejected=[]):
        digest.update(json.dumps(to_dict(row), sort_keys=True).encode())
        total += 1
    if not total:
        raise InputError(f"{manifest}: holds no usable row; `voxinstruct inspect` says why")
    return total, digest.hexdigest()[:16]


def _check_bins(bins: Bins, judges: Mapping[str, Judge], path: str) -> None:
    for name, judge in judges.items():
        if name in CLASSES and name in bins.attributes and bins.attributes[name].judge != judge.name:
            raise InputError(
                f"{path}: {name} was measured by {bins.attributes[name].judge}, now by {judge.name}, whose values "
                "differ; fit the boundaries again"
            )


def _claim(request: Request, judges: Mapping[str, Judge], given: Bins | None, digest: str) -> None:
    """Makes the work folder, or checks that it holds this very run."""
    identity = {
        "format_version": FORMAT_VERSION,
        "rows": digest,
        "bins": given.fingerprint if given else "",
        "instructions": f"{request.instructions}, seed {request.seed}, {request.language_model or 'grammar'}",
        **{f"judge of {name}": judge.name for name, judge in judges.items()},
    }
    path = request.work / "run.json"
    if not path.exists():
        _check_place(request, given)
        request.work.mkdir(parents=True, exist_ok=True)
        _write_text(path, json.dumps(identity, indent=2))
    found = json.loads(path.read_text(encoding="utf-8"))
    differing = sorted(name for name in {*identity, *found} if found.get(name) != identity.get(name))
    if differing:
        raise InputError(
            f"{request.work}: holds an unfinished run with other {', '.join(differing)}; "
            "remove it, or give another --out"
        )


def _check_place(request: Request, given: Bins | None) -> None:
    """Refuses what would lose somebody's work."""
    if "://" in request.out:
        raise InputError(f"{request.out}: the result goes to a local or shared folder; copy it from there")
    if request.manifest == request.out:
        raise InputError(f"{request.out}: is the manifest itself; give --out another name")
    beside = request.folder / "bins.json"
    if Path(request.out).exists() or not beside.exists():
        return
    if given is None or load_bins(beside).fingerprint != given.fingerprint:
        raise InputError(
            f"{beside}: boundaries of another manifest; use them by --bins {beside}, or give another folder to --out"
        )


def _units(request: Request) -> Iterator[_Unit]:
    rows = iter_manifest(request.manifest, rejected=[])
    for number in itertools.count():
        chunk = tuple(itertools.islice(rows, UNIT_ROWS))
        if not chunk:
            return
        yield _Unit(request, number, chunk)


def _run(
    request: Request, engine: Engine[Any], do: Callable[[_Unit], int], kind: str, total: int, progress: bool
) -> None:
    """Does the units whose files are not there yet."""

    def waiting() -> Iterator[_Unit]:
        return (unit for unit in _units(request) if not _unit_path(request, kind, unit.number).exists())

    done = sum(1 for _ in request.work.glob(f"{kind}-*.jsonl")) * UNIT_ROWS
    title = {"measured": "Measuring", "written": "Writing instructions"}[kind]
    with progress_bar(title, total, done=min(done, total), visible=progress) as tick:
        engine(do, waiting, tick)


def _measure(unit: _Unit) -> int:
    judges = _judges(unit.request.attributes, tuple(unit.request.judges.items()))
    findings = [measure_row(row, judges) for row in unit.rows]
    _write_lines(_unit_path(unit.request, "measured", unit.number), map(to_dict, findings))
    return len(unit.rows)


@functools.cache
def _judges(attributes: tuple[str, ...], places: tuple[tuple[str, str], ...]) -> dict[str, Judge]:
    return find_judges(attributes, dict(places))


@functools.cache
def _tokenizer() -> PronunciationTokenizer:
    return PronunciationTokenizer()


def _fit(request: Request, judges: Mapping[str, Judge]) -> Bins:
    def values() -> Iterator[Value]:
        for row, finding in _found(request):
            gender = _gender(row, finding)
            for name, found in finding.measured.items():
                if name in CLASSES and found.label is None and found.value is not None:
                    yield Value(attribute=name, group=group(name, row.language, gender), value=found.value)

    fitted = {name: (judge.name, judge.unit) for name, judge in judges.items() if name in CLASSES}
    return fit_bins(values(), fitted, corpus=posixpath.basename(request.manifest))


def _found(request: Request, rejected: list[Rejection] | None = None) -> Iterator[tuple[Row, Finding]]:
    """Rows with what was measured of them, in the manifest's order."""
    rows = iter_manifest(request.manifest, rejected=[] if rejected is None else rejected)
    for row, record in zip(rows, _records(request, "measured"), strict=True):
        yield row, from_dict(Finding, record)


def _gender(row: Row, finding: Finding) -> str | None:
    """The one that a person gave, or else the judged one."""
    given = row.attributes.get("gender")
    if isinstance(given, str) and ("gender" not in row.annotations or "gender" not in finding.measured):
        return given
    return finding.measured["gender"].label if "gender" in finding.measured else None


def _labelled(row: Row, finding: Finding, judges: Mapping[str, Judge], bins: Bins) -> Row:
    """Puts what was measured into the row."""
    gender = _gender(row, finding)
    judged = [name for name in judges if not _is_given(row, name)]
    attributes = {name: value for name, value in row.attributes.items() if name not in judged}
    annotations = {name: value for name, value in row.annotations.items() if name not in judged}
    times = row.word_times_s
    for name in judged:
        if name not in finding.measured:
            continue
        found = finding.measured[name]
        label, confidence, judge = found.label or "", found.confidence, judges[name].name
        if found.label is None and found.value is not None:
            classed = classify(bins, name, group(name, row.language, gender), found.value, found.error)
            label, confidence = classed or ("", 0.0)
            judge = f"{judge}; bins {bins.fingerprint}"
        if name == "stress":
            attributes[name] = [int(index) for index in label.split()]
        elif label:
            attributes[name] = label
        times = found.word_times_s or times
        annotations[name] = Annotation(
            value=found.value, unit=judges[name].unit, label=label, confidence=round(confidence, 3), judge=judge
        )
    return dataclasses.replace(row, attributes=attributes, annotations=annotations, word_times_s=times)


def _write(unit: _Unit) -> int:
    request = unit.request
    judges = _judges(request.attributes, tuple(request.judges.items()))
    bins = load_bins(request.work / "bins.json")
    findings = (from_dict(Finding, record) for record in _lines(_unit_path(request, "measured", unit.number)))
    written = [
        _instructions(_labelled(row, finding, judges, bins), request) if not finding.reason else ()
        for row, finding in zip(unit.rows, findings, strict=True)
    ]
    _write_lines(_unit_path(request, "written", unit.number), ({"instructions": texts} for texts in written))
    return len(unit.rows)


def _instructions(row: Row, request: Request) -> tuple[str, ...]:
    """Writes instructions for a row that has none; the grammar's depend on its id and the seed only."""
    if row.instructions or row.language not in LANGUAGES:
        return row.instructions
    try:
        drafts = write(row, request.instructions, row_generator(row.id, request.seed))
    except InputError:  # an attribute value of a person's own, or a transcript full of quote marks
        return ()
    if request.language_model is None:
        return drafts
    return write(row, request.instructions, row_generator(row.id, request.seed), request.language_model)


def _finish(request: Request, judges: Mapping[str, Judge], bins: Bins) -> Annotated:
    """Writes the results, the manifest last, and clears the work away."""
    rejected: list[Rejection] = []
    counts = {name: Counter[str]() for name in judges}
    seconds, silent = 0.0, 0

    def rows() -> Iterator[Row]:
        nonlocal seconds, silent
        written = _records(request, "written") if request.instructions else itertools.repeat(None)
        for (row, finding), texts in zip(_found(request, rejected), written, strict=False):
            if finding.reason:
                rejected.append(Rejection(row=0, id=row.id, reason=finding.reason))
                continue
            seconds += finding.duration_s
            labelled = _labelled(row, finding, judges, bins)
            if texts:
                labelled = dataclasses.replace(labelled, instructions=tuple(texts["instructions"]))
            for name, counted in counts.items():
                counted[_class(labelled.attributes.get(name, NOT_JUDGED))] += 1
            silent += not labelled.instructions
            yield _placed(labelled, request.folder)

    total = write_manifest(request.out, rows())
    _write_lines(request.work / "rejected.jsonl", map(to_dict, rejected))
    (request.work / "rejected.jsonl").replace(request.folder / "rejected.jsonl")
    if not total:
        Path(request.out).unlink()
        _clear(request.work)
        raise InputError(f"{request.manifest}: all rows were set aside, see {request.folder / 'rejected.jsonl'}")
    (request.work / "bins.json").replace(request.folder / "bins.json")
    _clear(request.work)
    return Annotated(
        rows=total,
        hours=seconds / 3600,
        rejected=len(rejected),
        classes={name: dict(sorted(counted.items())) for name, counted in counts.items()},
        bins=bins,
        without_instructions=silent,
    )


def _class(value: str | list[int]) -> str:
    """What a row counts as: its class, or how many of its words are stressed."""
    return value if isinstance(value, str) else f"{len(value)} words"


def _placed(row: Row, folder: Path) -> Row:
    """Relative paths hold in the manifest's own folder only; elsewhere the audio is named in full."""
    if "://" in row.audio or Path(row.audio).is_relative_to(folder):
        return row
    return dataclasses.replace(row, audio=os.path.abspath(row.audio))  # noqa: PTH100 - links stay as they are


def _clear(work: Path) -> None:
    """Removes the work in one step, so that a kill leaves all of it or nothing that counts."""
    gone = work.with_name(work.name + ".done")
    shutil.rmtree(gone, ignore_errors=True)
    work.rename(gone)
    shutil.rmtree(gone)


def _unit_path(request: Request, kind: str, number: int) -> Path:
    return request.work / f"{kind}-{number:07d}.jsonl"


def _records(request: Request, kind: str) -> Iterator[Mapping[str, Any]]:
    for number in itertools.count():
        path = _unit_path(request, kind, number)
        if not path.exists():
            return
        yield from _lines(path)


def _lines(path: Path) -> Iterator[Mapping[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _write_lines(path: Path, records: Iterable[Any]) -> None:
    _write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def _write_text(path: Path, text: str) -> None:
    """The file appears whole or not at all; two processes that write it don't meet."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
