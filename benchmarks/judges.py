"""How far ASR, speaker and MOS judges can be trusted, on speech whose truth is known. Prints tables for docs/judges.md.

Run: uv run --extra asr --extra evaluation python benchmarks/judges.py [--clips N]
Set: real prompts of one speaker (`tests/corpus/asterisk`, English) and generated speech of many voices
(`tests/corpus/generated`, English and Mandarin). ASR hears each clip as it is and damaged in known ways, against the
right transcript and, last, against another clip's. The speaker judge compares clips of one voice and of two; equal
error rate over all pairs of one gender and language. DNSMOS hears clips with less and less noise. Two CPU cores: some
minutes.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from voxinstruct_jax.audio.waveform import read_audio
from voxinstruct_jax.data.manifest import Row, read_manifest
from voxinstruct_jax.evaluation.statistics import interval
from voxinstruct_jax.judges.asr import Asr, load_asr
from voxinstruct_jax.judges.dnsmos import DnsMos
from voxinstruct_jax.judges.speaker import embed_speaker, similarity
from voxinstruct_jax.judges.transcripts import Unit, error_counts

RATE = 16_000
CORPORA = Path(__file__).parents[1] / "tests" / "corpus"
Samples = np.ndarray
NOISE_DB = (20, 10, 0)


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=30, help="a set")
    options = parser.parse_args()
    generated = read_manifest(CORPORA / "generated" / "manifest.jsonl")
    sets: dict[str, list[Row]] = {
        "real English, one speaker": read_manifest(CORPORA / "asterisk" / "manifest.jsonl"),
        "generated English": [row for row in generated if row.language == "en"],
        "generated Mandarin": [row for row in generated if row.language == "zh"],
    }
    sets = {name: rows[: options.clips] for name, rows in sets.items()}
    print_words(sets, load_asr())
    print_speakers(generated)
    print_mos(sets["real English, one speaker"], DnsMos())
    return 0


def damages() -> Mapping[str, Callable[[Samples], Samples]]:
    """What is done to a clip before it is heard."""
    return {
        "as it is": lambda samples: samples,
        "half as loud": lambda samples: samples / 2,
        **{f"white noise, {level} dB": lambda samples, level=level: noisy(samples, level) for level in NOISE_DB},
        "only to 4 kHz": lambda samples: low_passed(samples, 4000),
        "silence": np.zeros_like,
    }


def noisy(samples: Samples, level_db: float) -> Samples:
    """With white noise at a ratio of mean powers."""
    noise = np.random.default_rng(len(samples)).standard_normal(len(samples)).astype(np.float32)
    return samples + noise * np.sqrt(np.mean(samples**2) / np.mean(noise**2) / 10 ** (level_db / 10))


def low_passed(samples: Samples, edge_hz: float) -> Samples:
    """Without what lies above."""
    spectrum = np.fft.rfft(samples)
    spectrum[np.fft.rfftfreq(len(samples), 1 / RATE) > edge_hz] = 0
    return np.fft.irfft(spectrum, len(samples)).astype(np.float32)


def print_words(sets: Mapping[str, Sequence[Row]], asr: Asr) -> None:
    """Error rates by set and damage."""
    print("| speech | heard | unit | error rate | 95 % | clips |\n|---|---|---|---|---|---|")
    for name, rows in sets.items():
        heard = {}
        for damage, spoil in damages().items():
            heard[damage] = [asr.transcribe(spoil(read_audio(row.audio, RATE)), RATE, row.language) for row in rows]
        texts = {damage: [row.transcript for row in rows] for damage in heard}
        heard["against another clip's words"] = heard["as it is"]
        texts["against another clip's words"] = [row.transcript for row in (*rows[1:], rows[0])]
        unit: Unit = "word" if rows[0].language == "en" else "pinyin"
        for damage, hypotheses in heard.items():
            counts = [
                error_counts(text, said, rows[0].language, unit)
                for text, said in zip(texts[damage], hypotheses, strict=True)
            ]
            errors, lengths = [float(each.errors) for each in counts], [float(each.length) for each in counts]
            ends = interval(errors, lengths, [row.transcript for row in rows], seed=0)
            low, high = ends or (float("nan"), float("nan"))
            rate = sum(errors) / sum(lengths)
            print(f"| {name} | {damage} | {unit} | {rate:.3f} | {low:.3f} to {high:.3f} | {len(rows)} |")
            sys.stdout.flush()


def print_speakers(rows: Sequence[Row]) -> None:
    """Similarity of one voice and of two, and the rate at which both kinds of error are equal."""
    print("\n| pairs | mean similarity | 5 to 95 % | pairs |\n|---|---|---|---|")
    embedded = []
    for row in rows:
        found = embed_speaker(read_audio(row.audio, RATE), RATE)
        if found is not None:
            embedded.append((row, found))
    same, other = [], []
    for (one, a), (two, b) in itertools.combinations(embedded, 2):
        if one.speaker == two.speaker:
            same.append(similarity(a, b))
        elif (one.language, one.attributes.get("gender")) == (two.language, two.attributes.get("gender")):
            other.append(similarity(a, b))
    noised = [
        similarity(found, again)
        for row, found in embedded
        if (again := embed_speaker(noisy(read_audio(row.audio, RATE), 20), RATE)) is not None
    ]
    for name, values in {
        "one voice": same,
        "two voices of one gender and language": other,
        "a clip and itself with noise at 20 dB": noised,
    }.items():
        low, high = np.quantile(values, [0.05, 0.95])
        print(f"| {name} | {np.mean(values):.3f} | {low:.3f} to {high:.3f} | {len(values)} |")
    edges = np.unique([*same, *other])
    missed = np.array([np.mean(np.array(same) < edge) for edge in edges])
    passed = np.array([np.mean(np.array(other) >= edge) for edge in edges])
    place = int(np.argmin(np.abs(missed - passed)))
    print(f"\nEqual error rate {(missed[place] + passed[place]) / 2:.3f} at {edges[place]:.3f}.")


def print_mos(rows: Sequence[Row], judge: DnsMos) -> None:
    """Means of DNSMOS by noise, and how often it ranks two noises of a clip right."""
    levels = (0, 5, 10, 20, 40)
    found = {level: [judge.scores(noisy(read_audio(row.audio, RATE), level)) for row in rows] for level in levels}
    print("\n| noise (dB) | " + " | ".join(map(str, levels)) + " |\n|---" * 1 + "|---" * len(levels) + "|")
    for name in ("ovrl", "sig", "bak", "p808"):
        means = [np.mean([score[name] for score in found[level]]) for level in levels]
        print(f"| {name} | " + " | ".join(f"{mean:.2f}" for mean in means) + " |")
    right = [
        found[high][number]["ovrl"] > found[low][number]["ovrl"]
        for low, high in itertools.pairwise(levels)
        for number in range(len(rows))
    ]
    print(f"\novrl ranks neighbouring noises of a clip right in {np.mean(right):.3f} of {len(right)} pairs.")


if __name__ == "__main__":
    sys.exit(main())
