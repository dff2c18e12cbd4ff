"""The three stages from a request to sound, as programs over batches of static size: AR tokens, codebooks, waveform.

A single request and the engine run the same functions. Read `ARStage` and `Models`, then `Spoken` and `nar_clip`.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, Int32, Key, Num

from voxinstruct_jax.audio.codec import MelCodec
from voxinstruct_jax.audio.codecs import Codec
from voxinstruct_jax.audio.harmonics import Intonation
from voxinstruct_jax.audio.linguistic import NUM_FEATURES
from voxinstruct_jax.decoding.autoregressive import decode_ar
from voxinstruct_jax.decoding.maskgit import fill_codebooks, masked_layout
from voxinstruct_jax.decoding.prosody import Prosody, stressed_frames
from voxinstruct_jax.decoding.requests import ARBatch, ARRequest, ARResult, Capacity, FinishReason
from voxinstruct_jax.decoding.rules import DecodingRules
from voxinstruct_jax.decoding.sampling import SamplingConfig
from voxinstruct_jax.guidance import Branch
from voxinstruct_jax.models.ar import ARModel
from voxinstruct_jax.models.nar import NARModel
from voxinstruct_jax.text.tokenizer import phones_in_frames
from voxinstruct_jax.vocabulary import TEXT, PackedBatch, Vocabulary, audio_times, text_times

__all__ = [
    "ARStage",
    "CODE_BLOCK",
    "Clip",
    "Loaded",
    "Models",
    "SpeechRequest",
    "Spoken",
    "choose_width",
    "clip_intonation",
    "decode_codes",
    "decode_requests",
    "fill_clips",
    "frame_features",
    "nar_clip",
    "own_codes",
    "read_spoken",
    "said_features",
    "stack_clips",
    "stack_codes",
    "stack_features",
    "stack_intonations",
]

T = TypeVar("T")
CODE_BLOCK = 50
"""Codes are decoded in multiples of this many frames, so that few programs are compiled."""
UNKNOWN = -1
"""Linguistic feature of a frame of which it is not known."""


@dataclasses.dataclass(frozen=True)
class Loaded(Generic[T]):
    """A model as jitted functions take it: its graph, and its arrays as a plain argument."""

    graph: nnx.GraphDef[Any]
    state: nnx.State
    config: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class ARStage:
    """What says tokens, how, and how long a request can be."""

    ar: Loaded[ARModel]
    sampling: SamplingConfig
    rules: DecodingRules
    text_widths: tuple[int, ...]
    """Text slots of the compiled programs, ascending; no request has more."""
    prompt_widths: tuple[int, ...]
    """As `text_widths`, of a voice prompt's frames, and of its units."""
    max_frames: int
    """Of the longest request."""
    prosody: Prosody = Prosody()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Models(ARStage):
    """All three stages."""

    nar: Loaded[NARModel]
    codec: Loaded[Codec]
    num_steps: tuple[int, ...]
    """MaskGIT passes of each codebook from the second on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeechRequest:
    """One request on the host, for all stages."""

    ar: ARRequest
    prompt_units: Int32[np.ndarray, " unit"]
    prompt_codes: Int32[np.ndarray, "all_codebooks prompt"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spoken:
    """What the AR model gave for one request."""

    language: str
    semantic: Int32[np.ndarray, " unit"]
    first_codes: Int32[np.ndarray, " frame"]
    reason: FinishReason
    durations: Float32[np.ndarray, " text"]
    classes: Float32[np.ndarray, " class"]
    """As `ARResult.classes`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """What the NAR model starts from: one request's text and layout."""

    text_tokens: Int32[np.ndarray, "text channel"]
    tokens: Int32[np.ndarray, "codebook time"]
    part_ids: Int32[np.ndarray, " time"]
    times: Float32[np.ndarray, " slot"] | None
    """Of text and layout, where the model is aligned."""
    frames: int
    """Acoustic tokens, the voice prompt's included."""

    @property
    def slots(self) -> int:
        """Text and layout."""
        return len(self.text_tokens) + self.tokens.shape[1]


def choose_width(length: int, widths: tuple[int, ...]) -> int:
    """Returns the narrowest of ascending widths that holds a length; there must be one."""
    return next(width for width in widths if width >= length)


