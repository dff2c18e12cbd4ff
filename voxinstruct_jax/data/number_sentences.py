"""Writes sentences with numbers, dates, money and names, in words, for `data.generated_corpus`.

    python -m voxinstruct_jax.data.number_sentences en --count 1000 > numbers_en.tsv

The frames stand in `wording/number_frames.toml`; what fills them is written in digits and read out by the normaliser
that reads a user's text, so a voice hears in training what it will have to say.
"""

import argparse
import calendar
import re
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np

from voxinstruct_jax.config import InputError
from voxinstruct_jax.text.normalizer import normalize

__all__ = ["LANGUAGES", "main", "write_sentences"]

LANGUAGES = ("en", "zh")


def write_sentences(language: str, count: int, seed: int) -> list[str]:
    """Returns sentences, no two alike; more of them begin with the same ones.

    Args:
        language: "en" or "zh".
        count: How many.
        seed: Of all choices.

    Raises:
        InputError: There are no frames of the language, or not as many sentences.
    """
    frames = tomllib.loads((files("voxinstruct_jax.data") / "wording" / "number_frames.toml").read_text("utf-8"))
    if language not in frames:
        raise InputError(f"{language}: no frames with numbers; there are {', '.join(frames)}")
    generator = np.random.default_rng([seed, LANGUAGES.index(language)])
    written: dict[str, None] = {}
    for number in range(20 * count):
        if len(written) == count:
            break
        frame = frames[language]["frames"][number % len(frames[language]["frames"])]
        sentence = re.sub(r"\{(\w+)\}", lambda slot: _fill(slot[1], language, frames[language], generator), frame)
        spoken = normalize(sentence)
        written[spoken[:1].upper() + spoken[1:]] = None
    if len(written) < count:
        raise InputError(f"{language}: the frames give only {len(written)} different sentences, {count} were asked for")
    return list(written)


def _fill(slot: str, language: str, wording: Mapping[str, Sequence[str]], generator: np.random.Generator) -> str:
    """Draws what stands in a slot, in digits."""

    def between(low: int, high: int) -> int:
        return int(generator.integers(low, high + 1))

    mandarin = language == "zh"
    money = f"{between(1, 99)}{'.' + str(between(10, 99)) if generator.random() < 0.5 else ''}"
    month, day = between(1, 12), between(1, 28)
    telephone = "1" + "".join(str(between(3, 9)) for _ in range(10)) if mandarin else f"555-{between(1000, 9999)}"
    fillings: Mapping[str, Callable[[], Any]] = {
        "small": lambda: between(2, 99),
        "int": lambda: between(100, 9999) if generator.random() < 0.5 else between(10, 999),
        "year": lambda: between(1700, 2030),
        "clock": lambda: f"{between(1, 12)}:{between(0, 59):02d}",
        "date": lambda: f"{month}月{day}日" if mandarin else f"{calendar.month_name[month]} {day}",
        "money": lambda: f"￥{money}" if mandarin else f"${money}",
        "percent": lambda: f"{between(1, 99)}%" if generator.random() < 0.6 else f"{between(1, 99)}.{between(1, 9)}%",
        "decimal": lambda: f"{between(0, 20)}.{between(1, 99)}",
        "telephone": lambda: telephone,
        "ordinal": lambda: _ordinal(between(1, 40)),
        "name": lambda: str(generator.choice(wording["names"])),
        "city": lambda: str(generator.choice(wording["cities"])),
    }
    return str(fillings[slot]())


def _ordinal(value: int) -> str:
    ending = "th" if 10 <= value % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(value % 10, "th")
    return f"{value}{ending}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line: lines of `language<TAB>text`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("language", choices=LANGUAGES)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        sentences = write_sentences(options.language, options.count, options.seed)
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write("".join(f"{options.language}\t{sentence}\n" for sentence in sentences))
    return 0


if __name__ == "__main__":
    sys.exit(main())
