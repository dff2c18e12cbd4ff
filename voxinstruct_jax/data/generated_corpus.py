"""Makes a corpus of speech with instructions: Kokoro speaks sentences with drawn speaker, speed, pitch and loudness.

    python -m voxinstruct_jax.data.generated_corpus en.tsv zh.tsv --out corpus --limit 1000

A sentence file has `language<TAB>text` a line (en, zh). DIR gets `audio/X/ID.flac` (24 kHz mono, 16 bit) and a row a
clip in `manifest.jsonl`: the manifest's own columns plus `split`, `kind`, `measured` and `control`. Besides plain
sentences there are clips of two to four sentences, of single words, code-switched ones (a Mandarin voice speaks both
languages), and ones with a stressed word: Kokoro knows no stress, so it is edited in (`data.prosody_edit`), at word
times that the embedded voice's phone model finds. Stop it at any time and start it again: a clip depends on its text,
its kind and the seed only, and none is made twice.

Splits don't leak: sentences fall to train, dev or test by a hash of their letters, and voices are dealt to the splits
as well. A held-out voice is a blend that is never heard in training; its two parts may be. A test word can stand in a
training sentence. Sentences of further test sets are kept out by `--held-out`.

Needs the `corpus`, `asr` and `prepare` extras and, once, npm. espeak-ng, which phonemises the English, is GPL-3: it
makes data here and is never needed to train or to speak. Read `plan_clips`, then `make_clip`.
"""

import argparse
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from voxinstruct_jax.audio.waveform import write_audio
from voxinstruct_jax.config import InputError, VoxError
from voxinstruct_jax.data.instructions import write_instructions
from voxinstruct_jax.data.kokoro import (
    PACKS_FOLDER,
    SAMPLE_RATE,
    Kokoro,
    Recipe,
    count_syllables,
    fetch_voice_packs,
    language_spans,
    voice_names,
)
from voxinstruct_jax.data.processes import end_with_parent
from voxinstruct_jax.data.progress import progress_bar
from voxinstruct_jax.data.prosody_edit import Emphasis, StressedClip, stress_words
from voxinstruct_jax.data.word_stress import stress_units
from voxinstruct_jax.data.word_times import WordAligner, open_word_aligner
from voxinstruct_jax.text.words import letters, split_words

__all__ = ["Clip", "classify", "finished_ids", "main", "make_clip", "plan_clips", "recipes", "split_of"]

Split = Literal["train", "dev", "test"]
Kind = Literal["sentence", "joined", "switched", "word", "stressed"]

HOP = SAMPLE_RATE // 100
INSTRUCTIONS_A_CLIP = 4
_HELD_OUT = {"dev": 0.03, "test": 0.03}  # share of sentences
_HELD_OUT_BLENDS = 0.1  # share of blends, for dev and test each
_BLEND_WEIGHTS = (0.3, 0.4, 0.5, 0.6, 0.7)
_EXTRA_KINDS: tuple[tuple[Kind, float], ...] = (("joined", 0.16), ("switched", 0.14), ("word", 0.14))  # a sentence
_STRESSED_SHARE = 0.2  # of sentences that are spoken once more, with a stressed word
_STRESSED_LENGTHS = (3, 24)  # words
_SHORTEST_STRESSED_S = 0.12
_EMPHASES = (  # from plain to strong; weaker ones lie within what voices do unasked (docs/stress.md)
    Emphasis(semitones=5.0, gain_db=5.0, stretch=1.4),
    Emphasis(semitones=6.0, gain_db=6.0, stretch=1.5),
    Emphasis(semitones=7.0, gain_db=6.0, stretch=1.6),
)
_MAX_JOINED = {"en": 200, "zh": 60}  # characters; Kokoro speaks some 500 phonemes at once
_SPEEDS = (0.7, 1.35)  # outside, Kokoro is no longer clear
_SHIFTED_SHARE, _SEMITONES = 0.4, 3.5
_LEVELS_DBFS = ((-35.0, -30.0), (-26.5, -21.5), (-18.5, -16.0))
_PEAK = 0.98
_MARGIN_FRAMES = 10  # quiet kept on either side of a clip
_LONG_PAUSE_FRAMES = 20
_FEWEST_SYLLABLES = 4  # below, a rate means nothing

