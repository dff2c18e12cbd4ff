"""The voice of a model of latents: the same calls as `voice.Voice`, another way to the waveform.

A folder holds `denoiser/` (network and latent space), `vocoder/` where the latents are spectrograms, and `voice.json`
with `kind` "diffusion". Grad-TTS says how long it speaks; the others must be told beforehand: a line from syllables to
seconds, the same for all of them. Read `LatentVoice`.
"""

import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float32, Int32

from voxinstruct_jax.audio.latents import LatentConfig
from voxinstruct_jax.audio.vocos import MelVocoder, MelVocoderConfig
from voxinstruct_jax.audio.waveform import read_audio
from voxinstruct_jax.checkpoints.weights import read_settings
from voxinstruct_jax.config import ConfigError, InputError, VoxError, from_dict
from voxinstruct_jax.data.sound_tasks import to_level
from voxinstruct_jax.decoding.stages import Loaded, choose_width
from voxinstruct_jax.diffusion.phone_speech import phone_durations
from voxinstruct_jax.diffusion.solvers import evaluations
from voxinstruct_jax.diffusion.speech import LatentModel, SpeechRows, sample_speech
from voxinstruct_jax.diffusion.systems import DiffusionConfig
from voxinstruct_jax.guidance import Guidance
from voxinstruct_jax.layers.operations import count_operations
from voxinstruct_jax.models.grad_tts import GradTTS, GradTTSConfig
from voxinstruct_jax.models.latent_diffusion import LatentDiffusion
from voxinstruct_jax.models.llama import ComputeType
from voxinstruct_jax.models.masked_latents import MaskedLatentDiffusion, MaskedLatentsConfig
from voxinstruct_jax.models.mmdit import MMDiTConfig
from voxinstruct_jax.text.content import spoken_content
from voxinstruct_jax.text.lengths import LengthLine
from voxinstruct_jax.text.normalizer import HAN_CHARACTER
from voxinstruct_jax.text.phones import phone_ids, turns_of
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
from voxinstruct_jax.utterance import Audio, Cost, Utterance, check_instruction, checked_seed, with_quotes
from voxinstruct_jax.voice import COST_TEXT_SLOTS, MAX_DURATION_S, speak_alike
from voxinstruct_jax.voice_folder import TEXT_WIDTHS, identify, load_part, network_in

__all__ = [
    "KIND",
    "LatentVoice",
    "LatentVoiceConfig",
    "load_latent_voice",
    "make_latent_voice",
    "make_model",
    "open_vocoder",
]

KIND = "diffusion"
"""In `voice.json`."""
ModelConfig = MMDiTConfig | GradTTSConfig | MaskedLatentsConfig
CONFIGS: dict[str, type[ModelConfig]] = {
    "diffusion": MMDiTConfig,
    "distillation": MMDiTConfig,
    "grad_tts": GradTTSConfig,
    "masked_latents": MaskedLatentsConfig,
}
"""Of the model in `denoiser/`, by the kind of run that it comes from."""
ROOMS_S = (2, 3, 4, 6, 8, 12, 16, 24, MAX_DURATION_S)
"""Lengths of the compiled programs; a request takes the first that holds it."""
PROMPT_S = 3.0
"""As references of training are."""
SHORTEST_S = 0.5
SILENT = 10 ** (-40 / 20)
"""Of the loudest frame's level: what is below it at the end is silence."""
LEVEL_FRAME_S, KEPT_SILENCE_S = 0.01, 0.15


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentVoiceConfig:
    """Settings of `voice.json`."""

    diffusion: DiffusionConfig
    """Path, guidance and solver."""
    length: LengthLine = LengthLine()
    """How long words take, fitted on the training manifest; not read where the model says it."""
    clip_s: float = 4.0
    """Length of the examples in training."""
    pad_is_silence: bool = False
    """Whether examples were clips of `clip_s` with silence behind the words: the same is asked for, and trimmed."""
    prompts: bool = False
    """Whether the model learned to speak with the voice of a reference."""
    rounds: int = 64
    """Of masked latents: passes of the transformer."""
    batch_size: int = 8
    """Requests of a program in `synthesize_many`."""
    text_fingerprint: str = ""

    def __post_init__(self) -> None:
        if min(self.batch_size, self.rounds) < 1 or self.clip_s <= 0:
            raise ConfigError(
                f"batch_size {self.batch_size} and rounds {self.rounds} must be at least 1, "
                f"clip_s {self.clip_s} above 0"
            )


