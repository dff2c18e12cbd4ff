"""`voxinstruct listening KIND NAME=RESULTS ... --out DIR`, `voxinstruct listening analyse KEY ANSWERS ...`."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from voxinstruct_jax.cli.options import parse
from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.evaluation.listening import QUESTIONS, Kind

if TYPE_CHECKING:
    from voxinstruct_jax.evaluation.listening import ListeningItem

__all__ = ["run"]

EXAMPLE = """example: voxinstruct listening mos ours=results theirs=other --out test --raters 20 --items 40
         voxinstruct listening analyse test.key.json answers/*.json"""
ANALYSE = "analyse"


def run(arguments: list[str]) -> int:
    """Writes a listening test, or analyses one."""
    options = parse(_parser(), arguments)
    if options.kind == ANALYSE:
        return _analyse([Path(each) for each in options.sources], as_json=options.json)
    if options.out is None:
        raise ConfigError("give --out DIR, the folder of the test")
    from voxinstruct_jax.evaluation.listening import export_test

    items = _items(options.sources, options.items, options.seed)
    key = export_test(
        options.kind,
        items,
        options.out,
        raters=options.raters,
        seed=options.seed,
        aspect=options.aspect,
        keep_levels=options.keep_levels,
    )
    print(f"{options.out / 'index.html'}?rater=1 to {options.raters}: {len(items)} items; the key is {key}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "voxinstruct listening",
        description="Write a listening test as a folder that opens from disk, or analyse what listeners answered.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", choices=[*get_args(Kind), ANALYSE])
    parser.add_argument(
        "sources",
        nargs="+",
        help="NAME=RESULTS of each system; with analyse: the key, then answers (JSON, or webMUSHRA's mushra.csv)",
    )
    parser.add_argument("--out", type=Path, help="folder of the test; its key is written beside it")
    parser.add_argument("--raters", type=int, default=20, help="listeners there will be (default: 20)")
    parser.add_argument("--items", type=int, help="requests to draw (default: all that every system has)")
    parser.add_argument("--aspect", choices=list(QUESTIONS), default="quality", help="what is asked")
    parser.add_argument("--keep-levels", action="store_true", help="leave sounds as loud as they are")
    parser.add_argument("--seed", type=int, default=0, help="of items, orders and hidden names")
    parser.add_argument("--json", action="store_true", help="print the analysis as JSON")
    return parser


def _items(sources: Sequence[str], count: int | None, seed: int) -> list["ListeningItem"]:
    """Requests that every system has a sound for."""
    from voxinstruct_jax.evaluation.items import Item, read_items
    from voxinstruct_jax.evaluation.listening import ListeningItem

    systems: dict[str, dict[str, Item]] = {}
    for source in sources:
        name, equals, place = source.partition("=")
        if not (name and equals and place):
            raise ConfigError(f"{source}: give NAME=RESULTS, the system's name and its folder")
        systems[name] = {item.id: item for item in read_items(Path(place))[0] if item.audio is not None}
    shared = sorted(set.intersection(*(set(items) for items in systems.values())))
    if not shared:
        raise ConfigError(f"{', '.join(systems)}: have no request in common; speak the same requests with each")
    drawn = sorted(np.random.default_rng(seed).permutation(shared)[:count].tolist())
    first = next(iter(systems.values()))
    return [
        ListeningItem(
            id=name,
            instruction=first[name].instruction,
            transcript=first[name].transcript,
            audio={system: Path(str(items[name].audio)) for system, items in systems.items()},
            reference=_path(first[name].prompt or first[name].reference_audio),
        )
        for name in drawn
    ]


def _path(place: str | None) -> Path | None:
    return None if place is None else Path(place)


def _analyse(paths: Sequence[Path], *, as_json: bool) -> int:
    from voxinstruct_jax.evaluation.listening_answers import analyse, read_ratings

    key, *answers = paths
    if not answers:
        raise ConfigError("analyse: give the key and the files that listeners saved")
    test, ratings = read_ratings(key, answers)
    found = analyse(test["kind"], ratings)
    print(json.dumps(found, ensure_ascii=False) if as_json else "\n".join(_lines(found)))
    return 0


def _lines(found: dict[str, Any]) -> list[str]:
    lines = [f"listener {rater} left out of the second table: {reason}" for rater, reason in found["failed"].items()]
    for title, summary in (("all listeners", found["all"]), ("trusted listeners", found["trusted"])):
        if summary is None or (title != "all listeners" and not found["failed"]):
            continue
        lines.append(f"{title}: {summary['raters']}")
        for system, score in summary["systems"].items():
            low, high = score["interval"]
            lines.append(
                f"  {system:<20} {score['mean']:.2f} [{low:.2f}, {high:.2f}] of {score['ratings']} ratings, "
                f"Elo {summary['elo'][system]:+.0f}"
            )
    return lines
