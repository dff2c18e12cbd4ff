"""From manifest rows to token shards: read audio, encode it, write shards, and set bad rows aside.

A shard is the unit of work: it is written whole, then recorded under `parts/`; a run that was cut off goes on with the
shards that are not recorded. An engine decides where shards are made: in this process, in several (`workers`), or on
a cluster (`ray_engine`). Start at `prepare`.
"""

import dataclasses
import hashlib
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import Float, Int

from voxinstruct_jax.config import InputError
from voxinstruct_jax.data import store
from voxinstruct_jax.data.clips import read_clip
from voxinstruct_jax.data.durations import quoted
from voxinstruct_jax.data.manifest import Rejection, Row
from voxinstruct_jax.data.progress import progress_bar
from voxinstruct_jax.data.shard_parts import ShardPart, assemble, claim, finished, locked, record, scan, text_arrays
from voxinstruct_jax.data.shards import Example, ShardReader, is_stressed, write_index, write_shard
from voxinstruct_jax.text.tokenizer import CONCEPT_CHANNEL, TextTokenizer, content_rows
from voxinstruct_jax.vocabulary import deduplicate

__all__ = [
    "BatchResults",
    "Encoders",
    "Engine",
    "ShardTask",
    "instruction_variants",
    "prepare",
    "prepare_shard",
    "recount_text",
]

Result = TypeVar("Result")

