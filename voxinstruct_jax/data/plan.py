"""Which clips stand in which row of the run: planned block by block, each block a pure function of (data, seed, block).

Rows are dealt to blocks of a fixed number of rows, so that the block of any step is known without those before it: a
resumed run plans what it needs and no more, and a host plans only its own lanes. Clips that find no room in their
block come in the next one of the lane. Read `Planner` first.
"""

import dataclasses
import math
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int64

from voxinstruct_jax.config import ConfigError, InputError
from voxinstruct_jax.data.mixture import Mixture, draw, draw_variants, make_streams
from voxinstruct_jax.data.packing import RowPlan, SpeakerIndex, draw_prompts, plan_rows
from voxinstruct_jax.data.shards import ShardReader
from voxinstruct_jax.text.tokenizer import TextForm

__all__ = ["BatchConfig", "BlockPlan", "ClipForm", "Clips", "PackingSummary", "Planner"]

PLAN_VERSION = 2
"""Changes when the same data, settings and seed make other batches."""
NUM_SPECIAL = 4
"""BOS, language, EOS1 and EOS2 of each clip."""
LANE_ROWS = 8
"""Rows of a step that are planned together at most: hosts that share no lane share no planning."""
BLOCK_ROWS = 1024
TRIAL_CLIPS = 2048
NUM_TRIALS = 4
SPARE, SPARE_ROWS = 0.005, 0.5
"""Share of a block's rows, and rows, kept free beyond what the fullest trial needed, so that few clips must wait."""


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Shape and draw of training batches."""

    text_width: int = 512
    """Text tokens in a row."""
    time_width: int = 1024
    """Slots in a row, text slots included."""
    rows: int = 8
    """Rows of a step, over all hosts."""
    seed: int = 0
    max_clips: int = 32
    """Clips in a row at most."""
    description_free_ratio: float = 0.1
    """Probability that a clip with described instructions is trained on its quoted transcript alone."""
    prompt_ratio: float = 0.0
    """Probability that a clip gets the beginning of another clip of its speaker as a voice prompt."""
    max_prompt_frames: int = 75
    """Longest such prompt (frames)."""

    def __post_init__(self) -> None:
        for name in ("text_width", "time_width", "rows", "max_clips", "max_prompt_frames"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is below 1; give at least 1")
        for name in ("description_free_ratio", "prompt_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is no probability; give 0 to 1")


@dataclass(frozen=True, kw_only=True)
class ClipForm:
    """What of a clip a model reads: settings of the model."""

    aligned: bool = False
    """With times and durations, semantic tokens at the frame rate."""
    text: TextForm = "instruction"
    semantic: bool = True
    """False = no semantic tokens: EOS1 follows the language."""
    attributes: bool = False
    """With what is known of each clip."""


@dataclass(frozen=True, kw_only=True)
class Clips:
    """Drawn clips, one column a property."""

    streams: Int64[np.ndarray, " clip"]
    corpora: Int64[np.ndarray, " clip"]
    records: Int64[np.ndarray, " clip"]
    variants: Int64[np.ndarray, " clip"]
    """Which of the record's instructions."""
    prompt_records: Int64[np.ndarray, " clip"]
    """Record of the same folder that lends its beginning as a voice prompt."""
    prompt_frames: Int64[np.ndarray, " clip"]
    """Frames of it; 0 = no voice prompt."""
    text: Int64[np.ndarray, " clip"]
    """Text tokens, before `arrange_text`, which may leave some out."""
    slots: Int64[np.ndarray, " clip"]
    """Slots in a row, text included."""

    def __len__(self) -> int:
        return len(self.records)

    def take(self, places: Int64[np.ndarray, " chosen"]) -> "Clips":
        return Clips(**{item.name: getattr(self, item.name)[places] for item in dataclasses.fields(Clips)})

    def followed_by(self, other: "Clips") -> "Clips":
        columns = [item.name for item in dataclasses.fields(Clips)]
        return Clips(**{name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in columns})


@dataclass(frozen=True, kw_only=True)
class BlockPlan:
    """The rows of a block."""

    clips: Clips
    """One row after another."""
    offsets: Int64[np.ndarray, " row_and_end"]
    """Where each row starts in `clips`, and the end."""
    waiting: Clips
    """Clips of this block that come in the next one of the lane."""
    too_long: Clips
    """Clips that fit no row: never trained on."""
    crowded_out: Clips
    """Clips that waited and found no room again: they wait for their next pass."""

    def row(self, index: int) -> Clips:
        return self.clips.take(np.arange(self.offsets[index], self.offsets[index + 1]))

    def __len__(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True, kw_only=True)