def read_spoken(result: ARResult, row: int, num_text: int, vocabulary: Vocabulary) -> Spoken:
    """Reads one row of a result that is on the host."""
    return Spoken(
        language=vocabulary.language_name(int(result.language[row])),
        semantic=np.asarray(result.semantic_tokens[row, : result.semantic_lengths[row]]),
        first_codes=np.asarray(result.codes[row, : result.code_lengths[row]]),
        reason=FinishReason(int(result.finish_reasons[row])),
        durations=np.asarray(result.durations[row, :num_text]),
        classes=np.asarray(result.classes[row]),
    )


def nar_clip(models: Models, request: SpeechRequest, spoken: Spoken) -> Clip:
    """Writes what the NAR model starts from.

    Raises:
        InputError: There are no frames, or ids are out of range.
    """
    vocabulary = models.nar.config.vocabulary
    prompt_codes = request.prompt_codes[: vocabulary.num_codebooks]  # a NAR model may stop at the leading codebooks
    semantic = np.concatenate([request.prompt_units, spoken.semantic])
    layout = masked_layout(vocabulary, spoken.language, semantic, spoken.first_codes, prompt_codes, models.rules)
    times = None
    if models.nar.config.timing == "aligned":
        heard = audio_times(len(semantic), len(spoken.first_codes), prompt_codes.shape[1])
        times = np.concatenate([text_times(spoken.durations), heard]).astype(np.float32)
    frames = prompt_codes.shape[1] + len(spoken.first_codes)
    return Clip(
        text_tokens=request.ar.text_tokens,
        tokens=layout.tokens,
        part_ids=layout.part_ids,
        times=times,
        frames=frames,
    )


def stack_clips(clips: Sequence[Clip], text_width: int, width: int) -> PackedBatch:
    """A batch of one clip a row, padded to static widths.

    Args:
        clips: All aligned or none.
        text_width: At least each clip's text.
        width: At least each clip's text and layout.
    """
    rows = [_pad_clip(clip, text_width, width) for clip in clips]
    stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return PackedBatch(
        **{name: jnp.asarray(values) for name, values in stacked.items()}, clip_ids=jnp.arange(len(clips))
    )


def _pad_clip(clip: Clip, text_width: int, width: int) -> dict[str, np.ndarray]:
    text, spare = len(clip.text_tokens), width - clip.slots
    slots = np.arange(width)
    real = slots < clip.slots
    times = {} if clip.times is None else {"times": np.pad(clip.times, (0, spare))}
    has_text = clip.text_tokens.any(axis=1).astype(np.int32)
    return times | {
        "text_tokens": np.pad(clip.text_tokens, ((0, text_width - text), (0, 0))),
        "text_segment_ids": np.pad(has_text, (0, text_width - text)),
        "tokens": np.pad(clip.tokens, ((0, 0), (text, spare))),
        "part_ids": np.pad(clip.part_ids, (text, spare), constant_values=TEXT).astype(np.int32),
        "segment_ids": real.astype(np.int32),
        "positions": np.where(real, slots, 0).astype(np.int32),
        "text_index": np.where(slots < text, slots, 0).astype(np.int32),
    }


def own_codes(
    models: Models, clip: Clip, filled: Int32[np.ndarray, "codebook slot"]
) -> Int32[np.ndarray, "codebook frame"]:
    """Reads a clip's codes, those of the voice prompt included, from its row of `fill_clips`."""
    vocabulary = models.nar.config.vocabulary
    begin = clip.slots - 1 - clip.frames
    # Under the release's rules a frame may have got an id that is no code.
    codes = filled[:, begin : begin + clip.frames] - vocabulary.acoustic_offset
    return np.clip(codes, 0, vocabulary.codebook_size - 1)


def frame_features(
    stage: ARStage, request: SpeechRequest, spoken: Spoken, frames: int
) -> Int32[np.ndarray, "frame feature"]:
    """`audio.linguistic.NUM_FEATURES` of each of a clip's last `frames`; in a voice prompt, unknown.

    Semantic tokens and text are in time with frames where the AR model is aligned; elsewhere nothing is known.
    """
    features = np.full((frames, NUM_FEATURES), UNKNOWN, np.int32)
    if stage.ar.config.timing == "aligned":
        own = len(spoken.first_codes)
        features[frames - own :] = said_features(request.ar.text_tokens, spoken.durations, spoken.semantic, own)
    return features


def said_features(
    text_tokens: Int[np.ndarray, "text channel"],
    durations: Num[np.ndarray, " text"],
    units: Int[np.ndarray, " unit"],
    frames: int,
) -> Int32[np.ndarray, "frame feature"]:
    """Linguistic features of a clip's frames.

    Args:
        text_tokens: Of the instruction.
        durations: Half frames of each of them.
        units: One a frame; of frames at the end that have none nothing is known.
        frames: Of the clip.
    """
    unit = np.pad(units[:frames], (0, max(frames - len(units), 0)), constant_values=UNKNOWN)
    phones = phones_in_frames(text_tokens, durations, frames)
    return np.concatenate([unit[:, None], phones], axis=1).astype(np.int32)


