"""Batches of waveforms with their instructions, for models of latents: `batches[step]` follows from (data, seed, step).

Speech comes from a manifest, decoded once (`segments.build_cache`); sounds from a manifest whose transcripts are
captions, or made on the spot. What an example is, its task says (`sound_tasks`).
"""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import jax
import numpy as np
from jaxtyping import Float, Float32, Int32

from voxinstruct_jax.config import ConfigError, InputError, fingerprint
from voxinstruct_jax.data.manifest import Row, read_manifest
from voxinstruct_jax.data.segments import AudioCache, build_cache
from voxinstruct_jax.data.sound_tasks import SoundExample, Speech, probabilities, synthesize
from voxinstruct_jax.data.sounds import Sound, make_sound
from voxinstruct_jax.text.phones import phone_ids, turns_of
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
from voxinstruct_jax.vocabulary import HostOrDevice

__all__ = ["ManifestPool", "SoundBatch", "SoundBatches", "SoundData", "describe", "open_pool", "without_places"]

INT16_SCALE = 32767.0
TASK_DRAW, ROW_DRAW = 0, 1
"""What a generator is for, so that the two draw apart."""


@dataclass(frozen=True, kw_only=True)
class SoundData:
    """Clips, the tasks made of them, and the shape of a step.

    Raises:
        ConfigError: A number is out of range.
    """

    manifest: str = "tests/corpus/generated/manifest.jsonl"
    sounds: str = ""
    """Manifest of sounds that are no speech, their captions as transcripts; empty = made on the spot."""
    cache: str = ""
    """Folder for the decoded audio; empty = `audio-cache-RATE` beside the manifest."""
    tasks: tuple[str, ...] = ("instruct_tts",)
    """Rows of `sound_tasks.TASKS`."""
    first_stage_steps: int = 0
    """Steps with the tasks that generate, before all are taken (the paper: 150,000)."""
    clip_s: float = 4.0
    """Length of an example; shorter ones are followed by silence, longer clips are left out."""
    pad_is_silence: bool = True
    """Whether a model learns the silence behind a clip (UNISON) or it counts for nothing (InstructAudio)."""
    rows: int = 8
    task_rows: int = 0
    """Neighbouring rows that share a task; 0 = all of a step."""
    text_width: int = 192
    """Tokens of an instruction; longer ones are left out."""
    phone_width: int = 128
    """Phones of what is spoken; longer ones are left out. 0 = no phones."""

    def __post_init__(self) -> None:
        if self.clip_s <= 0 or self.rows < 1 or self.text_width < 1 or min(self.phone_width, self.task_rows) < 0:
            raise ConfigError(f"data: clip_s {self.clip_s}, rows {self.rows} or a width is out of range")
        if self.task_rows and self.rows % self.task_rows:
            raise ConfigError(f"data.task_rows: {self.task_rows} does not divide rows {self.rows}")
        probabilities(self.tasks, generation_only=False)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class SoundBatch:
    """Examples of a step."""

    target: Float32[HostOrDevice, "batch sample"]
    source: Float32[HostOrDevice, "batch sample"]
    """What is edited, or whose voice it is; zeros where there is nothing."""
    num_samples: Int32[HostOrDevice, " batch"]
    """Samples of the target that count; zeros follow."""
    prefix_samples: Int32[HostOrDevice, " batch"]
    """Samples at the beginning that are given, not predicted."""
    tags: Int32[HostOrDevice, " batch"]
    """0 generation, 1 editing, 2 reference of a voice."""
    text_tokens: Int32[HostOrDevice, "batch token channel"]
    """Of the instruction; 0 in the first channel = padding."""
    phones: Int32[HostOrDevice, "batch phone"]
    """Of what is spoken, 0 = padding."""
    row_ids: Int32[HostOrDevice, " batch"]
    """Number of each row in the whole run."""
    text_states: Float[HostOrDevice, "batch layer token dim"] | None = None
    """Of a text encoder that was run apart; None = the model runs its own."""