# Class bounds: below the first, above the second; measured on Kokoro's voices at speed 1, about a third of clips each.
_PITCH_HZ = {
    ("en", "female"): (165, 205), ("en", "male"): (106, 138), ("zh", "female"): (200, 245), ("zh", "male"): (108, 142),
}  # fmt: skip
_SYLLABLES_PER_S = {"en": (4.0, 5.3), "zh": (4.6, 6.1)}
_ACTIVE_DBFS = (-28, -20)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """A clip to be made.

    Attributes:
        kind: What is spoken.
        texts: One text a stretch of one language; joined they are the transcript.
        split: Where it belongs; every sentence in it does.
        seed: Of the whole corpus.
    """

    kind: Kind
    texts: tuple[str, ...]
    split: Split
    seed: int

    @functools.cached_property
    def digest(self) -> bytes:
        """Says which clip it is, and seeds all of its choices."""
        return hashlib.sha256("\t".join((str(self.seed), self.kind, *self.texts)).encode()).digest()

    @property
    def id(self) -> str:
        """Name of the row and of the file."""
        return f"{self.language}_{self.digest[:6].hex()}"

    @property
    def transcript(self) -> str:
        """All words, in order."""
        return functools.reduce(_join_texts, self.texts)

    @property
    def language(self) -> str:
        """Of the first words; a switched clip has the other one too."""
        return language_spans(self.texts[0])[0][0]


def split_of(text: str) -> Split:
    """Returns the split of a sentence; texts that differ in case, spaces or marks only fall to the same one."""
    share = int.from_bytes(hashlib.sha256(letters(text).encode()).digest()[:6], "big") / 2**48
    if share < _HELD_OUT["test"]:
        return "test"
    return "dev" if share < _HELD_OUT["test"] + _HELD_OUT["dev"] else "train"


def plan_clips(sentences: Mapping[str, Sequence[str]], seed: int) -> list[Clip]:
    """Plans all clips: each sentence on its own, and by the way clips of other kinds.

    Args:
        sentences: By language ("en", "zh"); the order of clips follows theirs, languages in turn.
        seed: Same sentences and seed, same clips.
    """
    splits: tuple[Split, ...] = ("train", "dev", "test")
    by_split: dict[tuple[str, Split], list[str]] = {
        (language, split): [text for text in texts if split_of(text) == split]
        for language, texts in sentences.items()
        for split in splits
    }
    places = {key: itertools.count() for key in by_split}
    planned: dict[str, Clip] = {}
    for language, text in _in_turn(sentences):
        split = split_of(text)
        pool, place = by_split[language, split], next(places[language, split])
        planned_here = [("sentence", (text,)), *_extras(text, language, pool[place:], by_split, split, seed)]
        for kind, texts in planned_here:
            clip = Clip(kind=kind, texts=texts, split=split, seed=seed)
            planned.setdefault(clip.id, clip)
    heard = {letters(clip.transcript) for clip in planned.values() if clip.split == "train"}
    # Sentences fall to one split each; a word that was drawn from two of them must not be in two.
    return [clip for clip in planned.values() if clip.split == "train" or letters(clip.transcript) not in heard]


def _extras(
    text: str,
    language: str,
    following: Sequence[str],
    by_split: Mapping[tuple[str, Split], Sequence[str]],
    split: Split,
    seed: int,
) -> Iterator[tuple[Kind, tuple[str, ...]]]:
    generator = _generator(f"{seed}\textras\t{text}".encode())
    drawn = [kind for kind, share in _EXTRA_KINDS if generator.random() < share]
    if "joined" in drawn:
        joined = functools.reduce(_join_texts, following[: int(generator.integers(2, 5))])
        if len(following) > 1 and len(joined) <= _MAX_JOINED[language]:
            yield "joined", (joined,)
    others = [texts for (other, its_split), texts in by_split.items() if other != language and its_split == split]
    if "switched" in drawn and others and others[0]:
        yield "switched", (text, others[0][int(generator.integers(len(others[0])))])
    if "word" in drawn and (words := _words(text, language)):
        yield "word", (words[int(generator.integers(len(words)))],)
    # A draw of its own: the clips above stay what they were before there were stressed ones.
    stressed = _generator(f"{seed}\tstressed\t{text}".encode()).random() < _STRESSED_SHARE
    if stressed and _STRESSED_LENGTHS[0] <= len(split_words(text)) <= _STRESSED_LENGTHS[1]:
        yield "stressed", (text,)