def stack_features(
    features: Sequence[Int32[np.ndarray, "_ feature"]], frames: int
) -> Int32[np.ndarray, "clip frame feature"]:
    """Stacks clips' linguistic features beside `stack_codes`; behind a clip nothing is known."""
    return np.stack([np.pad(item, ((0, frames - len(item)), (0, 0)), constant_values=UNKNOWN) for item in features])


def stack_codes(codes: Sequence[Int[np.ndarray, "codebook _"]]) -> Int32[np.ndarray, "clip codebook frame"]:
    """Stacks clips' codes; their last frames are repeated up to the next multiple of `CODE_BLOCK`."""
    frames = max(-(-item.shape[1] // CODE_BLOCK) * CODE_BLOCK for item in codes)
    return np.stack([np.pad(item, ((0, 0), (0, frames - item.shape[1])), mode="edge") for item in codes])


def clip_intonation(models: Models, request: SpeechRequest, spoken: Spoken, frames: int) -> Intonation:
    """How the decoder is to change the pitch of a clip's last `frames`; a batch of one.

    Args:
        models: What speaks.
        request: What was asked for.
        spoken: What the AR model said to it.
        frames: Of the voice prompt and the clip.
    """
    own = len(spoken.first_codes)
    stressed = np.zeros(frames, np.float32)
    stressed[frames - own :] = stressed_frames(request.ar.text_tokens, spoken.durations, own)
    centres, lowest, highest = models.prosody.pitch_ranges(spoken.classes, spoken.language)
    return Intonation(
        lift=models.prosody.stress.semitones * stressed[None],
        own=(np.arange(frames) >= frames - own)[None],
        prompt=(np.arange(frames) < frames - own)[None],
        centres=centres[None],
        lowest=lowest[None],
        highest=highest[None],
    )


def stack_intonations(intonations: Sequence[Intonation], frames: int) -> Intonation:
    """Stacks clips beside `stack_codes`; behind a clip nothing is raised or counted."""

    def join(*parts: Any) -> Any:
        return np.concatenate(parts)

    def padded(part: Any) -> Any:
        return np.pad(part, ((0, 0), (0, frames - part.shape[1])))

    masks = ("lift", "own", "prompt")
    wide = [dataclasses.replace(item, **{name: padded(getattr(item, name)) for name in masks}) for item in intonations]
    return jax.tree.map(join, *wide)


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5, 6))
def decode_requests(
    graph: Any,
    state: Any,
    batch: ARBatch,
    branches: tuple[Branch, ...],
    sampling: SamplingConfig,
    capacity: Capacity,
    rules: DecodingRules,
) -> ARResult:
    """`decode_ar` of a loaded AR model."""
    model = nnx.merge(graph, state)
    return decode_ar(model, batch, branches=branches, sampling=sampling, capacity=capacity, rules=rules)


@functools.partial(jax.jit, static_argnums=(0, 4, 5, 6))
def fill_clips(
    graph: Any,
    state: Any,
    batch: PackedBatch,
    keys: Key[Array, " batch"],
    num_steps: tuple[int, ...],
    rules: DecodingRules,
    max_targets: int,
) -> Int32[Array, "batch codebook slot"]:
    """`fill_codebooks` of a loaded NAR model."""
    model = nnx.merge(graph, state)
    return fill_codebooks(model, batch, keys, num_steps=num_steps, rules=rules, max_targets=max_targets)


@functools.partial(jax.jit, static_argnums=0)
def decode_codes(
    graph: Any,
    state: Any,
    codes: Int32[Array | np.ndarray, "clip codebook frame"],
    features: Int32[Array | np.ndarray, "clip frame feature"],
    intonation: Intonation | None = None,
) -> Float[Array, "clip sample"]:
    """The waveforms of a loaded codec.

    Args:
        graph: Of the codec.
        state: Of the codec.
        codes: From `stack_codes`.
        features: From `stack_features`, for a codec whose decoder reads them.
        intonation: From `stack_intonations`, for a codec that can change the pitch; None = as the codes tell it.
    """
    codec = nnx.merge(graph, state)
    return codec.decode(codes, features, intonation) if isinstance(codec, MelCodec) else codec.decode(codes)
