"""How far off are word times? Forced alignment and faster-whisper against speech whose word times are known.

Run: uv run --all-extras python benchmarks/word_times.py en.tsv zh.tsv [--sentences 60]
Set: sentences of the files (`language<TAB>text`), spoken (a) by Kokoro, whose phoneme durations say when words begin
and end (25 ms steps), (b) by Kokoro in pieces that are trimmed and joined, so that the joins are exact, (c) by
espeak-ng, which reports the start of each word. Prints median and 90th percentile of the absolute error of starts and
ends, and the mean signed error, in ms, with counts. In Mandarin (a) knows jieba's words only.
"""

import argparse
import itertools
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr
from espeak import RATE, Espeak

from voxinstruct_jax.data.generated_corpus import recipes
from voxinstruct_jax.data.kokoro import PACKS_FOLDER, SAMPLE_RATE, Kokoro, fetch_voice_packs, voice_names
from voxinstruct_jax.data.word_times import open_word_aligner
from voxinstruct_jax.judges.asr import load_asr
from voxinstruct_jax.text.words import split_words
from voxinstruct_jax.voice_folder import embedded_release

PIECE_MARGIN_S = 0.02


@dataclass(frozen=True, kw_only=True)
class Truth:
    """A clip and what is known of it: time by place in the list of words."""

    kind: str
    language: str
    text: str
    samples: np.ndarray
    starts: dict[int, float]
    ends: dict[int, float]


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--sentences", type=int, default=60, help="a language and kind of speech")
    arguments = parser.parse_args()
    lines = [line for path in arguments.files for line in path.read_text("utf-8").splitlines()]
    errors: dict[tuple[str, ...], list[float]] = defaultdict(list)
    try:
        measure(lines, arguments.sentences, errors)
    except KeyboardInterrupt:
        print("interrupted: the table holds what was measured")
    report = {" ".join(key): summary(key[3], values) for key, values in sorted(errors.items())}
    for name, row in report.items():
        print(name, row)
    print(json.dumps(report))
    return 0


def measure(lines: list[str], count: int, errors: dict[tuple[str, ...], list[float]]) -> None:
    """Adds to `errors`, seconds by language, kind of speech, aligner and side of the word."""
    aligner, asr = open_word_aligner(embedded_release()), load_asr(num_threads=1)
    for clip in clips(lines, count):
        expected = {(i, "start"): t for i, t in clip.starts.items()} | {(i, "end"): t for i, t in clip.ends.items()}
        aligned = times_by_word(aligner.word_times(clip.samples.astype(np.float32), SAMPLE_RATE, clip.text))
        heard = whisper_times(asr, clip)
        for name, found in (("alignment", aligned), ("whisper", heard)):
            errors[clip.language, clip.kind, name, "clips"].append(float(bool(found)))
            for place in expected.keys() & found.keys():
                error = found[place] - expected[place]
                errors[clip.language, clip.kind, name, place[1]].append(error)
                if place in aligned and place in heard:
                    errors[clip.language, clip.kind, name, f"{place[1]}, timed by both"].append(error)


def summary(what: str, values: list[float]) -> dict[str, float]:
    """Of one row of the table."""
    if what == "clips":
        return {"timed": sum(values), "of": len(values)}
    milliseconds = 1000 * np.array(values)
    return {
        "median": round(float(np.median(np.abs(milliseconds))), 1),
        "p90": round(float(np.percentile(np.abs(milliseconds), 90)), 1),
        "mean_signed": round(float(milliseconds.mean()), 1),
        "count": len(values),
    }


def clips(lines: list[str], count: int) -> Iterator[Truth]:
    """Speech of each kind, sentences and voices drawn by a fixed seed."""
    random = np.random.default_rng(0)
    voices = fetch_voice_packs(PACKS_FOLDER)
    kokoro, espeak = Kokoro(voices, num_threads=1), Espeak()
    for language in ("en", "zh"):
        texts = [line.split("\t", 1)[1] for line in lines if line.startswith(language)]
        texts = [text for text in texts if 4 <= len(split_words(text)) <= 25 and not re.search(r"[0-9\"“”]", text)]
        shuffled = [texts[i] for i in random.permutation(len(texts))]
        for _kind, make in (("generated", generated), ("joined", joined)):
            made = 0
            for text in shuffled:
                gender = ("female", "male")[int(random.integers(2))]
                choice = recipes(voice_names(voices), "test", language, gender)
                clip = make(text, language, kokoro, choice[int(random.integers(len(choice)))], random)
                if clip is not None:
                    made += 1
                    yield clip
                if made == count:
                    break
        for text in shuffled[:count]:
            samples, starts = espeak.speak(text, language)
            if len(starts) == len(split_words(text)):
                resampled = soxr.resample(samples, RATE, SAMPLE_RATE)
                yield Truth(
                    kind="espeak",
                    language=language,
                    text=text,
                    samples=resampled,
                    starts=dict(enumerate(starts)),
                    ends={},
                )


