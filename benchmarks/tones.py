"""Does the tone judge hear Mandarin tones? Generated speech whose tones are known.

Run: uv run --all-extras python benchmarks/tones.py corpus/manifest.jsonl --cache tones.jsonl [--clips 1000] [--fit]
Set: Mandarin clips of a generated corpus, whose phonemes (column `control`) say which tones were asked for; one in five
sentences is for the test, with whatever voice. What is measured is kept in the cache, so that a second run goes on.
`--fit` fits `judges/tones.json` first (scikit-learn's perceptron), and one like it for `new voices`, from which two
voice packs were held back besides. Next to the judge: the commonest tone, the tones of other syllables, and the same
clips with their pitch turned upside down. How often the tones that the dictionary expects are those that were asked for
stands beside it.
"""

import argparse
import json
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from voxinstruct_jax.audio.waveform import read_audio
from voxinstruct_jax.data.manifest import Row, iter_manifest
from voxinstruct_jax.data.word_times import open_word_aligner
from voxinstruct_jax.judges.pitch import pitch_track
from voxinstruct_jax.judges.tones import NUM_HEIGHTS, TONES, ToneModel, expected_tones, load_tone_model, tone_cues
from voxinstruct_jax.text.words import split_words
from voxinstruct_jax.voice_folder import embedded_release

PACKAGE = Path(__file__).parents[1] / "voxinstruct_jax"
TEST_PACKS = frozenset(["zf_xiaoni", "zm_yunyang"])
ARROWS = {"→": 1, "↗": 2, "↓": 3, "↘": 4}
RATE = 16_000
TEST_SHARE = 5
HIDDEN = (48, 24)


