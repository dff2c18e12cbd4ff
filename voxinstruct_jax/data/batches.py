"""Batches of packed clips: `TokenBatches[step]` is a pure function of (data, settings, seed, step).

A run that resumes, on another number of hosts too, needs the step and nothing else. Which clips stand in which row is
planned in `plan`; here they are read and filled in. Start at `token_batches`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from voxinstruct_jax.attributes import class_numbers
from voxinstruct_jax.config import ConfigError, InputError, fingerprint
from voxinstruct_jax.data.mixture import Mixture
from voxinstruct_jax.data.packing import Clip, pack
from voxinstruct_jax.data.plan import PLAN_VERSION, BatchConfig, ClipForm, Clips, Planner
from voxinstruct_jax.data.shards import Example, ShardReader
from voxinstruct_jax.data.steps import read_ahead
from voxinstruct_jax.text.tokenizer import TextTokenizer, arrange_text, spread_durations
from voxinstruct_jax.vocabulary import PackedBatch, Vocabulary, build_layout, expand

__all__ = ["BatchConfig", "ChosenClip", "ClipForm", "TokenBatches", "token_batches"]


@dataclass(frozen=True, kw_only=True)
class ChosenClip:
    """A clip of a batch, as its record has it."""

    corpus: int
    record: int
    example: Example
    variant: int
    """Which instruction it is trained on."""
    prompt_record: int
    """Record that lends its beginning as a voice prompt."""
    prompt_frames: int
    """Frames of it; 0 = no voice prompt."""


class TokenBatches:
    """This host's rows of any step."""

    def __init__(
        self,
        readers: ShardReader | Sequence[ShardReader],
        tokenizer: TextTokenizer,
        vocabulary: Vocabulary,
        config: BatchConfig,
        *,
        mixture: Mixture | None = None,
        form: ClipForm | None = None,
        host_rows: tuple[int, int] | None = None,
    ) -> None:
        """Checks that data, tokenizer and vocabulary belong together.

        Args:
            readers: Prepared data: one folder, or those of `mixture.corpora` in their order.
            tokenizer: The one that `prepare` or `recount_text` counted with.
            vocabulary: Of the model; its semantic units must hold the data's. Of the data's codebooks it may take the
                leading ones only.
            config: Shape and draw.
            mixture: Weights of corpora, kinds and languages.
            form: What of a clip the model reads.
            host_rows: First and last (exclusive) row of a step that this host reads; all by default.

        Raises:
            InputError: They do not belong together.
            ConfigError: `host_rows` lie outside the step, or the mixture cannot be had.
        """
        self._readers = [readers] if isinstance(readers, ShardReader) else list(readers)
        self._tokenizer, self._vocabulary, self.config = tokenizer, vocabulary, config
        self._mixture, self._form = mixture or Mixture(), form or ClipForm()
        self._host_rows = host_rows or (0, config.rows)
        if not 0 <= self._host_rows[0] < self._host_rows[1] <= config.rows:
            raise ConfigError(f"host_rows: {self._host_rows} is no part of the {config.rows} rows of a step")
        for reader in self._readers:
            _check(reader, tokenizer, vocabulary)
            _check_same_encoders(self._readers[0], reader)
            if self._form.aligned:
                _check_timed(reader)
        self.planner = Planner(self._readers, config, self._mixture, form=self._form)

    @property
    def readers(self) -> Sequence[ShardReader]:
        """The folders, in their order."""
        return self._readers

    @property
    def frame_rate(self) -> float:
        """Of the codec (Hz)."""
        return self._readers[0].index.frame_rate

    @property
    def fingerprint(self) -> str:
        """Changes when any batch could change; hosts and the folders' places do not matter."""
        mixture = self._mixture
        return fingerprint(
            [
                PLAN_VERSION,
                *((reader.fingerprint) for reader in self._readers),
                self._tokenizer.fingerprint,
                self._vocabulary,
                self.config,
                [corpus.weight for corpus in mixture.corpora],
                [mixture.kinds, mixture.language_temperature, mixture.language_weights],
                self._form.aligned,
                *([] if self._form == ClipForm(aligned=self._form.aligned) else [self._form]),
            ]
        )

    def __getitem__(self, step: int) -> PackedBatch:
        """Returns NumPy arrays; `clip_ids` are the rows' numbers in the step."""
        numbers = np.arange(*self._host_rows)
        rows = [[self._fill(clip) for clip in self._read(self.planner.row(step, row))] for row in numbers.tolist()]
        return pack(rows, text_width=self.config.text_width, time_width=self.config.time_width, clip_ids=numbers)

    def chosen(self, step: int) -> list[list[ChosenClip]]:
        """Returns what stands in each row of a step."""
        return [list(self._read(self.planner.row(step, row))) for row in range(*self._host_rows)]

    def _read(self, clips: Clips) -> Iterator[ChosenClip]:
        columns = (clips.corpora, clips.records, clips.variants, clips.prompt_records, clips.prompt_frames)
        for corpus, record, variant, prompt_record, frames in zip(*(each.tolist() for each in columns), strict=True):
            yield ChosenClip(
                corpus=corpus,
                record=record,
                example=self._readers[corpus][record],
                variant=variant,
                prompt_record=prompt_record,
                prompt_frames=frames,
            )

    def _fill(self, clip: ChosenClip) -> Clip:
        example, frames = clip.example, clip.prompt_frames
        text_tokens = arrange_text(self._tokenizer.encode(example.instructions[clip.variant]), self._form.text)
        codes = example.codes
        if frames:
            prompt = self._readers[clip.corpus][clip.prompt_record].codes[:, :frames]
            codes = np.concatenate([prompt, codes], axis=1)
        semantic, durations = example.semantic_tokens, None
        if self._form.aligned:
            semantic = expand(example.semantic_tokens, example.run_lengths)
            durations = spread_durations(text_tokens, example.durations)
        if not self._form.semantic:
            semantic = semantic[:0]
        layout = build_layout(self._vocabulary, example.language, semantic, codes[: self._vocabulary.num_codebooks])
        attributes = class_numbers(example.attributes) if self._form.attributes else None
        return Clip(
            text_tokens=text_tokens, layout=layout, prompt_frames=frames, durations=durations, attributes=attributes
        )