def generated(text: str, language: str, kokoro: Kokoro, recipe, random) -> Truth | None:  # noqa: ANN001
    """Connected speech; None where phonemes can't be dealt to words for sure."""
    import jieba

    phonemes = kokoro.phonemes(text, recipe.accent)
    groups = [match.span() for match in re.finditer(r"[^\s;:,.!?—…\"“”()]+", phonemes)]
    words = split_words(text)
    sizes = [1] * len(words) if language == "en" else [len(word) for word in jieba.lcut(text) if split_words(word)]
    if len(groups) != len(sizes) or sum(sizes) != len(words):
        return None
    samples, durations = kokoro.speak_timed(phonemes, recipe, float(np.exp(random.uniform(np.log(0.8), np.log(1.25)))))
    ends = np.concatenate([[0.0], np.cumsum(durations)])
    firsts = np.cumsum([0, *sizes])
    starts_s = {int(first): float(ends[begin]) for first, (begin, _) in zip(firsts[:-1], groups, strict=True)}
    ends_s = {int(last) - 1: float(ends[end]) for last, (_, end) in zip(firsts[1:], groups, strict=True)}
    del starts_s[0], ends_s[len(words) - 1]  # the silence around the clip is not a word's
    return Truth(kind="generated", language=language, text=text, samples=samples, starts=starts_s, ends=ends_s)


def joined(text: str, language: str, kokoro: Kokoro, recipe, random) -> Truth | None:  # noqa: ANN001
    """Two or three pieces, each spoken alone and trimmed, with quiet between them."""
    words = split_words(text)
    cuts = sorted(random.choice(np.arange(2, len(words) - 1), size=min(2, len(words) - 3), replace=False).tolist())
    places = [0, *cuts, len(words)]
    pieces, starts_s, ends_s, now = [], {}, {}, 0.0
    for first, last in itertools.pairwise(places):
        piece = text[words[first].start : words[last - 1].end]
        samples = trim(kokoro.speak(kokoro.phonemes(piece, recipe.accent), recipe, 1.0))
        quiet = np.zeros(int(random.uniform(0.0, 0.25) * SAMPLE_RATE))
        starts_s[first], ends_s[last - 1] = now, now + len(samples) / SAMPLE_RATE
        pieces += [samples, quiet]
        now += (len(samples) + len(quiet)) / SAMPLE_RATE
    margin = np.zeros(SAMPLE_RATE // 10)
    return Truth(
        kind="joined",
        language=language,
        text=text,
        samples=np.concatenate([margin, *pieces[:-1], margin]),
        starts={word: time + 0.1 for word, time in starts_s.items()},
        ends={word: time + 0.1 for word, time in ends_s.items()},
    )


def trim(samples: np.ndarray) -> np.ndarray:
    """Cuts off what is 35 dB below the loudest 5 ms."""
    hop = SAMPLE_RATE // 200
    power = np.square(samples[: len(samples) // hop * hop]).reshape(-1, hop).mean(axis=1)
    loud = np.flatnonzero(power > power.max() * 10**-3.5)
    return samples[loud[0] * hop : (loud[-1] + 1) * hop]


def times_by_word(times) -> dict[tuple[int, str], float]:  # noqa: ANN001
    """The aligner's answer in the form of `expected`."""
    return {(i, side): pair[n] for i, pair in enumerate(times or ()) for n, side in enumerate(("start", "end"))}


def whisper_times(asr, clip: Truth) -> dict[tuple[int, str], float]:  # noqa: ANN001
    """faster-whisper's word times, for words that it heard right, by their place among ours."""
    from difflib import SequenceMatcher

    segments, _ = asr._model.transcribe(
        soxr.resample(clip.samples.astype(np.float32), SAMPLE_RATE, 16_000),
        language=clip.language, beam_size=5, temperature=0.0, condition_on_previous_text=False, word_timestamps=True,
        initial_prompt="以下是普通话的句子。" if clip.language == "zh" else None,
    )  # fmt: skip
    heard, found = [], {}
    for segment in segments:
        for word in segment.words:
            parts = [part.text.casefold() for part in split_words(word.word)]
            heard += [
                (part, word.start if i == 0 else None, word.end if i == len(parts) - 1 else None)
                for i, part in enumerate(parts)
            ]
    written = [word.text.casefold() for word in split_words(clip.text)]
    for block in SequenceMatcher(None, written, [word for word, _, _ in heard], autojunk=False).get_matching_blocks():
        for offset in range(block.size):
            _, start_s, end_s = heard[block.b + offset]
            if start_s is not None:
                found[block.a + offset, "start"] = start_s
            if end_s is not None:
                found[block.a + offset, "end"] = end_s
    return found


if __name__ == "__main__":
    sys.exit(main())
