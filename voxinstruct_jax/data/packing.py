"""Which clips share a row, and how a row is filled. Pure functions; `plan_rows` comes first, `pack` second.

A clip takes its text length in the text row; in the row that the model reads it takes its text length again (the text
slots) and then its audio part. Both rows have fixed widths, so that one program serves every batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from jaxtyping import Int, Int32, Int64, Num

from voxinstruct_jax.config import InputError
from voxinstruct_jax.data.shards import Lengths
from voxinstruct_jax.vocabulary import ACOUSTIC, TEXT, Layout, PackedBatch, audio_times, text_times

__all__ = ["Clip", "RowPlan", "draw_prompts", "draw_variants", "pack", "plan_rows", "unpack"]

OPEN_ROWS = 32
"""Rows that first-fit looks at; more fill rows a little better and take longer."""
TIME_FIELDS = ("part_ids", "segment_ids", "positions", "text_index", "prompted")


@dataclass(frozen=True, kw_only=True)
class RowPlan:
    """The rows of an epoch as lists of record indices."""

    records: Int32[np.ndarray, " record"]
    """Record indices, one row after another."""
    offsets: Int64[np.ndarray, " row_and_end"]
    """Where each row starts in `records`, and the end."""
    left_out: Int32[np.ndarray, " left_out"]
    """Records too long for a row of their own."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, index: int) -> Int32[np.ndarray, " record"]:
        return self.records[self.offsets[index] : self.offsets[index + 1]]


@dataclass(frozen=True, kw_only=True)
class Clip:
    """What a clip brings into a row."""

    text_tokens: Int32[np.ndarray, "text channel"]
    layout: Layout
    prompt_frames: int = 0
    """Leading acoustic tokens that are a voice prompt from another clip."""
    durations: Int32[np.ndarray, " text"] | None = None
    """Half frames that each text token is spoken; None = not known. If known, semantic tokens are not de-duplicated."""


def draw_variants(
    num_variants: Int[np.ndarray, " record"], *, description_free_ratio: float, seed: int, epoch: int
) -> Int64[np.ndarray, " record"]:
    """Draws which instruction each record is trained on in this epoch: a pure function of its arguments.

    Args:
        num_variants: Variants of each record, at least 1; the last one is the quoted transcript.
        description_free_ratio: Probability of the quoted transcript where there are others.
        seed: Of the run.
        epoch: From 0.

    Source:
        VoxInstruct, section 5.1; release, utils/dataset.py (`description_free_g_ratio`).
    """
    random = np.random.default_rng((seed, epoch, 1))
    quoted = random.random(len(num_variants)) < description_free_ratio
    described = np.floor(random.random(len(num_variants)) * (num_variants - 1)).astype(np.int64)
    return np.where(quoted, num_variants - 1, described)


