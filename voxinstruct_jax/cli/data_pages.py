"""What `inspect` shows of data: a batch of a configuration, and the page of a manifest, shards or a batch."""

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from voxinstruct_jax.config import ConfigError, InputError

__all__ = ["describe_batch", "write_page"]

SHOWN_ATTRIBUTES = ("gender", "age", "pitch", "energy", "speed", "emotion")


def describe_batch(path: Path, step: int, overrides: list[str]) -> dict[str, Any]:
    """Returns what stands in the global batch of a step, and how full batches are.

    Raises:
        ConfigError: The path is no configuration of a language model.
        InputError: Its data is missing or does not fit the model.
    """
    from voxinstruct_jax.data.statistics import Tally
    from voxinstruct_jax.training.language_model import count_tokens, measure_packing

    experiment, batches = _open(path, overrides)
    batch, tally = batches[step], Tally()
    chosen = [clip for row in batches.chosen(step) for clip in row]
    for clip in chosen:
        tally.add_example(clip.example, batches.frame_rate)
    measured = measure_packing(batch, rows=batches.config.rows)
    summary, counted = batches.planner.summary(), tally.summary()
    return {
        "path": str(path),
        "kind": "batch",
        "step": step,
        "rows": batches.config.rows,
        "clips": len(chosen),
        "tokens": count_tokens(batch),
        "waste": round(measured["waste"], 4),
        "clips_per_step": round(summary.clips_per_step, 2),
        "mean_waste": round(summary.waste, 4),
        "mean_text_waste": round(summary.text_waste, 4),
        "too_long": round(summary.too_long, 6),
        "shares": {name: round(share, 4) for name, share in summary.shares.items()},
        "quoted_transcripts": sum(clip.variant == len(clip.example.instructions) - 1 for clip in chosen),
        "voice_prompts": sum(clip.prompt_frames > 0 for clip in chosen),
        "hours": counted["hours"],
        "languages": counted["languages"],
        "semantic_tokens": counted["semantic_tokens"],
        "codebooks": counted["codebooks"],
        "folders": list(experiment.data.folders),
        "fingerprint": batches.fingerprint,
        "histograms": counted["histograms"],
    }


def write_page(found: dict[str, Any], options: argparse.Namespace, overrides: list[str]) -> Path:
    """Writes the page of what `inspect` found.

    Raises:
        ConfigError: It is of a kind that has no page.
    """
    from voxinstruct_jax.evaluation.data_report import write_data_report

    match found["kind"]:
        case "manifest":
            examples = _manifest_examples(options.path, found["rows"], options.examples)
        case "shards" if not found.get("damage"):
            examples = _shard_examples(options.path, options)
        case "batch":
            examples = _batch_examples(options, overrides)
        case kind:
            raise ConfigError(f"--html: {options.path} is {kind}; give a manifest, whole shards, or --batch STEP")
    facts = {name.replace("_", " "): _told(value) for name, value in found.items() if name not in ("histograms",)}
    title = f"{options.path.name}, step {found['step']}" if found["kind"] == "batch" else options.path.name
    return write_data_report(options.html, title, facts, found["histograms"], list(examples))


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_told(item)}" for name, item in value.items()) or "-"
    if isinstance(value, list):
        return "; ".join(map(_told, value)) or "-"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _open(path: Path, overrides: list[str]) -> tuple[Any, Any]:
    from voxinstruct_jax.cli.experiments import load_experiment, override
    from voxinstruct_jax.training.ar import ARExperiment
    from voxinstruct_jax.training.language_model import open_batches
    from voxinstruct_jax.training.nar import NARExperiment

    experiment = override(load_experiment(str(path)), overrides, program=f"inspect {path}")
    if not isinstance(experiment, ARExperiment | NARExperiment):
        raise ConfigError(f"--batch: {path} trains no language model; give an AR or NAR configuration")
    return experiment, open_batches(experiment)