def recipes(names: Iterable[str], split: Split, language: str, gender: str) -> list[Recipe]:
    """Voices that a split may use: single packs in train only, blends of two packs dealt out by hash.

    Args:
        names: Voice packs at hand.
        split: Train, dev or test.
        language: "en" (US and British voices) or "zh".
        gender: "female" or "male".
    """
    packs = [name for name in sorted(names) if name[0] in {"en": "ab", "zh": "z"}[language] and name[1] == gender[0]]
    pairs = [pair for pair in itertools.combinations(packs, 2) if pair[0][0] == pair[1][0]]
    blends = [Recipe(packs=pair, weights=(w, round(1 - w, 2))) for pair in pairs for w in _BLEND_WEIGHTS]
    blends.sort(key=lambda blend: hashlib.sha256(blend.name.encode()).digest())
    held = math.ceil(len(blends) * _HELD_OUT_BLENDS)
    if split == "test":
        return blends[:held]
    if split == "dev":
        return blends[held : 2 * held]
    return [Recipe(packs=(pack,), weights=(1.0,)) for pack in packs] + blends[2 * held :]


def classify(value: float, bounds: tuple[float, float], names: tuple[str, str, str]) -> str:
    """Names the class of a measured value: below the first bound, between them, above the second."""
    return names[int(value >= bounds[0]) + int(value > bounds[1])]


def make_clip(clip: Clip, speaker: Kokoro, names: Sequence[str], out: Path, aligner: WordAligner) -> dict[str, Any]:
    """Speaks one clip, writes its audio and returns its manifest row.

    Args:
        clip: What to say.
        speaker: The speech model.
        names: Voice packs at hand.
        out: Folder of the corpus.
        aligner: Finds the words of clips with a stressed one.

    Raises:
        InputError: Nothing can be spoken, it came out silent, or no word of it can be stressed.
    """
    generator = _generator(clip.digest)
    voice_language = "zh" if clip.kind == "switched" else clip.language  # only Mandarin packs speak both well
    gender = ("female", "male")[int(generator.integers(2))]
    voices = recipes(names, clip.split, voice_language, gender)
    singles = [voice for voice in voices if len(voice.packs) == 1]
    chosen = singles if singles and generator.random() < 0.5 else voices
    recipe = chosen[int(generator.integers(len(chosen)))]
    speed = float(np.exp(generator.uniform(*np.log(_SPEEDS))))
    semitones = float(generator.uniform(-_SEMITONES, _SEMITONES)) if generator.random() < _SHIFTED_SHARE else 0.0
    level = float(generator.uniform(*_LEVELS_DBFS[int(generator.integers(len(_LEVELS_DBFS)))]))
    samples, phonemes = _speak(clip, speaker, recipe, speed, generator)
    samples, f0_hz = _shift_pitch(samples, semitones)
    stressed: tuple[int, ...] = ()
    if clip.kind == "stressed":
        edited, stressed = _stress(samples, clip, aligner, generator)
        samples = edited.samples
    samples = _set_level(samples, level)
    measured = _measure(samples, f0_hz, count_syllables(clip.transcript, phonemes))
    attributes = _attributes(measured, gender, voice_language, count_syllables(clip.transcript, phonemes))
    if stressed:
        attributes["stress"] = list(stressed)
    audio = f"audio/{clip.digest.hex()[0]}/{clip.id}.flac"
    write_audio(out / audio, samples, SAMPLE_RATE, tag=f"synthetic speech; Kokoro-82M; seed {clip.seed}; {clip.id}")
    written = write_instructions(
        attributes, clip.transcript, clip.language, count=INSTRUCTIONS_A_CLIP, generator=generator
    )
    return {
        "id": clip.id,
        "audio": audio,
        "duration_s": round(len(samples) / SAMPLE_RATE, 3),
        "language": clip.language,
        "transcript": clip.transcript,
        "speaker": recipe.name,
        "split": clip.split,
        "kind": clip.kind,
        "attributes": attributes,
        "instructions": [instruction.text for instruction in written],
        "measured": measured,
        "control": {"speed": round(speed, 3), "semitones": round(semitones, 2), "phonemes": phonemes},
    }


