"""Batches of packed clips: `TokenBatches[step]` is a pure function of (data, seed, step).

Rows are numbered through the whole run; epochs follow one another without a gap. A run that resumes, on another number
of hosts too, needs the step and nothing else. Start at `token_batches`.
"""

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from voxinstruct_jax.config import ConfigError, InputError, fingerprint
from voxinstruct_jax.data.packing import Clip, RowPlan, draw_prompts, draw_variants, pack, plan_rows
from voxinstruct_jax.data.shards import ShardReader
from voxinstruct_jax.data.steps import read_ahead
from voxinstruct_jax.text.tokenizer import TextTokenizer, spread_durations
from voxinstruct_jax.vocabulary import PackedBatch, Vocabulary, build_layout, expand

__all__ = ["BatchConfig", "EpochPlan", "TokenBatches", "token_batches"]

NUM_SPECIAL = 4
"""BOS, language, EOS1 and EOS2 of each clip."""

logger = logging.getLogger(__name__)


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
class EpochPlan:
    """What each row of an epoch holds, and which instruction each record is trained on."""

    rows: RowPlan
    variants: Int[np.ndarray, " record"]
    prompt_records: Int[np.ndarray, " record"]
    """Record that lends its beginning as a voice prompt."""
    prompt_frames: Int[np.ndarray, " record"]
    """Frames of it; 0 = no voice prompt."""


class TokenBatches:
    """This host's rows of any step."""

    def __init__(
        self,
        reader: ShardReader,
        tokenizer: TextTokenizer,
        vocabulary: Vocabulary,
        config: BatchConfig,
        *,
        aligned: bool = False,
        host_rows: tuple[int, int] | None = None,
    ) -> None:
        """Checks that data, tokenizer and vocabulary belong together.

        Args:
            reader: Prepared data.
            tokenizer: The one that `prepare` or `recount_text` counted with.
            vocabulary: Of the model; its semantic units must hold the data's. Of the data's codebooks it may take the
                leading ones only.
            config: Shape and draw.
            aligned: For aligned models: with times and durations, semantic tokens at the frame rate.
            host_rows: First and last (exclusive) row of a step that this host reads; all by default.

        Raises:
            InputError: They do not belong together.
            ConfigError: `host_rows` lie outside the step.
        """
        self._reader, self._tokenizer, self._vocabulary, self.config = reader, tokenizer, vocabulary, config
        self._aligned = aligned
        self._host_rows = host_rows or (0, config.rows)
        if not 0 <= self._host_rows[0] < self._host_rows[1] <= config.rows:
            raise ConfigError(f"host_rows: {self._host_rows} is no part of the {config.rows} rows of a step")
        _check(reader, tokenizer, vocabulary)
        if aligned and reader.index.semantic_rate not in (None, reader.index.frame_rate):
            raise InputError(
                f"{reader.folder}: semantic tokens at {reader.index.semantic_rate:g} Hz, codec frames at "
                f"{reader.index.frame_rate:g} Hz; aligned timing needs one rate: set timing to sequence"
            )
        if aligned and not len(reader[0].durations):
            raise InputError(f"{reader.folder}: no durations of characters; prepare it with units that know phones")
        self._epoch_ends: list[int] = []
        self._epochs: dict[int, EpochPlan] = {}
        self._lock = threading.Lock()

    @property
    def fingerprint(self) -> str:
        """Changes when any batch could change; hosts do not matter."""
        made = [self._reader.fingerprint, self._tokenizer.fingerprint, self._vocabulary, self.config]
        return fingerprint([*made, "aligned"] if self._aligned else made)

    def __getitem__(self, step: int) -> PackedBatch:
        """Returns NumPy arrays; `clip_ids` are the rows' numbers in the whole run."""
        first, last = self._host_rows
        numbers = np.arange(step * self.config.rows + first, step * self.config.rows + last)
        rows = [self._clips(int(number)) for number in numbers]
        return pack(rows, text_width=self.config.text_width, time_width=self.config.time_width, clip_ids=numbers)

    def plan(self, epoch: int) -> EpochPlan:
        """Returns the plan of an epoch, the same on every host."""
        with self._lock:
            return self._epoch(epoch)

    def _clips(self, number: int) -> list[Clip]:
        with self._lock:
            epoch, index = self._place(number)
        records = epoch.rows.row(index).tolist()
        return [self._clip(record, epoch) for record in records]

    def _clip(self, record: int, plan: EpochPlan) -> Clip:
        example = self._reader[record]
        text_tokens = self._tokenizer.encode(example.instructions[int(plan.variants[record])])
        frames = int(plan.prompt_frames[record])
        prompt = self._reader[int(plan.prompt_records[record])].codes[:, :frames] if frames else example.codes[:, :0]
        codes = np.concatenate([prompt, example.codes], axis=1)[: self._vocabulary.num_codebooks]
        semantic, durations = example.semantic_tokens, None
        if self._aligned:
            semantic = expand(example.semantic_tokens, example.run_lengths)
            durations = spread_durations(text_tokens, example.durations)
        layout = build_layout(self._vocabulary, example.language, semantic, codes)
        return Clip(text_tokens=text_tokens, layout=layout, prompt_frames=frames, durations=durations)

    def _place(self, number: int) -> tuple[EpochPlan, int]:
        """Global row number to its epoch and its place there. Epochs differ in rows, so all before it are planned."""
        while not self._epoch_ends or self._epoch_ends[-1] <= number:
            start = self._epoch_ends[-1] if self._epoch_ends else 0
            self._epoch_ends.append(start + len(self._epoch(len(self._epoch_ends)).rows))
        epoch = int(np.searchsorted(self._epoch_ends, number, side="right"))
        return self._epoch(epoch), number - (self._epoch_ends[epoch - 1] if epoch else 0)

    def _epoch(self, epoch: int) -> EpochPlan:
        if epoch not in self._epochs:
            # A step can touch the end of one epoch and the start of the next: keep two.
            self._epochs = {known: plan for known, plan in self._epochs.items() if known == epoch - 1}
            self._epochs[epoch] = _plan_epoch(self._reader, self.config, epoch, self._aligned)
        return self._epochs[epoch]


