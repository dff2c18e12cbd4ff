"""Plans: the real train step compiled ahead of time for a pod that is not here, and what follows from it.

Memory and collectives are the compiler's own; operations are counted in the program (loops as often as they run); the
step time is a roofline: an interval between "all overlaps" and "nothing does". Start at `plan_step`.

Source:
    Roofline after Williams et al. 2009, with links as further roofs (jax-ml/scaling-book, roofline.md).
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from voxinstruct_jax.layers.execution import Execution
from voxinstruct_jax.sharding.chips import Chip, chip_of
from voxinstruct_jax.sharding.mesh import MeshConfig, arrange
from voxinstruct_jax.sharding.topology import described_devices
from voxinstruct_jax.training.experiment import Plannable, batch_of, program_of, rows_of
from voxinstruct_jax.training.flops import BatchFlops
from voxinstruct_jax.training.hlo import Traffic, traffic
from voxinstruct_jax.training.language_model import TokenExperiment
from voxinstruct_jax.training.optimizer import make_optimizer
from voxinstruct_jax.training.step import StepConfig, build_trainer

__all__ = ["Plan", "jaxpr_flops", "plan_step", "suggestions"]

USABLE = 0.9
"""Share of a GPU's memory that a program may count on; a TPU's compiler says itself what it has."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """One step of one experiment on one pod. Times in seconds, sizes in bytes, operations of all devices together."""

    topology: str
    devices: int
    mesh: dict[str, int]
    rows: int
    fits: bool
    peak_bytes: int
    """Of a device's memory."""
    memory_bytes: float | None
    """What a device has; None where it is not known."""
    state_bytes: int
    """Of weights, moments and counters on a device."""
    donated_bytes: int
    """Of the state's bytes those that a step writes in place; all of them, or memory is wasted."""
    why_not: str
    """What the compiler said where it does not fit; else empty."""
    flops: float
    """Executed by a step, recomputation and all of a square of attention included."""
    useful_flops: float
    """What MFU counts, rows being full of clips of `clip_slots`."""
    clip_slots: int
    collectives: list[dict[str, Any]]
    hbm_bytes: float
    """Read and written by a device in a step."""
    bounds_s: dict[str, float]
    """Least time by what binds: compute, hbm, ici, dcn; empty for a chip without known constants."""
    bound_by: str
    step_s: tuple[float, float] | None
    """Shortest and longest step that the bounds allow."""
    mfu: tuple[float, float] | None
    """Lowest and highest."""
    hours: tuple[float, float] | None
    """For the steps of the experiment."""
    cost: tuple[float, float] | None
    """For the same, at the price given."""
    derived: list[str]
    """What was put in by a formula, since it can't be compiled without the chip."""


