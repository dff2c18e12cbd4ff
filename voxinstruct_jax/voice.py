"""The codec language model's voice: the whole path from an instruction to a waveform, in one object.

`load` opens a voice folder (`voice_folder`), the embedded release by default. `Voice.synthesize` speaks one
instruction; what another way from tokens to sound shares with it is `TokenVoice`.
"""

import abc
import dataclasses
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Float32, Int32, Num

from voxinstruct_jax.audio.codecs import Codec
from voxinstruct_jax.audio.waveform import read_audio, resample
from voxinstruct_jax.config import InputError, VoxError, from_dict
from voxinstruct_jax.decoding.engine import Speech, speak_many
from voxinstruct_jax.decoding.memory import default_profile, fit_profile
from voxinstruct_jax.decoding.profile import CacheType, EngineProfile
from voxinstruct_jax.decoding.prosody import Prosody, limit_peaks, stressed_frames
from voxinstruct_jax.decoding.requests import FREE_TEMPO, ARRequest, Capacity, Limits, batch_requests
from voxinstruct_jax.decoding.sampling import SamplingConfig
from voxinstruct_jax.decoding.stages import (
    ARStage,
    Loaded,
    Models,
    SpeechRequest,
    Spoken,
    choose_width,
    clip_intonation,
    decode_requests,
    fill_clips,
    frame_features,
    nar_clip,
    own_codes,
    read_spoken,
    stack_clips,
)
from voxinstruct_jax.guidance import Guidance, needed_branches
from voxinstruct_jax.models.ar import ARConfig, ARModel
from voxinstruct_jax.models.llama import ComputeType
from voxinstruct_jax.models.nar import NARModel
from voxinstruct_jax.text.content import spoken_content
from voxinstruct_jax.text.lengths import main_language, syllables
from voxinstruct_jax.text.tokenizer import PHONE_CHANNELS, TextTokenizer, arrange_text
from voxinstruct_jax.utterance import Audio, Cost, Utterance, check_instruction, checked_seed, with_quotes
from voxinstruct_jax.vocabulary import build_prompt, deduplicate, prompt_semantic_length
from voxinstruct_jax.voice_folder import (
    SETTINGS,
    TEXT_WIDTHS,
    VoiceConfig,
    decode_clip,
    embedded_release,
    encode_clip,
    identify,
    load_codec,
    open_ar,
    open_nar,
    open_tokenizer,
    open_units,
    read_prosody,
    read_voice_settings,
)

__all__ = ["TokenVoice", "Voice", "load", "speak_alike"]

ROOMS = (100, 200, 300, 400, 600, 800, 1200, 1600, 2400, 3200, 4800)
"""Frames of the compiled programs; a request takes the fewest that hold it."""
MAX_DURATION_S = 32
PROMPT_DURATIONS_S = (0, 3, 6, 10)
UNKNOWN_CONTENT_S = 15.0
FEATURE_SAMPLE_RATE = 16_000
COST_TEXT_SLOTS = 128
"""Of the instruction that a `Cost` is told for."""
T = TypeVar("T")
S = TypeVar("S", bound=Hashable)
U = TypeVar("U")
LOOK_AHEAD = 4
"""Batches of requests that `speak_alike` reads before they are needed, so that like sizes come together."""


