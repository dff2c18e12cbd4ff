"""Evaluates a set of utterances: items, judges, metrics, summary. Start at `evaluate`.

Every judge's findings are kept in `OUT/evidence`, so a run that was cut off goes on where it stopped, and another judge
costs its own column only. Equal sound and equal judges give equal bytes in `items.jsonl`.

Source:
    VoxInstruct, section 5, for what is reported; protocols stand in the rows.
"""

import difflib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from voxinstruct_jax.config import ConfigError, InputError
from voxinstruct_jax.data.engines import Engine
from voxinstruct_jax.data.manifest import Rejection
from voxinstruct_jax.evaluation.evidence import StagePlace, Timing, gather, sound_digest
from voxinstruct_jax.evaluation.items import Item, read_items, request_digest
from voxinstruct_jax.evaluation.job_metrics import JOB_METRICS, job_rows
from voxinstruct_jax.evaluation.metrics import all_metrics
from voxinstruct_jax.evaluation.score import Findings, Metric
from voxinstruct_jax.evaluation.set_metrics import confusions, set_demands, set_rows, set_stages
from voxinstruct_jax.evaluation.stages import SOUND, Evidence, rounded, stage_places
from voxinstruct_jax.evaluation.statistics import paired
from voxinstruct_jax.evaluation.summary import Judged, Row, Scored, as_csv, cluster_key, dump, slices_of, summarise
from voxinstruct_jax.evaluation.word_metrics import FLAGS, finish_flags
from voxinstruct_jax.judges.bins import Bins, load_bins
from voxinstruct_jax.judges.transcripts import align, normaliser_name, tokens

__all__ = ["Evaluation", "EvaluationRequest", "evaluate"]

FORMAT_VERSION = 1
EVIDENCE_FOLDER = "evidence"
WRITTEN = (
    "items.jsonl",
    "summary.json",
    "summary.csv",
    "judges.json",
    "sources.json",
    "rejected.jsonl",
    "timings.jsonl",
)
REFERENCE_METRICS = ("wer.vox", "cer.vox", "pinyin.vox", "mer.vox")
_VECTORS = ("clip", "prompt", "reference")
"""Embeddings, probabilities: too long for a line that people read."""


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """What to evaluate, and by what."""

    source: Path
    """Results, a manifest, or a folder of sound files; see `items.read_items`."""
    out: Path
    requests: Path | None = None
    bins: Path | None = None
    """Boundaries of classes (`bins.json` of the training data)."""
    judges: Mapping[str, str] = field(default_factory=dict)
    """`MODULE:CLASS` or a folder, by stage."""
    metrics: tuple[str, ...] = ()
    """Ids, or their beginnings up to a dot; () = all."""
    skip: tuple[str, ...] = ()
    reference: Path | None = None
    """Another voice on the same sentences: error rates are reported as excess over its."""
    cluster: str = "sentence"
    seed: int = 0
    """Of the bootstrap."""
    system: str = ""
    """Name in the summary; the source's name if empty."""
    code_version: str = ""
    """Of this program."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What came out; all of it stands in the folder too."""

    rows: list[Row]
    scored: list[Scored]
    rejected: list[Rejection]
    out: Path


@dataclass(frozen=True)
class _Heard:
    """Everything that was found about a set of items."""

    items: list[Item]
    findings: dict[str, Findings]
    judges: dict[str, str]
    """Fingerprints, by stage."""
    missing: dict[str, str]
    """Stages that could not be opened, and why."""
    timings: list[Timing]


