"""`voxinstruct testset [NAME] [--out FILE]`: test sets as request files."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from voxinstruct_jax.cli.options import parse
from voxinstruct_jax.config import ConfigError

__all__ = ["run"]

EXAMPLE = """example: voxinstruct testset stress --out stress.jsonl
         voxinstruct synthesize --requests stress.jsonl --out stress"""


def run(arguments: list[str]) -> int:
    """Lists the test sets, or writes one."""
    options = parse(_parser(), arguments)
    from voxinstruct_jax.evaluation.test_sets import SETS, write_set

    if options.name is None:
        print("\n".join(f"{name:<18} {each.about}" for name, each in SETS.items()))
        return 0
    if options.name not in SETS:
        raise ConfigError(f"{options.name}: no such test set; known: {', '.join(SETS)}")
    if options.out is None:
        raise ConfigError("give --out FILE.jsonl, the request file to write")
    needs = SETS[options.name].needs
    for option in ("prompts", "source"):
        if (getattr(options, option) is None) == (option == needs):
            raise ConfigError(f"{options.name}: {'give' if option == needs else 'does not take'} --{option}")
    count = write_set(options.out, _rows(options))
    print(f"{options.out}: {count} requests")
    return 0


def _rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    from voxinstruct_jax.evaluation.test_sets import PUBLISHED, clone_requests, read_set

    if options.name in PUBLISHED:
        return PUBLISHED[options.name](options.source, options.language)
    rows = read_set(options.name)
    return clone_requests(rows, options.prompts) if options.prompts else iter(rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "voxinstruct testset",
        description="List the test sets, or write one as a request file for `synthesize`.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="without it, the sets are listed")
    parser.add_argument("--out", type=Path, help="request file to write (.jsonl)")
    parser.add_argument("--prompts", type=Path, help="manifest of voice prompts, for the cloning sets")
    parser.add_argument("--source", type=Path, help="the published list or JSONL")
    parser.add_argument("--language", help="of a published set that does not say it: en, zh")
    return parser
