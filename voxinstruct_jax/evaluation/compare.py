"""Systems side by side on the same requests: paired differences, who wins, quality against compute. Start at `compare`.

Systems are folders that `evaluate` wrote. Items are joined by request and seed; one that failed in a system stays, as a
failure. Takes of one request and seed are averaged first.

Source:
    VoxInstruct, table 6, for what an ablation shows; the tests are those of `evaluation.statistics`.
"""

import json
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from voxinstruct_jax.config import ConfigError, InputError
from voxinstruct_jax.evaluation.evaluate import write_whole
from voxinstruct_jax.evaluation.metrics import all_metrics
from voxinstruct_jax.evaluation.stages import rounded
from voxinstruct_jax.evaluation.statistics import holm, paired, win_tie_loss
from voxinstruct_jax.evaluation.summary import as_csv, dump
from voxinstruct_jax.judges.transcripts import tokens

__all__ = [
    "Compared",
    "Comparison",
    "Match",
    "COST",
    "COST_FILE",
    "System",
    "compare",
    "comparison_table",
    "open_system",
    "write_comparison",
]

LEAST_MATCH = 0.95
NAMED = 5
"""Ids that a message names."""
FEWEST_APART = 6
"""Five sentences on which systems differ come out alike by chance once in sixteen: no p below .05 can be had."""
COMPUTE = ("rtf", "length.duration")
COST = ("training_operations", "operations_per_s", "evaluations")
"""Of training as a whole; of a second of speech; forward passes one after another."""
COST_FILE = "cost.json"
"""What a system costs, beside its evaluation."""
Match = Literal["request", "id"]
Record = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class System:
    """What `evaluate` wrote about one system."""

    name: str
    records: Sequence[Record]
    judges: Mapping[str, str]
    values: Mapping[str, float | None]
    """Figures over everything, by metric."""
    cost: Mapping[str, float | None] = field(default_factory=dict)
    """Any of `COST`."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One metric of one system against the first."""

    metric: str
    unit: str
    better: str
    system: str
    baseline: str
    value: float | None
    """Of the system, on the items that both have."""
    baseline_value: float | None
    difference: float | None
    """System minus baseline."""
    ci_low: float | None = None
    ci_high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    """Corrected for the number of metrics and systems compared here."""
    wins: int | None = None
    ties: int | None = None
    losses: int | None = None
    """Items on which the system is better; None where the metric has no direction."""
    evaluated: int
    total: int
    """Items that both have and the metric concerns."""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All of it."""

    rows: list[Compared]
    matched: int
    lost: dict[str, list[str]]
    """Ids of each system without a partner."""
    compute: list[dict[str, Any]]
    """A row a system: its figures, so that quality can be read against compute."""


def open_system(folder: Path, name: str = "") -> System:
    """Reads what `evaluate` wrote.

    Args:
        folder: Its `--out`.
        name: Of the system; its own if empty.

    Raises:
        InputError: The folder holds nothing of the kind.
    """
    try:
        summary = json.loads((folder / "summary.json").read_text("utf-8"))
        judges = json.loads((folder / "judges.json").read_text("utf-8"))["judges"]
        records = [json.loads(line) for line in (folder / "items.jsonl").read_text("utf-8").splitlines()]
        cost = json.loads((folder / COST_FILE).read_text("utf-8")) if (folder / COST_FILE).is_file() else {}
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder}: no finished evaluation ({error}); run `voxinstruct evaluate` first") from error
    values = {row["metric"]: row["value"] for row in summary["rows"] if row["slice"] == "all"}
    return System(name=name or summary["system"], records=records, judges=judges, values=values, cost=cost)


def compare(
    systems: Sequence[System], *, match: Match = "request", allow_partial: bool = False, seed: int = 0
) -> Comparison:
    """Compares every system with the first.

    Args:
        systems: Two or more, with distinct names.
        match: "request": the same instruction, words, language and prompt, and the same seed where both have one; "id":
            the same id.
        allow_partial: Go on where less than 95 % of the items have a partner.
        seed: Of all draws.

    Raises:
        ConfigError: There are fewer than two systems, or two of one name.
        InputError: Too few items match, or two systems were judged by different judges.
    """
    names = [system.name for system in systems]
    if len(names) < 2 or len(set(names)) < len(names):
        raise ConfigError(f"compare needs two or more systems of different names, got {', '.join(names) or 'none'}")
    _check_judges(systems)
    seeded = all(record["seed"] is not None for system in systems for record in system.records)
    tables = [_by_key(system, match, seeded) for system in systems]
    shared = [key for key in tables[0] if all(key in table for table in tables)]
    lost = {
        name: sorted(record["id"] for key, records in table.items() if key not in set(shared) for record in records)
        for name, table in zip(names, tables, strict=True)
    }
    least = min(len(shared) / max(len(table), 1) for table in tables)
    if least < LEAST_MATCH and not allow_partial:
        raise InputError(_too_few(least, lost, match))
    if not shared:
        raise InputError("no item has a partner; were the systems given the same requests?")
    rows = [
        row
        for system, table in zip(systems[1:], tables[1:], strict=True)
        for row in _against(systems[0], system, tables[0], table, shared, seed)
    ]
    return Comparison(rows=_corrected(rows), matched=len(shared), lost=lost, compute=_compute(systems))


def comparison_table(comparison: Comparison) -> list[str]:
    """Lines for a terminal."""
    lines = [f"{comparison.matched} requests matched"]
    lines += [f"{name}: {len(ids)} items without a partner" for name, ids in comparison.lost.items() if ids]
    for pair in dict.fromkeys((row.system, row.baseline) for row in comparison.rows):
        lines += ["", f"{pair[0]} against {pair[1]}"]
        lines.append(f"{'metric':<28}{'':>9}{'base':>9}{'diff':>9}  {'95 % interval':<22}{'p (Holm)':>9}  win/tie/loss")
        for row in comparison.rows:
            if (row.system, row.baseline) != pair or row.difference is None:
                continue
            ends = "" if row.ci_low is None else f"[{row.ci_low:+.3g}, {row.ci_high:+.3g}]"
            p = "" if row.p_holm is None else f"{row.p_holm:.4f}"
            games = "" if row.wins is None else f"{row.wins}/{row.ties}/{row.losses}"
            counts = "" if row.evaluated == row.total else f"  ({row.evaluated} of {row.total})"
            said = f"  {row.note}" if row.note else ""
            lines.append(
                f"{row.metric:<28}{row.value:>9.4g}{row.baseline_value:>9.4g}{row.difference:>+9.3g}  {ends:<22}{p:>9}"
                f"  {games}{counts}{said}"
            )
    lines += ["", "quality against compute"]
    columns = [name for name in comparison.compute[0] if any(row[name] is not None for row in comparison.compute)]
    lines.append("  ".join(f"{name:>14}" for name in columns))
    for row in comparison.compute:
        cells = (row[name] for name in columns)
        lines.append("  ".join(f"{cell if isinstance(cell, str) else _short(cell):>14}" for cell in cells))
    return lines


def write_comparison(comparison: Comparison, out: Path) -> None:
    """Writes `compare.json` and `compare.csv` into a folder; each appears whole or not at all.

    Raises:
        InputError: It cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); give another --out") from error
    rows = [Compared(**rounded(asdict(row))) for row in comparison.rows]
    write_whole(out / "compare.csv", as_csv(Compared, rows))
    write_whole(out / "compare.json", dump(rounded(asdict(comparison))) + "\n")