def evaluate(request: EvaluationRequest, engine: Engine[Any], *, progress: bool = True) -> Evaluation:
    """Evaluates, or goes on where an earlier run stopped.

    Args:
        request: What to do.
        engine: Where judges work: `data.engines.open_engine`, or `evidence.in_this_process`.
        progress: Whether to draw bars.

    Raises:
        InputError: There is nothing to evaluate, or the folder cannot be written.
        ConfigError: A metric or judge is unknown.
    """
    bins = load_bins(request.bins) if request.bins else None
    places = stage_places(request.judges)
    metrics = _chosen(all_metrics(bins, places), request, places)
    items, rejected = read_items(request.source, request.requests)
    _prepare_folder(request.out)
    demands = set_demands(items, lambda name: _is_wanted(name, request), places)
    heard = _hear(items, metrics, places, request.out / EVIDENCE_FOLDER, engine, progress, demands)
    scored = [_scored(item, metrics, heard) for item in items]
    judged = [_judged(metric, heard, bins) for metric in metrics]
    rows = summarise(judged, scored, cluster=request.cluster, seed=request.seed)
    everything = [(each, heard.findings[each.item.id]) for each in scored]
    of_sets = set_rows(everything, heard.judges, bins, request.seed)
    rows += [row for row in of_sets if _is_wanted(row.metric, request) or _is_derived(row.metric, request)]
    of_job = job_rows([(each.item, findings) for each, findings in everything], request.seed)
    rows += [row for row in of_job if _is_wanted(row.metric, request)]
    if request.reference:
        rows += _excess(request, metrics, judged, scored, places, engine, progress)
    rows = [_rounded(row) for row in rows]
    _write(request, heard, scored, rows, rejected, confusions(everything, bins), bins)
    return Evaluation(rows=rows, scored=scored, rejected=rejected, out=request.out)


def _chosen(metrics: Sequence[Metric], request: EvaluationRequest, places: Mapping[str, str]) -> list[Metric]:
    ids = [*(metric.id for metric in metrics), *set_stages(places), *JOB_METRICS]
    for pattern in (*request.metrics, *request.skip):
        if not any(_is_named([pattern], each) for each in ids):
            names = [name for each in ids for name in (each, each.partition(".")[0])]
            near = difflib.get_close_matches(pattern, names, n=1)
            raise ConfigError(
                f"no metric {pattern!r}" + (f"; did you mean {near[0]!r}?" if near else "; see docs/evaluate.md")
            )
    return [metric for metric in metrics if _is_wanted(metric.id, request)]


def _is_wanted(name: str, request: EvaluationRequest) -> bool:
    return (not request.metrics or _is_named(request.metrics, name)) and not _is_named(request.skip, name)


def _is_derived(name: str, request: EvaluationRequest) -> bool:
    """Of attributes and stress: what a set says goes with what its items say."""
    return name.startswith(("attribute.", "order.", "stress.")) and not _is_named(request.skip, name)


def _is_named(patterns: Sequence[str], name: str) -> bool:
    return any(name == pattern or name.startswith(f"{pattern}.") for pattern in patterns)


