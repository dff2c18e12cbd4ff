"""Test sets as request files: those that come with the package, and published ones from their folders.

A row is what `synthesize --requests` reads: `id, instruction, transcript, language, prompt?, prompt_transcript?,
attributes`. The attributes are what the instruction asks for, passed through to the results and judged there; beside
them stand `position` (of the content), `quoted`, `pair` (minimal pairs share it) and `kind`. Read `SETS`.

Source: VoxInstruct, section 5.1 (instruction test sets in two languages), section 5.4 (200 instructions with a stressed
word) and table 5 (voice cloning); sizes and balance are the project's own (`benchmarks/make_test_sets.py`). The grammar
of the training data wrote the instructions, but for those of `free_wording_*`, each written without sight of it.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from voxinstruct_jax.config import ConfigError, InputError
from voxinstruct_jax.data.manifest import Row, iter_manifest
from voxinstruct_jax.text.normalizer import has_han

__all__ = [
    "PUBLISHED",
    "SETS",
    "TestSet",
    "clone_requests",
    "read_instruct_tts_eval",
    "read_seed_tts_eval",
    "read_set",
    "write_set",
]

STYLES = ("APS", "DSD", "RP")
"""InstructTTSEval's three kinds of instruction: acoustic parameters, description, role play."""


@dataclasses.dataclass(frozen=True)
class TestSet:
    """A set that can be written as a request file."""

    about: str
    needs: str = ""
    """What has to be given beside its name, as an option of `voxinstruct testset`."""


SETS: Mapping[str, TestSet] = {
    "instruct_en": TestSet("600 English instructions; attributes balanced, content anywhere, 50 minimal pairs"),
    "instruct_zh": TestSet("600 Mandarin ones"),
    "free_wording_en": TestSet("120 English instructions written by hand, no template; attributes balanced"),
    "free_wording_zh": TestSet("120 Mandarin ones"),
    "stress": TestSet("100 minimal pairs, half of each language: one sentence, another stressed word"),
    "code_switched": TestSet("100 sentences in both languages, written by hand"),
    "hard": TestSet("100 sentences: numbers, repeats, tongue twisters, single words, long ones"),
    "cloning_en": TestSet("200 English sentences, in the voices of your prompts", "prompts"),
    "cloning_zh": TestSet("200 Mandarin ones; prompts of the other language make it cross-lingual", "prompts"),
    "seed-tts-eval": TestSet("Seed-TTS-eval as published: give a list such as en/meta.lst", "source"),
    "instruct-tts-eval": TestSet("InstructTTSEval as published: give its JSONL", "source"),
}


def read_set(name: str) -> list[dict[str, Any]]:
    """Returns the rows of a set that comes with the package.

    Raises:
        ConfigError: There is no such set.
    """
    path = files("voxinstruct_jax.evaluation") / "shipped_sets" / f"{name}.jsonl"
    if not path.is_file():
        raise ConfigError(f"{name}: no such test set; known: {', '.join(SETS)}")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def clone_requests(sentences: Iterable[Mapping[str, Any]], prompts: Path | str) -> Iterator[dict[str, Any]]:
    """Gives each sentence the voice of a prompt; speakers in turn, so that each speaks about as often.

    Args:
        sentences: Rows of `cloning_en` or `cloning_zh`.
        prompts: A manifest of the prompts with `speaker`; its language need not be that of the sentences.

    Raises:
        InputError: The manifest holds no clips.
    """
    by_speaker: dict[str, list[Row]] = {}
    for row in iter_manifest(str(prompts)):
        by_speaker.setdefault(row.speaker or row.id, []).append(row)
    if not by_speaker:
        raise InputError(f"{prompts}: holds no clips to take as prompts")
    speakers = sorted(by_speaker)
    for number, sentence in enumerate(sentences):
        turn, place = divmod(number, len(speakers))
        clips = by_speaker[speakers[place]]
        prompt = clips[turn % len(clips)]
        attributes = {"speaker": speakers[place], "prompt_language": prompt.language}
        yield {
            **sentence,
            "prompt": prompt.audio if "://" in prompt.audio else str(Path(prompt.audio).resolve()),
            "prompt_transcript": prompt.transcript,
            "attributes": {**sentence.get("attributes", {}), **attributes},
        }