def _check_judges(systems: Sequence[System]) -> None:
    first = systems[0]
    for system in systems[1:]:
        differ = [
            name for name in first.judges.keys() & system.judges.keys() if first.judges[name] != system.judges[name]
        ]
        if differ:
            raise InputError(
                f"{first.name} and {system.name} were judged by different judges of {', '.join(sorted(differ))}; "
                "evaluate both with the same ones"
            )


def _by_key(system: System, match: Match, seeded: bool) -> dict[Hashable, list[Record]]:
    found: dict[Hashable, list[Record]] = defaultdict(list)
    for record in system.records:
        key = record["id"] if match == "id" else (record["request_sha256"], record["seed"] if seeded else None)
        found[key].append(record)
    return dict(found)


def _too_few(least: float, lost: Mapping[str, Sequence[str]], match: Match) -> str:
    parts = [f"{name}: {', '.join(ids[:NAMED])}{' …' if len(ids) > NAMED else ''}" for name, ids in lost.items() if ids]
    other = "; --match id joins by id alone" if match == "request" else ""
    return (
        f"only {least:.0%} of the items have a partner (without: {'; '.join(parts)}); give all systems the same "
        f"requests and seeds{other}, or --allow-partial"
    )


def _against(
    baseline: System,
    system: System,
    base_table: Mapping[Hashable, Sequence[Record]],
    table: Mapping[Hashable, Sequence[Record]],
    shared: Sequence[Hashable],
    seed: int,
) -> list[Compared]:
    metrics = {metric.id: metric for metric in all_metrics(None, system.judges)}
    names = dict.fromkeys(
        name for key in shared for record in (*base_table[key], *table[key]) for name in record["metrics"]
    )
    rows = []
    for name in [each for each in metrics if each in names]:
        metric = metrics[name]
        both, total, sentences = [], 0, []
        for key in shared:
            sides = [
                [one["metrics"][name] for one in side[key] if name in one["metrics"]] for side in (base_table, table)
            ]
            if not all(sides):
                continue
            total += 1
            one, other = (_mean_take(side) for side in sides)
            if one is not None and other is not None:
                both.append((one, other))
                sentences.append("".join(tokens(table[key][0]["transcript"], "mixed")) or key)
        rows.append(_row(metric, (baseline.name, system.name), both, sentences, total, seed))
    return rows


