"""From manifest rows to token shards: read audio, encode it, write shards, and set bad rows aside.

A shard is the unit of work: it is written whole, then recorded under `parts/`; a run that was cut off goes on with the
first shard that is not recorded. Shards can also be made elsewhere, one `prepare_shard` call each. Start at `prepare`.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Int32

from voxinstruct_jax.audio.waveform import read_audio
from voxinstruct_jax.config import InputError, VoxError, fingerprint, from_dict, to_dict
from voxinstruct_jax.data.durations import quoted
from voxinstruct_jax.data.manifest import Rejection, Row
from voxinstruct_jax.data.progress import progress_bar
from voxinstruct_jax.data.shards import (
    Example,
    Lengths,
    ShardEntry,
    ShardIndex,
    ShardReader,
    is_stressed,
    write_index,
    write_json,
    write_shard,
)
from voxinstruct_jax.text.tokenizer import TextTokenizer, content_rows
from voxinstruct_jax.vocabulary import deduplicate

__all__ = ["Encoders", "ShardPart", "instruction_variants", "prepare", "prepare_shard", "recount_text"]

FORMAT_VERSION = 2
MIN_DURATION_S = 0.2
MAX_OVERHANG_S = 0.1
"""A row may end this much after its file does: durations in manifests are rounded."""
MAX_FRAME_DIFFERENCE = 2
"""Codec and features may disagree by this many frames at the end of a clip."""
INT16_MAX = 2**15 - 1


@dataclass(frozen=True, kw_only=True)
class Encoders:
    """What turns a clip into tokens."""

    acoustic: Callable[[Float[np.ndarray, " sample"]], Int[np.ndarray, "codebook frame"]]
    semantic: Callable[[Float[np.ndarray, " sample"]], Int[np.ndarray, " frame"]]
    """K-means ids at `semantic_rate`, runs not merged."""
    tokenizer: TextTokenizer
    sample_rate: int
    """What both encoders expect (Hz)."""
    frame_rate: float
    """Frames of `acoustic` a second (Hz)."""
    semantic_rate: float | None = None
    """Ids of `semantic` a second (Hz); None = one a frame of `acoustic`."""
    durations: Callable[[Float[np.ndarray, " sample"], str], Int[np.ndarray, " character"] | None] | None = None
    """Half frames that each character of a transcript lasts in a clip (`Example.durations`), None where the transcript
    cannot have been spoken there; no function = not known."""
    fingerprints: Mapping[str, str]
    """Of the weights behind `acoustic` (codec) and `semantic` (units)."""

    @property
    def all_fingerprints(self) -> dict[str, str]:
        """Those of the index: codec, units and tokenizer."""
        return {**self.fingerprints, "tokenizer": self.tokenizer.fingerprint}


@dataclass(frozen=True, kw_only=True)
class ShardPart:
    """What is recorded of a finished shard until the index is written."""

    entry: ShardEntry | None
    """None if every row was set aside."""
    duration_s: float
    num_codebooks: int
    largest_code: int
    largest_semantic_token: int
    languages: tuple[str, ...]
    """Language of each example."""
    speakers: tuple[str, ...]
    stressed: tuple[bool, ...]
    """Whether the stressed words of each example are known."""
    frames: tuple[int, ...]
    semantic: tuple[int, ...]
    text: tuple[tuple[int, ...], ...]
    """Text tokens of each variant of each example."""
    rejected: tuple[Rejection, ...]


def prepare(
    rows: Sequence[Row],
    out: str | os.PathLike[str],
    encoders: Encoders,
    *,
    shard_size: int = 4096,
    rejected: Sequence[Rejection] = (),
    progress: bool = True,
) -> ShardReader:
    """Encodes a manifest into the folder `out`, or goes on where an earlier run stopped.

    Bad rows are listed in `rejected.jsonl` with the reason; the rest goes on.

    Args:
        rows: From `read_manifest`; row k goes into shard k // shard_size.
        out: Local folder, new or of the same run.
        encoders: What makes the tokens.
        shard_size: Rows a shard. An hour of speech takes 1.3 to 1.6 MB.
        rejected: Rows that reading the manifest set aside already; listed with the others.
        progress: Whether to draw a bar.

    Raises:
        InputError: The folder holds another run (other rows, encoders or shard size), or no row could be used.
    """
    folder = Path(out)
    _claim(folder, rows, encoders, shard_size)
    if not (folder / "index.json").exists():
        starts = range(0, len(rows), shard_size)
        done = [_part_path(folder, start // shard_size).exists() for start in starts]
        with progress_bar(
            "Preparing", len(rows), done=min(sum(done) * shard_size, len(rows)), visible=progress
        ) as tick:
            for number, start in enumerate(starts):
                if not done[number]:
                    prepare_shard(rows[start : start + shard_size], folder, number, encoders, tick=tick)
        _finish(folder, encoders, [_read_part(_part_path(folder, number)) for number in range(len(starts))], rejected)
    return ShardReader(folder)


def prepare_shard(
    rows: Sequence[Row], folder: Path, number: int, encoders: Encoders, *, tick: Callable[[], None] = lambda: None
) -> ShardPart:
    """Encodes the rows of one shard and records it as finished.

    Args:
        rows: Those of this shard only.
        folder: Output folder of the whole run.
        number: Of the shard.
        encoders: What makes the tokens.
        tick: Called after each row.
    """
    examples, rejected, duration_s = [], [], 0.0
    # Rows of one long recording follow one another: decode it once.
    read = lru_cache(maxsize=1)(_read_location)
    for row in rows:
        try:
            samples = _clip(row, read(row.audio, encoders.sample_rate), encoders.sample_rate)
            examples.append(_encode(row, samples, encoders))
            duration_s += len(samples) / encoders.sample_rate
        except VoxError as error:
            rejected.append(Rejection(row=0, id=row.id, reason=str(error)))
        tick()
    part = ShardPart(
        entry=write_shard(folder / f"shard-{number:05d}.array_record", examples),
        duration_s=duration_s,
        num_codebooks=max((len(example.codes) for example in examples), default=0),
        largest_code=max((int(example.codes.max()) for example in examples), default=0),
        largest_semantic_token=max((int(example.semantic_tokens.max()) for example in examples), default=0),
        languages=tuple(example.language for example in examples),
        speakers=tuple(example.speaker for example in examples),
        stressed=tuple(is_stressed(example) for example in examples),
        frames=tuple(example.codes.shape[1] for example in examples),
        semantic=tuple(len(example.semantic_tokens) for example in examples),
        text=tuple(_count_text(example, encoders.tokenizer) for example in examples),
        rejected=tuple(rejected),
    )
    path = _part_path(folder, number)
    path.parent.mkdir(exist_ok=True)
    write_json(path, to_dict(part))
    return part


def instruction_variants(row: Row) -> tuple[str, ...]:
    """Returns the row's instructions and, last, its transcript alone in quotes.

    Half of all clips get ASCII quotes, half Chinese ones, in any language, drawn by the id.

    Source:
        VoxInstruct release, utils/dataset.py, which draws the quotes each time.
    """
    chinese = hashlib.sha256(row.id.encode()).digest()[0] % 2
    return (*row.instructions, f"“{row.transcript}”" if chinese else quoted(row.transcript))


def recount_text(folder: str | os.PathLike[str], tokenizer: TextTokenizer) -> ShardReader:
    """Counts the text tokens of finished shards anew, for another tokenizer; audio is not encoded again."""
    reader = ShardReader(folder)
    text = [_count_text(reader[record], tokenizer) for record in range(len(reader))]
    lengths = dataclasses.replace(reader.lengths, **_text_arrays(text))
    fingerprints = {**reader.index.fingerprints, "tokenizer": tokenizer.fingerprint}
    write_index(reader.folder, dataclasses.replace(reader.index, fingerprints=fingerprints), lengths)
    return ShardReader(folder)


def _claim(folder: Path, rows: Sequence[Row], encoders: Encoders, shard_size: int) -> None:
    """Makes the folder, or checks that it holds this very run."""
    folder.mkdir(parents=True, exist_ok=True)
    identity = {
        "format_version": str(FORMAT_VERSION),
        "rows": fingerprint([to_dict(row) for row in rows]),
        "shard_size": str(shard_size),
        **encoders.all_fingerprints,
    }
    path = folder / "prepare.json"
    if not path.exists():
        if any(not path.name.endswith(".partial") for path in folder.iterdir()):
            raise InputError(f"{folder}: holds other files; give an empty folder")
        write_json(path, identity)
    found = json.loads(path.read_text(encoding="utf-8"))
    differing = [name for name in identity if found.get(name) != identity[name]]
    if differing:
        raise InputError(f"{folder}: holds a run with other {', '.join(differing)}; give an empty folder")
    for partial in folder.glob("*.partial*"):
        partial.unlink()


def _finish(folder: Path, encoders: Encoders, parts: Sequence[ShardPart], rejected: Sequence[Rejection]) -> None:
    everything = [*rejected, *(rejection for part in parts for rejection in part.rejected)]
    lines = [json.dumps(to_dict(rejection), ensure_ascii=False) + "\n" for rejection in everything]
    partial = folder / "rejected.jsonl.partial"
    partial.write_text("".join(lines), encoding="utf-8")
    partial.replace(folder / "rejected.jsonl")
    entries = tuple(part.entry for part in parts if part.entry is not None)
    if not entries:
        raise InputError(f"{folder}: all rows were set aside, see rejected.jsonl; mend them and give an empty folder")
    languages = [language for part in parts for language in part.languages]
    index = ShardIndex(
        fingerprints=encoders.all_fingerprints,
        frame_rate=encoders.frame_rate,
        semantic_rate=encoders.semantic_rate or encoders.frame_rate,
        num_examples=sum(entry.num_examples for entry in entries),
        hours=sum(part.duration_s for part in parts) / 3600,
        num_codebooks=max(part.num_codebooks for part in parts),
        largest_code=max(part.largest_code for part in parts),
        largest_semantic_token=max(part.largest_semantic_token for part in parts),
        languages={name: languages.count(name) for name in sorted(set(languages))},
        shards=entries,
    )
    lengths = Lengths(
        frames=np.array([count for part in parts for count in part.frames], np.int32),
        semantic=np.array([count for part in parts for count in part.semantic], np.int32),
        languages=np.array([sorted(index.languages).index(name) for name in languages], np.int8),
        stressed=np.array([known for part in parts for known in part.stressed], bool),
        speakers=_number_speakers([speaker for part in parts for speaker in part.speakers]),
        **_text_arrays([counts for part in parts for counts in part.text]),
    )
    write_index(folder, index, lengths)
    shutil.rmtree(folder / "parts")


def _number_speakers(names: Sequence[str]) -> Int32[np.ndarray, " record"]:
    numbers = {name: number for number, name in enumerate(sorted({*names} - {""}), start=1)}
    return np.array([numbers.get(name, 0) for name in names], np.int32)


def _text_arrays(text: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    flat = np.array([count for counts in text for count in counts], np.int32)
    offsets = np.cumsum([0, *(len(counts) for counts in text)]).astype(np.int64)
    return {"text": flat, "text_offsets": offsets}


def _part_path(folder: Path, number: int) -> Path:
    return folder / "parts" / f"shard-{number:05d}.json"


def _read_part(path: Path) -> ShardPart:
    return from_dict(ShardPart, json.loads(path.read_text(encoding="utf-8")), path=str(path))


def _read_location(location: str, sample_rate: int) -> Float[np.ndarray, " sample"]:
    if "://" not in location:
        return read_audio(location, sample_rate)
    import fsspec

    try:
        return read_audio(str(fsspec.open_local(f"simplecache::{location}")), sample_rate)
    except OSError as error:
        raise InputError(f"{location}: cannot be read ({error}); check the address and your access to it") from error


def _clip(row: Row, samples: Float[np.ndarray, " sample"], sample_rate: int) -> Float[np.ndarray, " clip_sample"]:
    total_s = len(samples) / sample_rate
    end_s = total_s if row.duration_s is None else row.offset_s + row.duration_s
    if end_s > total_s + MAX_OVERHANG_S or row.offset_s >= total_s:
        raise InputError(f"{row.audio}: lasts {total_s:.2f} s, the row asks for {row.offset_s:g} to {end_s:g} s")
    clip = samples[round(row.offset_s * sample_rate) : round(end_s * sample_rate)]
    if len(clip) < MIN_DURATION_S * sample_rate:
        raise InputError(f"{row.audio}: {len(clip) / sample_rate:.2f} s is too short; give at least {MIN_DURATION_S} s")
    return clip


def _encode(row: Row, samples: Float[np.ndarray, " sample"], encoders: Encoders) -> Example:
    codes, units = encoders.acoustic(samples), encoders.semantic(samples)
    num_frames, num_units = _common_frames(codes.shape[1], len(units), encoders, row.audio)
    tokens, run_lengths = deduplicate(np.asarray(units[:num_units]))
    if run_lengths.max() > INT16_MAX:
        raise InputError(f"{row.audio}: one semantic token lasts {run_lengths.max()} frames; cut out the silence")
    instructions, durations = instruction_variants(row), np.zeros(0, np.int16)
    if encoders.durations is not None:
        found = encoders.durations(samples, row.transcript)
        if found is None:
            raise InputError(f"{row.audio}: the transcript cannot be spoken in this time; check that it fits the audio")
        durations = np.minimum(found, INT16_MAX).astype(np.int16)
        instructions = tuple(text for text in instructions if _says(text, row.transcript, encoders.tokenizer))
    return Example(
        id=row.id,
        language=row.language,
        transcript=row.transcript,
        instructions=instructions,
        durations=durations,
        semantic_tokens=tokens.astype(np.int16),
        run_lengths=run_lengths.astype(np.int16),
        codes=np.asarray(codes[:, :num_frames]).astype(np.int16),
        speaker=row.speaker,
        attributes=dict(row.attributes),
    )


def _common_frames(frames: int, units: int, encoders: Encoders, source: str) -> tuple[int, int]:
    """Returns how many codec frames and semantic frames are kept: equal numbers where the rates are equal."""
    semantic_rate = encoders.semantic_rate or encoders.frame_rate
    difference_s = abs(frames / encoders.frame_rate - units / semantic_rate)
    allowed_s = MAX_FRAME_DIFFERENCE / min(encoders.frame_rate, semantic_rate)
    if not frames or not units or difference_s > allowed_s * (1 + 1e-6):
        raise InputError(
            f"{source}: {frames} codec frames at {encoders.frame_rate:g} Hz but {units} semantic frames at "
            f"{semantic_rate:g} Hz"
        )
    common = min(frames, units)
    return (common, common) if semantic_rate == encoders.frame_rate else (frames, units)


def _says(instruction: str, transcript: str, tokenizer: TextTokenizer) -> bool:
    """Whether the content of an instruction is the transcript, character by character."""
    found, wanted = (content_rows(tokenizer.encode(text)) for text in (instruction, quoted(transcript)))
    return np.array_equal(found, wanted)


def _count_text(example: Example, tokenizer: TextTokenizer) -> tuple[int, ...]:
    return tuple(len(tokenizer.encode(text)) for text in example.instructions)
