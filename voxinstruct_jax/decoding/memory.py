"""The engine's memory, known before it starts: what its programs hold at their largest, and the slots that fit.

Read `plan_memory`, then `fit_profile`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from voxinstruct_jax.audio.harmonics import no_intonation
from voxinstruct_jax.audio.linguistic import NUM_FEATURES
from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.decoding.profile import (
    CacheType,
    EngineProfile,
    Lane,
    cpu_profile,
    growing,
    longest_context,
    nar_widths,
)
from voxinstruct_jax.decoding.requests import ARBatch, ARRequest, Limits, batch_requests
from voxinstruct_jax.decoding.slots import advance, empty_slots, fill_slots
from voxinstruct_jax.decoding.stages import CODE_BLOCK, ARStage, Clip, Models, decode_codes, fill_clips, stack_clips
from voxinstruct_jax.guidance import Branch, Guidance
from voxinstruct_jax.layers.attention import PAST_BLOCK
from voxinstruct_jax.vocabulary import Prompt

__all__ = ["MemoryPlan", "default_profile", "fit_profile", "plan_memory"]

MOST_SLOTS = 256
GROUPS = (8, 4, 2, 1)
USABLE = 0.9
"""Share of a device's memory that is planned with: the rest is for what its allocator wastes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes that one replica holds at most, in its largest lane."""

    weights: int
    state: int
    """Caches and all else that lives between steps."""
    prefill: int
    """Beside the state, while requests are prefilled; the same of the next ones."""
    steps: int
    nar: int
    vocoder: int

    @property
    def total(self) -> int:
        """All at once, since a later stage may begin while an earlier one runs."""
        return self.weights + self.state + max(self.prefill, self.steps) + self.nar + self.vocoder


def plan_memory(models: ARStage, profile: EngineProfile) -> MemoryPlan:
    """Compiles the largest programs of a profile and reads off what they hold; runs none.

    Args:
        models: What speaks; of an AR stage alone nothing behind it is counted.
        profile: Its lane with the largest state decides.
    """
    lane = max(profile.lanes, key=lambda lane: _state_bytes(models, profile, lane))
    return MemoryPlan(
        weights=_weight_bytes(models),
        state=_state_bytes(models, profile, lane),
        prefill=_prefill_bytes(models, profile, lane),
        steps=_step_bytes(models, profile, lane),
        nar=_nar_bytes(models, profile) if isinstance(models, Models) else 0,
        vocoder=_vocoder_bytes(models, profile) if isinstance(models, Models) else 0,
    )


def fit_profile(models: ARStage, memory_bytes: int, *, cache_dtype: CacheType | None = None) -> EngineProfile:
    """Returns the profile of an accelerator with this much memory: as many slots a lane as fit, at most 256.

    Args:
        models: As in `plan_memory`.
        memory_bytes: Of one device, weights included.
        cache_dtype: As in `EngineProfile`.

    Raises:
        ConfigError: Not even one request at a time fits.
    """
    contexts = growing(8 * PAST_BLOCK, longest_context(models), 2.0, PAST_BLOCK)
    least = 0
    for group in GROUPS:
        profile = EngineProfile(
            lanes=tuple(_lane(context, 1) for context in contexts),
            nar_widths=nar_widths(models),
            group=group,
            chunk_steps=32,
            nar_batch=group,
            vocoder_batch=group,
            cache_dtype=cache_dtype,
            chunks_ahead=1,
            look_ahead=4 * MOST_SLOTS,
        )
        least = _weight_bytes(models) + _state_bytes(models, profile, profile.lanes[-1])
        if least > memory_bytes:  # nothing needs to be compiled to know
            break
        plan = plan_memory(models, profile)
        least = plan.total
        if least <= memory_bytes:
            return _with_most_slots(models, profile, plan, memory_bytes)
    raise ConfigError(
        f"the engine needs at least {least / 2**20:.0f} MiB for one request at a time, {memory_bytes / 2**20:.0f} MiB "
        "are there; take a device with more, or a cache of bfloat16 or float8_e4m3fn"
    )


def default_profile(models: ARStage) -> EngineProfile:
    """The profile of this machine: fixed on a CPU, as large as its memory allows on an accelerator."""
    stats: Any = jax.local_devices()[0].memory_stats() if jax.default_backend() != "cpu" else None
    if not stats:
        return cpu_profile(models)
    return fit_profile(models, int(USABLE * stats["bytes_limit"]))