def read_seed_tts_eval(source: Path, language: str | None = None) -> Iterator[dict[str, Any]]:
    """Reads a list of Seed-TTS-eval: `utterance|prompt text|prompt wav|text[|truth wav]`, wavs beside the list.

    Shorter lines, `utterance|text` and `utterance|text|prompt wav`, occur there too.

    Args:
        source: The list, such as `en/meta.lst`.
        language: "en" or "zh"; by default the name of the list's folder.

    Raises:
        InputError: The list cannot be read, a line has another form, or the language is not known.
    """
    language = language or source.parent.name
    if language not in ("en", "zh"):
        raise InputError(f"{source}: its folder does not tell the language; give --language en or zh")
    for number, line in _lines(source):
        fields = [part.strip() for part in line.split("|")]
        columns: dict[str, Any]
        match fields:
            case [name, text]:
                columns = {}
            case [name, text, prompt]:
                columns = {"prompt": prompt}
            case [name, prompt_transcript, prompt, text, *truth] if len(truth) < 2:
                columns = {"prompt": prompt, "prompt_transcript": prompt_transcript}
                if truth:
                    columns["attributes"] = {"reference_audio": str((source.parent / truth[0]).resolve())}
            case _:
                raise InputError(
                    f"{source}, line {number}: {len(fields)} fields; expected utterance|prompt text|prompt wav|text"
                )
        if "prompt" in columns:
            columns["prompt"] = str((source.parent / columns["prompt"]).resolve())
        asked = {"instruction": _quoted(text, language), "transcript": text, "language": language}
        yield {"id": name.removesuffix(".wav"), **asked, **columns}


def read_instruct_tts_eval(source: Path, language: str | None = None) -> Iterator[dict[str, Any]]:
    """Reads InstructTTSEval's JSONL: `id, text` and an instruction a style, as a text or as `{"instruction": …}`.

    Each record gives three requests, `ID_APS`, `ID_DSD` and `ID_RP`; the text follows the instruction in quotes.

    Raises:
        InputError: The file cannot be read, or a record lacks what is needed.
    """
    if language not in ("en", "zh", None):
        raise InputError(f"language {language!r}: InstructTTSEval has en and zh")
    for number, line in _lines(source):
        try:
            record = json.loads(line)
            name, text = str(record["id"]), str(record["text"])
            texts = {style: record[style] for style in STYLES if record.get(style)}
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{source}, line {number}: expected an object with id, text and {STYLES}") from error
        spoken = language or ("zh" if has_han(text) else "en")
        for style, asked in texts.items():
            described = str(asked["instruction"] if isinstance(asked, Mapping) else asked).strip()
            yield {
                "id": f"{name}_{style}",
                "instruction": f"{described} {_quoted(text, spoken)}",
                "transcript": text,
                "language": spoken,
                "attributes": {"style": style, "description": described},
            }


def write_set(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Writes a request file that appears whole or not at all; returns how many rows it has."""
    partial, count = path.with_name(f".{path.name}.partial"), 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
        partial.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); give another --out") from error
    finally:
        partial.unlink(missing_ok=True)
    return count


PUBLISHED: Mapping[str, Callable[[Path, str | None], Iterator[dict[str, Any]]]] = {
    "seed-tts-eval": read_seed_tts_eval,
    "instruct-tts-eval": read_instruct_tts_eval,
}


def _lines(source: Path) -> Iterator[tuple[int, str]]:
    try:
        text = source.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{source}: cannot be read ({error}); give the published list in UTF-8") from error
    found = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not found:
        raise InputError(f"{source}: is empty")
    yield from found


def _quoted(text: str, language: str) -> str:
    opening, closing = "“”" if language == "zh" else '""'
    return f"{opening}{text}{closing}"