class ManifestPool:
    """Clips of a manifest, as recipes ask for them; see `sound_tasks.ClipPool`."""

    def __init__(self, rows: Sequence[Row], cache: AudioCache, sounds: tuple[Sequence[Row], AudioCache] | None) -> None:
        """Takes what `open_pool` has read."""
        self.sample_rate = cache.sample_rate
        self._rows, self._cache, self._sounds = rows, cache, sounds
        lengths = np.diff(cache.offsets)
        self._by_length = np.argsort(lengths, kind="stable")
        self._by_length = self._by_length[lengths[self._by_length] > 0]
        self._lengths = lengths[self._by_length]
        speakers: dict[str, list[int]] = {}
        for index in self._by_length.tolist():
            if rows[index].speaker:
                speakers.setdefault(rows[index].speaker, []).append(index)
        self._speakers = [clips for clips in speakers.values() if len(clips) > 1]

    def speech(self, random: np.random.Generator, num_samples: int) -> Speech:
        """Draws a clip that fits.

        Raises:
            InputError: All are longer.
        """
        count = int(np.searchsorted(self._lengths, num_samples, side="right"))
        if not count:
            raise InputError(
                f"no clip is as short as {num_samples / self.sample_rate:.2f} s; give a longer data.clip_s"
            )
        return self._speech(int(self._by_length[random.integers(count)]), random)

    def speaker_pair(self, random: np.random.Generator, num_samples: int) -> tuple[Speech, Speech]:
        """Draws two clips of a speaker that fit.

        Raises:
            InputError: No speaker has two.
        """
        fitting = [len_ok for clips in self._speakers if len(len_ok := self._fitting(clips, num_samples)) > 1]
        if not fitting:
            raise InputError(
                f"no speaker of the manifest has two clips of at most {num_samples / self.sample_rate:.2f} s; give "
                "column 'speaker', a longer data.clip_s, or other data.tasks"
            )
        clips = fitting[int(random.integers(len(fitting)))]
        first, second = random.choice(len(clips), 2, replace=False).tolist()
        return self._speech(clips[first], random), self._speech(clips[second], random)

    def sound(self, random: np.random.Generator, num_samples: int) -> Sound:
        """Draws a sound of at most this length; longer ones are cropped anywhere."""
        if self._sounds is None:
            return make_sound(random, num_samples, self.sample_rate)
        rows, cache = self._sounds
        index = int(random.choice(np.nonzero(np.diff(cache.offsets))[0]))
        clip = cache.clip(index)
        start = int(random.integers(max(len(clip) - num_samples, 0) + 1))
        samples = clip[start : start + num_samples].astype(np.float32) / np.float32(INT16_SCALE)
        return Sound(samples=samples, caption=rows[index].transcript)

    def _fitting(self, clips: list[int], num_samples: int) -> list[int]:
        return [index for index in clips if len(self._cache.clip(index)) <= num_samples]

    def _speech(self, index: int, random: np.random.Generator) -> Speech:
        row = self._rows[index]
        instruction = row.instructions[int(random.integers(len(row.instructions)))] if row.instructions else ""
        return Speech(
            samples=self._cache.clip(index).astype(np.float32) / np.float32(INT16_SCALE),
            transcript=row.transcript,
            gender=str(row.attributes.get("gender", "")),
            instruction=instruction,
        )


def open_pool(data: SoundData, sample_rate: int) -> tuple[ManifestPool, str]:
    """Opens the clips of a run; returns them and what tells them apart from others.

    Raises:
        InputError: A manifest cannot be read, or holds no readable clip.
    """
    opened = [_open(path, data.cache, sample_rate) for path in (data.manifest, data.sounds) if path]
    (rows, cache), *sounds = opened
    identity = [[[Path(row.audio).name for row in found], int(kept.offsets[-1])] for found, kept in opened]
    return ManifestPool(rows, cache, sounds[0] if sounds else None), fingerprint(identity)


def _open(path: str, folder: str, sample_rate: int) -> tuple[list[Row], AudioCache]:
    rows = read_manifest(path)
    name = f"audio-cache-{sample_rate}"
    place = Path(folder) / Path(path).stem if folder else Path(path).parent / name
    return rows, build_cache([row.audio for row in rows], place, sample_rate)


