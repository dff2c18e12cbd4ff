"""Writes the test sets that come with the package (`voxinstruct testset` lists them); run once, the files are frozen.

    python benchmarks/make_test_sets.py EN.tsv ZH.tsv --out voxinstruct_jax/evaluation/shipped_sets

A sentence file has `language<TAB>text` a line; only sentences of the generated corpus' test split are taken, so no
voice trained on that corpus has heard them. Instructions come from the grammar with nothing unsaid. Every value is
asked for in at least 60 of a set's 600 instructions; a sixth of them are minimal pairs, one sentence with one attribute
changed. `hard` and `code_switched` are written by hand (`test_set_texts.toml`). `free_wording_*` is not made here: it
is by hand as a whole. Needs jieba (the `corpus` extra).
"""

import argparse
import functools
import itertools
import json
import logging
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from voxinstruct_jax.data.generated_corpus import split_of
from voxinstruct_jax.data.instructions import FORMS, POSITIONS, write_instruction
from voxinstruct_jax.text.content import spoken_content
from voxinstruct_jax.text.normalizer import has_han
from voxinstruct_jax.text.words import split_words

SEED = 20261121
VALUES: Mapping[str, Sequence[str]] = {
    "gender": ("female", "male"),
    "age": ("child", "teenager", "young", "middle-aged", "elderly"),
    "pitch": ("low", "normal", "high"),
    "energy": ("low", "normal", "high"),
    "speed": ("slow", "normal", "fast"),
    "emotion": ("neutral", "happy", "sad", "angry", "fearful", "disgusted", "surprised"),
}
SHARES = {"gender": 0.9, "age": 0.6, "pitch": 0.5, "energy": 0.5, "speed": 0.5, "emotion": 0.87}
PAIRED = ("gender", "pitch", "energy", "speed")
UNQUOTED_SHARE = 0.1
INSTRUCTIONS, PAIRS, STRESS_PAIRS, CLONING = 600, 50, 50, 200
LENGTHS = {"en": (5, 16), "zh": (6, 24)}
STRESS_LENGTHS = {"en": (4, 9), "zh": (6, 14)}