def _prepare_folder(out: Path) -> None:
    """Makes the folder; figures of an earlier run go, what judges found stays."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in WRITTEN:
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); give another --out") from error


def _hear(
    items: list[Item],
    metrics: Sequence[Metric],
    places: Mapping[str, str],
    folder: Path,
    engine: Engine[Any],
    progress: bool,
    demands: Mapping[str, set[str]],
) -> _Heard:
    """Lets every judge hear what it is needed for, one judge after the other.

    Args:
        items: All of them.
        metrics: Of single items.
        places: Of judges given by hand, by stage.
        folder: Where findings are kept.
        engine: Where judges work.
        progress: Whether to draw bars.
        demands: Ids of the items that a stage must hear besides.
    """
    first = StagePlace(name=SOUND)
    existing = [item for item in items if sound_digest(item.audio)]
    sound, timing = gather({first: existing}, folder, engine, progress=progress)[SOUND]
    lost = {"status": "missing", "problem": "no file"}
    findings: dict[str, dict[str, Evidence]] = {item.id: {SOUND: sound.get(item.id, lost)} for item in items}
    heard = _Heard(items, dict(findings), {SOUND: first.open().fingerprint}, {}, [timing])
    audible = [item for item in existing if sound[item.id]["status"] == "ok"]
    wanted: dict[StagePlace, list[Item]] = {}
    for name in dict.fromkeys([*(metric.stage for metric in metrics), *demands]):
        if name == SOUND:
            continue
        needed = {item.id for item in items if any(m.stage == name and m.applies(item) for m in metrics)}
        needed |= demands.get(name, set())
        place = StagePlace(name=name, place=places.get(name.removeprefix("attribute."), ""))
        try:
            stage = place.open() if needed else None
        except InputError as error:
            heard.missing[name] = str(error)
            continue
        if stage is not None:
            heard.judges[name] = stage.fingerprint
            wanted[place] = [item for item in audible if item.id in needed and stage.applies(item)]
    found = gather(wanted, folder, engine, progress=progress)
    unknown = {"void": "of no kind that this judge knows"}
    for name, (evidence, timing) in found.items():
        heard.timings.append(timing)
        for item in audible:
            findings[item.id][name] = evidence.get(item.id, unknown)
    for item in items:
        findings[item.id][FLAGS] = dict(finish_flags(item, findings[item.id]))
    return heard


def _scored(item: Item, metrics: Sequence[Metric], heard: _Heard) -> Scored:
    findings = heard.findings[item.id]
    return Scored(
        item=item,
        scores={
            metric.id: metric.score(item, findings)
            for metric in metrics
            if metric.stage not in heard.missing and metric.applies(item)
        },
        flags=tuple(sorted(name for name, raised in findings[FLAGS].items() if raised)),
    )


def _judged(metric: Metric, heard: _Heard, bins: Bins | None) -> Judged:
    judge = heard.judges.get(metric.stage, "")
    if metric.normaliser:
        judge += f"; {normaliser_name(metric.normaliser)}"
    if metric.bins and bins:
        judge += f"; bins {bins.fingerprint}"
    missing = heard.missing.get(metric.stage, "")
    return Judged(metric=metric, judge="" if missing else judge, missing=f"skipped: {missing}" if missing else "")


def _excess(
    request: EvaluationRequest,
    metrics: Sequence[Metric],
    judged: Sequence[Judged],
    scored: Sequence[Scored],
    places: Mapping[str, str],
    engine: Engine[Any],
    progress: bool,
) -> list[Row]:
    """Error rates above those of another voice on the same sentences: what the judge itself gets wrong is taken off."""
    assert request.reference is not None
    wanted = [metric for metric in metrics if metric.id in REFERENCE_METRICS]
    items, _ = read_items(request.reference)
    heard = _hear(items, wanted, places, request.out / EVIDENCE_FOLDER, engine, progress, {})
    known = {_sentence(item): _scored(item, wanted, heard) for item in items}
    rows = []
    for one in judged:
        name = one.metric.id
        if one.metric not in wanted or one.missing:
            continue
        concerned = [each for each in scored if one.metric.applies(each.item)]
        pairs = [
            (known[_sentence(each.item)].scores[name], each.scores[name], cluster_key(each.item, request.cluster))
            for each in concerned
            if _sentence(each.item) in known and name in known[_sentence(each.item)].scores
        ]
        pairs = [(a, b, key) for a, b, key in pairs if a.n is not None and b.n is not None]
        if not concerned:
            continue
        ends = paired(
            [(a.n or 0.0, a.d) for a, _, _ in pairs],
            [(b.n or 0.0, b.d) for _, b, _ in pairs],
            [key for _, _, key in pairs],
            seed=request.seed,
        )
        shared: dict[str, Any] = {
            "unit": one.metric.unit,
            "better": "lower",
            "evaluated": len(pairs),
            "total": len(concerned),
            "judge": one.judge,
        }
        rate = sum(a.n or 0.0 for a, _, _ in pairs) / max(sum(a.d for a, _, _ in pairs), 1)
        rows.append(
            Row(
                metric=f"{name}.reference",
                value=rate if pairs else None,
                protocol="corpus rate of the reference voice on the sentences that both have",
                **shared,
            )
        )
        rows.append(
            Row(
                metric=f"{name}.excess",
                value=ends.value if ends else None,
                ci_low=ends.ci_low if ends else None,
                ci_high=ends.ci_high if ends else None,
                protocol="corpus rate minus that of the reference voice on the same sentences, paired bootstrap",
                note="" if ends else "fewer than two sentences in common",
                **shared,
            )
        )
    return rows


def _sentence(item: Item) -> tuple[str, ...]:
    return (item.language, *tokens(item.transcript, "mixed"))


def _rounded(row: Row) -> Row:
    return Row(**rounded(asdict(row)))


# --- what is written -------------------------------------------------------------------------------------------------


def _write(
    request: EvaluationRequest,
    heard: _Heard,
    scored: Sequence[Scored],
    rows: Sequence[Row],
    rejected: Sequence[Rejection],
    confusion: Mapping[str, Any],
    bins: Bins | None,
) -> None:
    out, system = request.out, request.system or request.source.resolve().stem
    records = [_record(each, heard.findings[each.item.id], system) for each in scored]
    summary = {
        "format_version": FORMAT_VERSION,
        "system": system,
        "items": len(scored),
        "rejected": len(rejected),
        "cluster": request.cluster,
        "seed": request.seed,
        "code_version": request.code_version,
        "bins_id": bins.fingerprint if bins else None,
        "confusion": confusion,
        "rows": [asdict(row) for row in rows],
    }
    sources = {
        name: {item.id: os.path.abspath(path) for item in heard.items if (path := getattr(item, name))}  # noqa: PTH100 - links stay
        for name in ("audio", "prompt", "reference_audio")
    }
    texts = {
        "items.jsonl": "".join(dump(record) + "\n" for record in records),
        "judges.json": json.dumps({"judges": heard.judges, "missing": heard.missing}, indent=1, sort_keys=True) + "\n",
        "sources.json": dump(sources) + "\n",
        "rejected.jsonl": "".join(dump(asdict(row)) + "\n" for row in rejected),
        "timings.jsonl": "".join(dump(asdict(timing)) + "\n" for timing in heard.timings),
        "summary.csv": as_csv(Row, rows),
        "summary.json": json.dumps(summary, ensure_ascii=False, indent=1) + "\n",  # last: it says that all is there
    }
    for name, text in texts.items():
        write_whole(out / name, text)


def write_whole(path: Path, text: str) -> None:
    """Writes a file that appears whole or not at all.

    Raises:
        InputError: It cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); give another --out") from error


