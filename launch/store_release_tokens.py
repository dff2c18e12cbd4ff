"""Stores what the embedded voice says greedily, for the test that loads it in CI.

Run: uv run python launch/store_release_tokens.py
Run it when the release's weights were replaced on purpose, and read the change of the stored file as a diff.
"""

import dataclasses
import json
import sys
from pathlib import Path

import voxinstruct_jax as vox

STORED = Path(__file__).parents[1] / "tests" / "golden" / "release_tokens.json"
INSTRUCTIONS = ('A woman says slowly: "The door is open."', "一位男士说：“今天天气很好。”")


def greedy_tokens() -> list[dict[str, object]]:
    """Speaks without chance and without guidance."""
    voice = vox.load()
    plain = vox.Guidance(text_on_semantic=1.0, text_on_acoustic=1.0, semantic_on_acoustic=1.0)
    sampling = dataclasses.replace(voice.config.sampling, temperature=0.0, repetition_ratio=1.0)
    rows = []
    for instruction in INSTRUCTIONS:
        audio = voice.synthesize(instruction, guidance=plain, sampling=sampling)
        rows.append(
            {
                "instruction": instruction,
                "language": audio.language,
                "semantic": audio.semantic.tolist(),
                "first_codebook": audio.acoustic[0].tolist(),
            }
        )
    return rows


if __name__ == "__main__":
    STORED.write_text(json.dumps(greedy_tokens(), ensure_ascii=False, indent=1) + "\n")
    sys.exit(0)