def main() -> None:
    """Reads the sentences, writes the sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sentences", nargs=2, type=Path, metavar="TSV", help="English, Mandarin")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    generator = np.random.default_rng(SEED)
    held_out = {language: _held_out(path, generator) for language, path in zip(LENGTHS, options.sentences, strict=True)}
    for language, texts in held_out.items():
        fitting = _of_length(texts, language, LENGTHS[language])
        _write(options.out / f"instruct_{language}.jsonl", _instruct(fitting, language, generator))
        _write(options.out / f"cloning_{language}.jsonl", _plain(fitting, language, CLONING))
    stress = (
        _stress(_of_length(texts, language, STRESS_LENGTHS[language]), language, generator)
        for language, texts in held_out.items()
    )
    _write(options.out / "stress.jsonl", itertools.chain.from_iterable(stress))
    texts = _by_hand_texts()
    _write(options.out / "code_switched.jsonl", _by_hand("switched", {"mixed": texts["code_switched"]}, generator))
    _write(options.out / "hard.jsonl", _by_hand("hard", texts["hard"], generator))


@functools.cache
def _by_hand_texts() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("test_set_texts.toml").read_text(encoding="utf-8"))


def _held_out(path: Path, generator: np.random.Generator) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    texts = sorted({line.partition("\t")[2].strip() for line in lines})
    kept = [text for text in texts if split_of(text) == "test" and not any(mark in text for mark in "\"“”「」'’‘")]
    return [kept[place] for place in generator.permutation(len(kept))]


def _of_length(texts: list[str], language: str, lengths: tuple[int, int]) -> Iterator[str]:
    """Yields the texts of the wanted number of words, over and over: Mandarin has fewer than a set has rows."""
    fitting = [text for text in texts if lengths[0] <= len(split_words(text)) <= lengths[1]]
    return itertools.cycle([text for text in fitting if (language == "en") == text.isascii()])


def _asked(values: Mapping[str, Sequence[str]], count: int, generator: np.random.Generator) -> list[dict[str, str]]:
    """Attributes of each instruction: every value equally often, each attribute in its share of the instructions."""
    asked: list[dict[str, str]] = [{} for _ in range(count)]
    for name, options in values.items():
        places = generator.permutation(count)[: round(count * SHARES[name])]
        for number, place in enumerate(places):
            asked[place][name] = options[number % len(options)]
    return [row or {"gender": "female"} for row in asked]


def _instruct(texts: Iterator[str], language: str, generator: np.random.Generator) -> Iterator[dict[str, Any]]:
    singles = INSTRUCTIONS - 2 * PAIRS
    for number, attributes in enumerate(_asked(VALUES, singles, generator)):
        yield _row(f"instruct_{language}_{number:03d}", next(texts), language, attributes, number, generator)
    for number in range(PAIRS):
        changed = PAIRED[number % len(PAIRED)]
        low, *_, high = VALUES[changed]
        others = {name: str(generator.choice(VALUES[name])) for name in PAIRED[:2] if name != changed}
        text, seed = next(texts), int(generator.integers(2**32))
        for value in (low, high):
            name = f"instruct_{language}_pair{number:02d}_{value}"
            row = _row(name, text, language, {**others, changed: value}, number, np.random.default_rng(seed))
            row["attributes"] |= {"pair": f"{language}{number:02d}", "changed": changed}
            yield row


def _row(
    name: str, text: str, language: str, attributes: Mapping[str, Any], number: int, generator: np.random.Generator
) -> dict[str, Any]:
    form, position = FORMS[number % len(FORMS)], POSITIONS[number % len(POSITIONS)]
    if form == "bare" and len(attributes) > 3:  # a bare list of five adverbs is no instruction that anybody writes
        form = "led"
    written = write_instruction(
        attributes, text, language, form, position, generator, prosody_words=False, tell_all=True
    )
    instruction, quoted = written.text, True
    if position == "last" and generator.random() < UNQUOTED_SHARE * len(POSITIONS):
        content = spoken_content(instruction)
        instruction, quoted = instruction[: content.start - 1] + text, False
    told = {"position": position, "form": form, "quoted": quoted}
    return {
        "id": name,
        "instruction": instruction,
        "transcript": text,
        "language": language,
        "attributes": {**attributes, **told},
    }


def _stress(texts: Iterator[str], language: str, generator: np.random.Generator) -> Iterator[dict[str, Any]]:
    number = 0
    for text in texts:
        words = _stressable(text, language)
        if len(words) < 2:
            continue
        chosen = sorted(generator.permutation(len(words))[:2])
        for side, place in enumerate(chosen):
            attributes = {"stress": list(words[place])}
            row = _row(f"stress_{language}_{number:02d}{'ab'[side]}", text, language, attributes, number, generator)
            row["attributes"]["pair"] = f"{language}{number:02d}"
            yield row
        number += 1
        if number == STRESS_PAIRS:
            return


def _stressable(text: str, language: str) -> list[range]:
    """Content words that occur once, as ranges of indices into `split_words`."""
    words = split_words(text)
    if language == "en":
        plain = [word.text.lower() for word in words]
        function_words = _by_hand_texts()["function_words"].split()
        return [
            range(index, index + 1)
            for index, word in enumerate(plain)
            if len(word) > 2 and word not in function_words and plain.count(word) == 1
        ]
    import jieba.posseg

    starts = {word.start: index for index, word in enumerate(words)}
    found, place = [], 0
    for piece in jieba.posseg.cut(text):
        if len(piece.word) == 2 and piece.flag[0] in "nvadt" and text.count(piece.word) == 1 and place in starts:
            found.append(range(starts[place], starts[place] + 2))
        place += len(piece.word)
    return found


def _plain(texts: Iterator[str], language: str, count: int) -> Iterator[dict[str, Any]]:
    for number in range(count):
        text = next(texts)
        quoted = f'"{text}"' if language == "en" else f"“{text}”"
        yield {
            "id": f"cloning_{language}_{number:03d}",
            "instruction": quoted,
            "transcript": text,
            "language": language,
        }


def _by_hand(name: str, kinds: Mapping[str, Sequence[str]], generator: np.random.Generator) -> Iterator[dict[str, Any]]:
    number = 0
    for kind, texts in kinds.items():
        for text in texts:
            language = "zh" if has_han(text) else "en"
            attributes = {"gender": VALUES["gender"][number % 2]}
            row = _row(f"{name}_{number:03d}", text, language, attributes, number, generator)
            row["attributes"]["kind"] = kind
            yield row
            number += 1


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{path}: {len(lines)} rows, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    logging.getLogger("jieba").setLevel(logging.WARNING)
    main()