def plan_step(
    experiment: Plannable,
    topology: str,
    *,
    slices: int = 1,
    price: float = 0.0,
    clip_slots: int = 640,
    effort: float | None = None,
) -> Plan:
    """Compiles the experiment's train step for a pod.

    Args:
        experiment: Of the AR or NAR model, or of a denoiser; its mesh's `data` 0 takes the devices that the
            other axes leave.
        topology: As `described_devices` has it.
        slices: Pods of this shape.
        price: Of a device hour; 0 = not known.
        clip_slots: Mean slots of a clip, for the attention that MFU counts: 640 are some five seconds of the paper's
            tokens with their text.
        effort: Of the compiler, from -1 (quick); None = as in earnest.

    Raises:
        ConfigError: The pod is not known, or the mesh does not fit it.
    """
    mesh = arrange(experiment.mesh, described_devices(topology, slices))
    program = program_of(experiment)
    batch = batch_of(experiment, mesh)
    trainer = build_trainer(
        program.build_model,
        program.objective,
        make_optimizer(experiment.optimizer),
        mesh,
        seed=experiment.train.seed,
        config=experiment.step,
    )
    done, derived = _executed_flops(experiment, mesh)
    compiled, why_not = _compile(trainer.lower(batch), effort)
    chip = chip_of(mesh.devices.flat[0].device_kind)
    near = mesh.size // slices
    moved = traffic(compiled.as_text(), mesh.size, near) if compiled else Traffic((), 0.0)
    memory = compiled.memory_analysis() if compiled else None
    peak = int(memory.peak_memory_in_bytes) if memory else _asked_bytes(why_not)
    limit = USABLE * chip.memory if chip and mesh.devices.flat[0].platform != "tpu" else None
    if compiled and limit and peak > limit:
        why_not = f"the step needs {peak / 2**30:.1f} GiB of a device's {limit / 2**30:.1f} GiB that can be counted on"
    if program.flops is not None and isinstance(experiment, TokenExperiment):
        useful = _useful_flops(program.flops, experiment, clip_slots)
    else:  # of a denoiser: all that a step without recomputation does, its rows being of one length
        useful = _executed_flops(_without_remat(experiment), mesh)[0]
    bounds = _bounds(chip, done / mesh.size, moved) if chip and compiled else {}
    step_s = _step_time(bounds) if bounds else None
    mfu = hours = None
    if step_s and chip:
        mfu = _scaled((1 / step_s[1], 1 / step_s[0]), useful / mesh.size / chip.flops)
        hours = _scaled(step_s, experiment.train.steps / 3600)
    return Plan(
        topology=topology if slices == 1 else f"{slices} x {topology}",
        devices=mesh.size,
        mesh=dict(mesh.shape),
        rows=rows_of(experiment),
        fits=not why_not,
        peak_bytes=peak,
        memory_bytes=chip.memory if chip else None,
        state_bytes=_bytes_a_device(trainer.shapes),
        donated_bytes=int(memory.alias_size_in_bytes) if memory else 0,
        why_not=why_not,
        flops=done,
        useful_flops=useful,
        clip_slots=clip_slots,
        collectives=[dataclasses.asdict(item) for item in moved.collectives],
        hbm_bytes=moved.hbm_bytes,
        bounds_s=bounds,
        bound_by=max(bounds, key=lambda name: bounds[name]) if bounds else "",
        step_s=step_s,
        mfu=mfu,
        hours=hours,
        cost=_scaled(hours, price * mesh.size) if hours and price else None,
        derived=derived,
    )


def _compile(lowered: Any, effort: float | None) -> tuple[Any, str]:
    """Returns the compiled program, or None and why there is no memory for it."""
    options = {} if effort is None else {"exec_time_optimization_effort": effort}
    try:
        return lowered.compile(compiler_options=options or None), ""
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None, _first_sentence(str(error))