def _speak(
    clip: Clip, speaker: Kokoro, recipe: Recipe, speed: float, generator: np.random.Generator
) -> tuple[Float[np.ndarray, " sample"], str]:
    """Speaks the stretches one by one, since each language is clearer alone, with short pauses between them."""
    pieces, spoken = [], []
    for text in clip.texts:
        phonemes = speaker.phonemes(text, recipe.accent)
        pieces.append(_trim(speaker.speak(phonemes, recipe, speed)))
        spoken.append(phonemes)
        pieces.append(np.zeros(int(generator.uniform(0.02, 0.2) * SAMPLE_RATE)))
    return np.concatenate(pieces[:-1]), " ".join(spoken)


def _stress(
    samples: Float[np.ndarray, " sample"], clip: Clip, aligner: WordAligner, generator: np.random.Generator
) -> tuple[StressedClip, tuple[int, ...]]:
    """Edits a stress into one word of the clip; returns the clip and the numbers of its stressed words."""
    times = aligner.word_times(samples.astype(np.float32), SAMPLE_RATE, clip.transcript)
    units = [
        unit
        for unit in stress_units(clip.transcript)
        if times is not None and times[unit[-1]][1] - times[unit[0]][0] > _SHORTEST_STRESSED_S
    ]
    if times is None or len(units) < 2:
        raise InputError("no word of the clip can be stressed: its words are too short or were not found")
    chosen = units[int(generator.integers(len(units)))]
    emphasis = _EMPHASES[int(generator.integers(len(_EMPHASES)))]
    return stress_words(samples, SAMPLE_RATE, times, chosen, emphasis), chosen