def _row(
    metric: Any,
    names: tuple[str, str],
    both: Sequence[tuple[tuple[float, float], tuple[float, float]]],
    sentences: Sequence[Hashable],
    total: int,
    seed: int,
) -> Compared:
    shared: dict[str, Any] = {
        "metric": metric.id,
        "unit": metric.unit,
        "better": metric.better,
        "baseline": names[0],
        "system": names[1],
        "evaluated": len(both),
        "total": total,
    }
    first, second = [one for one, _ in both], [other for _, other in both]
    found = paired(first, second, sentences, seed=seed)
    value, base = _ratio(second), _ratio(first)
    if found is None or value is None or base is None:
        difference = None if value is None or base is None else value - base
        note = "fewer than two sentences"
        return Compared(value=value, baseline_value=base, difference=difference, note=note, **shared)
    apart = len({name for (a, b), name in zip(both, sentences, strict=True) if a != b})
    games = (None, None, None)
    if metric.better:
        rates = [[n / d for n, d in side] for side in (first, second)]
        games = win_tie_loss(rates[0], rates[1], better=metric.better, tie=metric.tie)
    return Compared(
        value=value,
        baseline_value=base,
        difference=found.value,
        ci_low=found.ci_low,
        ci_high=found.ci_high,
        p=found.p,
        wins=games[0],
        ties=games[1],
        losses=games[2],
        note=f"differs on {apart} of {FEWEST_APART} sentences that a claim needs" if 0 < apart < FEWEST_APART else "",
        **shared,
    )


def _mean_take(takes: Sequence[Mapping[str, Any]]) -> tuple[float, float] | None:
    """Means of numerator and denominator over the takes of one request; None where none has a value."""
    known = [take for take in takes if take["n"] is not None and take["d"]]
    if not known:
        return None
    return sum(take["n"] for take in known) / len(known), sum(take["d"] for take in known) / len(known)


def _ratio(sides: Sequence[tuple[float, float]]) -> float | None:
    length = sum(d for _, d in sides)
    return sum(n for n, _ in sides) / length if length else None


def _corrected(rows: Sequence[Compared]) -> list[Compared]:
    known = [row for row in rows if row.p is not None]
    corrected = dict(zip(map(id, known), holm([row.p or 0.0 for row in known]), strict=True))
    return [Compared(**{**asdict(row), "p_holm": corrected.get(id(row))}) for row in rows]


def _compute(systems: Sequence[System]) -> list[dict[str, Any]]:
    quality = (
        "wer.vox",
        "cer.vox",
        "pinyin.vox",
        "similarity.vox.prompt",
        "mos.dnsmos.ovrl",
        "attribute.mean",
        "stress.sentence",
    )
    return [
        {"system": system.name}
        | {name: system.cost.get(name) for name in COST}
        | {name: system.values.get(name) for name in (*COMPUTE, *quality)}
        for system in systems
    ]


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