def suggestions(experiment: Any, devices: int) -> Iterator[tuple[str, Any]]:
    """Yields changes that take less memory, mildest first: the options to give, and the changed experiment."""
    execution, step, mesh = experiment.execution, experiment.step, experiment.mesh
    for remat in ("names", "full"):
        if execution.remat not in (remat, "full"):
            changed = dataclasses.replace(execution, remat=remat, loss_chunk=execution.loss_chunk or 512)
            options = f"--execution.remat {remat} --execution.loss-chunk {changed.loss_chunk}"
            yield options, dataclasses.replace(experiment, execution=changed)
    lean = Execution(
        attention=execution.attention, remat="full", scan=execution.scan, loss_chunk=execution.loss_chunk or 512
    )
    told = f"--execution.remat full --execution.loss-chunk {lean.loss_chunk}"
    rows = rows_of(experiment)
    for fsdp in (1, 2, 4, 8, 16):
        wide = mesh.fsdp * fsdp
        if devices % (wide * mesh.tensor):
            continue
        shares = devices // mesh.tensor
        for accumulate in (1, 2, 4, 8, 16):
            parts = step.accumulate * accumulate
            if (fsdp, accumulate) == (1, 1) or rows % parts or (rows // parts) % shares:
                continue
            options = told
            options += f" --mesh.fsdp {wide}" if fsdp > 1 else ""
            options += f" --step.accumulate {parts}" if accumulate > 1 else ""
            yield (
                options,
                dataclasses.replace(
                    experiment,
                    execution=lean,
                    mesh=MeshConfig(fsdp=wide, tensor=mesh.tensor),
                    step=dataclasses.replace(step, accumulate=parts),
                ),
            )


def jaxpr_flops(jaxpr: Any) -> float:
    """Operations of all products of matrices and convolutions in a program, bodies of scans as often as they run."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * depth
        if equation.primitive.name == "conv_general_dilated":
            kernel, layout = equation.invars[1].aval.shape, equation.params["dimension_numbers"].rhs_spec
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / kernel[layout[0]]
        inner = sum(jaxpr_flops(body) for body in _bodies(equation.params.values()))
        total += inner * (equation.params["length"] if equation.primitive.name == "scan" else 1)
    return total


def _bodies(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _bodies(value)
        elif hasattr(value, "eqns"):
            yield value
        elif hasattr(value, "jaxpr"):
            yield value.jaxpr


def _without_remat(experiment: Any) -> Any:
    return dataclasses.replace(experiment, execution=dataclasses.replace(experiment.execution, remat="none"))


def _executed_flops(experiment: Any, mesh: Mesh) -> tuple[float, list[str]]:
    """Counts the step with attention as plain products: a kernel hides its own, which are fewer where it is causal."""
    plain = dataclasses.replace(
        experiment, execution=dataclasses.replace(experiment.execution, attention="reference"), step=StepConfig()
    )
    program = program_of(plain)
    # on one device: what is placed where adds no products
    single = arrange(MeshConfig(), [mesh.devices.flat[0]])
    trainer = build_trainer(
        program.build_model, program.objective, make_optimizer(plain.optimizer), single, seed=0, config=plain.step
    )
    with jax.set_mesh(single):
        jaxpr = jax.make_jaxpr(trainer.jitted)(trainer.shapes, batch_of(plain, single))
    derived = [] if experiment.execution.attention == "reference" else ["operations of attention: those of plain XLA"]
    return jaxpr_flops(jaxpr.jaxpr), derived


def _useful_flops(flops: BatchFlops, experiment: TokenExperiment, clip_slots: int) -> float:
    batch = experiment.data.batch
    slots = batch.rows * batch.time_width
    # Text takes its share of the slots; its encoder reads it once more.
    text = batch.rows * min(batch.text_width, batch.time_width)
    return (
        slots * flops.a_slot
        + slots * min(clip_slots, batch.time_width) * flops.a_pair
        + text * flops.a_text_token
        + text * min(clip_slots, batch.text_width) * flops.a_text_pair
    )


def _bounds(chip: Chip, flops: float, moved: Traffic) -> dict[str, float]:
    return {
        "compute": flops / chip.flops,
        "hbm": moved.hbm_bytes / chip.bandwidth,
        "ici": moved.sent("ici") / (chip.link * chip.num_links),
        "dcn": moved.sent("dcn") / chip.network,
    }


def _step_time(bounds: dict[str, float]) -> tuple[float, float]:
    return max(bounds.values()), max(bounds["compute"], bounds["hbm"]) + bounds["ici"] + bounds["dcn"]


def _scaled(interval: tuple[float, float], factor: float) -> tuple[float, float]:
    return interval[0] * factor, interval[1] * factor


def _bytes_a_device(shapes: Any) -> int:
    def size(leaf: Any) -> int:
        return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize

    return sum(size(leaf) for leaf in jax.tree.leaves(shapes))


def _first_sentence(message: str) -> str:
    return message.replace("RESOURCE_EXHAUSTED: ", "").split(". ")[0].strip()[:300]


def _asked_bytes(message: str) -> int:
    """What the compiler says that the program needs."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    found = re.search(r"\(([\d.]+)([KMGT])\)?", message) or re.search(r"Used ([\d.]+)([KMGT])", message)
    return int(float(found[1]) * units[found[2]]) if found else 0
