"""Word and syllable error rates of the embedded voice on sentences that its training never saw.

Run: uv run --extra asr python benchmarks/intelligibility.py [--voice DIR] [--out DIR]
Set: `unseen_requests.jsonl` beside this file, 20 English and 20 Mandarin sentences held out by sentence. Judge: Whisper
base. Every sentence counts, missing or runaway audio too. The language is predicted, not given.
"""

import argparse
import json
import sys
from pathlib import Path

import voxinstruct_jax as vox
from voxinstruct_jax.evaluation.recognition import Spoken, judge_items, summarise, write_judged
from voxinstruct_jax.judges.asr import load_asr

REQUESTS = Path(__file__).parent / "unseen_requests.jsonl"


def main() -> int:
    """Speaks, listens, prints counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--voice", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/intelligibility"))
    parser.add_argument("--guidance", type=float, nargs=3, metavar=("GAMMA", "ALPHA", "BETA"))
    parser.add_argument("--limit", type=int, help="only the first N sentences of each language")
    options = parser.parse_args()
    voice, listener = vox.load(options.voice), load_asr()
    guidance = vox.Guidance(**dict(zip(GUIDANCE, options.guidance, strict=True))) if options.guidance else None
    items, agreed, reasons = [], 0, {}
    for row in chosen(options.limit):
        audio = voice.synthesize(row["instruction"], guidance=guidance, seed=0)
        path = options.out / "audio" / f"{row['id']}.wav"
        audio.save(path)
        agreed += audio.language == row["language"]
        reasons[audio.finish_reason] = reasons.get(audio.finish_reason, 0) + 1
        items.append(Spoken(id=row["id"], audio=path, transcript=row["transcript"], language=row["language"]))
    judged = judge_items(items, listener)
    write_judged(options.out / "judged.jsonl", judged)
    for row in summarise(judged):
        rate = "not judged" if row.value is None else f"{row.value:.1%}"
        print(f"{row.language} {row.name}: {rate} ({row.errors}/{row.length}), {row.evaluated} of {row.total} judged")
    print(f"language predicted right: {agreed}/{len(items)}; finish reasons: {reasons}")
    return 0


GUIDANCE = ("text_on_semantic", "text_on_acoustic", "semantic_on_acoustic")


def chosen(limit: int | None) -> list[dict[str, str]]:
    """Rows of the set, the first `limit` of each language."""
    rows = [json.loads(line) for line in REQUESTS.read_text("utf-8").splitlines()]
    if limit is None:
        return rows
    return [row for language in ("en", "zh") for row in [r for r in rows if r["language"] == language][:limit]]


if __name__ == "__main__":
    sys.exit(main())