@dataclasses.dataclass(frozen=True, order=True)
class _Sizes:
    """Static sizes of a request's program; they follow from the request alone."""

    frames: int
    text: int
    phones: int
    prompted: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Request:
    """An utterance on the host."""

    text_tokens: Int32[np.ndarray, "token channel"]
    phones: Int32[np.ndarray, " phone"]
    phone_means: Float32[np.ndarray, "spoken mean"]
    """Of a model that says durations, what it says of each phone; empty otherwise, as is the next."""
    durations: Int32[np.ndarray, " spoken"]
    """Frames of each phone."""
    prompt: Float32[np.ndarray, " sample"]
    num_frames: int
    """The prompt's included."""
    longest: int
    """Samples of speech that may be given back."""
    seed: int
    language: str
    sizes: _Sizes
    notes: tuple[str, ...]


def load_latent_voice(folder: Path, values: dict[str, Any], dtype: ComputeType | None = None) -> "LatentVoice":
    """Opens a voice.

    Args:
        folder: Of the voice.
        values: Its `voice.json`, without `kind`.
        dtype: As in `voice.load`.

    Raises:
        InputError: A part is missing or damaged, or was made for another version of the text tokenizer.
    """
    config = from_dict(LatentVoiceConfig, values)
    model, latents = _open_model(folder / "denoiser", dtype)
    parts, vocoder = ["denoiser"], None
    if latents.spectrogram is not None:
        vocoder = open_vocoder(folder, latents)
        parts.append("vocoder")
    return make_latent_voice(f"{folder.name} {identify(folder, parts)}", config, model, latents, vocoder)


def _open_model(folder: Path, dtype: ComputeType | None) -> tuple[Loaded[LatentModel], LatentConfig]:
    settings = read_settings(folder)
    kind = settings.get("kind")
    if kind not in CONFIGS:
        raise InputError(f"{folder}: weights of kind {kind!r}, which make no latents; known: {', '.join(CONFIGS)}")
    # Grad-TTS has its latents among its own settings
    latents = from_dict(LatentConfig, (settings | settings["model"])["latents"])
    build = functools.partial(make_model, latents=latents)
    return network_in(load_part(folder, CONFIGS[kind], build), build, dtype), latents


def make_model(config: ModelConfig, latents: LatentConfig, *, rngs: nnx.Rngs) -> LatentModel:
    """Makes the model of these settings; under `nnx.eval_shape` its shapes alone."""
    if isinstance(config, GradTTSConfig):
        return GradTTS(config, rngs=rngs)
    if isinstance(config, MaskedLatentsConfig):
        return MaskedLatentDiffusion(config, latents, rngs=rngs)
    return LatentDiffusion(config, latents, rngs=rngs)


def make_latent_voice(
    name: str,
    config: LatentVoiceConfig,
    model: Loaded[LatentModel],
    latents: LatentConfig,
    vocoder: Loaded[MelVocoder] | None,
) -> "LatentVoice":
    """Puts a voice together.

    Raises:
        InputError: It was made for another version of the text tokenizer, or reads states of an encoder run apart.
    """
    tokenizer = PronunciationTokenizer()
    if config.text_fingerprint != tokenizer.fingerprint:
        raise InputError(f"{name}: made for text tables {config.text_fingerprint}, here are {tokenizer.fingerprint}")
    if _network(model.config).text_encoder is None:
        raise InputError(f"{name}: its network reads states of a text encoder that is run apart; it cannot speak")
    return LatentVoice(name=name, config=config, tokenizer=tokenizer, model=model, latents=latents, vocoder=vocoder)


def _network(config: ModelConfig) -> MMDiTConfig:
    return config if isinstance(config, MMDiTConfig) else config.network


