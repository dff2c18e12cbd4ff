"""The voice of a language model whose tokens a flow turns into sound, in place of the NAR model.

A folder holds `ar/`, as of a codec language model's voice, `flow/` (`models.codec_flow.CodecFlow`, its codec included)
and `voice.json` with `kind` "codec_flow". A flow decoder reads semantic tokens, and the AR model stops behind them; a
bridge begins at the first codebook, so both stages run. Read `FlowVoice`.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Float32

from voxinstruct_jax.config import ConfigError, InputError, VoxError, from_dict
from voxinstruct_jax.decoding.engine import Speech, say_many
from voxinstruct_jax.decoding.profile import EngineProfile
from voxinstruct_jax.decoding.requests import Limits
from voxinstruct_jax.decoding.stages import Loaded, SpeechRequest, Spoken
from voxinstruct_jax.diffusion.codec_speech import FrameRequest, frames_operations, speak_frames
from voxinstruct_jax.diffusion.solvers import evaluations
from voxinstruct_jax.diffusion.systems import DiffusionConfig
from voxinstruct_jax.guidance import Guidance
from voxinstruct_jax.models.ar import ARConfig
from voxinstruct_jax.models.codec_flow import CodecFlow, CodecFlowConfig
from voxinstruct_jax.models.llama import ComputeType
from voxinstruct_jax.utterance import Cost, Utterance
from voxinstruct_jax.voice import COST_TEXT_SLOTS, TokenVoice, speak_alike
from voxinstruct_jax.voice_folder import (
    VoiceConfig,
    identify,
    load_part,
    network_in,
    open_ar,
    open_tokenizer,
    read_prosody,
)

__all__ = ["KIND", "FlowVoice", "FlowVoiceConfig", "check_flow", "load_flow_voice"]

KIND = "codec_flow"
"""In `voice.json`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowVoiceConfig:
    """Settings of `voice.json`."""

    language_model: VoiceConfig
    """Of the voice that the AR model comes from."""
    diffusion: DiffusionConfig
    """Path, guidance and solver of the flow."""
    batch_size: int = 8
    """Requests of the flow's programs in `synthesize_many`."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size {self.batch_size} must be at least 1")


def load_flow_voice(folder: Path, values: dict[str, Any], dtype: ComputeType | None = None) -> "FlowVoice":
    """Opens a voice.

    Args:
        folder: Of the voice.
        values: Its `voice.json`, without `kind`.
        dtype: As in `voice.load`, of the flow's network too.

    Raises:
        InputError: A part is missing or damaged, was made for another version of the text tokenizer, or the parts do
            not fit one another.
    """
    config = from_dict(FlowVoiceConfig, values)
    ar, flow = open_ar(folder, dtype), load_part(folder / "flow", CodecFlowConfig, CodecFlow)
    check_flow(folder, ar.config, flow.config)
    codec = nnx.merge(flow.graph, flow.state).codec
    return FlowVoice(
        name=f"{folder.name} {identify(folder, ('ar', 'flow'))}",
        config=config.language_model,
        tokenizer=open_tokenizer(folder, config.language_model, ar.config.text_encoder.channel_sizes[0]),
        codec=Loaded(*nnx.split(codec), flow.config.codec),
        ar=ar,
        folder=folder,
        prosody=read_prosody(folder, config.language_model),
        flow=network_in(flow, CodecFlow, dtype),
        diffusion=config.diffusion,
        batch_size=config.batch_size,
    )


def check_flow(place: Path, ar: ARConfig, flow: CodecFlowConfig) -> None:
    """Checks that a flow can make sound of what an AR model says.

    Args:
        place: Named in the error.
        ar: Of the AR model.
        flow: Of the flow.

    Raises:
        InputError: It cannot.
    """
    if ar.timing != "aligned" or not ar.semantic or ar.text_form != "instruction":
        raise InputError(
            f"{place}: a flow reads a unit of every frame and the whole instruction, this AR model has timing "
            f"{ar.timing!r}, semantic {ar.semantic}, text_form {ar.text_form!r}; take one with 'aligned', True, "
            "'instruction'"
        )
    encoder, vocabulary = flow.network.text_encoder, ar.vocabulary
    pairs = {
        "semantic units": (vocabulary.num_semantic, flow.num_units or vocabulary.num_semantic),
        "codebooks": (vocabulary.num_codebooks, flow.codec.num_codebooks),
        "codes a codebook": (vocabulary.codebook_size, flow.codec.codebook_size),
        "text channels": (ar.text_encoder.channel_sizes, (encoder or ar.text_encoder).channel_sizes),
    }
    for name, (said, read) in pairs.items():
        if said != read:
            raise InputError(f"{place}: the AR model has {name}: {said}, the flow {read}; both must be of one voice")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowVoice(TokenVoice):
    """An open voice of AR model and flow; make one with `voices.load`."""

    flow: Loaded[CodecFlow]
    diffusion: DiffusionConfig
    batch_size: int

    def cost(self, seconds: float, guidance: Guidance | None = None) -> Cost:
        """As `TokenVoice.cost`; the flow's share is counted from its program, the codec's decoder included."""
        frames = round(seconds * self.codec.config.frame_rate)
        said = 2 * frames if self.flow.config.first_codebook else frames
        nothing = np.zeros(frames, np.int32)
        text = np.zeros((COST_TEXT_SLOTS, len(self.ar.config.text_encoder.channel_sizes)), np.int32)
        request = FrameRequest(units=nothing, first_codes=nothing, text_tokens=text, seed=0)
        flowed = frames_operations(self.flow.graph, self.flow.state, self.diffusion, request)
        return Cost(
            evaluations=said + evaluations(self.diffusion.sampler),
            operations=self._ar_operations(COST_TEXT_SLOTS + said, guidance) + flowed,
            seconds=frames / self.codec.config.frame_rate,
        )

    def _prepare(self, utterance: Utterance, notes: list[str]) -> SpeechRequest:
        """As of the codec language model, without a voice prompt; without its acoustic stage where none is read."""
        if utterance.prompt is not None:
            notes.append("this voice takes no voice prompt; it is left out")
            utterance = dataclasses.replace(utterance, prompt=None, prompt_transcript=None)
        request = super()._prepare(utterance, notes)
        if self.flow.config.first_codebook:
            return request
        asked = request.ar.limits
        limits = Limits(
            min_semantic=asked.min_acoustic,  # a unit a frame
            max_semantic=asked.max_acoustic,
            min_acoustic=0,
            max_acoustic=0,
            max_total=asked.max_total,
        )
        return dataclasses.replace(request, ar=dataclasses.replace(request.ar, limits=limits))

    def _finish(self, request: SpeechRequest, spoken: Spoken) -> Speech:
        return self._sound([(spoken, self._frames_of(request, spoken))], batch_size=1)[0]

    def _speak_many(
        self, requests: Iterable[tuple[int, SpeechRequest | VoxError]], profile: EngineProfile
    ) -> Iterator[tuple[int, Speech | VoxError]]:
        def said() -> Iterator[tuple[int, tuple[Spoken, FrameRequest] | VoxError]]:
            for place, found in say_many(self._models(), requests, profile):
                if isinstance(found, VoxError):
                    yield place, found
                    continue
                try:
                    frames = self._frames_of(found.request, found.spoken)
                except InputError as error:
                    yield place, error
                else:
                    yield place, (found.spoken, frames)

        return speak_alike(
            said(),
            lambda item: item[1].sizes,
            lambda items, _: self._sound(items, batch_size=self.batch_size),
            self.batch_size,
        )

    def _frames_of(self, request: SpeechRequest, spoken: Spoken) -> FrameRequest:
        """What the flow is told.

        Raises:
            InputError: The sequence was cut before the stage that the flow begins at.
        """
        frames = len(spoken.first_codes) if self.flow.config.first_codebook else len(spoken.semantic)
        if not frames:
            raise InputError(f"the AR model said no frame ({spoken.reason.name.lower()}); max_tokens is too small")
        units, first = np.zeros(frames, np.int32), np.zeros(frames, np.int32)
        units[:] = spoken.semantic[:frames] + 1
        first[: len(spoken.first_codes)] = spoken.first_codes
        return FrameRequest(units=units, first_codes=first, text_tokens=request.ar.text_tokens, seed=request.ar.seed)

    def _sound(self, items: list[tuple[Spoken, FrameRequest]], *, batch_size: int) -> list[Speech]:
        requests = [request for _, request in items]
        samples: list[Float32[np.ndarray, " _"]] = speak_frames(
            self.flow.graph, self.flow.state, self.diffusion, requests, batch_size=batch_size
        )
        return [
            Speech(spoken=spoken, codes=spoken.first_codes[None], samples=row)
            for (spoken, _), row in zip(items, samples, strict=True)
        ]
