"""Does the stress judge find the stressed word? Speech whose stress is known, by edits and by espeak-ng.

Run: uv run --all-extras python benchmarks/stress.py corpus/manifest.jsonl --cache stress.jsonl [--clips 100] [--fit]
Set: clips of generated plain speech from the manifest, English and Mandarin. Each is measured as it is (false alarms)
and with one word edited (`data.prosody_edit`), then with another word edited alike (minimal pairs).
Word times are found anew in each edited clip. Fit and test share no sentence and no voice pack. espeak-ng speaks
English test sentences plain and with `<emphasis>`. What is measured is kept in the cache, so that a second run goes on.
`--fit` fits `judges/stress.json` and `data/expected_prosody.json` first. Next to the judge: "none" and a random word.
"""

import argparse
import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from voxinstruct_jax.data.prosody_edit import Emphasis, stress_words
from voxinstruct_jax.data.word_stress import expected_prosody, fit_expected, stress_units
from voxinstruct_jax.data.word_times import WordAligner, open_word_aligner
from voxinstruct_jax.judges.pitch import energy_track, pitch_track
from voxinstruct_jax.judges.stress import (
    CUES,
    StressModel,
    fit_stress_model,
    load_stress_model,
    stress_cues,
    unit_deviations,
    word_prosody,
)
from voxinstruct_jax.text.words import split_words

PACKAGE = Path(__file__).parents[1] / "voxinstruct_jax"
TEST_PACKS = frozenset(["af_heart", "af_sky", "bf_alice", "am_eric", "am_liam", "bm_lewis", "zf_xiaoni", "zm_yunyang"])
STRENGTHS = {
    "mild": Emphasis(semitones=2.0, gain_db=2.0, stretch=1.15),
    "medium": Emphasis(semitones=4.0, gain_db=4.0, stretch=1.3),
    "strong": Emphasis(semitones=6.0, gain_db=6.0, stretch=1.5),
}
FALSE_ALARMS = 0.1
RATE = 24_000
SHORTEST_S = 0.15


def main() -> int:
    """Measures, fits if asked to, judges and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument(
        "--cache", type=Path, required=True, help="JSONL of what was measured; goes on where it stopped"
    )
    parser.add_argument("--clips", type=int, default=100, help="a language and split")
    parser.add_argument("--plain", type=int, default=0, help="further fit clips a language, measured unedited only")
    parser.add_argument("--fit", action="store_true", help="write the package's model and table anew")
    arguments = parser.parse_args()
    try:
        measure(arguments.manifest, arguments.cache, arguments.clips, arguments.plain)
    except KeyboardInterrupt:
        print("interrupted: going on with what was measured")
    items = [json.loads(line) for line in arguments.cache.read_text("utf-8").splitlines()]
    if arguments.fit:
        fit(items)
    report = judge([item for item in items if item["split"] == "test"], load_stress_model())
    print_table(report)
    print(json.dumps(report))
    return 0


def measure(manifest: Path, cache: Path, count: int, plain: int) -> None:
    """Appends what is missing to the cache, languages and splits in turn."""
    from voxinstruct_jax.voice_folder import embedded_release

    cache.touch()
    done = {json.loads(line)["clip"] for line in cache.read_text("utf-8").splitlines()}
    waiting = [row for row in chosen_rows(manifest, count, plain) if row["id"] not in done]
    if not waiting:
        return
    aligner = open_word_aligner(embedded_release())
    with cache.open("a", encoding="utf-8") as kept:
        for row in waiting:
            items = list(variants(row, manifest.parent, aligner))
            kept.write("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items))
            kept.flush()


def chosen_rows(manifest: Path, count: int, plain: int) -> Iterator[dict[str, Any]]:
    """Rows of either split, in turn; a row of a voice that mixes packs of both is left out."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    seen = set()
    for line in manifest.read_text("utf-8").splitlines():
        row = json.loads(line)
        packs = {part.split(":")[0] for part in row["speaker"].split("+")}
        split = "test" if packs <= TEST_PACKS else "fit" if not packs & TEST_PACKS else ""
        fits = 4 <= len(split_words(row["transcript"])) <= 20 and row.get("kind", "sentence") == "sentence"
        if split and fits and row["transcript"] not in seen:
            seen.add(row["transcript"])
            rows[row["language"], split].append(row | {"split": split})
    random = np.random.default_rng(0)
    shuffled = [[found[i] for i in random.permutation(len(found))] for _, found in sorted(rows.items())]
    for number in range(count + plain):
        here = [found[number] for found in shuffled if number < len(found)]
        yield from (row | {"edit": number < count} for row in here if number < count or row["split"] == "fit")


