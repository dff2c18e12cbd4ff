"""`voxinstruct evaluate RESULTS --out DIR`."""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxinstruct_jax import __version__
from voxinstruct_jax.cli.options import parse
from voxinstruct_jax.config import ConfigError

if TYPE_CHECKING:
    from voxinstruct_jax.evaluation.summary import Row

__all__ = ["add_judging", "judging", "run"]


def run(arguments: list[str]) -> int:
    """Evaluates results, a manifest or a folder of sound files."""
    parser = argparse.ArgumentParser(
        "voxinstruct evaluate",
        description="Judge speech: error rates, speaker, naturalness, prosody, control, with intervals; resumable. "
        "Example: voxinstruct evaluate results --out scores",
    )
    parser.add_argument("results", type=Path, help="results of `synthesize`, a manifest, or a folder of sound files")
    parser.add_argument("--out", type=Path, required=True, help="folder for items.jsonl, summary.json, summary.csv …")
    parser.add_argument("--requests", type=Path, help="table joined by id: words, attributes, reference recordings")
    parser.add_argument("--reference", type=Path, help="another voice on the same sentences: error rates above its own")
    parser.add_argument("--require", action="store_true", help="exit code 1 where a judge is missing")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    add_judging(parser)
    options = parse(parser, arguments)
    from voxinstruct_jax.data.engines import open_engine
    from voxinstruct_jax.evaluation.evaluate import EvaluationRequest, evaluate
    from voxinstruct_jax.evaluation.summary import as_table

    request = EvaluationRequest(
        source=options.results,
        out=options.out,
        requests=options.requests,
        reference=options.reference,
        **judging(options),
    )
    done = evaluate(request, open_engine("local", options.workers), progress=not options.json)
    if options.json:
        print(json.dumps(_as_json(done.rows, len(done.scored), len(done.rejected)), ensure_ascii=False))
    else:
        for line in as_table(row for row in done.rows if row.evaluated or not row.skipped):
            print(line)
        for row in (row for row in done.rows if row.skipped):
            print(f"{row.metric:<32}0/{row.total}  {row.note}")
        print(f"{options.out}: {len(done.scored)} items, {len(done.rejected)} rows set aside")
    missing = any(row.skipped for row in done.rows)
    return 1 if options.require and missing else 0


def add_judging(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say how to judge."""
    parser.add_argument("--metrics", help="such as wer,cer,attribute (default: all)")
    parser.add_argument("--skip", help="metrics to leave out")
    parser.add_argument("--bins", type=Path, help="bins.json of the training data: classes of pitch, energy, speed")
    parser.add_argument(
        "--judge", action="append", default=[], metavar="NAME=PLACE", help="MODULE:CLASS, or for asr a Whisper folder"
    )
    parser.add_argument("--cluster", choices=("sentence", "speaker"), default="sentence", help="resampled as one")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: a core each)")


def judging(options: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_judging` as fields of `EvaluationRequest`.

    Raises:
        ConfigError: They don't fit.
    """
    if options.workers < 1:
        raise ConfigError("--workers must be 1 or more")
    return {
        "metrics": _names(options.metrics),
        "skip": _names(options.skip),
        "bins": options.bins,
        "judges": dict(_pair(text) for text in options.judge),
        "cluster": options.cluster,
        "seed": options.seed,
        "code_version": __version__,
    }


def _as_json(rows: "Sequence[Row]", total: int, rejected: int) -> dict[str, Any]:
    """`wer` and `cer` as fractions, and how many items they rest on; everything else in `metrics`."""
    whole = {row.metric: row for row in rows if row.slice == "all"}
    found: dict[str, Any] = {
        name: whole[f"{name}.vox"].value if f"{name}.vox" in whole else None for name in ("wer", "cer")
    }
    heard = [whole[name] for name in ("wer.vox", "cer.vox") if name in whole]
    found["evaluated"] = sum(row.evaluated for row in heard)
    found |= {"total": total, "rejected": rejected}
    return found | {"metrics": {name: asdict(row) for name, row in whole.items()}}


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip()) if text else ()


def _pair(text: str) -> tuple[str, str]:
    name, equals, place = text.partition("=")
    if not equals or not place:
        raise ConfigError(f"--judge {text!r}: expected NAME=MODULE:CLASS or asr=FOLDER, such as mos.utmos=mine:Utmos")
    return name, place