def load(path: str | os.PathLike[str] | None = None, *, dtype: ComputeType | None = None) -> "Voice":
    """Opens a voice.

    Args:
        path: A voice folder; None = the embedded release.
        dtype: "bfloat16" computes the AR and the NAR model in it and keeps their linear maps in it: half the memory,
            and faster where the hardware has it (TPU, GPU). None = as the models were made.

    Raises:
        InputError: A part is missing or damaged, or was made for another version of the text tokenizer.
        ConfigError: There is no such `dtype`.
    """
    folder = Path(path) if path is not None else embedded_release()
    kind, values = read_voice_settings(folder)
    if kind:
        raise InputError(f"{folder}: a voice of kind {kind!r}; a voice of the codec language model is needed here")
    config = from_dict(VoiceConfig, values)
    shared: dict[Path, Any] = {}
    ar = open_ar(folder, dtype, shared)
    nar = open_nar(folder, dtype, shared)
    for name in ("text_form", "semantic"):
        if getattr(ar.config, name) != getattr(nar.config, name):
            raise InputError(
                f"{folder}: {name} of the AR model is {getattr(ar.config, name)!r}, of the NAR model "
                f"{getattr(nar.config, name)!r}; both read one text and one sequence"
            )
    filled = nar.config.vocabulary.num_codebooks - 1
    if len(config.num_steps) != filled:
        raise InputError(
            f"{folder / SETTINGS}: num_steps has {len(config.num_steps)} entries, the NAR model fills {filled}"
        )
    codec = load_codec(folder / "codec")
    _check_features(folder, codec, ar.config)
    return Voice(
        name=f"{folder.name} {identify(folder, ('codec', 'ar', 'nar'))}",
        config=config,
        tokenizer=open_tokenizer(folder, config, ar.config.text_encoder.channel_sizes[0]),
        codec=codec,
        ar=ar,
        nar=nar,
        folder=folder,
        prosody=read_prosody(folder, config),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenVoice(abc.ABC):
    """A voice whose AR model says tokens: all but the way from them to sound."""

    name: str
    config: VoiceConfig
    tokenizer: TextTokenizer
    codec: Loaded[Codec]
    ar: Loaded[ARModel]
    folder: Path
    """Where it was loaded from; semantic units are read only for a voice prompt with its transcript."""
    prosody: Prosody

    @property
    def sample_rate(self) -> int:
        """Of the waveforms, Hz."""
        return self.codec.config.sample_rate

    def synthesize(  # noqa: PLR0913 - a user's one call; all but the instruction have defaults
        self,
        instruction: str,
        *,
        prompt: str | os.PathLike[str] | None = None,
        prompt_transcript: str | None = None,
        transcript: str | None = None,
        language: str | None = None,
        guidance: Guidance | None = None,
        sampling: SamplingConfig | None = None,
        seed: int = 0,
        max_duration_s: float | None = None,
    ) -> Audio:
        """Speaks one instruction; the same arguments give the same tokens.

        Args:
            instruction: How and what to speak, the words to be spoken in quotes anywhere in it; without quotes they are
                guessed, and the notes say so.
            prompt: An audio file whose voice is continued (at most 10 s are used).
            prompt_transcript: What the prompt says. Without it the prompt conditions through its acoustic codes only.
            transcript: The words to be spoken, where the instruction does not quote them; sets the length limits.
            language: "en" or "zh"; by default the model predicts it.
            guidance: Strengths; by default the voice's own.
            sampling: By default the voice's own.
            seed: All randomness follows from it.
            max_duration_s: Upper limit, seconds.

        Raises:
            InputError: The instruction is empty or too long, or the prompt cannot be read.
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
        notes: list[str] = []
        request = self._prepare(utterance, notes)
        spoken = self._decode(self._models(sampling), request.ar)
        return self._as_audio(request, self._finish(request, spoken), notes)

    def synthesize_many(
        self, utterances: Iterable[Utterance], *, profile: EngineProfile | None = None
    ) -> Iterator[tuple[int, Audio | VoxError]]:
        """Speaks many at once; each comes as soon as it is done.

        For one profile the tokens of an utterance are the same, to the last bit, whatever the others are and in
        whichever order they come; other profiles, and `synthesize`, agree with it but for rounding.

        Args:
            utterances: Read as they are needed, a bounded number ahead.
            profile: Sizes of the programs; None = `default_profile`.

        Yields:
            The utterance's place in the input, from 0, and what was spoken or why not; in the order they are finished.

        Raises:
            ConfigError: The profile does not fit the voice or the machine.
        """
        notes: dict[int, list[str]] = {}
        requests: dict[int, SpeechRequest] = {}

        def prepared() -> Iterator[tuple[int, SpeechRequest | VoxError]]:
            for place, utterance in enumerate(utterances):
                notes[place] = []
                try:
                    requests[place] = self._prepare(utterance, notes[place])
                except VoxError as error:
                    yield place, error
                else:
                    yield place, requests[place]

        for place, speech in self._speak_many(prepared(), profile or self.default_profile()):
            request, told = requests.pop(place, None), notes.pop(place)
            if isinstance(speech, VoxError):
                yield place, speech
            elif request is not None:
                yield place, self._as_audio(request, speech, told)

    def default_profile(self) -> EngineProfile:
        """The profile of `synthesize_many` on this machine."""
        return default_profile(self._models())

    def fit_profile(self, memory_bytes: int, *, cache_dtype: CacheType | None = None) -> EngineProfile:
        """The profile with as many requests at once as fit a device's memory.

        Raises:
            ConfigError: Not even one fits.
        """
        return fit_profile(self._models(), memory_bytes, cache_dtype=cache_dtype)

    @abc.abstractmethod
    def cost(self, seconds: float, guidance: Guidance | None = None) -> Cost:
        """What it takes to speak this long; the AR model by formula: 2 operations a weight and slot, no attention.

        Args:
            seconds: Of speech.
            guidance: Strengths; by default the voice's own.
        """

    @abc.abstractmethod
    def _finish(self, request: SpeechRequest, spoken: Spoken) -> Speech:
        """From what the AR model said to sound."""

    @abc.abstractmethod
    def _speak_many(
        self, requests: Iterable[tuple[int, SpeechRequest | VoxError]], profile: EngineProfile
    ) -> Iterator[tuple[int, Speech | VoxError]]:
        """Speaks requests as they come; those that cannot be spoken are passed on."""

    def _ar_operations(self, slots: int, guidance: Guidance | None) -> float:
        """Of the AR model over so many slots."""
        weights = _num_weights(self.ar.state["backbone"]) + _num_weights(self.ar.state["head"])
        return 2.0 * slots * len(needed_branches(guidance or self.config.guidance)) * weights

    def _prepare(self, utterance: Utterance, notes: list[str]) -> SpeechRequest:
        """Reads an utterance; what its user should know is added to `notes`."""
        text, prompt_transcript = check_instruction(utterance.instruction), utterance.prompt_transcript
        if utterance.language is None and self.config.rules.language_from_user:
            raise InputError("this voice follows the release, which is told the language; give language en or zh")
        if prompt_transcript is not None and utterance.prompt is None:
            raise InputError("prompt_transcript is given without a prompt; give the audio file too")
        model, guidance = self.ar.config, utterance.guidance or self.config.guidance
        if model.timing == "aligned" or model.text_form != "instruction":
            text = with_quotes(text, utterance.transcript, notes)
        if model.timing == "aligned" or not model.semantic:
            # A prompt counts by its sound alone: there are no units of it in time with the text, or none at all.
            prompt_transcript = None
        if not model.semantic:
            guidance = dataclasses.replace(guidance, text_on_semantic=1.0, semantic_on_acoustic=1.0)
        prompt_codes, prompt_units = self._read_prompt(utterance.prompt, prompt_transcript, notes)
        if len(prompt_units) and prompt_transcript:
            text = _with_prompt_transcript(text, prompt_transcript)
        tokens = arrange_text(self.tokenizer.encode(text), model.text_form)
        if len(tokens) > TEXT_WIDTHS[-1]:
            raise InputError(f"instruction has {len(tokens)} text tokens, at most {TEXT_WIDTHS[-1]}; shorten it")
        content = utterance.transcript if utterance.transcript is not None else spoken_content(text).text
        request = ARRequest(
            text_tokens=tokens,
            prompt=build_prompt(model.vocabulary, utterance.language, prompt_units, prompt_codes),
            guidance=guidance,
            limits=self._limits(content, utterance.max_duration_s, notes),
            seed=checked_seed(utterance.seed),
            tempo=self._tempo(content),
            stretch=self.prosody.stretches(tokens),
        )
        return SpeechRequest(ar=request, prompt_units=prompt_units, prompt_codes=prompt_codes)

    def _as_audio(self, request: SpeechRequest, speech: Speech, notes: list[str]) -> Audio:
        prompt_frames, spoken = request.prompt_codes.shape[1], speech.spoken
        samples = speech.samples[prompt_frames * self.codec.config.hop_length :]
        frames = -(-len(samples) // self.codec.config.hop_length)
        stressed = stressed_frames(request.ar.text_tokens, spoken.durations, frames)
        samples = self.prosody.raise_words(samples, self.sample_rate, stressed)
        samples = self.prosody.set_level(samples, self.sample_rate, spoken.classes, spoken.language)
        return Audio(
            samples=limit_peaks(samples),
            sample_rate=self.sample_rate,
            semantic=speech.spoken.semantic,
            acoustic=speech.codes[:, prompt_frames:],
            language=speech.spoken.language,
            finish_reason=speech.spoken.reason.name.lower(),
            seed=request.ar.seed,
            notes=tuple(notes),
            model=self.name,
        )

    def _models(self, sampling: SamplingConfig | None = None) -> ARStage:
        """What the engine runs."""
        return ARStage(
            ar=self.ar,
            sampling=sampling or self.config.sampling,
            rules=self.config.rules,
            text_widths=TEXT_WIDTHS,
            prompt_widths=self._frames(PROMPT_DURATIONS_S),
            max_frames=int(MAX_DURATION_S * self.codec.config.frame_rate),
            prosody=self.prosody,
        )

    def encode(self, samples: Num[np.ndarray, " sample"]) -> Int32[np.ndarray, "codebook frame"]:
        """Returns the codec's codes of samples at `sample_rate`; errors as in `encode_clip`."""
        return encode_clip(self.codec, samples)

    def _read_prompt(
        self, path: str | os.PathLike[str] | None, transcript: str | None, notes: list[str]
    ) -> tuple[Int32[np.ndarray, "codebook frame"], Int32[np.ndarray, " unit"]]:
        none = np.zeros(0, np.int32)
        if path is None:
            return np.zeros((self.codec.config.num_codebooks, 0), np.int32), none
        samples = read_audio(path, self.sample_rate)
        longest = PROMPT_DURATIONS_S[-1] * self.sample_rate
        if len(samples) > longest:
            notes.append(f"the prompt is {len(samples) / self.sample_rate:.1f} s long; its first 10 s are used")
            samples = samples[:longest]
            transcript = None  # no longer what is heard
        codes = self.encode(samples)
        if transcript is None:
            notes.append("the prompt conditions through acoustic codes only")
            return codes, none
        units = self._prompt_units(samples, codes.shape[1], notes)
        return codes, units[: prompt_semantic_length(len(units), uneven=self.config.rules.uneven_prompt)]

    def _prompt_units(self, samples: Float32[np.ndarray, " sample"], frames: int, notes: list[str]) -> np.ndarray:
        """Semantic tokens of the prompt, where the feature source is installed."""
        try:
            units, source = open_units(self.folder)
        except InputError as error:
            notes.append(f"the prompt conditions through acoustic codes only: {error}")
            return np.zeros(0, np.int32)
        features = source.features(resample(samples, self.sample_rate, FEATURE_SAMPLE_RATE))
        return deduplicate(units.follow(features, codec_rate=self.codec.config.frame_rate, frames=frames))[0]

    def _limits(self, content: str | None, max_s: float | None, notes: list[str]) -> Limits:
        rate = self.codec.config.frame_rate
        if content is None:
            notes.append("no quoted words and no transcript: the length limits are general")
            shortest, longest = 1, UNKNOWN_CONTENT_S
        else:
            count = syllables(content)
            shortest = max(1, int(count * self.config.min_s_per_syllable * rate))
            longest = count * self.config.max_s_per_syllable + self.config.margin_s
        frames = int(min(longest if max_s is None else min(longest, max_s), MAX_DURATION_S) * rate)
        frames = max(frames, 2)
        shortest = min(shortest, frames - 1)
        return Limits(
            min_semantic=max(1, shortest // 2),
            max_semantic=frames,
            min_acoustic=shortest,
            max_acoustic=frames,
            max_total=self.config.max_tokens or 2 * frames + 2 * self._frames(PROMPT_DURATIONS_S)[-1] + 4,
        )

    def _tempo(self, content: str | None) -> Sequence[tuple[float, float]]:
        """As `ARRequest.tempo`."""
        if content is None:
            return FREE_TEMPO
        return self.prosody.tempo(syllables(content), main_language(content), self.codec.config.frame_rate)

    def _decode(self, stage: ARStage, request: ARRequest) -> Spoken:
        branches = needed_branches(request.guidance)
        room = choose_width(max(int(request.limits.max_semantic), int(request.limits.max_acoustic)), ROOMS)
        prompt = request.prompt
        batch = batch_requests(
            [request],
            branches,
            text_width=choose_width(len(request.text_tokens), stage.text_widths),
            prefix_width=2 + choose_width(len(prompt.semantic_prefix) - 2, stage.prompt_widths),
            acoustic_prefix_width=choose_width(prompt.acoustic_prefix.shape[1], stage.prompt_widths),
        )
        capacity = Capacity(semantic=room, acoustic=room)
        settings = branches, stage.sampling, capacity, stage.rules
        result = jax.device_get(decode_requests(self.ar.graph, self.ar.state, batch, *settings))
        return read_spoken(result, 0, len(request.text_tokens), self.ar.config.vocabulary)

    def _frames(self, durations_s: tuple[int, ...]) -> tuple[int, ...]:
        """Codec frames of durations."""
        return tuple(int(seconds * self.codec.config.frame_rate) for seconds in durations_s)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Voice(TokenVoice):
    """An open voice of AR model, NAR model and codec; make one with `load`."""

    nar: Loaded[NARModel]

    def cost(self, seconds: float, guidance: Guidance | None = None) -> Cost:
        """As `TokenVoice.cost`, the NAR model by the same formula."""
        frames = round(seconds * self.codec.config.frame_rate)
        spoken = 2 * frames if self.ar.config.semantic else frames
        slots, passes = COST_TEXT_SLOTS + spoken, sum(self.config.num_steps)
        filled = 2.0 * slots * passes * _num_weights(self.nar.state["backbone"])
        return Cost(
            evaluations=spoken + passes,
            operations=self._ar_operations(slots, guidance) + filled,
            seconds=frames / self.codec.config.frame_rate,
        )

    def _models(self, sampling: SamplingConfig | None = None) -> Models:
        stage = vars(super()._models(sampling))
        return Models(**stage, nar=self.nar, codec=self.codec, num_steps=self.config.num_steps)

    def _finish(self, request: SpeechRequest, spoken: Spoken) -> Speech:
        codes = self.fill_codes(request, spoken)
        models, frames = self._models(), codes.shape[1]
        clip = models, request, spoken, frames
        # Prompt and continuation together, so that the join is smooth.
        samples = decode_clip(self.codec, codes, frame_features(*clip), clip_intonation(*clip))
        return Speech(spoken=spoken, codes=codes, samples=samples)

    def _speak_many(
        self, requests: Iterable[tuple[int, SpeechRequest | VoxError]], profile: EngineProfile
    ) -> Iterator[tuple[int, Speech | VoxError]]:
        return speak_many(self._models(), requests, profile)

    def fill_codes(self, request: SpeechRequest, spoken: Spoken) -> Int32[np.ndarray, "codebook prompt_and_frame"]:
        """Fills the codebooks from the second on; returns all of them, with those of the prompt too.

        Args:
            request: Text, prompt and seed.
            spoken: First codebook, semantic tokens and durations.
        """
        models = self._models()
        clip = nar_clip(models, request, spoken)
        text_width = choose_width(len(clip.text_tokens), models.text_widths)
        audio_width = choose_width(clip.tokens.shape[1], tuple(2 * frames + 4 for frames in ROOMS))
        batch = stack_clips([clip], text_width, text_width + audio_width)
        keys = jax.random.key(request.ar.seed)[None]
        settings = models.num_steps, models.rules, audio_width
        filled = fill_clips(self.nar.graph, self.nar.state, batch, keys, *settings)
        return own_codes(models, clip, np.asarray(filled)[0])


def _check_features(folder: Path, codec: Loaded[Codec], ar: ARConfig) -> None:
    """Checks that what the codec's decoder reads beside codes is what the AR model says and reads."""
    said = (ar.vocabulary.num_semantic, *ar.text_encoder.channel_sizes[PHONE_CHANNELS])
    read = tuple(getattr(codec.config, "feature_sizes", ()))[: len(said)]
    if read not in ((), said):
        raise InputError(
            f"{folder}: the codec reads {list(read)} semantic units, first and second phones, the AR model has "
            f"{list(said)}; take both of one voice"
        )


def speak_alike(
    requests: Iterable[tuple[int, T | VoxError]],
    size_of: Callable[[T], S],
    speak: Callable[[list[T], S], list[U]],
    batch_size: int,
) -> Iterator[tuple[int, U | VoxError]]:
    """Speaks requests in batches of one size; each comes when its batch is done.

    Args:
        requests: Each with a number of its own; an error is passed on. Read `LOOK_AHEAD` batches ahead.
        size_of: Static sizes of a request's program, which follow from the request alone.
        speak: (requests of one size, at most `batch_size`; their size) → what was spoken.
        batch_size: Requests of a program.
    """
    waiting = dict[S, list[tuple[int, T]]]()

    def spoken(size: S) -> Iterator[tuple[int, U | VoxError]]:
        group = waiting.pop(size)
        yield from zip((place for place, _ in group), speak([each for _, each in group], size), strict=True)

    for place, request in requests:
        if isinstance(request, VoxError):
            yield place, request
            continue
        waiting.setdefault(size_of(request), []).append((place, request))
        fullest = max(waiting, key=lambda size: len(waiting[size]))
        if len(waiting[fullest]) == batch_size or sum(map(len, waiting.values())) == LOOK_AHEAD * batch_size:
            yield from spoken(fullest)
    for size in list(waiting):
        yield from spoken(size)


def _num_weights(state: Any) -> int:
    """Of products: norms and biases left out."""
    return sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim > 1)


def _with_prompt_transcript(instruction: str, prompt_transcript: str) -> str:
    """Puts the prompt's words before those to be spoken, as the models were trained to continue."""
    content = spoken_content(instruction)
    if content.text is None:
        return f'"{prompt_transcript.strip()}" {instruction}'
    return f"{instruction[: content.start]}{prompt_transcript.strip()} {instruction[content.start :]}"