class PackingSummary:
    """What the first block says of all of them."""

    clips_per_step: float
    waste: float
    """Share of slots that stay empty."""
    text_waste: float
    """Share of text slots that stay empty, of `text_width`."""
    too_long: float
    """Share of clips that fit no row."""
    shares: dict[str, float] = field(default_factory=dict)
    """Share of clips by stream, where there are several."""


class Planner:
    """Plans the rows of a run; safe to use from several threads, and in worker processes."""

    def __init__(
        self, readers: Sequence[ShardReader], config: BatchConfig, mixture: Mixture, *, form: ClipForm = ClipForm()
    ) -> None:
        """Divides the data into streams and tries out how many clips fill a block.

        Raises:
            InputError, ConfigError: As `make_streams`; or no clip fits a row.
        """
        self._readers, self.config, self._form = readers, config, form
        self.streams = make_streams(readers, mixture)
        self._speakers: dict[int, SpeakerIndex] = {}
        if config.prompt_ratio:
            self._speakers = {number: SpeakerIndex.of(reader.lengths.speakers) for number, reader in enumerate(readers)}
        self._lane_rows = math.gcd(config.rows, LANE_ROWS)
        self._lanes = config.rows // self._lane_rows
        self.block_rows, self.block_clips = self._size_blocks()
        self._begin()

    def row(self, step: int, row: int) -> Clips:
        """Returns the clips of row `row` of a step."""
        block, place = self.place(step, row)
        plan = self.block(block)
        if 2 * place >= self.block_rows:
            self._start(block + self._lanes)
        return plan.row(place)

    def place(self, step: int, row: int) -> tuple[int, int]:
        """Returns the block that a row of a step comes from, and its place there."""
        lane, within = divmod(row, self._lane_rows)
        block, place = divmod(step * self._lane_rows + within, self.block_rows)
        return block * self._lanes + lane, place

    def block(self, block: int) -> BlockPlan:
        """Returns the plan of a block, made before or now."""
        return self._start(block).result()

    def summary(self) -> PackingSummary:
        """Measures the first block."""
        plan, config = self.block(0), self.config
        clips, rows = plan.clips, len(plan)
        drawn = len(clips) + len(plan.waiting) + len(plan.too_long)
        names = [
            "/".join(filter(None, (self._readers[each.corpus].folder.name, each.kind, each.language)))
            for each in self.streams
        ]
        counts = np.bincount(clips.streams, minlength=len(names)) / len(clips)
        return PackingSummary(
            clips_per_step=len(clips) / rows * config.rows,
            waste=1 - float(clips.slots.sum()) / (rows * config.time_width),
            text_waste=1 - float(clips.text.sum()) / (rows * config.text_width),
            too_long=len(plan.too_long) / drawn,
            shares=dict(zip(names, counts.tolist(), strict=True)) if len(names) > 1 else {},
        )

    def __getstate__(self) -> dict[str, object]:
        """Without plans and threads: a worker process makes its own."""
        return {name: value for name, value in vars(self).items() if name not in ("_plans", "_lock", "_thread")}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._begin()

    def _begin(self) -> None:
        self._plans: dict[int, Future[BlockPlan]] = {}
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="plan-rows")

    def _start(self, block: int) -> "Future[BlockPlan]":
        """Plans a block in the background unless it is planned; keeps the newest three of each lane."""
        with self._lock:
            if block not in self._plans:
                while len(self._plans) >= 3 * self._lanes:
                    del self._plans[next(iter(self._plans))]
                before = self._plans.get(block - self._lanes)
                self._plans[block] = self._thread.submit(self._plan, block, before)
            return self._plans[block]

    def _plan(self, block: int, before: "Future[BlockPlan] | None") -> BlockPlan:
        own, too_long = self._fitting(self._draw(block, self.block_clips, 0))
        late = own.take(np.zeros(0, np.int64))
        if before is not None:
            late = before.result().waiting
        elif block >= self._lanes:
            earlier, _ = self._fitting(self._draw(block - self._lanes, self.block_clips, 0))
            late = earlier.take(self._pack(earlier, self.block_rows).left_over.astype(np.int64))
        clips = own.followed_by(late)
        rows = self._pack(clips, self.block_rows, num_late=len(late))
        left_over = rows.left_over.astype(np.int64)
        order = np.random.default_rng((self.config.seed, 3, block)).permutation(len(rows))
        shuffled = [rows.row(index) for index in order.tolist()]
        return BlockPlan(
            clips=clips.take(np.concatenate(shuffled).astype(np.int64)),
            offsets=np.cumsum([0, *map(len, shuffled)]).astype(np.int64),
            waiting=clips.take(left_over[left_over < len(own)]),
            crowded_out=clips.take(left_over[left_over >= len(own)]),
            too_long=too_long,
        )

    def _pack(self, clips: Clips, num_rows: int | None, num_late: int = 0) -> RowPlan:
        config = self.config
        widths = {"text_width": config.text_width, "time_width": config.time_width}
        return plan_rows(
            clips.text, clips.slots, max_clips=config.max_clips, num_rows=num_rows, num_late=num_late, **widths
        )

    def _fitting(self, clips: Clips) -> tuple[Clips, Clips]:
        fits = (clips.text <= self.config.text_width) & (clips.slots <= self.config.time_width)
        return clips.take(np.flatnonzero(fits)), clips.take(np.flatnonzero(~fits))

    def _size_blocks(self) -> tuple[int, int]:
        """Returns rows and clips of a block: at most about one pass over the data, and as full as trials allow."""
        records = sum(len(reader) for reader in self._readers)
        clips = min(records, TRIAL_CLIPS)
        per_clip = self._trial(0, clips)
        rows = max(1, min(BLOCK_ROWS, math.ceil(records * per_clip)))
        clips = max(1, round(rows / per_clip))
        per_clip = max(self._trial(trial, clips) for trial in range(1, NUM_TRIALS + 1))
        used = rows if per_clip >= 1 else rows * (1 - SPARE) - SPARE_ROWS
        return rows, max(1, int(used / per_clip))

    def _trial(self, trial: int, clips: int) -> float:
        """Rows that a clip needs in a block of so many clips."""
        drawn, _ = self._fitting(self._draw(trial, clips, 1))
        if not len(drawn):
            widths = f"{self.config.text_width} text and {self.config.time_width} time slots"
            raise InputError(f"{self._readers[0].folder}: no clip fits a row of {widths}; widen the rows")
        return len(self._pack(drawn, None)) / clips

    def _draw(self, block: int, clips: int, trial: int) -> Clips:
        seed, config = self.config.seed, self.config
        drawn = draw(self.streams, block=block, clips=clips, seed=(seed, trial))
        random = np.random.default_rng((seed, trial, 2, block))
        corpus_of = np.array([stream.corpus for stream in self.streams], np.int64)
        corpora = corpus_of[drawn.streams]
        kinds = [self.streams[stream].kind for stream in drawn.streams.tolist()]
        columns: dict[str, np.ndarray] = {
            name: np.zeros(len(corpora), np.int64) for name in ("num_variants", "text", "audio", "frames", "donors")
        }
        places = [(number, np.flatnonzero(corpora == number)) for number in range(len(self._readers))]
        for number, at in places:
            columns["num_variants"][at] = self._readers[number].lengths.num_variants_of(drawn.records[at])
        variants = draw_variants(
            columns["num_variants"], kinds, random, description_free_ratio=config.description_free_ratio
        )
        columns["donors"][:] = drawn.records
        for number, at in places:
            lengths, records = self._readers[number].lengths, drawn.records[at]
            columns["text"][at] = lengths.text_of(records, variants[at])
            columns["audio"][at] = lengths.frames[records]
            if self._form.semantic:
                columns["audio"][at] += (lengths.frames if self._form.aligned else lengths.semantic)[records]
            if number in self._speakers:
                columns["donors"][at], columns["frames"][at] = draw_prompts(
                    records,
                    lengths,
                    self._speakers[number],
                    random,
                    ratio=config.prompt_ratio,
                    max_frames=config.max_prompt_frames,
                )
        return Clips(
            streams=drawn.streams.astype(np.int64),
            corpora=corpora,
            records=drawn.records,
            variants=variants,
            prompt_records=columns["donors"],
            prompt_frames=columns["frames"],
            text=columns["text"],
            slots=columns["text"] + columns["audio"] + columns["frames"] + NUM_SPECIAL,
        )
