"""`voxinstruct import FORMAT SOURCE --out MANIFEST [--filter.min-duration-s 3 ...]`."""

import argparse
import json
import os
from dataclasses import dataclass, field

from voxinstruct_jax.cli.options import parse_known
from voxinstruct_jax.config import ConfigError, to_dict
from voxinstruct_jax.data.filters import REJECTED_FILE, FilterConfig, Summary, filter_rows, write_rows
from voxinstruct_jax.data.importers import FORMATS, ImportOptions, import_rows
from voxinstruct_jax.data.progress import count_items
from voxinstruct_jax.data.store import absolute

__all__ = ["run"]

PROGRAM = "voxinstruct import"
SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")


@dataclass(frozen=True, kw_only=True)
class ImportSettings:
    """Filters, by their dotted names."""

    filter: FilterConfig = field(default_factory=FilterConfig)


def run(arguments: list[str]) -> int:
    """Imports a corpus."""
    parser = _parser()
    options, rest = parse_known(parser, arguments)
    if options.help:
        print(parser.format_help())
        rest = ["--help"]
    import tyro

    # tyro prints the filters' help and leaves; a wrong filter leaves with 2, as all wrong use does.
    settings = tyro.cli(ImportSettings, args=rest, prog=PROGRAM)
    if options.format is None or options.source is None or options.out is None:
        raise ConfigError("give FORMAT, SOURCE and --out MANIFEST; see --help")
    if not options.out.endswith(SUFFIXES):
        raise ConfigError(f"--out {options.out}: must end in {' or '.join(SUFFIXES)}")
    out = absolute(options.out)
    asked = ImportOptions(language=options.language, subset=options.subset)
    rows = count_items(import_rows(options.format, options.source, asked), "Importing")
    if "://" not in out:
        os.makedirs(os.path.dirname(out), exist_ok=True)  # noqa: PTH103, PTH120
    summary = write_rows(out, filter_rows(rows, settings.filter))
    print(json.dumps({"out": options.out, **to_dict(summary)}, ensure_ascii=False) if options.json else
          "\n".join(_lines(options.out, summary)))  # fmt: skip
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        PROGRAM,
        description="Turn a speech corpus into a manifest, or filter a manifest. What is left out is listed with its "
        f"reason in {REJECTED_FILE} beside it. "
        "Example: voxinstruct import folder recordings --language en --out corpus/manifest.jsonl",
        epilog="formats: " + "; ".join(f"{name}: {layout.source}" for name, layout in FORMATS.items()),
        add_help=False,
    )
    parser.add_argument("-h", "--help", action="store_true", help="show this, and the filters")
    parser.add_argument("format", nargs="?", metavar="FORMAT", help=", ".join(FORMATS))
    parser.add_argument("source", nargs="?", metavar="SOURCE", help="see formats below; a path or an fsspec URL")
    parser.add_argument("--out", help="manifest: .jsonl, .jsonl.gz or .parquet")
    parser.add_argument("--language", help="of rows whose language the layout does not say: en, zh")
    parser.add_argument("--subset", help="part of the corpus by its published name")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    return parser


def _lines(out: str, summary: Summary) -> list[str]:
    languages = ", ".join(f"{name} {count:,}" for name, count in summary.languages.items())
    unknown = f", {summary.without_duration:,} of unknown duration" if summary.without_duration else ""
    dropped = sum(summary.rejected.values())
    lines = [f"{out}: {summary.rows:,} rows ({languages}), {summary.hours:.2f} h{unknown}"]
    if dropped:
        lines.append(f"left out {dropped:,}, listed in {REJECTED_FILE}:")
    return lines + [f"  {count:>9,}  {reason}" for reason, count in summary.rejected.items()]