def token_batches(batches: TokenBatches, *, start_step: int, num_steps: int, workers: int = 0) -> Iterator[PackedBatch]:
    """Yields the batches of `num_steps` steps from `start_step` on, read ahead by a thread or `workers` processes."""
    return read_ahead(batches, start_step=start_step, num_steps=num_steps, workers=workers)


def _check(reader: ShardReader, tokenizer: TextTokenizer, vocabulary: Vocabulary) -> None:
    index, folder = reader.index, reader.folder
    if index.fingerprints["tokenizer"] != tokenizer.fingerprint:
        raise InputError(
            f"{folder}: text was counted by another tokenizer; count it anew in a copy of the folder: voxinstruct "
            "prepare FOLDER --recount, with --tokenizer as in data.tokenizer"
        )
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


def _check_timed(reader: ShardReader) -> None:
    index = reader.index
    if index.semantic_rate not in (None, index.frame_rate):
        raise InputError(
            f"{reader.folder}: semantic tokens at {index.semantic_rate:g} Hz, codec frames at "
            f"{index.frame_rate:g} Hz; aligned timing needs one rate: set timing to sequence"
        )
    if not len(reader[0].durations):
        raise InputError(f"{reader.folder}: no durations of characters; prepare it with units that know phones")


def _check_same_encoders(first: ShardReader, other: ShardReader) -> None:
    differing = [name for name, mark in first.index.fingerprints.items() if other.index.fingerprints.get(name) != mark]
    if differing:
        raise InputError(
            f"{other.folder}: made by another {', '.join(differing)} than {first.folder}; prepare both with one voice"
        )
