"""Plans of decoding: the program that speaks, compiled for a chip that is not here, and the time of a token step.

A step reads the weights of the blocks and the whole cache once; that and its operations bound its time. Training does
not decode, so the program is handed in. Start at `plan_decode`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from voxinstruct_jax.layers.operations import jaxpr_operations
from voxinstruct_jax.sharding.chips import CHIPS
from voxinstruct_jax.sharding.topology import described_devices, is_gpu
from voxinstruct_jax.training.plan import compile_for, shortage

__all__ = ["DecodePlan", "DecodeProgram", "plan_decode"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeProgram:
    """What is run, and what a token step of it reads."""

    run: Callable[..., Any]
    """From prefill to the last token; its steps are one `while_loop`."""
    arguments: tuple[Any, ...]
    """Shapes of its arguments."""
    requests: int
    """That are decoded at once."""
    slots: int
    """Of the cache, a row."""
    weight_bytes: int
    """Of blocks and head."""
    cache_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodePlan:
    """Decoding on one device of the pod. Times in seconds, sizes in bytes."""

    requests: int
    slots: int
    fits: bool | None
    why_not: str
    peak_bytes: int
    """Weights, cache and the prefill's working set."""
    weight_bytes: int
    cache_bytes: int
    flops: float
    """Of a token step of all requests."""
    bounds_s: dict[str, float]
    """Least time of a token step by what binds: compute, hbm; empty for a chip without known constants."""
    bound_by: str
    step_s: float | None
    """Shortest token step; each request gets a token in it."""
    derived: list[str]


def plan_decode(
    program: DecodeProgram, topology: str, *, effort: float | None = None, formula: bool = False
) -> DecodePlan:
    """Plans a decoding program for one device of a pod.

    Args:
        program: See there.
        topology: As `described_devices` has it.
        effort: Of the compiler, from -1 (quick); None = as in earnest.
        formula: Compile nothing: the peak is that of weights and cache.

    Raises:
        ConfigError: The pod is not known.
    """
    chip = CHIPS.get(topology.partition(":")[0])
    devices = () if formula else described_devices(topology)
    flops = _loop_flops(jax.make_jaxpr(program.run)(*program.arguments).jaxpr)
    peak, why_not, derived = _held(program), "", ["memory of decoding: weights and cache alone"]
    if devices:
        place = SingleDeviceSharding(devices[0])
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), program.arguments
        )
        compiled, why_not = compile_for(jax.jit(program.run).lower(*shapes), effort)
        if compiled is not None:
            peak, derived = int(compiled.memory_analysis().peak_memory_in_bytes), []
    if is_gpu(topology) or not devices:  # a TPU's compiler has refused what does not fit
        why_not = why_not or shortage(peak, chip)
    bounds = {}
    if chip:
        read = program.weight_bytes + program.cache_bytes
        bounds = {"compute": flops / chip.flops, "hbm": read / chip.bandwidth}
    return DecodePlan(
        requests=program.requests,
        slots=program.slots,
        fits=not why_not if chip else None,
        why_not=why_not,
        peak_bytes=peak,
        weight_bytes=program.weight_bytes,
        cache_bytes=program.cache_bytes,
        flops=flops,
        bounds_s=bounds,
        bound_by=max(bounds, key=lambda name: bounds[name]) if bounds else "",
        step_s=max(bounds.values()) if bounds else None,
        derived=derived,
    )


def _held(program: DecodeProgram) -> int:
    return program.cache_bytes + sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(program.arguments))


def _loop_flops(jaxpr: Any) -> float:
    """Operations of one turn of the loop that does most."""
    turns = [
        jaxpr_operations(equation.params["body_jaxpr"].jaxpr)
        for equation in jaxpr.eqns
        if "body_jaxpr" in equation.params
    ]
    return max(turns, default=0.0)