class SoundBatches:
    """Examples by step. Neighbouring rows share a task; each row is drawn by a generator of its own."""

    def __init__(
        self,
        pool: ManifestPool,
        data: SoundData,
        tokenizer: PronunciationTokenizer,
        seed: int,
        *,
        host_rows: tuple[int, int] | None = None,
    ) -> None:
        """Prepares the draw.

        Args:
            pool: Clips.
            data: Tasks and shapes.
            tokenizer: Of instructions and phones.
            seed: Of all draws.
            host_rows: First and last (exclusive) row that this host makes; all by default.
        """
        self._pool, self._data, self._tokenizer, self._seed = pool, data, tokenizer, seed
        self._host_rows = host_rows or (0, data.rows)
        self._num_samples = round(data.clip_s * pool.sample_rate)

    def __getitem__(self, step: int) -> SoundBatch:
        made = [self.example(step, row) for row in range(*self._host_rows)]
        examples = [example for example, _, _ in made]

        def column(name: str) -> np.ndarray:
            return np.array([getattr(example, name) for example in examples])

        counted = column("num_samples")
        fields = {
            "target": column("target"),
            "source": column("source"),
            "num_samples": np.full_like(counted, self._num_samples) if self._data.pad_is_silence else counted,
            "prefix_samples": column("prefix_samples"),
            "tags": column("tag"),
            "text_tokens": np.stack([_padded(text, self._data.text_width) for _, text, _ in made]),
            "phones": np.stack([_padded(phones, self._data.phone_width) for _, _, phones in made]),
            "row_ids": step * self._data.rows + np.arange(*self._host_rows),
        }
        # JAX arrays to an objective, NumPy arrays until they are put on a device
        return SoundBatch(**{
            name: cast("jax.Array", value.astype(np.float32 if name in ("target", "source") else np.int32))
            for name, value in fields.items()
        })  # fmt: skip

    def task(self, step: int, row: int) -> str:
        """Name of the task of a row."""
        first = step < self._data.first_stage_steps
        shares = _shares(self._data.tasks, generation_only=first)
        group = row // (self._data.task_rows or self._data.rows)
        random = np.random.default_rng((self._seed, TASK_DRAW, step, group))
        return list(shares)[int(random.choice(len(shares), p=list(shares.values())))]

    def example(
        self, step: int, row: int
    ) -> tuple[SoundExample, Int32[np.ndarray, "token channel"], Int32[np.ndarray, " phone"]]:
        """Makes a row's example, its instruction and its phones; draws again where these are too long.

        Raises:
            InputError: Nothing that is drawn fits.
        """
        for attempt in range(20):
            random = np.random.default_rng((self._seed, ROW_DRAW, step, row, attempt))
            example = synthesize(self.task(step, row), self._pool, random, self._num_samples)
            text = self._tokenizer.encode(example.text)
            phones = np.zeros(0, np.int32)
            if self._data.phone_width:
                phones = phone_ids(turns_of(example.transcript), self._tokenizer)
            if len(text) <= self._data.text_width and len(phones) <= self._data.phone_width:
                return example, text, phones
        raise InputError(
            f"step {step}: 20 drawn instructions are longer than {self._data.text_width} tokens or "
            f"{self._data.phone_width} phones; give a larger data.text_width or data.phone_width"
        )

    def measure(self, batch: SoundBatch) -> dict[str, float]:
        """Shares of the step's rows that edit, and that speak with a reference's voice."""
        tags = np.asarray(batch.tags)
        return {
            "editing": float((tags == 1).sum()) / self._data.rows,
            "reference": float((tags == 2).sum()) / self._data.rows,
        }


@functools.lru_cache(maxsize=64)
def _shares(names: tuple[str, ...], *, generation_only: bool) -> dict[str, float]:
    return probabilities(names, generation_only=generation_only)


def _padded(values: np.ndarray, width: int) -> np.ndarray:
    return np.pad(values, ((0, width - len(values)), *[(0, 0)] * (values.ndim - 1)))


def describe(data: SoundData) -> str:
    """One line on the tasks of a run."""
    shares = probabilities(data.tasks, generation_only=False)
    return "tasks: " + ", ".join(f"{name} {share:.0%}" for name, share in shares.items())


def without_places(data: SoundData) -> SoundData:
    """The settings that make a run what it is, without the folders it lies in."""
    return dataclasses.replace(data, manifest="", sounds="", cache="")
