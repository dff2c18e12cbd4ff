"""Which clips share a row, and how a row is filled. Pure functions; `plan_rows` comes first, `pack` second.

A clip takes its text length in the text row; in the row that the model reads it takes its text length again (the text
slots) and then its audio part. Both rows have fixed widths, so that one program serves every batch.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from jaxtyping import Int, Int32, Int64, Num

from voxinstruct_jax.config import InputError
from voxinstruct_jax.data.shards import Lengths
from voxinstruct_jax.vocabulary import ACOUSTIC, TEXT, Layout, PackedBatch, audio_times, text_times

__all__ = ["Clip", "RowPlan", "SpeakerIndex", "draw_prompts", "pack", "plan_rows", "unpack"]

SORTED_RECORDS = 2**18
"""At a time."""
MAX_LOOKS = 64
"""Rows with enough of the scarcer room that are asked for enough of the other before a new one is opened."""
TIME_FIELDS = ("part_ids", "segment_ids", "positions", "text_index", "prompted")


@dataclass(frozen=True, kw_only=True)
class RowPlan:
    """Rows as lists of clip numbers."""

    clips: Int32[np.ndarray, " placed"]
    """Clip numbers, one row after another."""
    offsets: Int64[np.ndarray, " row_and_end"]
    """Where each row starts in `clips`, and the end."""
    left_over: Int32[np.ndarray, " left_over"]
    """Clips that found no room."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, index: int) -> Int32[np.ndarray, " clip"]:
        return self.clips[self.offsets[index] : self.offsets[index + 1]]


@dataclass(frozen=True, kw_only=True)
class Clip:
    """What a clip brings into a row."""

    text_tokens: Int32[np.ndarray, "text channel"]
    layout: Layout
    prompt_frames: int = 0
    """Leading acoustic tokens that are a voice prompt from another clip."""
    durations: Int32[np.ndarray, " text"] | None = None
    """Half frames that each text token is spoken; None = not known. If known, semantic tokens are not de-duplicated."""
    attributes: Int32[np.ndarray, " attribute"] | None = None
    """As of `attributes.class_numbers`; None = of no use to the model."""


@dataclass(frozen=True, kw_only=True)
class SpeakerIndex:
    """Records by speaker, to find who can lend a voice prompt."""

    order: Int32[np.ndarray, " record"]
    """Records, one speaker after another."""
    starts: Int64[np.ndarray, " speaker_and_end"]
    """Where each speaker starts in `order`, by number, and the end."""

    @staticmethod
    def of(speakers: Int32[np.ndarray, " record"]) -> "SpeakerIndex":
        """Sorts the records of a folder, piece by piece: the places of a large sort would take more than the result."""
        pieces = range(0, len(speakers), SORTED_RECORDS)
        counts = np.zeros(int(speakers.max(initial=0)) + 1, np.int64)
        for first in pieces:
            counts += np.bincount(speakers[first : first + SORTED_RECORDS], minlength=len(counts))
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        order, free = np.zeros(len(speakers), np.int32), starts[:-1].copy()
        for first in pieces:
            piece = speakers[first : first + SORTED_RECORDS]
            records = np.argsort(piece, kind="stable")
            names, begins, sizes = np.unique(piece[records], return_index=True, return_counts=True)
            within = np.arange(len(piece)) - np.repeat(begins, sizes)
            order[np.repeat(free[names], sizes) + within] = first + records
            free[names] += sizes
        return SpeakerIndex(order=order, starts=starts)