def _manifest_examples(path: Path, num_rows: int, count: int) -> Iterator[Any]:
    """Rows evenly spread over the manifest, with their own audio."""
    from voxinstruct_jax.audio.waveform import read_audio
    from voxinstruct_jax.data.manifest import iter_manifest
    from voxinstruct_jax.data.prepare import instruction_variants
    from voxinstruct_jax.evaluation.data_report import DataExample
    from voxinstruct_jax.text.words import split_words

    rate, every = 24_000, max(1, num_rows // max(count, 1))
    for row in itertools.islice(iter_manifest(path, rejected=[]), 0, every * count, every):
        samples, problem = None, ""
        try:
            samples = read_audio(row.audio, rate)[round(row.offset_s * rate) :]
            samples = samples if row.duration_s is None else samples[: round(row.duration_s * rate)]
        except InputError as error:
            problem = str(error)
        words = split_words(row.transcript)
        times = row.word_times_s if len(row.word_times_s) == len(words) else ()
        yield DataExample(
            title=row.id,
            **_marked(instruction_variants(row)[0]),
            samples=samples,
            sample_rate=rate,
            problem=problem or "the file holds nothing there",
            spans=[(word.text, start, end) for word, (start, end) in zip(words, times, strict=False)],
            facts=_facts(row.language, row.speaker, row.attributes, row.transcript),
        )


def _shard_examples(folder: Path, options: argparse.Namespace) -> Iterator[Any]:
    from voxinstruct_jax.data.shards import ShardReader

    reader = ShardReader(folder)
    every = max(1, len(reader) // max(options.examples, 1))
    speak = _Speaker(options.voice, reader.index)
    for record in range(0, min(len(reader), every * options.examples), every):
        example = reader[record]
        yield _prepared(example, example.instructions[0], speak, {"Record": f"{record:,}"})


def _batch_examples(options: argparse.Namespace, overrides: list[str]) -> Iterator[Any]:
    _, batches = _open(options.path, overrides)
    speak = _Speaker(options.voice, batches.readers[0].index)
    clips = [(number, clip) for number, row in enumerate(batches.chosen(options.batch)) for clip in row]
    for row, clip in clips[: options.examples]:
        place = {"Row": str(row), "Record": f"{batches.readers[clip.corpus].folder.name} {clip.record:,}"}
        if clip.prompt_frames:
            place["Voice prompt"] = f"{clip.prompt_frames} frames of record {clip.prompt_record:,}"
        yield _prepared(clip.example, clip.example.instructions[clip.variant], speak, place)


class _Speaker:
    """Decodes codes by a voice's codec; says why where it cannot."""

    def __init__(self, voice: Path | None, index: Any) -> None:
        from voxinstruct_jax.voice_folder import codes_fingerprint, embedded_release, load_codec

        self._codec = load_codec((voice or embedded_release()) / "codec")
        self.frame_rate, self.problem = index.frame_rate, ""
        if codes_fingerprint(self._codec) != index.fingerprints["codec"]:
            self.problem = "the codes are of another codec; give the voice that made them with --voice"

    @property
    def sample_rate(self) -> int:
        return self._codec.config.sample_rate

    def samples(self, codes: np.ndarray) -> np.ndarray | None:
        """The sound of a clip's codes."""
        from voxinstruct_jax.voice_folder import decode_clip

        return None if self.problem else decode_clip(self._codec, codes.astype(np.int32))


def _prepared(example: Any, instruction: str, speak: _Speaker, place: dict[str, str]) -> Any:
    from voxinstruct_jax.evaluation.data_report import DataExample
    from voxinstruct_jax.vocabulary import expand

    units = expand(example.semantic_tokens, example.run_lengths)
    return DataExample(
        title=example.id,
        **_marked(instruction),
        samples=speak.samples(example.codes),
        sample_rate=speak.sample_rate,
        problem=speak.problem,
        semantic=units,
        first_codes=example.codes[0].astype(np.int32),
        frame_rate=speak.frame_rate,
        spans=_word_spans(example, speak.frame_rate),
        facts={**place, **_facts(example.language, example.speaker, example.attributes, example.transcript)},
    )


def _word_spans(example: Any, frame_rate: float) -> list[tuple[str, float, float]]:
    """Start and end of each word, from the durations of the characters."""
    from voxinstruct_jax.data.durations import quoted
    from voxinstruct_jax.text.content import spoken_content
    from voxinstruct_jax.text.normalizer import normalize
    from voxinstruct_jax.text.words import split_words

    text = spoken_content(normalize(quoted(example.transcript))).text or ""
    if len(example.durations) != len(text) + 2:
        return []
    ends = np.cumsum(example.durations, dtype=np.int64) / 2 / frame_rate  # of the opening quote, of each character, ...
    return [(word.text, float(ends[word.start]), float(ends[word.end])) for word in split_words(text)]


def _marked(instruction: str) -> dict[str, Any]:
    from voxinstruct_jax.text.content import spoken_content

    content = spoken_content(instruction)
    before, after = instruction[: content.start], instruction[content.end :]
    return {"before": before, "content": content.text or "", "after": after}


def _facts(language: str, speaker: str, attributes: dict[str, Any], transcript: str) -> dict[str, str]:
    """Lines of a clip's table."""
    from voxinstruct_jax.text.words import split_words

    words = [word.text for word in split_words(transcript)]
    stressed = [words[place] for place in attributes.get("stress", ()) if place < len(words)]
    told = {"Language": language, "Speaker": speaker, "Transcript": transcript, "Stressed": ", ".join(stressed)}
    told |= {name.capitalize(): str(attributes.get(name, "")) for name in SHOWN_ATTRIBUTES}
    return {name: value for name, value in told.items() if value}