def variants(row: dict[str, Any], folder: Path, aligner: WordAligner) -> Iterator[dict[str, Any]]:
    """A clip plain and edited, measured; nothing where it can't be aligned."""
    from voxinstruct_jax.audio.waveform import read_audio

    samples, text = read_audio(folder / row["audio"], RATE), row["transcript"]
    times, phones = aligner.word_times(samples, RATE, text), aligner.word_phones(text)
    common = {"clip": row["id"], "split": row["split"], "language": row["language"], "text": text, "phones": phones}
    if times is None:
        return
    yield common | {"kind": "plain", "stressed": [], "prosody": prosody(samples, times)}
    if not row["edit"]:
        return
    random = np.random.default_rng(int.from_bytes(hashlib.sha256(row["id"].encode()).digest()[:8], "big"))
    units = [unit for unit in stress_units(text) if times[unit[-1]][1] - times[unit[0]][0] > SHORTEST_S]
    strength = list(STRENGTHS)[int(random.integers(len(STRENGTHS)))]
    for place in random.permutation(len(units))[:2]:
        edited = stress_words(samples, RATE, times, units[place], STRENGTHS[strength])
        found = aligner.word_times(edited.samples, RATE, text)
        if found is not None:
            yield common | {"kind": strength, "stressed": units[place], "prosody": prosody(edited.samples, found)}
    if units and row["language"] == "en" and row["split"] == "test":
        yield from emphasised(common, units, aligner, random)


def emphasised(
    common: dict[str, Any], units: list[list[int]], aligner: WordAligner, random: np.random.Generator
) -> Iterator[dict[str, Any]]:
    """The sentence by espeak-ng, plain and with one word emphasised."""
    import soxr
    from espeak import RATE as ESPEAK_RATE
    from espeak import Espeak

    text, speaker = common["text"], Espeak()
    (unit,) = units[int(random.integers(len(units)))]
    word = split_words(text)[unit]
    marked = f'{text[: word.start]}<emphasis level="strong">{word.text}</emphasis>{text[word.end :]}'
    for kind, spoken, stressed in (("espeak plain", text, []), ("espeak emphasis", f"<speak>{marked}</speak>", [unit])):
        samples, _ = speaker.speak(spoken, "en", ssml=bool(stressed))
        samples = soxr.resample(samples, ESPEAK_RATE, RATE).astype(np.float32)
        times = aligner.word_times(samples, RATE, text)
        if times is not None:
            yield common | {"kind": kind, "stressed": stressed, "prosody": prosody(samples, times)}


def prosody(samples: np.ndarray, times: Sequence[tuple[float, float]]) -> list[list[float | None]]:
    """`word_prosody` as JSON holds it."""
    found = word_prosody(pitch_track(samples, RATE), energy_track(samples, RATE), times)
    return [[round(float(value), 3) if np.isfinite(value) else None for value in word] for word in found]


def measured(item: dict[str, Any]) -> np.ndarray:
    """Of an item of the cache."""
    return np.array([[np.nan if value is None else value for value in word] for word in item["prosody"]], float)


def cues(item: dict[str, Any], table: dict[str, list[float]] | None = None) -> np.ndarray:
    """Of an item of the cache, a row a unit."""
    expected = expected_prosody(item["phones"], item["text"], table)
    return stress_cues(unit_deviations(measured(item), expected.table, stress_units(item["text"])))


def by_word(item: dict[str, Any], values: np.ndarray) -> np.ndarray:
    """Gives each word the value of its unit."""
    return np.repeat(values, [len(unit) for unit in stress_units(item["text"])])


def unit_labels(item: dict[str, Any]) -> np.ndarray:
    """True for stressed units."""
    return np.array([bool(set(unit) & set(item["stressed"])) for unit in stress_units(item["text"])])


def labels(item: dict[str, Any]) -> np.ndarray:
    """True for stressed words."""
    return np.isin(np.arange(len(item["prosody"])), item["stressed"])


