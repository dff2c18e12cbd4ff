r"""What the embedded voice reaches of what it aims at, from what `voxinstruct evaluate` wrote.

A figure stands with its interval and with evaluated / total; one that no folder holds is shown as not measured. Folders
are sets spoken by one voice; `--codec` is resynthesised speech judged against its originals
(`benchmarks/codec_speech.py`), `--corpus` speech as the voice was trained on.

Run: uv run python benchmarks/aims.py scores/SET … --codec scores/codec --corpus scores/corpus
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Aim:
    """A metric of `evaluate` and where it should be."""

    about: str
    metric: str
    bound: float
    lower: bool = False
    """True where less is better."""
    shown: str = ".1%"


AIMS = (
    Aim("English WER above the reference voice", "wer.vox.excess", 0.05, lower=True),
    Aim("Mandarin syllable errors above the reference voice", "pinyin.vox.excess", 0.05, lower=True),
    Aim("tones right", "tone.accuracy", 0.90),
    Aim("gender", "attribute.gender", 0.97),
    Aim("speed", "attribute.speed", 0.85),
    Aim("pitch", "attribute.pitch", 0.85),
    Aim("energy", "attribute.energy", 0.85),
    Aim("stressed word found", "stress.top1", 0.80),
    Aim("similarity to the prompt", "similarity.vox.prompt", 0.75, shown=".2f"),
    Aim("runaways", "runaway", 0.005, lower=True, shown=".2%"),
    Aim("compute a second of speech", "rtf", 0.7, lower=True, shown=".2f"),
)
CODEC_AIMS = (
    Aim("codec: English WER above the originals", "wer.vox.excess", 0.015, lower=True),
    Aim("codec: Mandarin syllable errors above the originals", "pinyin.vox.excess", 0.015, lower=True),
)
MOS, MOS_BELOW = "mos.dnsmos.ovrl", 0.3


def main() -> int:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scores", type=Path, nargs="+", help="folders that `evaluate` wrote, a set each")
    parser.add_argument("--codec", type=Path, help="such a folder of resynthesised speech")
    parser.add_argument("--corpus", type=Path, help="such a folder of the training speech")
    options = parser.parse_args()
    sets = {str(folder): figures(folder) for folder in options.scores}
    codec = {"codec": figures(options.codec)} if options.codec else {}
    lines = [line for aim in AIMS for line in judged(aim, sets)]
    lines += [line for aim in CODEC_AIMS for line in judged(aim, codec)]
    corpus = figures(options.corpus).get(MOS) if options.corpus else None
    aim = Aim("DNSMOS, at most .3 below the corpus", MOS, corpus["value"] - MOS_BELOW if corpus else 0.0, shown=".2f")
    lines += judged(aim, sets) if corpus else [f"| {aim.about} | – | – | not measured | – | – |"]
    sys.stdout.write("| what | set | aim | reached | evaluated / total | met |\n|---|---|---|---|---|---|\n")
    sys.stdout.writelines(f"{line}\n" for line in lines)
    return 0


def figures(folder: Path) -> dict[str, dict[str, Any]]:
    """Rows of a summary over all items, by metric."""
    if not (folder / "summary.json").is_file():
        sys.exit(f"{folder}: no summary.json; give a folder that `voxinstruct evaluate` wrote")
    rows = json.loads((folder / "summary.json").read_text("utf-8"))["rows"]
    return {row["metric"]: row for row in rows if row["slice"] == "all"}


def judged(aim: Aim, sets: dict[str, dict[str, dict[str, Any]]]) -> Iterator[str]:
    """A line for each set that says something of the aim."""

    def show(value: float) -> str:
        return format(value, aim.shown)

    bound = f"at {'most' if aim.lower else 'least'} {show(aim.bound)}"
    found = False
    for name, rows in sets.items():
        row = rows.get(aim.metric)
        if row is None or row["value"] is None or not row["evaluated"]:
            continue
        found = True
        value = row["value"]
        ends = "" if row["ci_low"] is None else f" [{show(row['ci_low'])}, {show(row['ci_high'])}]"
        met = value <= aim.bound if aim.lower else value >= aim.bound
        count = f"{row['evaluated']} / {row['total']}"
        yield f"| {aim.about} | {name} | {bound} | {show(value)}{ends} | {count} | {'yes' if met else 'no'} |"
    if not found:
        yield f"| {aim.about} | – | {bound} | not measured | – | – |"


if __name__ == "__main__":
    raise SystemExit(main())