def draw_prompts(
    lengths: Lengths, *, ratio: float, max_frames: int, seed: int, epoch: int
) -> tuple[Int64[np.ndarray, " record"], Int64[np.ndarray, " record"]]:
    """Draws which records get a voice prompt in this epoch: the beginning of another clip of the same speaker.

    Such a clip is trained as a prompt without its transcript is used: acoustic codes before its own, no text and no
    semantic tokens for them. A pure function of its arguments.

    Args:
        lengths: Of the data; speaker 0 = unknown, never prompted.
        ratio: Probability of a prompt.
        max_frames: Longest prompt; lengths are uniform from a third of it.
        seed: Of the run.
        epoch: From 0.

    Returns:
        The record that the prompt is taken from (itself = none) and the prompt's frames (0 = none).
    """
    random = np.random.default_rng((seed, epoch, 2))
    count = len(lengths.frames)
    order = np.argsort(lengths.speakers, kind="stable")
    starts = np.searchsorted(lengths.speakers[order], lengths.speakers, side="left")
    members = np.searchsorted(lengths.speakers[order], lengths.speakers, side="right") - starts
    donors = order[starts + np.floor(random.random(count) * members).astype(np.int64)]
    wanted = (random.random(count) < ratio) & (lengths.speakers > 0) & (donors != np.arange(count))
    frames = random.integers(max_frames // 3, max_frames + 1, count)
    frames = np.where(wanted, np.minimum(frames, lengths.frames[donors]), 0)
    return np.where(wanted, donors, np.arange(count)), frames


def plan_rows(
    text_lengths: Int[np.ndarray, " record"],
    audio_lengths: Int[np.ndarray, " record"],
    *,
    text_width: int,
    time_width: int,
    max_clips: int,
    seed: int,
    epoch: int,
) -> RowPlan:
    """Puts every record of an epoch into a row: a pure function of its arguments, so every host has the same plan.

    First fit over a shuffled order and a window of open rows; of a full window the row with the least room is closed.

    Args:
        text_lengths: Text tokens of the chosen variant of each record.
        audio_lengths: Slots of each record's audio part (BOS to EOS2).
        text_width: Text tokens in a row.
        time_width: Slots in a row, text slots included.
        max_clips: Clips in a row at most.
        seed: Of the run.
        epoch: From 0; each has its own order.
    """
    slots = text_lengths + audio_lengths
    fits = (text_lengths <= text_width) & (slots <= time_width)
    order = np.random.default_rng((seed, epoch, 0)).permutation(len(slots))
    rows, window = [], []
    for record in order[fits[order]].tolist():
        text, time = int(text_lengths[record]), int(slots[record])
        target = next((row for row in window if row.text_room >= text and row.time_room >= time), None)
        if target is None:
            if len(window) == OPEN_ROWS:
                rows.append(window.pop(min(range(OPEN_ROWS), key=lambda index: window[index].time_room)))
            target = _OpenRow(text_room=text_width, time_room=time_width, records=[])
            window.append(target)
        target.records.append(record)
        target.text_room -= text
        target.time_room -= time
        if len(target.records) == max_clips:
            window.remove(target)
            rows.append(target)
    rows.extend(window)
    return RowPlan(
        records=np.array([record for row in rows for record in row.records], np.int32),
        offsets=np.cumsum([0, *(len(row.records) for row in rows)]).astype(np.int64),
        left_out=np.flatnonzero(~fits).astype(np.int32),
    )


def pack(
    rows: Sequence[Sequence[Clip]], *, text_width: int, time_width: int, clip_ids: Int[np.ndarray, " batch"]
) -> PackedBatch:
    """Fills rows of fixed widths; at least one clip in all.

    Args:
        rows: Clips of each row, all with the same channels and codebooks.
        text_width: Text tokens in a row.
        time_width: Slots in a row.
        clip_ids: Number of each row in the whole run.

    Raises:
        InputError: The clips of a row need more room.
    """
    first = next(clip for row in rows for clip in row)
    num_channels, num_codebooks = first.text_tokens.shape[1], len(first.layout.tokens)
    # Any: the fields are JAX arrays to a model and NumPy arrays until they are put on a device.
    arrays: dict[str, Any] = {
        "text_tokens": np.zeros((len(rows), text_width, num_channels), np.int32),
        "text_segment_ids": np.zeros((len(rows), text_width), np.int32),
        "tokens": np.zeros((len(rows), num_codebooks, time_width), np.int32),
        **{name: np.zeros((len(rows), time_width), np.int32) for name in TIME_FIELDS},
    }
    if first.durations is not None:
        arrays["times"] = np.zeros((len(rows), time_width), np.float32)
        arrays["text_durations"] = np.zeros((len(rows), text_width), np.int32)
    for index, row in enumerate(rows):
        if _text_slots(row) > text_width or _text_slots(row) + _audio_slots(row) > time_width:
            raise InputError(f"row {index}: its clips need more than {text_width} text or {time_width} time slots")
        _fill_row({name: array[index] for name, array in arrays.items()}, row)
    return PackedBatch(**arrays, clip_ids=cast("Any", np.asarray(clip_ids, np.int32)))


def unpack(batch: PackedBatch) -> list[list[Clip]]:
    """Inverse of `pack`: the clips of each row."""
    rows = []
    for index in range(len(batch.segment_ids)):
        segment_ids = np.asarray(batch.segment_ids[index])
        clips = []
        for segment in range(1, int(segment_ids.max()) + 1):
            text = np.asarray(batch.text_tokens[index])[np.asarray(batch.text_segment_ids[index]) == segment]
            audio = np.flatnonzero(segment_ids == segment)[len(text) :]
            layout = Layout(
                tokens=np.asarray(batch.tokens[index])[:, audio], part_ids=np.asarray(batch.part_ids[index])[audio]
            )
            prompt_frames = int(np.asarray(batch.prompted)[index][audio].sum()) if batch.prompted is not None else 0
            durations = None
            if batch.text_durations is not None:
                durations = np.asarray(batch.text_durations[index])[
                    np.asarray(batch.text_segment_ids[index]) == segment
                ]
            clips.append(Clip(text_tokens=text, layout=layout, prompt_frames=prompt_frames, durations=durations))
        rows.append(clips)
    return rows


def _fill_row(arrays: dict[str, Num[np.ndarray, "..."]], row: Sequence[Clip]) -> None:
    text_at, at = 0, 0
    for segment, clip in enumerate(row, 1):
        num_text, num_audio = _text_slots([clip]), _audio_slots([clip])
        text = slice(text_at, text_at + num_text)
        text_slots, audio_slots = slice(at, at + num_text), slice(at + num_text, at + num_text + num_audio)
        arrays["text_tokens"][text] = clip.text_tokens
        arrays["text_segment_ids"][text] = segment
        arrays["text_index"][text_slots] = np.arange(text.start, text.stop)
        arrays["part_ids"][text_slots] = TEXT
        arrays["tokens"][:, audio_slots] = clip.layout.tokens
        arrays["part_ids"][audio_slots] = clip.layout.part_ids
        arrays["segment_ids"][at : audio_slots.stop] = segment
        first_acoustic = audio_slots.start + int(np.argmax(clip.layout.part_ids == ACOUSTIC))
        arrays["prompted"][first_acoustic : first_acoustic + clip.prompt_frames] = 1
        arrays["positions"][at : audio_slots.stop] = np.arange(num_text + num_audio)
        if clip.durations is not None:
            arrays["text_durations"][text] = clip.durations
            arrays["times"][text_slots] = text_times(clip.durations)
            frames = int((clip.layout.part_ids == ACOUSTIC).sum()) - 1 - clip.prompt_frames
            num_semantic = first_acoustic - audio_slots.start - 3  # without BOS, LANG, EOS1
            arrays["times"][audio_slots] = audio_times(num_semantic, frames, clip.prompt_frames)
        text_at, at = text.stop, audio_slots.stop


def _text_slots(row: Sequence[Clip]) -> int:
    return sum(len(clip.text_tokens) for clip in row)


def _audio_slots(row: Sequence[Clip]) -> int:
    return sum(len(clip.layout.part_ids) for clip in row)


@dataclass(kw_only=True)
class _OpenRow:
    text_room: int
    time_room: int
    records: list[int]
