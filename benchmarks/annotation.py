"""How far the judges of attributes can be trusted, and what they cost, on speech made with known settings.

Run: uv run python benchmarks/annotation.py MANIFEST [--clips N] [--noise-db SNR]
The manifest's rows have `attributes.gender` and a column `measured` with `f0_hz`, `syllables_per_s` and `active_dbfs`,
as `data.generated_corpus` writes them: pitch as WORLD's tracker and a pitch shift gave it, syllables as espeak-ng's
phones, the level as it was set. Clips are drawn evenly from the manifest. Classes, true and judged, are each cut at the
terciles of their own values within language (pitch: and gender). `--noise-db` adds white noise at that signal-to-noise
ratio.
"""

import argparse
import dataclasses
import itertools
import math
import sys
import time
from collections import Counter
from collections.abc import Sequence

import numpy as np

from voxinstruct_jax.data.annotate import JUDGED_RATE, spoken_clip
from voxinstruct_jax.data.manifest import Row, iter_manifest
from voxinstruct_jax.judges.bins import CLASSES, Bins, Value, classify, fit_bins, group
from voxinstruct_jax.judges.judge import Clip, Judge, Measurement
from voxinstruct_jax.judges.registry import OFFLINE, find_judges

TRUTH = {"pitch": "f0_hz", "energy": "active_dbfs", "speed": "syllables_per_s"}
WILSON = 1.96


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest")
    parser.add_argument("--clips", type=int, default=300)
    parser.add_argument("--noise-db", type=float)
    options = parser.parse_args()
    rows = [row for row in iter_manifest(options.manifest) if "measured" in row.extra]
    rows = rows[:: max(1, len(rows) // options.clips)][: options.clips]
    judges, measured, seconds, spent = find_judges(tuple(OFFLINE), OFFLINE), [], 0.0, Counter[str]()
    for row in rows:
        begin = time.process_time()
        clip = spoken_clip(row)
        if options.noise_db is not None:
            clip = _noisy(clip, options.noise_db)
        spent["reading"] += time.process_time() - begin
        seconds += len(clip.samples) / JUDGED_RATE
        found = {}
        for name, judge in judges.items():
            begin = time.process_time()
            found[name] = judge.measure(clip)
            spent[name] += time.process_time() - begin
        measured.append(found)
    print(f"{len(rows)} clips, {seconds / 60:.1f} min")
    _print_gender(rows, measured)
    for name in TRUTH:
        _print_attribute(name, rows, [found[name] for found in measured], judges[name])
    print(
        "hours of speech a core-hour: "
        + ", ".join(f"{name} {seconds / cost:.0f}" for name, cost in spent.items())
        + f", all {seconds / sum(spent.values()):.0f}"
    )
    return 0


def _noisy(clip: Clip, snr_db: float) -> Clip:
    power = float(np.mean(np.square(clip.samples)))
    noise = np.random.default_rng(0).normal(scale=math.sqrt(power / 10 ** (snr_db / 10)), size=len(clip.samples))
    return dataclasses.replace(clip, samples=(clip.samples + noise).astype(np.float32))


def _print_gender(rows: Sequence[Row], measured: Sequence[dict[str, Measurement | None]]) -> None:
    pairs = [
        (row.language, str(row.attributes["gender"]), found["gender"])
        for row, found in zip(rows, measured, strict=True)
        if found["gender"] is not None
    ]
    for language in sorted({language for language, _, _ in pairs}):
        here = [(truth, found) for own, truth, found in pairs if own == language]
        right = sum(found.label == truth for truth, found in here)
        print(
            f"gender {language}: {_share(right, len(here))}, mean confidence "
            f"{np.mean([found.confidence for _, found in here]):.3f}"
        )
    counted = Counter((truth, found.label) for _, truth, found in pairs)
    print("  true -> judged: " + ", ".join(f"{a} -> {b} {n}" for (a, b), n in sorted(counted.items())))


def _print_attribute(name: str, rows: Sequence[Row], found: Sequence[Measurement | None], judge: Judge) -> None:
    usable = [
        (row, row.extra["measured"][TRUTH[name]], measurement)
        for row, measurement in zip(rows, found, strict=True)
        if measurement is not None and row.extra["measured"][TRUTH[name]]
    ]
    truth = np.array([value for _, value, _ in usable])
    values = np.array([measurement.value for _, _, measurement in usable])
    errors = values - truth if name == "energy" else np.log(values / truth)
    unit, scale = ("dB", 1) if name == "energy" else ("%", 100)
    spread = scale * 0.7413 * np.subtract(*np.percentile(errors, [75, 25]))
    print(
        f"{name}: {len(usable)} of {len(rows)} measured; against the truth {scale * np.median(errors):+.1f} {unit}, "
        f"spread {spread:.1f} {unit} (from quartiles), SD {scale * errors.std():.1f} {unit}"
    )
    groups = [group(name, row.language, str(row.attributes["gender"])) for row, _, _ in usable]
    true_bins, own_bins = (_bins(name, groups, sample, judge) for sample in (truth, values))
    confusion, confidence, right = Counter[tuple[str, str]](), [], []
    for own, value, measurement in zip(groups, truth, (item for _, _, item in usable), strict=True):
        true = classify(true_bins, name, own, value, 0.0)
        judged = classify(own_bins, name, own, measurement.value or 0.0, measurement.error)
        if true is None or judged is None:
            continue
        confusion[true[0], judged[0]] += 1
        confidence.append(judged[1])
        right.append(true[0] == judged[0])
    print(
        f"  class: {_share(sum(right), len(right))}, mean confidence {np.mean(confidence):.3f}; extremes swapped "
        f"{confusion[CLASSES[name][0], CLASSES[name][2]] + confusion[CLASSES[name][2], CLASSES[name][0]]}"
    )
    for low, high in itertools.pairwise((0.0, 0.6, 0.8, 0.95, 1.01)):
        inside = [ok for ok, sure in zip(right, confidence, strict=True) if low <= sure < high]
        if inside:
            print(f"    confidence {low:.2f} to {min(high, 1):.2f}: {_share(sum(inside), len(inside))} right")
    for label in CLASSES[name]:
        print(f"    {label:<7}" + " ".join(f"{confusion[label, other]:>5}" for other in CLASSES[name]))


def _bins(name: str, groups: Sequence[str], values: np.ndarray, judge: Judge) -> Bins:
    found = (Value(attribute=name, group=own, value=float(value)) for own, value in zip(groups, values, strict=True))
    return fit_bins(found, {name: (judge.name, judge.unit)}, "benchmark")


def _share(right: int, total: int) -> str:
    """Share with Wilson's 95 % interval."""
    share, spread = right / total, WILSON**2 / total
    centre = (share + spread / 2) / (1 + spread)
    half = WILSON / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / 4 / total)
    return f"{right}/{total} = {100 * share:.1f} % [{100 * (centre - half):.1f}, {100 * (centre + half):.1f}]"


if __name__ == "__main__":
    sys.exit(main())