def _with_most_slots(models: ARStage, profile: EngineProfile, plan: MemoryPlan, memory_bytes: int) -> EngineProfile:
    """Gives every lane as many slots as fit beside the rest; what a slot adds to the steps is measured."""
    largest = profile.lanes[-1].context
    few = [_step_bytes(models, profile, _lane(largest, slots)) for slots in (2, 4)]
    step_bytes = max(0, (few[1] - few[0]) // 2)
    lanes = []
    for lane in profile.lanes:
        one, two = (_state_bytes(models, profile, _lane(lane.context, slots)) for slots in (1, 2))
        spare = memory_bytes - (plan.total - plan.state - max(plan.prefill, plan.steps)) - one
        spare -= max(plan.prefill, few[0])
        slots = max(1, min(MOST_SLOTS, 1 + spare // (two - one + step_bytes)))
        lanes.append(_lane(lane.context, slots if slots < GROUPS[0] else slots // GROUPS[0] * GROUPS[0]))
    return dataclasses.replace(profile, lanes=tuple(lanes))


def _lane(context: int, slots: int) -> Lane:
    return Lane(context=context, slots=slots, rows=slots * len(Branch))


def _bytes(tree: Any) -> int:
    """Of arrays or of their shapes."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def _weight_bytes(models: ARStage) -> int:
    parts = (models.ar, models.nar, models.codec) if isinstance(models, Models) else (models.ar,)
    return sum(_bytes(part.state) for part in parts)


def _state_shapes(models: ARStage, profile: EngineProfile, lane: Lane) -> tuple[list[Any], Any]:
    """The state's leaves, as shapes, and how they are put together: the dataclasses themselves take arrays alone."""
    sizes, structures = profile.lane_sizes(lane, models), []

    def leaves() -> list[Any]:
        state = empty_slots(models.ar.config, sizes, models.sampling, cache_dtype=profile.dtype(models))
        found, structure = jax.tree.flatten(state)
        structures.append(structure)
        return found

    return jax.eval_shape(leaves), structures[0]


def _state_bytes(models: ARStage, profile: EngineProfile, lane: Lane) -> int:
    return _bytes(_state_shapes(models, profile, lane)[0])


def _extra_bytes(run: Callable[..., Any], donated: Any, *arguments: Any) -> int:
    """What a program holds beside its arguments; they are flattened, since the dataclasses take arrays alone."""
    leaves, structure = jax.tree.flatten(arguments)

    @functools.partial(jax.jit, donate_argnums=0)
    def program(donated: Any, leaves: Any) -> Any:
        return jax.tree.leaves(run(donated, *jax.tree.unflatten(structure, leaves)))

    found: Any = program.lower(donated, leaves).compile().memory_analysis()
    return found.temp_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes


def _prefill_bytes(models: ARStage, profile: EngineProfile, lane: Lane) -> int:
    branches, ar, (shapes, structure) = tuple(Branch), models.ar, _state_shapes(models, profile, lane)
    slots, rows = jnp.zeros(profile.group, jnp.int32), jnp.zeros((profile.group, len(branches)), jnp.int32)

    def run(leaves: Any, weights: Any, batch: Any) -> Any:
        model, state = nnx.merge(ar.graph, weights), jax.tree.unflatten(structure, leaves)
        return fill_slots(model, state, batch, slots, rows, branches=branches, rules=models.rules)

    return _extra_bytes(run, shapes, ar.state, _longest_batch(models, profile.group))


def _longest_batch(models: ARStage, group: int) -> ARBatch:
    width, channels = models.text_widths[-1], len(models.ar.config.text_encoder.channel_sizes)
    request = ARRequest(
        text_tokens=np.ones((width, channels), np.int32),
        prompt=Prompt(semantic_prefix=np.ones(2, np.int32), acoustic_prefix=np.zeros((1, 0), np.int32)),
        guidance=Guidance(),
        limits=Limits(min_semantic=1, max_semantic=1, min_acoustic=1, max_acoustic=1, max_total=1),
        seed=0,
    )
    prompt = models.prompt_widths[-1]
    widths = {"text_width": width, "prefix_width": 2 + prompt, "acoustic_prefix_width": prompt}
    return batch_requests([request] * group, tuple(Branch), **widths)


def _step_bytes(models: ARStage, profile: EngineProfile, lane: Lane) -> int:
    ar, (shapes, structure) = models.ar, _state_shapes(models, profile, lane)

    def run(leaves: Any, weights: Any) -> Any:
        model, state = nnx.merge(ar.graph, weights), jax.tree.unflatten(structure, leaves)
        state = advance(model, state, sampling=models.sampling, rules=models.rules, steps=profile.chunk_steps)
        return state, (state.stage, state.result)  # as `engine.run_advance`

    return _extra_bytes(run, shapes, ar.state)


def _nar_bytes(models: Models, profile: EngineProfile) -> int:
    config, width, text_width = models.nar.config, profile.nar_widths[-1], models.text_widths[-1]
    clip = Clip(
        text_tokens=np.ones((text_width, len(config.text_encoder.channel_sizes)), np.int32),
        tokens=np.ones((config.vocabulary.num_codebooks, width - text_width), np.int32),
        part_ids=np.ones(width - text_width, np.int32),
        times=np.zeros(width, np.float32) if config.timing == "aligned" else None,
        frames=1,
    )
    batch = stack_clips([clip] * profile.nar_batch, text_width, width)
    keys = jax.random.split(jax.random.key(0), profile.nar_batch)
    settings = models.num_steps, models.rules, profile.nar_targets(width, models)

    def run(_: Any, weights: Any, batch: Any, keys: Any) -> Any:
        return fill_clips(models.nar.graph, weights, batch, keys, *settings)

    return _extra_bytes(run, (), models.nar.state, batch, keys)


def _vocoder_bytes(models: Models, profile: EngineProfile) -> int:
    frames = -(-(models.max_frames + models.prompt_widths[-1]) // CODE_BLOCK) * CODE_BLOCK
    shape = profile.vocoder_batch, models.nar.config.vocabulary.num_codebooks, frames

    def run(_: Any, weights: Any, codes: Any, features: Any, intonation: Any) -> Any:
        return decode_codes(models.codec.graph, weights, codes, features, intonation)

    sizes = shape, (shape[0], frames, NUM_FEATURES)
    codes, features = (jax.ShapeDtypeStruct(each, jnp.int32) for each in sizes)
    return _extra_bytes(run, (), models.codec.state, codes, features, no_intonation(shape[0], frames))
