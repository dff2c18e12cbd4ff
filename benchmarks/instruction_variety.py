"""How varied are the instructions that the grammar writes? English and Mandarin apart.

Run: uv run python benchmarks/instruction_variety.py
Set: 10,000 instructions a language for drawn attributes (gender, pitch, speed and energy even; age and emotion
known for two clips in five, a stressed word for three in ten) and the bundled transcripts. Counted without the content.
Beside it the requests of benchmarks/unseen_requests.jsonl, from a small grammar of another hand, and as many of ours.
Prints a table; --json FILE writes the figures too.
"""

import argparse
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from voxinstruct_jax.data.instruction_words import LANGUAGES, load_wording
from voxinstruct_jax.data.instructions import Instruction, write_instructions
from voxinstruct_jax.data.manifest import read_manifest
from voxinstruct_jax.text.content import spoken_content
from voxinstruct_jax.text.words import split_words

ROOT = Path(__file__).parents[1]
TRANSCRIPTS = ROOT / "tests/corpus/generated/manifest.jsonl"
OTHERS = ROOT / "benchmarks/unseen_requests.jsonl"


def main(argv: list[str] | None = None) -> int:
    """Draws, counts and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="instructions a language")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args(argv)
    figures = {language: measure(language, options.count, options.seed) for language in LANGUAGES}
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    width = max(map(len, figures["en"]))
    print(f"{'':{width}}  {'English':>12}  {'Mandarin':>12}")
    for name in figures["en"]:
        print(f"{name:{width}}  " + "  ".join(f"{figures[language][name]:>12}" for language in LANGUAGES))
    return 0


def measure(language: str, count: int, seed: int) -> dict[str, Any]:
    """Returns the figures of one language, by name."""
    written = draw(language, count, seed)
    texts = [around(instruction.text) for instruction in written]
    frames = Counter(instruction.frame for instruction in written)
    templates = Counter(instruction.template for instruction in written)
    others = [around(text) for text in other_requests(language)]
    lengths = np.percentile([len(split_words(text)) for text in texts], [5, 50, 95])
    return {
        "instructions": len(written),
        "lines of wording (frames) used": len(frames),
        "commonest frame": percent(frames.most_common(1)[0][1], len(written)),
        "distinct templates (all fixed words)": len(templates),
        "commonest template": percent(templates.most_common(1)[0][1], len(written)),
        "distinct descriptions": percent(len(set(texts)), len(texts)),
        **{f"distinct-{n}": ratio(distinct(texts, n)) for n in (1, 2, 3)},
        "words around the content, 5 %, half, 95 %": " ".join(f"{length:.0f}" for length in lengths),
        **{
            f"content {position}": percent(sum(i.position == position for i in written), len(written))
            for position in ("first", "middle", "last")
        },
        "content found again": percent(
            sum(spoken_content(i.text).text in TRANSCRIPT_SETS[language] for i in written), len(written)
        ),
        f"distinct-2 of {len(others)} by another grammar": ratio(distinct(others, 2)),
        "distinct-2 of as many of ours": ratio(distinct(texts[: len(others)], 2)),
    }


def draw(language: str, count: int, seed: int) -> list[Instruction]:
    """Writes instructions in one language, whatever the language of their content."""
    generator = np.random.default_rng(seed)
    written: list[Instruction] = []
    while len(written) < count:
        content = TRANSCRIPTS_OF[language][int(generator.integers(len(TRANSCRIPTS_OF[language])))]
        found = write_instructions(
            drawn_attributes(content, generator), content, language, count=3, generator=generator
        )
        written += [instruction for instruction in found if instruction.language == language]
    return written[:count]


def drawn_attributes(content: str, generator: np.random.Generator) -> dict[str, str | list[int]]:
    """Draws what is known of a clip."""
    values = load_wording("en").label_values
    known = ["gender", "pitch", "speed", "energy", *(name for name in ("age", "emotion") if generator.random() < 0.4)]
    found: dict[str, str | list[int]] = {
        name: list(values[name])[int(generator.integers(len(values[name])))] for name in known
    }
    if generator.random() < 0.3:
        found["stress"] = [int(generator.integers(len(split_words(content))))]
    return found


def other_requests(language: str) -> list[str]:
    """Instructions that this grammar has not written."""
    rows = [json.loads(line) for line in OTHERS.read_text().splitlines()]
    return [row["instruction"] for row in rows if row["language"] == language]


def around(text: str) -> str:
    """An instruction without its content."""
    content = spoken_content(text)
    return f"{text[: content.start]}{text[content.end :]}"


def distinct(texts: list[str], n: int) -> float:
    """Share of n-grams of words that are seen for the first time."""
    grams = [
        tuple(words[start : start + n])
        for text in texts
        for words in [[word.text.casefold() for word in split_words(text)]]
        for start in range(len(words) - n + 1)
    ]
    return len(set(grams)) / len(grams)


def percent(part: int, whole: int) -> str:
    """Writes a share."""
    return f"{part / whole:.2%}"


def ratio(value: float) -> str:
    """Writes a ratio."""
    return f"{value:.4f}"


TRANSCRIPTS_OF = {
    language: [
        row.transcript
        for row in read_manifest(TRANSCRIPTS)
        if row.language == language and re.search(r"\w", row.transcript)
    ]
    for language in LANGUAGES
}
TRANSCRIPT_SETS = {language: set(texts) for language, texts in TRANSCRIPTS_OF.items()}

if __name__ == "__main__":
    sys.exit(main())