def _active_frames(samples: Float[np.ndarray, " sample"]) -> tuple[Int[np.ndarray, " active"], float]:
    """Returns the 10 ms frames within 40 dB of the loudest one, and their mean level in dBFS."""
    frames = samples[: len(samples) // HOP * HOP].reshape(-1, HOP)
    power = np.square(frames).mean(axis=1)
    if not len(power) or power.max() < 1e-8:
        raise InputError("the clip came out silent")
    active = np.flatnonzero(power > power.max() * 1e-4)
    return active, float(10 * np.log10(power[active].mean()))


def _trim(samples: Float[np.ndarray, " sample"]) -> Float[np.ndarray, " kept"]:
    active, _ = _active_frames(samples)
    return samples[max(0, active[0] - _MARGIN_FRAMES) * HOP : (active[-1] + 1 + _MARGIN_FRAMES) * HOP]


def _shift_pitch(samples: Float[np.ndarray, " sample"], semitones: float) -> tuple[Float[np.ndarray, " sample"], float]:
    """Moves F0 and leaves the formants (WORLD); returns the median F0 of voiced frames too, 0 if there are none."""
    pyworld = import_module("pyworld")
    f0, times = pyworld.dio(samples, SAMPLE_RATE, f0_floor=60.0, f0_ceil=500.0)
    f0 = pyworld.stonemask(samples, f0, times, SAMPLE_RATE) * 2 ** (semitones / 12)
    median = float(np.median(f0[f0 > 0])) if (f0 > 0).any() else 0.0
    if semitones == 0 or not median:
        return samples, median
    unshifted = f0 / 2 ** (semitones / 12)
    envelope = pyworld.cheaptrick(samples, unshifted, times, SAMPLE_RATE)
    aperiodicity = pyworld.d4c(samples, unshifted, times, SAMPLE_RATE)
    return pyworld.synthesize(f0, envelope, aperiodicity, SAMPLE_RATE)[: len(samples)], median


def _set_level(samples: Float[np.ndarray, " sample"], level_dbfs: float) -> Float[np.ndarray, " sample"]:
    """Scales to a mean active level, or less where peaks would clip."""
    gain = 10 ** ((level_dbfs - _active_frames(samples)[1]) / 20)
    return samples * min(gain, _PEAK / np.abs(samples).max())


def _measure(samples: Float[np.ndarray, " sample"], f0_hz: float, syllables: Mapping[str, int]) -> dict[str, float]:
    active, level = _active_frames(samples)
    gaps = np.diff(active)
    spoken_frames = active[-1] - active[0] + 1 - gaps[gaps > _LONG_PAUSE_FRAMES].sum()
    rate = sum(syllables.values()) / (spoken_frames / 100)
    return {"f0_hz": round(f0_hz, 1), "syllables_per_s": round(rate, 2), "active_dbfs": round(level, 1)}


def _attributes(
    measured: Mapping[str, float], gender: str, voice_language: str, syllables: Mapping[str, int]
) -> dict[str, str | list[int]]:
    """Names the measured values; what cannot be told from this clip is left out."""
    levels = ("low", "normal", "high")
    attributes: dict[str, str | list[int]] = {
        "gender": gender,
        "energy": classify(measured["active_dbfs"], _ACTIVE_DBFS, levels),
    }
    if measured["f0_hz"]:
        attributes["pitch"] = classify(measured["f0_hz"], _PITCH_HZ[voice_language, gender], levels)
    total = sum(syllables.values())
    if total >= _FEWEST_SYLLABLES:
        low, high = (sum(_SYLLABLES_PER_S[name][i] * n for name, n in syllables.items()) / total for i in (0, 1))
        attributes["speed"] = classify(measured["syllables_per_s"], (low, high), ("slow", "normal", "fast"))
    return attributes


def finished_ids(manifest: Path) -> set[str]:
    """Reads which clips are made; cuts off a last line that a kill left torn, so that its clip is made again."""
    if not manifest.exists():
        return set()
    content = manifest.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(manifest, whole)
    return {json.loads(line)["id"] for line in content[:whole].splitlines()}


def _read_sentences(paths: Sequence[Path], limit: int | None, seed: int) -> dict[str, list[str]]:
    """Reads sentence files, each shuffled by the seed and cut to `limit` lines; languages keep file order."""
    sentences: dict[str, list[str]] = {}
    for path in paths:
        try:
            lines = path.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: not readable ({error}); give UTF-8 lines of `language<TAB>text`") from error
        for number in _generator(f"{seed}\tshuffle".encode()).permutation(len(lines))[:limit]:
            language, _, text = lines[number].strip().partition("\t")
            if language not in _MAX_JOINED or not text.strip():
                raise InputError(f"{path}:{number + 1}: expected `en<TAB>text` or `zh<TAB>text`, got {lines[number]!r}")
            sentences.setdefault(language, []).append(text.strip())
    return sentences


def _read_held_out(paths: Sequence[Path]) -> frozenset[str]:
    """Reads the letters of what is spoken in requests of test sets."""
    held_out = set[str]()
    for path in paths:
        try:
            lines = path.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: not readable ({error}); give JSON lines with `transcript`") from error
        for number, line in enumerate(lines, 1):
            try:
                held_out.add(letters(json.loads(line)["transcript"]))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(f"{path}:{number}: expected a JSON object with `transcript`, got {line!r}") from error
    return frozenset(held_out)


def _words(text: str, language: str) -> list[str]:
    """Words worth a clip of their own: English of four letters on, Mandarin compounds that the pinyin lexicon knows."""
    if language == "en":
        return re.findall(r"[A-Za-z]{4,}", text)
    from pypinyin.constants import PHRASES_DICT

    ends = ((start, start + width) for width in (4, 3, 2) for start in range(len(text) - width + 1))
    return [text[start:end] for start, end in ends if text[start:end] in PHRASES_DICT]


def _join_texts(before: str, after: str) -> str:
    glued = unicodedata.east_asian_width(before[-1]) in "WF"  # Mandarin marks bring their own space
    return f"{before}{'' if glued else ' '}{after}"


def _in_turn(sentences: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str]]:
    for row in itertools.zip_longest(*sentences.values()):
        yield from ((language, text) for language, text in zip(sentences, row, strict=True) if text is not None)


