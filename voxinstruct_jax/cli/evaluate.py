"""`voxinstruct evaluate RESULTS --out DIR`."""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxinstruct_jax import __version__
from voxinstruct_jax.cli.options import parse
from voxinstruct_jax.config import ConfigError

if TYPE_CHECKING:
    from voxinstruct_jax.evaluation.evaluation_page import Align
    from voxinstruct_jax.evaluation.leaks import Leak
    from voxinstruct_jax.evaluation.summary import Row

__all__ = ["add_judging", "judging", "run", "write_report"]

LEAKS_SHOWN = 10


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
    parser.add_argument("--train-manifest", type=Path, help="manifest that the voice was trained on: what of it leaks")
    parser.add_argument("--figures", type=int, default=40, help="worst items to draw in the report (default: 40)")
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
    leaks = _leaks(options) if options.train_manifest else []
    done = evaluate(request, open_engine("local", options.workers), progress=not options.json)
    page = write_report({request.system or options.results.resolve().stem: options.out}, options)
    if options.json:
        found = _as_json(done.rows, len(done.scored), len(done.rejected))
        found |= {"leaks": [asdict(leak) for leak in leaks]} if options.train_manifest else {}
        print(json.dumps(found, ensure_ascii=False))
    else:
        for line in as_table(row for row in done.rows if row.evaluated or not row.skipped):
            print(line)
        for row in (row for row in done.rows if row.skipped):
            print(f"{row.metric:<32}0/{row.total}  {row.note}")
        for leak in leaks[:LEAKS_SHOWN]:
            print(f"leak: {leak.id}: {leak.kind} of training row {leak.train_id} ({leak.similarity:.2f})")
        if options.train_manifest:
            leaked = {leak.id for leak in leaks}
            print(f"{len(leaked)} of {len(done.scored)} items were seen in training, by {options.train_manifest}")
        print(f"{page}: {len(done.scored)} items, {len(done.rejected)} rows set aside")
    missing = any(row.skipped for row in done.rows)
    return 1 if options.require and missing else 0


def write_report(folders: Mapping[str, Path], options: argparse.Namespace) -> Path:
    """Writes the page of evaluated systems to `OUT/report`; returns its path."""
    from voxinstruct_jax.data.progress import progress_bar
    from voxinstruct_jax.evaluation.evaluated import read_page
    from voxinstruct_jax.evaluation.evaluation_page import write_evaluation_page

    page = read_page(folders, f"Evaluation of {', '.join(folders)}")
    align = _word_times() if options.figures else None
    with progress_bar("Drawing", min(options.figures, len(page.items)), visible=not options.json) as tick:
        return write_evaluation_page(
            options.out / "report", page, figures=options.figures, align=align, report=lambda done, total: tick()
        )


def _word_times() -> "Align | None":
    """Finds words in sound; None where the `asr` extra is not installed."""
    from voxinstruct_jax.config import InputError
    from voxinstruct_jax.data.word_times import open_word_aligner
    from voxinstruct_jax.voice_folder import embedded_release

    try:
        return open_word_aligner(embedded_release()).word_times
    except InputError:
        return None


def _leaks(options: argparse.Namespace) -> "list[Leak]":
    from voxinstruct_jax.data.manifest import iter_manifest
    from voxinstruct_jax.evaluation.items import read_items
    from voxinstruct_jax.evaluation.leaks import find_leaks

    items, _ = read_items(options.results, options.requests)
    return find_leaks((asdict(item) for item in items), iter_manifest(options.train_manifest))


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