def fit(items: list[dict[str, Any]]) -> None:
    """Writes table and model.

    Cues of fit clips come from a table that was fitted on the other half of them. The thresholds give `FALSE_ALARMS`
    sentences of plain fit speech a stressed word.
    """
    chosen = [item for item in items if item["split"] == "fit"]
    plain = [item for item in chosen if item["kind"] == "plain"]
    tables = [fit_table([item for item in plain if half(item) != side]) for side in (0, 1)]
    inputs = np.concatenate([cues(item, tables[half(item)]) for item in chosen])
    model = fit_stress_model(inputs, np.concatenate([unit_labels(item) for item in chosen]))
    thresholds = {}
    for language in ("en", "zh"):
        spoken = [item for item in plain if item["language"] == language]
        highest = [model.probabilities(cues(item, tables[half(item)])).max() for item in spoken]
        thresholds[language] = round(float(np.quantile(highest, 1 - FALSE_ALARMS)), 3)
    source = f"{len(plain)} plain clips of Kokoro, English and Mandarin"
    made = f"{source}, and {len(chosen) - len(plain)} with one word edited by WORLD"
    write(PACKAGE / "data" / "expected_prosody.json", {"fitted_on": source, "phones": fit_table(plain)})
    weights = dict(zip(CUES, np.round(model.weights, 4).tolist(), strict=True))
    stored = {"fitted_on": made, "weights": weights, "bias": round(model.bias, 4), "thresholds": thresholds}
    write(PACKAGE / "judges" / "stress.json", stored)
    load_stress_model.cache_clear()


def half(item: dict[str, Any]) -> int:
    """Which half of the fit clips an item belongs to, with all edits of its clip."""
    return hashlib.sha256(item["clip"].encode()).digest()[0] % 2


def fit_table(plain: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Of plain speech."""
    return fit_expected([(item["phones"], item["text"], measured(item)) for item in plain])


def write(path: Path, content: dict[str, Any]) -> None:
    """One line a member, so that differences show."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1).replace(",\n   ", ",") + "\n", "utf-8")


def judge(items: list[dict[str, Any]], model: StressModel) -> dict[str, dict[str, dict[str, Any]]]:
    """Scores of the judge and of the trivial baselines by language and kind of speech."""
    random = np.random.default_rng(0)
    systems: dict[str, dict[str, list[tuple[dict[str, Any], np.ndarray, int]]]] = defaultdict(lambda: defaultdict(list))
    for item in items:
        found, size = by_word(item, model.probabilities(cues(item))), len(item["prosody"])
        drawn = int(random.integers(size))
        predictions = {
            "judge": (found >= model.thresholds[item["language"]], int(found.argmax())),
            "none": (np.zeros(size, bool), -1),
            "random word": (np.arange(size) == drawn, drawn),
        }
        for group in (item["kind"], *(["edited, all"] if item["kind"] in STRENGTHS else [])):
            for system, (chosen, top) in predictions.items():
                systems[f"{item['language']} {group}"][system].append((item, chosen, top))
    return {
        group: {system: scores(rows) for system, rows in by_system.items()}
        for group, by_system in sorted(systems.items())
    }


def scores(rows: list[tuple[dict[str, Any], np.ndarray, int]]) -> dict[str, Any]:
    """The project's measures of word stress; rates with their counts."""
    truth = np.concatenate([labels(item) for item, _, _ in rows])
    guess = np.concatenate([chosen for _, chosen, _ in rows])
    hits = int((truth & guess).sum())
    exact = [bool((labels(item) == chosen).all()) for item, chosen, _ in rows]
    found = {"sentences": len(rows), "words": len(truth), "word_accuracy": round(float((truth == guess).mean()), 3)}
    if not truth.any():
        return found | {"false_alarms": sum(bool(chosen.any()) for _, chosen, _ in rows)}
    pairs: dict[str, list[bool]] = defaultdict(list)
    tops = [top in item["stressed"] for item, _, top in rows]
    for (item, _, _), right in zip(rows, tops, strict=True):
        pairs[item["clip"]].append(right)
    twins = [all(both) for both in pairs.values() if len(both) == 2]
    recall, precision = hits / int(truth.sum()), hits / max(int(guess.sum()), 1)
    return found | {
        "word_recall": round(recall, 3),
        "precision": round(precision, 3),
        "f1": round(2 * recall * precision / max(recall + precision, 1e-9), 3),
        "sentence_exact": round(float(np.mean(exact)), 3),
        "sentence_top1": round(float(np.mean(tops)), 3),
        "minimal_pair": round(float(np.mean(twins)), 3) if twins else None,
        "pairs": len(twins),
    }


def print_table(report: dict[str, dict[str, dict[str, Any]]]) -> None:
    """One row a group and system."""
    for group, by_system in report.items():
        for system, row in by_system.items():
            print(f"{group:20} {system:12}", " ".join(f"{name} {value}" for name, value in row.items()))


if __name__ == "__main__":
    sys.exit(main())
