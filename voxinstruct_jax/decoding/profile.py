"""Sizes of the engine's programs, what they make of a request's tokens, and the memory that they need.

A request's bucket in every stage follows from the request alone, and every program runs at its full static size, so a
profile fixes the tokens to the last bit (`EngineProfile.fingerprint`). Read `EngineProfile`, then `fit_profile`.
"""

import dataclasses
import os
from typing import Any, Literal

import jax
import jax.numpy as jnp

from voxinstruct_jax.config import ConfigError, fingerprint, to_dict
from voxinstruct_jax.decoding.requests import ARRequest, Capacity
from voxinstruct_jax.decoding.slots import SlotSizes
from voxinstruct_jax.decoding.stages import ARStage, Models
from voxinstruct_jax.guidance import Branch
from voxinstruct_jax.layers.attention import PAST_BLOCK

__all__ = [
    "CacheType",
    "EngineProfile",
    "Lane",
    "cpu_profile",
    "growing",
    "longest_context",
    "nar_widths",
    "needed_context",
]

CacheType = Literal["float32", "bfloat16", "float8_e4m3fn"]
_NO_EFFECT = ("look_ahead", "chunks_ahead", "replicas")
"""Settings that change when something is done and not what comes out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lane:
    """One size of the AR stage: requests that need about as many cache slots are decoded together."""

    context: int
    """Cache slots of a row; a multiple of `layers.attention.PAST_BLOCK`."""
    slots: int
    """Requests at once."""
    rows: int
    """Guidance branches of all of them at once; a request has one to three."""

    def __post_init__(self) -> None:
        if self.context < 1 or self.context % PAST_BLOCK:
            raise ConfigError(f"lane.context: {self.context} must be a multiple of {PAST_BLOCK}")
        if self.slots < 1 or self.rows < len(Branch):
            raise ConfigError(f"lane: {self.slots} slots and {self.rows} rows; at least 1 and {len(Branch)} are needed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineProfile:
    """Sizes of the engine's programs.

    Raises:
        ConfigError: A size is out of range.
    """

    lanes: tuple[Lane, ...]
    """Ascending by context; a request takes the first that holds it."""
    nar_widths: tuple[int, ...]
    """Slots of a row of the NAR stage, text and layout; ascending, a request takes the first that holds it."""
    group: int = 1
    """Requests that are prefilled together."""
    chunk_steps: int = 16
    """AR steps between two refills."""
    nar_batch: int = 1
    """Requests in a call of the NAR model."""
    vocoder_batch: int = 1
    """Requests in a call of the codec's decoder."""
    cache_dtype: CacheType | None = None
    """Of keys and values; None = the computation type of the AR model."""
    tensor: int = 1
    """Devices that share one model; more than one is for models that need it, and rounds in another order."""
    replicas: int = 0
    """Copies of the model on this machine, each with slots of its own; 0 = as many as its devices give."""
    chunks_ahead: int = 0
    """Chunks that are under way while the host looks at an older one: spares an accelerator the wait for the host."""
    look_ahead: int = 64
    """Requests that are read before they are needed, so that lanes fill up."""

    def __post_init__(self) -> None:
        least = {"replicas": 0, "chunks_ahead": 0}
        for name in ("group", "chunk_steps", "nar_batch", "vocoder_batch", "tensor", "look_ahead", *least):
            if getattr(self, name) < least.get(name, 1):
                raise ConfigError(f"profile.{name}: {getattr(self, name)} must be at least {least.get(name, 1)}")
        for name, widths in (("lanes", [lane.context for lane in self.lanes]), ("nar_widths", list(self.nar_widths))):
            if not widths or widths != sorted(set(widths)) or widths[0] < 1:
                raise ConfigError(f"profile.{name}: {widths} must be one or more sizes, ascending")
        if self.cache_dtype not in (None, "float32", "bfloat16", "float8_e4m3fn"):
            raise ConfigError(f"profile.cache_dtype: {self.cache_dtype!r} is none of float32, bfloat16, float8_e4m3fn")

    def describe(self) -> dict[str, Any]:
        """All that bits of a result hang on beside voice and request: for the record of a job."""
        settings = {name: value for name, value in to_dict(self).items() if name not in _NO_EFFECT}
        return settings | {
            "device": jax.devices()[0].device_kind,
            "threads": int(os.environ.get("NPROC", 0)) or _usable_cores(),
            "jax": jax.__version__,
        }

    @property
    def fingerprint(self) -> str:
        """Of `describe`: with equal ones, a request's tokens are equal to the last bit."""
        return fingerprint(self.describe())

    def lane_sizes(self, lane: Lane, stage: ARStage) -> SlotSizes:
        """Static sizes of a lane's state."""
        return SlotSizes(
            slots=lane.slots,
            rows=lane.rows,
            context=lane.context,
            capacity=Capacity(semantic=lane.context, acoustic=lane.context),
            text=stage.text_widths[-1],
            acoustic_prefix=stage.prompt_widths[-1],
        )

    def nar_targets(self, width: int, models: Models) -> int:
        """Slots that a NAR row of this width may hide.

        Of an aligned clip at least as many are text and semantic tokens as there are frames.
        """
        config = models.nar.config
        return width // 2 if config.timing == "aligned" and config.semantic else width

    def dtype(self, stage: ARStage) -> Any:
        """The type of keys and values."""
        return jnp.dtype(self.cache_dtype or stage.ar.config.dtype)


def _usable_cores() -> int:
    """Those that XLA makes threads for."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def needed_context(request: ARRequest) -> int:
    """Returns the cache slots that the longest course of a request takes."""
    limits, prompt = request.limits, request.prompt
    stages = int(limits.max_semantic) + 1 + int(limits.max_acoustic) + 1
    audio = len(prompt.semantic_prefix) + prompt.acoustic_prefix.shape[1] + stages
    return len(request.text_tokens) + min(audio, int(limits.max_total))


def longest_context(stage: ARStage) -> int:
    """Returns the cache slots that no request exceeds, whole blocks."""
    prompt = stage.prompt_widths[-1]
    longest = stage.text_widths[-1] + 2 + prompt + prompt + 2 * (stage.max_frames + 1)
    return -(-longest // PAST_BLOCK) * PAST_BLOCK


def growing(first: int, last: int, growth: float, multiple: int) -> tuple[int, ...]:
    """Returns multiples of a number that grow about evenly, up to the first that is no less than `last`."""
    found = [-(-first // multiple) * multiple]
    while found[-1] < last:
        found.append(-(-int(found[-1] * growth) // multiple) * multiple)
    return tuple(found)


def nar_widths(stage: ARStage) -> tuple[int, ...]:
    """Widths a fifth apart, up to the longest request."""
    prompt = stage.prompt_widths[-1]
    longest = stage.text_widths[-1] + 2 * (stage.max_frames + prompt) + 4
    return growing(96, longest, 1.2, 32)


def cpu_profile(stage: ARStage, *, slots: int = 8) -> EngineProfile:
    """The profile of a machine without accelerator: eight guided requests at once.

    What a CPU reads of the cache follows from lengths and not from the context, so few lanes do.
    """
    longest = longest_context(stage)
    contexts = sorted({min(16 * PAST_BLOCK, longest), longest})
    rows = slots * len(Branch)
    return EngineProfile(
        lanes=tuple(Lane(context=context, slots=slots, rows=rows) for context in contexts),
        nar_widths=nar_widths(stage),
    )