def open_vocoder(folder: Path, latents: LatentConfig) -> Loaded[MelVocoder]:
    """Loads the vocoder of a voice folder.

    Raises:
        InputError: There is none, or it is for other spectrograms.
    """
    place, mel = folder / "vocoder", latents.spectrogram
    if not place.is_dir():
        raise InputError(
            f"{folder}: its latents are spectrograms, and it has no vocoder/; train configs/mel_vocoder_small.py with "
            f"--model.mel of these ({mel}) and convert the run to {place}"
        )
    vocoder = load_part(place, MelVocoderConfig, MelVocoder)
    if vocoder.config.mel != mel:
        raise InputError(f"{place}: made for other spectrograms ({vocoder.config.mel}) than these latents ({mel})")
    return vocoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentVoice:
    """An open voice; make one with `voices.load`."""

    name: str
    config: LatentVoiceConfig
    tokenizer: PronunciationTokenizer
    model: Loaded[LatentModel]
    latents: LatentConfig
    vocoder: Loaded[MelVocoder] | None

    @property
    def sample_rate(self) -> int:
        """Of the waveforms, Hz."""
        return self.latents.sample_rate

    def synthesize(  # noqa: PLR0913 - as `Voice.synthesize`
        self,
        instruction: str,
        *,
        prompt: str | os.PathLike[str] | None = None,
        prompt_transcript: str | None = None,
        transcript: str | None = None,
        language: str | None = None,
        guidance: Guidance | None = None,
        seed: int = 0,
        max_duration_s: float | None = None,
    ) -> Audio:
        """Speaks one instruction; arguments and errors as of `voice.Voice.synthesize`.

        The length follows from the words. Strengths of guidance are those of the language model's conditions, so they
        are noted and left out.
        """
        utterance = Utterance(
            instruction=instruction,
            prompt=prompt,
            prompt_transcript=prompt_transcript,
            transcript=transcript,
            language=language,
            guidance=guidance,
            seed=seed,
            max_duration_s=max_duration_s,
        )
        request = self._prepare(utterance)
        return self._speak([request], request.sizes, batch_size=1)[0]

    def synthesize_many(self, utterances: Iterable[Utterance]) -> Iterator[tuple[int, Audio | VoxError]]:
        """Speaks many, those of like length together; each comes when its batch is done.

        The sound of an utterance is the same, to the last bit, whatever the others are; `synthesize`, which computes
        one row at a time, agrees with it but for rounding.

        Args:
            utterances: Read as they are needed, some batches ahead.

        Yields:
            The utterance's place in the input, from 0, and what was spoken or why not.
        """

        def prepared() -> Iterator[tuple[int, _Request | VoxError]]:
            for place, utterance in enumerate(utterances):
                try:
                    request = self._prepare(utterance)
                except VoxError as error:
                    yield place, error
                else:
                    yield place, request

        size = self.config.batch_size
        speak = functools.partial(self._speak, batch_size=size)
        return speak_alike(prepared(), lambda request: request.sizes, speak, size)

    def cost(self, seconds: float, guidance: Guidance | None = None) -> Cost:
        """What it takes to speak this long, counted from the program; the text is of usual length.

        Args:
            seconds: Of speech; the program that holds it is counted.
            guidance: Without effect, as in `synthesize`.
        """
        _, frames = self._sized(round(seconds * self.latents.frame_rate))
        rows = self._rows(
            [], _Sizes(frames=frames, text=COST_TEXT_SLOTS, phones=self._phone_width(64), prompted=False), 1
        )
        program = functools.partial(_sample, *self._program(frames))
        state = None if self.vocoder is None else self.vocoder.state
        passes = evaluations(self.config.diffusion.sampler)
        if isinstance(self.model.config, MaskedLatentsConfig):
            passes = self.config.rounds * (1 + passes)
        operations = count_operations(program, self.model.state, state, rows)
        if self._says_durations:
            encode = functools.partial(_encode, self.model.graph)
            operations += count_operations(encode, self.model.state, rows.phones)
        return Cost(evaluations=passes, operations=operations, seconds=seconds)

    def _prepare(self, utterance: Utterance) -> _Request:
        """Reads an utterance.

        Raises:
            InputError: The instruction is empty or too long, or the prompt cannot be read.
        """
        notes: list[str] = []
        text = with_quotes(check_instruction(utterance.instruction), utterance.transcript, notes)
        words = spoken_content(text).text or text
        if utterance.guidance is not None:
            notes.append("strengths of guidance are those of the codec language model; this voice keeps its own")
        text, prompt = f"[Speech] {text}", np.zeros(0, np.float32)
        if utterance.prompt is not None and not self.config.prompts:
            notes.append("this model takes no voice prompt; it is left out")
        elif utterance.prompt is not None:
            text, prompt = self._read_prompt(utterance, words, notes)
        tokens = self.tokenizer.encode(text)
        turns = turns_of(words)
        phones = phone_ids(turns, self.tokenizer) if self._phone_width(1) else np.zeros(0, np.int32)
        if self._says_durations:
            phones = phones[1:]  # the mark of the turn, which is not heard
        longest = max(len(tokens), len(phones))
        if longest > TEXT_WIDTHS[-1]:
            raise InputError(f"instruction has {longest} text tokens or phones, at most {TEXT_WIDTHS[-1]}; shorten it")
        means, durations = np.zeros((0, 0), np.float32), np.zeros(0, np.int32)
        if self._says_durations:
            means, durations = self._said_of(phones, utterance.max_duration_s, notes)
            num_frames, room = self._sized(int(durations.sum()))
        else:
            said = " ".join(part for _, part in turns)
            num_frames, room = self._length(said, len(prompt), utterance.max_duration_s, notes)
        return _Request(
            text_tokens=tokens,
            phones=phones,
            phone_means=means,
            durations=durations,
            prompt=prompt,
            num_frames=num_frames,
            longest=round((utterance.max_duration_s or MAX_DURATION_S) * self.sample_rate),
            seed=checked_seed(utterance.seed),
            language=utterance.language or ("zh" if HAN_CHARACTER.search(words) else "en"),
            sizes=_Sizes(
                frames=room,
                text=choose_width(len(tokens), TEXT_WIDTHS),
                phones=self._phone_width(len(phones)),
                prompted=len(prompt) > 0,
            ),
            notes=tuple(notes),
        )

    def _read_prompt(
        self, utterance: Utterance, words: str, notes: list[str]
    ) -> tuple[str, Float32[np.ndarray, " sample"]]:
        """The text that training puts beside a reference, and the reference at training's level: whole frames of it."""
        assert utterance.prompt is not None
        samples, spoken = to_level(read_audio(utterance.prompt, self.sample_rate)), utterance.prompt_transcript
        if len(samples) > PROMPT_S * self.sample_rate:
            notes.append(f"the prompt is {len(samples) / self.sample_rate:.1f} s long; its first 3 s are used")
            samples, spoken = samples[: round(PROMPT_S * self.sample_rate)], None  # no longer what is heard
        notes.append("with a voice prompt the words are spoken in its manner; the rest of the instruction is not read")
        hop = self.latents.hop_length
        whole = max(1, len(samples) // hop) * hop
        samples = np.pad(samples[:whole], (0, max(0, whole - len(samples)))).astype(np.float32)
        return f"[Speech with voice] {f'{spoken.strip()}, ' if spoken else ''}{words}", samples

    def _length(self, words: str, prompt_samples: int, max_s: float | None, notes: list[str]) -> tuple[int, int]:
        """Frames of a request, and of the program that it takes."""
        rate, prompt = self.latents.frame_rate, prompt_samples // self.latents.hop_length
        seconds = max(self.config.length.seconds(words), SHORTEST_S)
        limit = min(MAX_DURATION_S - prompt / rate, max_s if max_s is not None else MAX_DURATION_S)
        if seconds > limit:
            notes.append(_hurried(seconds, limit))
            seconds = limit
        return self._sized(prompt + max(1, round(seconds * rate)))

    def _said_of(
        self, phones: Int32[np.ndarray, " phone"], max_s: float | None, notes: list[str]
    ) -> tuple[Float32[np.ndarray, "phone mean"], Int32[np.ndarray, " phone"]]:
        """What the model says of each phone: mean latents, and frames; fewer where they take too long."""
        rate, limit = self.latents.frame_rate, min(MAX_DURATION_S, max_s if max_s is not None else MAX_DURATION_S)
        longest = max(1, round(limit * rate))
        padded = np.pad(phones, (0, self._phone_width(len(phones)) - len(phones)))[None]
        means, log_durations = _compiled_encode(self.model.graph, self.model.state, padded)

        def frames(pace: float) -> Int32[np.ndarray, " phone"]:
            return np.asarray(phone_durations(log_durations, padded > 0, pace))[0, : len(phones)]

        found = frames(1.0)
        if found.sum() > longest:
            notes.append(_hurried(found.sum() / rate, limit))
            found = frames(longest / found.sum())
        # with a frame for each phone it may still be too long
        found = np.diff(np.minimum(np.cumsum(found), longest), prepend=0).astype(np.int32)
        return np.asarray(means, np.float32)[0, : len(phones)], found

    def _sized(self, frames: int) -> tuple[int, int]:
        """Frames that are generated to speak so many, and those of the program."""
        rooms = {round(seconds * self.latents.frame_rate) for seconds in ROOMS_S}
        if self.config.pad_is_silence:  # the length that the model knows
            clip = round(self.config.clip_s * self.latents.frame_rate)
            frames, rooms = max(frames, clip), {*rooms, clip}
        return frames, choose_width(frames, tuple(sorted(rooms)))

    def _phone_width(self, count: int) -> int:
        return choose_width(count, TEXT_WIDTHS) if self._says_durations or _network(self.model.config).phones else 0

    @property
    def _says_durations(self) -> bool:
        return isinstance(self.model.config, GradTTSConfig)

    def _program(self, frames: int) -> tuple[Any, ...]:
        """The static arguments of `_sample`."""
        vocoder = None if self.vocoder is None else self.vocoder.graph
        return self.model.graph, vocoder, self.config.diffusion, frames, self.config.rounds

    def _rows(self, requests: Sequence[_Request], sizes: _Sizes, batch_size: int) -> SpeechRows:
        """Requests padded to static sizes, the last one repeated; without any, rows of a frame and no text."""
        channels = len(self.tokenizer.channel_sizes)
        room = min(round(PROMPT_S * self.sample_rate), sizes.frames * self.latents.hop_length)
        rows = {
            "text_tokens": np.zeros((batch_size, sizes.text, channels), np.int32),
            "phones": np.zeros((batch_size, sizes.phones), np.int32),
            "num_frames": np.ones(batch_size, np.int32),
            "seeds": np.zeros(batch_size, np.uint32),
        }
        if sizes.prompted:
            rows |= {
                "prompt": np.zeros((batch_size, room), np.float32),
                "prompt_samples": np.zeros(batch_size, np.int32),
            }
        if self._says_durations:
            rows |= {
                "phone_means": np.zeros((batch_size, sizes.phones, self.latents.channels), np.float32),
                "durations": np.zeros((batch_size, sizes.phones), np.int32),
            }
        for row, request in enumerate([*requests, *list(requests[-1:]) * (batch_size - len(requests))]):
            if self._says_durations:
                rows["phone_means"][row, : len(request.phone_means)] = request.phone_means
                rows["durations"][row, : len(request.durations)] = request.durations
            rows["text_tokens"][row, : len(request.text_tokens)] = request.text_tokens
            rows["phones"][row, : len(request.phones)] = request.phones
            rows["num_frames"][row], rows["seeds"][row] = request.num_frames, request.seed
            if sizes.prompted:
                rows["prompt"][row, : len(request.prompt)] = request.prompt
                rows["prompt_samples"][row] = len(request.prompt)
        return SpeechRows(**rows)  # pyright: ignore[reportArgumentType] - NumPy arrays until they are on a device

    def _speak(self, requests: Sequence[_Request], sizes: _Sizes, *, batch_size: int) -> list[Audio]:
        state = None if self.vocoder is None else self.vocoder.state
        rows = jax.tree.map(np.asarray, self._rows(requests, sizes, batch_size))
        samples = np.asarray(_compiled(*self._program(sizes.frames), self.model.state, state, rows))
        return [self._as_audio(request, row) for request, row in zip(requests, samples, strict=False)]

    def _as_audio(self, request: _Request, samples: Float32[np.ndarray, " sample"]) -> Audio:
        samples = samples[len(request.prompt) : request.num_frames * self.latents.hop_length]
        if self.config.pad_is_silence:
            samples = _without_end(samples, self.sample_rate)[: request.longest]
        return Audio(
            samples=samples,
            sample_rate=self.sample_rate,
            semantic=np.zeros(0, np.int32),
            acoustic=np.zeros((0, 0), np.int32),
            language=request.language,
            finish_reason="stop",
            seed=request.seed,
            notes=request.notes,
            model=self.name,
        )


def _sample(  # noqa: PLR0913 - the flat arguments of a program
    graph: Any,
    vocoder_graph: Any,
    config: DiffusionConfig,
    frames: int,
    rounds: int,
    state: Any,
    vocoder: Any,
    rows: Any,
) -> Any:
    model = nnx.merge(graph, state)
    made = None if vocoder_graph is None else nnx.merge(vocoder_graph, vocoder)
    return sample_speech(model, made, config, rows, frames, rounds)


_compiled = jax.jit(_sample, static_argnums=(0, 1, 2, 3, 4))


def _encode(graph: Any, state: Any, phones: Any) -> Any:
    phones = jnp.asarray(phones)
    return nnx.merge(graph, state).encode(phones, phones > 0)


_compiled_encode = jax.jit(_encode, static_argnums=0)


def _hurried(seconds: float, limit: float) -> str:
    return f"the words take {seconds:.1f} s; they are spoken in {limit:.1f} s"


def _without_end(samples: Float32[np.ndarray, " sample"], sample_rate: int) -> Float32[np.ndarray, " sample"]:
    """Cuts the silence off behind the words, but for a little."""
    size = round(LEVEL_FRAME_S * sample_rate)
    frames = samples[: len(samples) // size * size].reshape(-1, size)
    levels = np.sqrt(np.square(frames).mean(1))
    (loud,) = np.nonzero(levels > SILENT * levels.max(initial=0.0))
    if not len(loud):
        return samples
    return samples[: (int(loud[-1]) + 1) * size + round(KEPT_SILENCE_S * sample_rate)]