MAX_FRAME_DIFFERENCE = 2
"""Codec and features may disagree by this many frames at the end of a clip."""
INT16_MAX = 2**15 - 1
NUM_READERS = 4
"""Threads that read clips ahead of the encoders."""


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
    encode_ahead: Callable[[Sequence[Float[np.ndarray, " _"]], int], None] | None = None
    """Encodes clips of one bucket together, in one batch of this size; the functions above then only look up what
    they are asked for, if they are given one of these very arrays (`BatchResults`)."""
    batch_s: float = 0.0
    """Sound that is encoded together (s): `batch_s / bucket` clips, at least one."""

    def bucket(self, num_samples: int) -> int:
        """Whole seconds that a clip is filled up to; clips of one bucket have one static shape."""
        return -(-num_samples // self.sample_rate)

    def batch_size(self, bucket: int) -> int:
        """Clips of a bucket that are encoded together."""
        return max(1, int(self.batch_s // bucket))

    @property
    def all_fingerprints(self) -> dict[str, str]:
        """Those of the index: codec, units and tokenizer."""
        return {**self.fingerprints, "tokenizer": self.tokenizer.fingerprint}


class BatchResults(Generic[Result]):
    """A function of a batch of clips that is asked clip by clip; it runs once a batch."""

    def __init__(self, function: Callable[[Sequence[Float[np.ndarray, " _"]], int], Sequence[Result]]) -> None:
        """Takes the function of clips and batch size, which gives a result a clip."""
        self._function = function
        self._clips: Sequence[np.ndarray] = ()  # held, so that their ids stay theirs
        self._results: dict[int, Result] = {}

    def fill(self, clips: Sequence[Float[np.ndarray, " _"]], batch_size: int) -> None:
        """Computes the results of these clips in place of the ones before."""
        self._clips = clips
        self._results = dict(zip(map(id, clips), self._function(clips, batch_size), strict=True))

    def __call__(self, samples: Float[np.ndarray, " sample"]) -> Result:
        """Returns the result of a clip of the latest batch, or of any other after a batch of its own."""
        if id(samples) not in self._results:
            self.fill([samples], 1)
        return self._results[id(samples)]


@dataclass(frozen=True)
class ShardTask:
    """A shard that is to be made: its number, and rows `number * shard_size` and on."""

    number: int
    rows: tuple[Row, ...]


Engine = Callable[[Iterator[ShardTask], str, Callable[[], None]], None]
"""Makes every shard of an iterator in a folder by `prepare_shard`, and calls a function after each row."""


def prepare(
    rows: Iterable[Row],
    out: str | os.PathLike[str],
    encoders: Encoders,
    *,
    engine: Engine | None = None,
    shard_size: int = 4096,
    rejected: Sequence[Rejection] = (),
    progress: bool = True,
) -> ShardReader:
    """Encodes a manifest into the folder `out`, or goes on where an earlier run stopped.

    Bad rows are listed in `rejected.jsonl` with the reason, and so are instructions that are left out as they say other
    words than the transcript (where durations are known); the rest goes on. Memory does not grow with the number of
    rows.

    Args:
        rows: A list, or `manifest.ManifestRows`; iterated twice. Row k goes into shard k // shard_size.
        out: Local or shared folder, or one in a store (a URL); new or of the same run.
        encoders: What makes the tokens.
        engine: Where shards are made; None = one after another in this process, by `encoders`.
        shard_size: Rows a shard. An hour of speech takes 1.3 to 1.6 MB.
        rejected: Rows that reading the manifest set aside already; listed with the others.
        progress: Whether to draw a bar.

    Raises:
        InputError: The folder holds another run (other rows, encoders or shard size) or is being written by another
            process; no row could be used; the disk is full or a store does not answer (run again to go on).
    """
    folder = store.absolute(os.fspath(out))
    count, rows_fingerprint = scan(rows)
    identity = {"rows": rows_fingerprint, "shard_size": str(shard_size), **encoders.all_fingerprints}
    try:
        with locked(folder):
            if not claim(folder, identity):
                done = finished(folder)
                rows_done = sum(min(shard_size, count - number * shard_size) for number in done)
                with progress_bar("Preparing", count, done=rows_done, visible=progress) as tick:
                    (engine or _in_this_process(encoders))(_tasks(rows, shard_size, done), folder, tick)
                rates = encoders.frame_rate, encoders.semantic_rate or encoders.frame_rate
                assemble(folder, -(-count // shard_size), encoders.all_fingerprints, rates, rejected)
    except OSError as error:
        raise InputError(f"{error}; finished shards are kept: mend it and run the same command again") from error
    return ShardReader(out)


def prepare_shard(
    rows: Sequence[Row], folder: str, number: int, encoders: Encoders, *, tick: Callable[[], None] = lambda: None
) -> ShardPart:
    """Encodes the rows of one shard and records it as finished.

    Args:
        rows: Those of this shard only.
        folder: Output folder of the whole run.
        number: Of the shard.
        encoders: What makes the tokens.
        tick: Called after each row.

    Raises:
        OSError: The shard cannot be written, or a store does not answer.
    """
    found: dict[int, Example | Rejection] = {}
    num_samples = 0
    for batch in _batches(rows, encoders, found, tick):
        if encoders.encode_ahead is not None:
            bucket = encoders.bucket(len(batch[0][1]))
            encoders.encode_ahead([samples for _, samples in batch], encoders.batch_size(bucket))
        for place, samples in batch:
            try:
                found[place] = _encode(rows[place], samples, encoders)
                num_samples += len(samples)
            except InputError as error:
                found[place] = Rejection(row=0, id=rows[place].id, reason=str(error))
            tick()
    outcomes = [found[place] for place in range(len(rows))]
    examples = [outcome for outcome in outcomes if isinstance(outcome, Example)]
    with store.staged(folder) as place:
        entry = write_shard(place / f"shard-{number:05d}.array_record", examples)
    part = ShardPart(
        entry=entry,
        duration_s=num_samples / encoders.sample_rate,
        num_codebooks=max((len(example.codes) for example in examples), default=0),
        largest_code=max((int(example.codes.max()) for example in examples), default=0),
        largest_semantic_token=max((int(example.semantic_tokens.max()) for example in examples), default=0),
        languages=tuple(example.language for example in examples),
        speakers=tuple(example.speaker for example in examples),
        stressed=tuple(is_stressed(example) for example in examples),
        frames=tuple(example.codes.shape[1] for example in examples),
        semantic=tuple(len(example.semantic_tokens) for example in examples),
        text=tuple(_count_text(example, encoders.tokenizer) for example in examples),
        rejected=tuple(itertools.chain.from_iterable(map(_set_aside, rows, outcomes))),
    )
    record(folder, number, part)
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
    lengths = dataclasses.replace(reader.lengths, **text_arrays(text))
    fingerprints = {**reader.index.fingerprints, "tokenizer": tokenizer.fingerprint}
    write_index(folder, dataclasses.replace(reader.index, fingerprints=fingerprints), lengths)
    return ShardReader(folder)


def _in_this_process(encoders: Encoders) -> Engine:
    def run(tasks: Iterator[ShardTask], folder: str, tick: Callable[[], None]) -> None:
        for task in tasks:
            prepare_shard(task.rows, folder, task.number, encoders, tick=tick)

    return run


def _tasks(rows: Iterable[Row], shard_size: int, done: set[int]) -> Iterator[ShardTask]:
    unread = iter(rows)
    for number in itertools.count():
        shard = tuple(itertools.islice(unread, shard_size))
        if not shard:
            return
        if number not in done:
            yield ShardTask(number, shard)


def _batches(
    rows: Sequence[Row], encoders: Encoders, found: dict[int, Example | Rejection], tick: Callable[[], None]
) -> Iterator[list[tuple[int, Float[np.ndarray, " _"]]]]:
    """Reads clips in order and yields them (place, samples) by full batches of one bucket, then what is left over.

    Rows that cannot be read go into `found`.
    """
    waiting: dict[int, list[tuple[int, np.ndarray]]] = {}
    for place, samples in enumerate(_read_ahead(rows, encoders.sample_rate)):
        if isinstance(samples, InputError):
            found[place] = Rejection(row=0, id=rows[place].id, reason=str(samples))
            tick()
            continue
        bucket = encoders.bucket(len(samples))
        batch = waiting.setdefault(bucket, [])
        batch.append((place, samples))
        if len(batch) == encoders.batch_size(bucket):
            yield waiting.pop(bucket)
    yield from waiting.values()


def _read_ahead(rows: Sequence[Row], sample_rate: int) -> Iterator[Float[np.ndarray, " _"] | InputError]:
    """Yields each row's clip, or why there is none."""

    def read(row: Row) -> np.ndarray | InputError:
        try:
            return read_clip(row, sample_rate)
        except InputError as error:
            return error.with_traceback(None)  # which would hold what was read

    with ThreadPoolExecutor(NUM_READERS) as readers:
        pending = deque()
        for row in rows:
            pending.append(readers.submit(read, row))
            if len(pending) > 2 * NUM_READERS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


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
        attributes=dict(sorted(row.attributes.items())),  # Parquet has an order of its own
    )


def _set_aside(row: Row, outcome: Example | Rejection) -> list[Rejection]:
    """The row, if it was rejected, or those of its instructions that did not go with it."""
    if isinstance(outcome, Rejection):
        return [outcome]
    texts = (text for text in row.instructions if text not in outcome.instructions)
    reason = "an instruction that says other words than the transcript"
    return [Rejection(row=0, id=row.id, reason=f"{row.audio}: {reason}: {text}") for text in texts]


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
    """Whether the content of an instruction is the transcript, character by character, whatever is stressed in it."""
    rows = (content_rows(tokenizer.encode(text)) for text in (instruction, quoted(transcript)))
    found, wanted = (np.delete(content, CONCEPT_CHANNEL, axis=1) for content in rows)
    return np.array_equal(found, wanted)


def _count_text(example: Example, tokenizer: TextTokenizer) -> tuple[int, ...]:
    return tuple(len(tokenizer.encode(text)) for text in example.instructions)