def draw_prompts(
    records: Int64[np.ndarray, " clip"],
    lengths: Lengths,
    index: SpeakerIndex,
    random: np.random.Generator,
    *,
    ratio: float,
    max_frames: int,
) -> tuple[Int64[np.ndarray, " clip"], Int64[np.ndarray, " clip"]]:
    """Draws which clips get a voice prompt: the beginning of another clip of the same speaker.

    Such a clip is trained as a prompt without its transcript is used: acoustic codes before its own, no text and no
    semantic tokens for them.

    Args:
        records: Of the clips.
        lengths: Of the folder; speaker 0 = unknown, never prompted.
        index: Of its speakers.
        random: Moved on.
        ratio: Probability of a prompt.
        max_frames: Longest prompt; lengths are uniform from a third of it.

    Returns:
        The record that each prompt is taken from (the clip's own = none) and the prompt's frames (0 = none).
    """
    speakers = lengths.speakers[records]
    members = index.starts[speakers + 1] - index.starts[speakers]
    donors = index.order[index.starts[speakers] + np.floor(random.random(len(records)) * members).astype(np.int64)]
    wanted = (random.random(len(records)) < ratio) & (speakers > 0) & (donors != records)
    frames = random.integers(max_frames // 3, max_frames + 1, len(records))
    frames = np.where(wanted, np.minimum(frames, lengths.frames[donors]), 0)
    return np.where(wanted, donors, records).astype(np.int64), frames.astype(np.int64)


def plan_rows(
    text_lengths: Int[np.ndarray, " clip"],
    slots: Int[np.ndarray, " clip"],
    *,
    text_width: int,
    time_width: int,
    max_clips: int,
    num_rows: int | None = None,
    num_late: int = 0,
) -> RowPlan:
    """Puts clips into rows by best fit, the largest first: a pure function of its arguments.

    Args:
        text_lengths: Text tokens of each clip.
        slots: Of each clip in the row that the model reads, text slots included.
        text_width: Text tokens in a row.
        time_width: Slots in a row.
        max_clips: Clips in a row at most.
        num_rows: Rows to make, neither more nor fewer; None = as many as the clips need.
        num_late: The last so many clips come after all others have been placed.

    Source:
        Best fit decreasing (Johnson 1973), with a second constraint for text.
    """
    late = np.arange(len(slots)) >= len(slots) - num_late
    needs, widths = [slots, text_lengths], [time_width, text_width]
    if text_lengths[~late].sum() * time_width > slots[~late].sum() * text_width:  # text is scarcer
        needs, widths = needs[::-1], widths[::-1]
    rows = _OpenRows(widths[0], widths[1], max_clips, num_rows)
    order = np.lexsort((-np.maximum(needs[0] / widths[0], needs[1] / widths[1]), late))
    left_over = [
        clip
        for clip, first, second in zip(order.tolist(), needs[0][order].tolist(), needs[1][order].tolist(), strict=True)
        if not rows.place(clip, first, second)
    ]
    filled = rows.clips if num_rows is None else _split_to(rows.clips, num_rows)
    return RowPlan(
        clips=np.array([clip for row in filled for clip in row], np.int32),
        offsets=np.cumsum([0, *(len(row) for row in filled)]).astype(np.int64),
        left_over=np.array(sorted(left_over), np.int32),
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
    if first.attributes is not None:
        arrays["text_attributes"] = np.zeros((len(rows), text_width, len(first.attributes)), np.int32)
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
            of_text = np.asarray(batch.text_segment_ids[index]) == segment
            durations, attributes = None, None
            if batch.text_durations is not None:
                durations = np.asarray(batch.text_durations[index])[of_text]
            if batch.text_attributes is not None:
                attributes = np.asarray(batch.text_attributes[index])[of_text][0]
            clips.append(
                Clip(
                    text_tokens=text,
                    layout=layout,
                    prompt_frames=prompt_frames,
                    durations=durations,
                    attributes=attributes,
                )
            )
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
        if clip.attributes is not None:
            arrays["text_attributes"][text] = clip.attributes
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


class _OpenRows:
    """Rows that are being filled, ordered by how much is left of the scarcer of time and text."""

    def __init__(self, width: int, other_width: int, max_clips: int, max_rows: int | None) -> None:
        self.clips: list[list[int]] = []
        self._widths, self._max_clips, self._max_rows = (width, other_width), max_clips, max_rows
        self._other_room: list[int] = []
        self._open: list[tuple[int, int]] = []  # room, row; sorted

    def place(self, clip: int, need: int, other_need: int) -> bool:
        """Puts a clip where least room is left afterwards; False if there is none."""
        at = bisect.bisect_left(self._open, (need, -1))
        for place in range(at, min(at + MAX_LOOKS, len(self._open))):
            room, row = self._open[place]
            if self._other_room[row] >= other_need:
                del self._open[place]
                return self._put(clip, row, room - need, other_need)
        if len(self.clips) == self._max_rows or need > self._widths[0] or other_need > self._widths[1]:
            return False
        self.clips.append([])
        self._other_room.append(self._widths[1])
        return self._put(clip, len(self.clips) - 1, self._widths[0] - need, other_need)

    def _put(self, clip: int, row: int, room: int, other_need: int) -> bool:
        self.clips[row].append(clip)
        self._other_room[row] -= other_need
        if room and self._other_room[row] and len(self.clips[row]) < self._max_clips:
            bisect.insort(self._open, (room, row))
        return True


def _split_to(rows: list[list[int]], num_rows: int) -> list[list[int]]:
    """Halves the rows of most clips until there are enough; where all have one clip, the first ones come again."""
    rows = sorted(rows, key=len, reverse=True)
    missing = num_rows - len(rows)
    for row in rows[: max(missing, 0)]:
        rows.append(row[len(row) // 2 :] if len(row) > 1 else list(row))
        if len(row) > 1:
            del row[len(row) // 2 :]
    return _split_to(rows, num_rows) if rows and len(rows) < num_rows else rows
