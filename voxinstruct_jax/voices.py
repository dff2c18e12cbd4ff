"""Opens voices of every kind: `voice.json` says which. Read `AnyVoice`, then `load`."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol, overload, runtime_checkable

from voxinstruct_jax import flow_voice, latent_voice
from voxinstruct_jax.config import InputError, VoxError
from voxinstruct_jax.guidance import Guidance
from voxinstruct_jax.models.llama import ComputeType
from voxinstruct_jax.utterance import Audio, Cost, Utterance
from voxinstruct_jax.voice import Voice
from voxinstruct_jax.voice import load as load_codec_voice
from voxinstruct_jax.voice_folder import embedded_release, read_voice_settings

__all__ = ["AnyVoice", "load"]


@runtime_checkable
class AnyVoice(Protocol):
    """What commands and jobs need of a voice; `voice.Voice` says what each means."""

    @property
    def name(self) -> str: ...

    @property
    def sample_rate(self) -> int: ...

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
    ) -> Audio: ...

    def synthesize_many(self, utterances: Iterable[Utterance]) -> Iterator[tuple[int, Audio | VoxError]]: ...

    def cost(self, seconds: float, guidance: Guidance | None = None) -> Cost: ...


KINDS: dict[str, Callable[[Path, dict[str, Any], ComputeType | None], AnyVoice]] = {
    latent_voice.KIND: latent_voice.load_latent_voice,
    flow_voice.KIND: flow_voice.load_flow_voice,
}
"""(folder, its `voice.json` without `kind`, dtype) → the voice; by `kind`."""


@overload
def load(path: None = None, *, dtype: ComputeType | None = None) -> Voice: ...


@overload
def load(path: str | os.PathLike[str], *, dtype: ComputeType | None = None) -> AnyVoice: ...


def load(path: str | os.PathLike[str] | None = None, *, dtype: ComputeType | None = None) -> AnyVoice:
    """Opens a voice of whichever kind.

    Args:
        path: A voice folder; None = the embedded release.
        dtype: As in `voice.load`.

    Raises:
        InputError: A part is missing or damaged, was made for another version of the text tokenizer, or the kind of
            voice is not known.
        ConfigError: There is no such `dtype`.
    """
    folder = Path(path) if path is not None else embedded_release()
    kind, values = read_voice_settings(folder)
    if not kind:
        return load_codec_voice(folder, dtype=dtype)
    if kind not in KINDS:
        known = ", ".join(map(repr, KINDS))
        raise InputError(f"{folder}: a voice of kind {kind!r}, which this version does not know; known: {known}")
    return KINDS[kind](folder, values, dtype)
