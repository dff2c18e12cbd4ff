"""Do semantic tokens and first-codebook codes still carry Mandarin tone? A linear probe on held-out clips.

Run: uv run --extra prepare python benchmarks/tone_probe.py
Set: the Mandarin clips of corpus/train, split by clip (four fifths to fit, one fifth to test). A probe sees
which units occur while a syllable and its neighbours are spoken, by the durations in the shards; the control sees the
same with shuffled tones.
"""

import re
import sys

import numpy as np
from pypinyin import Style, lazy_pinyin
from sklearn.linear_model import LogisticRegression

from voxinstruct_jax.data.shards import ShardReader
from voxinstruct_jax.text.normalizer import HAN, normalize
from voxinstruct_jax.vocabulary import expand

SHARDS = "corpus/train"
NUM_UNITS, CODEBOOK_SIZE = 256, 1024


def main() -> int:
    """Fits the probes and prints accuracies."""
    reader = ShardReader(SHARDS)
    clips = [example for record in range(len(reader)) if usable(example := reader[record])]
    fit = np.random.default_rng(0).random(len(clips)) < 0.8
    print(f"{len(clips)} clips, {sum(len(tones(clip)) for clip in clips)} syllables")
    for name, size in (("semantic tokens", NUM_UNITS), ("first codebook", CODEBOOK_SIZE)):
        shares = [histograms(clip, name, size) for clip in clips]
        labels = [tones(clip) for clip in clips]
        (x, y), (x_test, y_test) = (gather(shares, labels, chosen) for chosen in (fit, ~fit))
        shuffled = np.random.default_rng(1).permutation(y)
        probe, control = (LogisticRegression(C=0.3, max_iter=300).fit(x, target) for target in (y, shuffled))
        commonest = np.mean(y_test == np.bincount(y).argmax())
        print(
            f"{name}: probe {probe.score(x_test, y_test):.1%}, control {control.score(x_test, y_test):.1%}, "
            f"commonest tone {commonest:.1%} of {len(y_test)} test syllables"
        )
    return 0


def usable(example) -> bool:  # noqa: ANN001
    """Mandarin clips whose every sign is a syllable, apart from punctuation."""
    return example.language == "zh" and len(tones(example)) == len(spans(example)) > 1


def tones(example) -> np.ndarray:  # noqa: ANN001
    """Tone 1 to 5 of each syllable of the transcript."""
    found = lazy_pinyin(example.transcript, style=Style.TONE3, neutral_tone_with_five=True, errors="ignore")
    return np.array([int(syllable[-1]) for syllable in found if syllable[-1].isdigit()])


def spans(example) -> list[tuple[int, int]]:  # noqa: ANN001
    """First frame and end of each Chinese character; none where the text was aligned in another form."""
    characters = normalize(example.transcript)
    if len(characters) + 2 != len(example.durations):
        return []
    ends = np.cumsum(example.durations)[1:-1]
    starts = ends - example.durations[1:-1]
    chosen = [place for place, character in enumerate(characters) if re.match(f"[{HAN}]", character)]
    return [(int(starts[place]) // 2, max(int(starts[place]) // 2 + 1, -(-int(ends[place]) // 2))) for place in chosen]


def histograms(example, name: str, size: int) -> np.ndarray:  # noqa: ANN001
    """Which units occur in each syllable's frames, and in those of the syllables before and after it."""
    frames = expand(example.semantic_tokens, example.run_lengths) if name == "semantic tokens" else example.codes[0]
    rows = np.zeros((len(tones(example)) + 2, size), np.float32)
    for index, (start, stop) in enumerate(spans(example), 1):
        rows[index, frames[start:stop]] = 1
    return np.concatenate([rows[1:-1], rows[:-2], rows[2:]], axis=1)


def gather(shares: list[np.ndarray], labels: list[np.ndarray], chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Syllables of the chosen clips."""
    picked = np.flatnonzero(chosen)
    return np.concatenate([shares[i] for i in picked]), np.concatenate([labels[i] for i in picked])


if __name__ == "__main__":
    sys.exit(main())