def _record(each: Scored, findings: Findings, system: str) -> dict[str, Any]:
    item = each.item
    evidence: dict[str, Any] = {
        stage: {name: value for name, value in found.items() if not (isinstance(value, list) and name in _VECTORS)}
        for stage, found in findings.items()
    }
    evidence[FLAGS] = list(each.flags)
    heard = findings.get("asr", {}).get("heard")
    if heard is not None and item.transcript:
        evidence["alignment"] = align(item.transcript, heard, "word" if item.language == "en" else "character")
    return {
        "id": item.id,
        "system": system,
        "seed": item.seed,
        "audio_sha256": sound_digest(item.audio),
        "request_sha256": request_digest(item),
        "language": item.language,
        "transcript": item.transcript,
        "instruction": item.instruction,
        "speaker": item.speaker,
        "attributes": item.attributes,
        "finish_reason": item.finish_reason,
        "tags": slices_of(item),
        "metrics": {name: _score_record(score) for name, score in each.scores.items()},
        "evidence": evidence,
        "error": item.error or None,
    }


def _score_record(score: Any) -> dict[str, Any]:
    record = {"value": rounded(score.value), "n": rounded(score.n), "d": rounded(score.d), "status": score.status}
    if score.parts:
        record["parts"] = dict(score.parts)
    if score.reason:
        record["reason"] = score.reason
    return record
