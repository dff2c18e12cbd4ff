"""Fits the gender probe of `judges.gender` on a generated corpus, measured first on voices that it was not fitted on.

Run: uv run --extra prepare launch/fit_gender_probe.py MANIFEST [--clips-a-voice N]
The manifest is of `data.generated_corpus`: speakers are named after voice packs ("af_bella:0.6+af_sky:0.4"). The packs
are dealt to five folds; a clip tests the probe of a fold if all its packs are of that fold, and is left out of it if
some are.
"""

import argparse
import json
import re
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

from voxinstruct_jax.data.clips import read_clip
from voxinstruct_jax.data.manifest import iter_manifest
from voxinstruct_jax.judges.speaker import SAMPLE_RATE, embed_speaker

TARGET = Path(__file__).parents[1] / "voxinstruct_jax" / "judges" / "weights" / "gender.json"
VERSION = "logistic/1"
FOLDS = 5
INVERSE_PENALTY = 10.0


def main() -> int:
    """Embeds, measures, fits and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest")
    parser.add_argument("--clips-a-voice", type=int, default=5)
    options = parser.parse_args()
    embeddings, female, packs = [], [], []
    taken = defaultdict(int)
    for row in iter_manifest(options.manifest):
        taken[row.speaker] += 1
        if taken[row.speaker] > options.clips_a_voice:
            continue
        embedding = embed_speaker(read_clip(row, SAMPLE_RATE), SAMPLE_RATE)
        if embedding is not None:
            embeddings.append(embedding)
            female.append(row.attributes["gender"] == "female")
            packs.append(frozenset(re.findall(r"[a-z]+_[a-z]+", row.speaker)))
    write_probe(np.array(embeddings), np.array(female), packs)
    return 0


def write_probe(embeddings: np.ndarray, female: np.ndarray, packs: list[frozenset[str]]) -> None:
    """Prints the share of right answers on held-out voices, then fits on all."""
    names = np.random.default_rng(0).permutation(sorted(frozenset().union(*packs)))
    fold = {name: place % FOLDS for place, name in enumerate(names)}
    right = total = 0
    for held in range(FOLDS):
        inside = np.array([all(fold[name] == held for name in clip) for clip in packs])
        outside = np.array([all(fold[name] != held for name in clip) for clip in packs])
        probe = _fit(embeddings[outside], female[outside])
        right += int((probe.predict(embeddings[inside]) == female[inside]).sum())
        total += int(inside.sum())
    print(f"voices not heard in fitting: {right} of {total} = {100 * right / total:.1f} %; {len(names)} voice packs")
    probe = _fit(embeddings, female)
    stored = {
        "version": VERSION,
        "clips": len(female),
        "bias": round(float(probe.intercept_[0]), 5),
        "weights": [round(float(weight), 5) for weight in probe.coef_[0]],
    }
    TARGET.write_text(json.dumps(stored) + "\n", encoding="utf-8")
    print(f"{TARGET.name}: fitted on {len(female)} clips")


def _fit(embeddings: np.ndarray, female: np.ndarray) -> LogisticRegression:
    return LogisticRegression(C=INVERSE_PENALTY, max_iter=2000).fit(embeddings, female)


if __name__ == "__main__":
    sys.exit(main())