def token_batches(
    reader: ShardReader,
    tokenizer: TextTokenizer,
    vocabulary: Vocabulary,
    config: BatchConfig,
    *,
    start_step: int,
    num_steps: int,
    host_rows: tuple[int, int] | None = None,
) -> Iterator[PackedBatch]:
    """Yields the batches of `num_steps` steps from `start_step` on, read ahead in a thread.

    Args and errors as in `TokenBatches`.
    """
    batches = TokenBatches(reader, tokenizer, vocabulary, config, host_rows=host_rows)
    return read_ahead(batches, start_step=start_step, num_steps=num_steps)


def _plan_epoch(reader: ShardReader, config: BatchConfig, epoch: int, aligned: bool) -> EpochPlan:
    lengths = reader.lengths
    variants = draw_variants(
        lengths.num_variants,
        description_free_ratio=config.description_free_ratio,
        seed=config.seed,
        epoch=epoch,
    )
    prompt_records, prompt_frames = draw_prompts(
        lengths, ratio=config.prompt_ratio, max_frames=config.max_prompt_frames, seed=config.seed, epoch=epoch
    )
    rows = plan_rows(
        lengths.text_of(variants),
        (lengths.frames if aligned else lengths.semantic) + lengths.frames + prompt_frames + NUM_SPECIAL,
        text_width=config.text_width,
        time_width=config.time_width,
        max_clips=config.max_clips,
        seed=config.seed,
        epoch=epoch,
    )
    widths = f"{config.text_width} text and {config.time_width} time slots"
    if not len(rows):
        raise InputError(f"{reader.folder}: no clip fits a row of {widths}; widen the rows")
    if len(rows.left_out):
        logger.warning("epoch %d leaves out %d clips that need more than %s", epoch, len(rows.left_out), widths)
    return EpochPlan(rows=rows, variants=variants, prompt_records=prompt_records, prompt_frames=prompt_frames)


def _check(reader: ShardReader, tokenizer: TextTokenizer, vocabulary: Vocabulary) -> None:
    index, folder = reader.index, reader.folder
    if index.fingerprints["tokenizer"] != tokenizer.fingerprint:
        raise InputError(f"{folder}: text was counted by another tokenizer; call recount_text on a copy of the folder")
    if index.num_codebooks < vocabulary.num_codebooks:
        raise InputError(f"{folder}: {index.num_codebooks} codebooks, the vocabulary has {vocabulary.num_codebooks}")
    for largest, size, name in (
        (index.largest_code, vocabulary.codebook_size, "codec indices"),
        (index.largest_semantic_token, vocabulary.num_semantic, "semantic tokens"),
    ):
        if largest >= size:
            raise InputError(f"{folder}: {name} reach {largest}, the model's vocabulary holds {size}")
    unknown = sorted(set(index.languages) - set(vocabulary.languages))
    if unknown:
        raise InputError(f"{folder}: languages {', '.join(unknown)} are not in the vocabulary {vocabulary.languages}")