def _generator(entropy: bytes) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(entropy).digest()[:16], "big"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Workshop:
    """What a process needs to make clips."""

    speaker: Kokoro
    names: Sequence[str]
    out: Path
    aligner: WordAligner

    def make(self, clip: Clip) -> dict[str, Any]:
        try:
            return make_clip(clip, self.speaker, self.names, self.out, self.aligner)
        except Exception as error:  # one bad sentence must not end the job; it is named in failed.jsonl
            return {"id": clip.id, "transcript": clip.transcript, "error": f"{type(error).__name__}: {error}"}


@functools.cache
def _workshop(voices: Path, out: Path) -> _Workshop:
    """Loads a process's workshop once; a worker ends with its parent, even one that is killed."""
    end_with_parent()
    aligner = open_word_aligner(Path(__file__).parents[1] / "release")
    return _Workshop(speaker=Kokoro(voices), names=voice_names(voices), out=out, aligner=aligner)


def _make(clip: Clip, voices: Path, out: Path) -> dict[str, Any]:
    return _workshop(voices, out).make(clip)


def _rows(clips: Sequence[Clip], voices: Path, out: Path, num_workers: int) -> Iterator[dict[str, Any]]:
    if num_workers == 1:
        yield from (_make(clip, voices, out) for clip in clips)
        return
    with ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn")) as pool:
        yield from (done.result() for done in as_completed([pool.submit(_make, clip, voices, out) for clip in clips]))


def _run(arguments: argparse.Namespace) -> int:
    voices = fetch_voice_packs(arguments.voices)
    held_out = _read_held_out(arguments.held_out)
    sentences = {
        language: [text for text in texts if letters(text) not in held_out]
        for language, texts in _read_sentences(arguments.sentences, arguments.limit, arguments.seed).items()
    }
    planned = plan_clips(sentences, arguments.seed)
    wanted = [clip for clip in planned if clip.kind in arguments.kinds]
    clips = [clip for clip in wanted if held_out.isdisjoint(map(letters, clip.texts))]  # a word may be a held-out one
    arguments.out.mkdir(parents=True, exist_ok=True)
    manifest = arguments.out / "manifest.jsonl"
    done = finished_ids(manifest)
    waiting = [clip for clip in clips if clip.id not in done]
    seconds, failed = 0.0, 0
    with (
        manifest.open("a", encoding="utf-8") as rows,
        (arguments.out / "failed.jsonl").open("w", encoding="utf-8") as failures,
        progress_bar("clips", len(clips), done=len(clips) - len(waiting)) as advance,
    ):
        for row in _rows(waiting, voices, arguments.out, arguments.workers):
            sink = failures if "error" in row else rows
            sink.write(json.dumps(row, ensure_ascii=False) + "\n")
            sink.flush()
            seconds, failed = seconds + row.get("duration_s", 0.0), failed + ("error" in row)
            advance()
    made = len(waiting) - failed
    sys.stdout.write(f"{made} clips, {seconds / 60:.1f} min of speech made; {failed} failed; {len(done)} were there\n")
    return 1 if failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0, 1 (some clips failed, see failed.jsonl) or 2 (wrong use)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sentences", type=Path, nargs="+", help="files of `language<TAB>text` lines")
    parser.add_argument("--out", type=Path, required=True, help="folder of the corpus")
    parser.add_argument("--limit", type=int, help="sentences a file, after a seeded shuffle (default: all)")
    parser.add_argument(
        "--held-out",
        type=Path,
        nargs="+",
        default=(),
        metavar="REQUESTS",
        help="files of requests whose sentences are not to be spoken here (`voxinstruct testset NAME --out FILE`)",
    )
    kinds = get_args(Kind)
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=kinds, help="of the plan (default: all)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: a CPU each)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--voices",
        type=Path,
        default=PACKS_FOLDER,
        help="folder of voice packs; filled on first use",
    )
    try:
        return _run(parser.parse_args(arguments))
    except VoxError as error:
        sys.stderr.write(f"{error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