def main() -> int:
    """Measures, fits if asked to, judges and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--cache", type=Path, required=True, help="JSONL of what was measured")
    parser.add_argument("--clips", type=int, default=1000, help="to fit and to test on")
    parser.add_argument("--fit", action="store_true", help="write the package's model anew")
    arguments = parser.parse_args()
    try:
        measure(arguments.manifest, arguments.cache, arguments.clips)
    except KeyboardInterrupt:
        print("interrupted: going on with what was measured")
    clips = [json.loads(line) for line in arguments.cache.read_text("utf-8").splitlines()]
    known, test = ([clip for clip in clips if clip["test"] == chosen] for chosen in (False, True))
    if arguments.fit:
        store(fit(known), f"{len(known)} generated clips, {len(table(known)[1])} syllables")
        held_back = [clip for clip in test if TEST_PACKS & set(clip["packs"])]
        cues, tones = table(held_back)
        heard = fit([clip for clip in known if not TEST_PACKS & set(clip["packs"])]).probabilities(cues).argmax(axis=1)
        print(f"new voices: {np.mean(heard + 1 == tones):.3f} of {len(tones)}")
    report(test)
    return 0


def measure(manifest: Path, cache: Path, count: int) -> None:
    """Adds cues of clips to the cache."""
    done = {json.loads(line)["id"] for line in cache.read_text("utf-8").splitlines()} if cache.is_file() else set()
    aligner = open_word_aligner(embedded_release())
    with cache.open("a", encoding="utf-8") as file:
        for row in chosen(manifest, count):
            if row.id in done:
                continue
            samples = read_audio(row.audio, RATE)
            times = aligner.word_times(samples, RATE, row.transcript)
            if times is None:
                continue
            starts = [word.start for word in split_words(row.transcript)]
            expected = expected_tones(row.transcript)
            spoken = iter(asked_tones(row))
            record: dict[str, Any] = {
                "id": row.id,
                "test": zlib.crc32(row.transcript.encode()) % TEST_SHARE == 0,
                "packs": [part.partition(":")[0] for part in row.speaker.split("+")],
                "expected": [expected[start] for start in starts],
                "asked": [next(spoken) if expected[start] else None for start in starts],
                "cues": np.round(tone_cues(pitch_track(samples, RATE), times), 3).tolist(),
            }
            file.write(json.dumps(record) + "\n")
            file.flush()


def chosen(manifest: Path, count: int) -> Iterator[Row]:
    """The first clips whose every syllable has the tone that was asked for beside it."""
    for row in iter_manifest(str(manifest)):
        tones = [tone for tone in expected_tones(row.transcript) if tone] if row.language == "zh" else []
        if count and len(tones) > 3 and len(tones) == len(asked_tones(row)):
            count -= 1
            yield row


def asked_tones(row: Row) -> list[int]:
    """Tones in the phonemes that were spoken, neutral ones left out."""
    phonemes = row.extra.get("control", {}).get("phonemes", "")
    return [ARROWS[sign] for sign in phonemes if sign in ARROWS]


def table(clips: list[dict[str, Any]], key: str = "asked") -> tuple[np.ndarray, np.ndarray]:
    """Cues and tones of the syllables that have both."""
    pairs = [
        (cues, tone)
        for clip in clips
        for cues, tone in zip(clip["cues"], clip[key], strict=True)
        if tone and np.isfinite(cues).all()
    ]
    cues, tones = zip(*pairs, strict=True)
    return np.array(cues), np.array(tones)


def fit(clips: list[dict[str, Any]]) -> ToneModel:
    """Fits a model."""
    from sklearn.neural_network import MLPClassifier

    cues, tones = table(clips)
    means, deviations = cues.mean(axis=0), cues.std(axis=0) + 1e-6
    network = MLPClassifier(HIDDEN, alpha=1.0, max_iter=150, early_stopping=True, random_state=0)
    found = network.fit((cues - means) / deviations, tones)
    return ToneModel(means=means, deviations=deviations, weights=tuple(found.coefs_), biases=tuple(found.intercepts_))


def store(model: ToneModel, fitted_on: str) -> None:
    """Writes `judges/tones.json`."""
    stored = {
        "fitted_on": fitted_on,
        "means": np.round(model.means, 4).tolist(),
        "deviations": np.round(model.deviations, 4).tolist(),
        "weights": [np.round(layer, 3).tolist() for layer in model.weights],
        "biases": [np.round(layer, 3).tolist() for layer in model.biases],
    }
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in stored.items()]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    (PACKAGE / "judges" / "tones.json").write_text(text, encoding="utf-8")
    load_tone_model.cache_clear()


def report(clips: list[dict[str, Any]]) -> None:
    """Prints accuracies and the confusion."""
    model = load_tone_model()
    cues, tones = table(clips)
    heard = model.probabilities(cues).argmax(axis=1) + 1
    turned = cues.copy()
    turned[:, :NUM_HEIGHTS] *= -1
    upside_down = model.probabilities(turned).argmax(axis=1) + 1
    every = [(one, other) for clip in clips for one, other in zip(clip["expected"], clip["asked"], strict=True) if one]
    print(f"{len(clips)} test clips, {len(tones)} voiced syllables of {len(every)}")
    print(f"heard = asked for: {np.mean(heard == tones):.3f}")
    print(f"commonest tone: {max(np.mean(tones == tone) for tone in TONES):.3f}")
    print(f"tones of other syllables: {np.mean(heard == np.random.default_rng(0).permutation(tones)):.3f}")
    print(f"pitch upside down: {np.mean(upside_down == tones):.3f}")
    print(f"dictionary = asked for: {np.mean([one == other for one, other in every]):.3f}")
    print("\n| asked for | " + " | ".join(f"heard {tone}" for tone in TONES) + " |\n|---|---|---|---|---|")
    for tone in TONES:
        shares = [np.mean(heard[tones == tone] == other) for other in TONES]
        print(f"| {tone} | " + " | ".join(f"{share:.2f}" for share in shares) + " |")


if __name__ == "__main__":
    sys.exit(main())
