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
from voxinstruct_jax.data.engines import open_engine
from voxinstruct_jax.data.manifest import Row, write_manifest
from voxinstruct_jax.evaluation.evaluate import EvaluationRequest, evaluate

REQUESTS = Path(__file__).parent / "unseen_requests.jsonl"


def main() -> int:
    """Speaks, listens, prints counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--voice", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/intelligibility"))
    parser.add_argument("--guidance", type=float, nargs=3, metavar=("GAMMA", "ALPHA", "BETA"))
    parser.add_argument("--limit", type=int, help="only the first N sentences of each language")
    options = parser.parse_args()
    voice = vox.load(options.voice)
    guidance = vox.Guidance(**dict(zip(GUIDANCE, options.guidance, strict=True))) if options.guidance else None
    rows, agreed, reasons = [], 0, {}
    for row in chosen(options.limit):
        audio = voice.synthesize(row["instruction"], guidance=guidance, seed=0)
        path = options.out / "audio" / f"{row['id']}.wav"
        audio.save(path)
        agreed += audio.language == row["language"]
        reasons[audio.finish_reason] = reasons.get(audio.finish_reason, 0) + 1
        rows.append(Row(id=row["id"], audio=str(path), transcript=row["transcript"], language=row["language"]))
    write_manifest(options.out / "manifest.jsonl", rows)
    request = EvaluationRequest(source=options.out, out=options.out / "scores", metrics=METRICS)
    done = evaluate(request, open_engine("local", 1))
    for row in done.rows:
        if row.metric in METRICS and row.slice == "all":
            rate = "not judged" if row.value is None else f"{row.value:.1%}"
            scores = [each.scores[row.metric] for each in done.scored if row.metric in each.scores]
            errors, length = sum(score.n or 0 for score in scores), sum(score.d for score in scores)
            print(f"{row.metric}: {rate} ({errors:.0f}/{length:.0f}), {row.evaluated} of {row.total} judged {row.note}")
    print(f"language predicted right: {agreed}/{len(rows)}; finish reasons: {reasons}")
    return 0


METRICS = ("wer.vox", "cer.vox", "pinyin.vox")
GUIDANCE = ("text_on_semantic", "text_on_acoustic", "semantic_on_acoustic")


def chosen(limit: int | None) -> list[dict[str, str]]:
    """Rows of the set, the first `limit` of each language."""
    rows = [json.loads(line) for line in REQUESTS.read_text("utf-8").splitlines()]
    if limit is None:
        return rows
    return [row for language in ("en", "zh") for row in [r for r in rows if r["language"] == language][:limit]]


if __name__ == "__main__":
    sys.exit(main())
