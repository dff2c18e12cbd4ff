"""Plans: the real train step compiled ahead of time for a pod that is not here, and what follows from it.

Memory and collectives are the compiler's own; operations are counted in the program (loops as often as they run); the
step time is a roofline: an interval between "all overlaps" and "nothing does". Start at `plan_step`.

Source:
    Roofline after Williams et al. 2009, with links as further roofs (jax-ml/scaling-book, roofline.md).
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import jax

from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.layers.execution import Execution
from voxinstruct_jax.layers.operations import count_operations
from voxinstruct_jax.sharding.chips import CHIPS, Chip
from voxinstruct_jax.sharding.mesh import MESH_AXES, MeshConfig, abstract_mesh, arrange
from voxinstruct_jax.sharding.topology import GPUS_A_HOST, described_devices, device_count, is_gpu
from voxinstruct_jax.training.ar import ARExperiment
from voxinstruct_jax.training.derived import bytes_a_device, derive_step
from voxinstruct_jax.training.experiment import Denoising, Plannable, batch_of, program_of, rows_of, with_rows
from voxinstruct_jax.training.flops import BatchFlops
from voxinstruct_jax.training.hlo import Traffic, traffic
from voxinstruct_jax.training.language_model import TokenExperiment
from voxinstruct_jax.training.optimizer import make_optimizer
from voxinstruct_jax.training.step import StepConfig, TrainState, build_trainer, state_shapes

__all__ = ["Plan", "compile_for", "plan_step", "promising", "shortage", "suggestions"]

USABLE = 0.9
"""Share of a GPU's memory that a program may count on; a TPU's compiler says itself what it has."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """One step of one experiment on one pod. Times in seconds, sizes in bytes, operations of all devices together."""

    topology: str
    devices: int
    mesh: dict[str, int]
    rows: int
    fits: bool | None
    """None where the device's memory is not known."""
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
    formula: bool = False,
) -> Plan:
    """Plans the experiment's train step for a pod: compiles it, or counts by formula for GPUs without their compiler.

    Args:
        experiment: Of the AR or NAR model, or of a denoiser; its mesh's `data` 0 takes the devices that the other axes
            leave.
        topology: As `described_devices` has it.
        slices: Pods of this shape.
        price: Of a device hour; 0 = not known.
        clip_slots: Mean slots of a clip, for the attention that MFU counts: 640 are some five seconds of the paper's
            tokens with their text.
        effort: Of the compiler, from -1 (quick); None = as in earnest.
        formula: By formula in any case: seconds in place of minutes.

    Raises:
        ConfigError: The pod is not known, or the mesh does not fit it, or the rows do not fit the mesh.
    """
    count, chip = device_count(topology, slices), CHIPS.get(topology.partition(":")[0])
    _check_rows(experiment, count)
    near = GPUS_A_HOST if is_gpu(topology) else count // slices
    devices = () if formula else described_devices(topology, slices)
    found = _compiled(experiment, devices, near, effort) if devices else _derived(experiment, count, near)
    if is_gpu(topology) or not devices:  # a TPU's compiler has refused what does not fit
        found = dataclasses.replace(found, why_not=found.why_not or shortage(found.peak_bytes, chip))
    program = program_of(experiment)
    done = _executed_flops(experiment)
    if program.flops is not None and not isinstance(experiment, Denoising):
        useful = _useful_flops(program.flops, experiment, clip_slots)
    else:  # of a denoiser: all that a step without recomputation does, its rows being of one length
        useful = _executed_flops(_without_remat(experiment))
    bounds = _bounds(chip, done / count, found.moved) if chip and found.moved else {}
    step_s = _step_time(bounds) if bounds else None
    mfu = hours = None
    if step_s and chip:
        mfu = _scaled((1 / step_s[1], 1 / step_s[0]), useful / count / chip.flops)
        hours = _scaled(step_s, experiment.train.steps / 3600)
    moved = found.moved or Traffic((), 0.0)
    kernel = experiment.execution.attention != "reference"
    return Plan(
        topology=topology if slices == 1 else f"{slices} x {topology}",
        devices=count,
        mesh=dict(zip(MESH_AXES, experiment.mesh.shape(count), strict=True)),
        rows=rows_of(experiment),
        fits=not found.why_not if chip else None,
        peak_bytes=found.peak_bytes,
        memory_bytes=chip.memory if chip else None,
        state_bytes=found.state_bytes,
        donated_bytes=found.donated_bytes,
        why_not=found.why_not,
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
        cost=_scaled(hours, price * count) if hours and price else None,
        derived=found.derived + (["operations of attention: those of plain XLA"] if kernel else []),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Found:
    """What compiling or formulas say of a step."""

    peak_bytes: int
    state_bytes: int
    donated_bytes: int = 0
    moved: Traffic | None
    """None where it does not fit."""
    why_not: str = ""
    derived: list[str] = dataclasses.field(default_factory=list)


def _compiled(experiment: Any, devices: Any, near: int, effort: float | None) -> _Found:
    mesh, program = arrange(experiment.mesh, devices), program_of(experiment)
    trainer = build_trainer(
        program.build_model,
        program.objective,
        make_optimizer(experiment.optimizer),
        mesh,
        seed=experiment.train.seed,
        config=experiment.step,
    )
    compiled, why_not = compile_for(trainer.lower(batch_of(experiment, mesh)), effort)
    state_bytes = bytes_a_device(trainer.shapes)
    if compiled is None:
        return _Found(peak_bytes=_asked_bytes(why_not), state_bytes=state_bytes, moved=None, why_not=why_not)
    memory = compiled.memory_analysis()
    return _Found(
        peak_bytes=int(memory.peak_memory_in_bytes),
        state_bytes=state_bytes,
        donated_bytes=int(memory.alias_size_in_bytes),
        moved=traffic(compiled.as_text(), mesh.size, near),
    )


def _derived(experiment: Any, count: int, near: int) -> _Found:
    if isinstance(experiment, Denoising):
        raise ConfigError("there are no formulas for a denoiser; plan it for a TPU, which compiles it")
    shapes, sizes = _abstract_state(experiment, count)
    peak, moved = derive_step(experiment, _head_size(experiment), shapes, sizes, near)
    return _Found(
        peak_bytes=peak,
        state_bytes=bytes_a_device(shapes),
        donated_bytes=bytes_a_device(shapes),
        moved=moved,
        derived=["memory, collectives and bytes: by formula, nothing was compiled"],
    )


def _abstract_state(experiment: Any, count: int) -> tuple[TrainState, dict[str, int]]:
    mesh = abstract_mesh(experiment.mesh, count)
    program, optimizer = program_of(experiment), make_optimizer(experiment.optimizer)
    return state_shapes(program.build_model, optimizer, mesh, experiment.step), dict(mesh.shape)


def _head_size(experiment: Any) -> int:
    vocabulary = experiment.model.vocabulary
    return vocabulary.size if isinstance(experiment, ARExperiment) else vocabulary.nar_head_size


def _check_rows(experiment: Any, count: int) -> None:
    data, fsdp, _ = experiment.mesh.shape(count)
    rows, parts = rows_of(experiment), data * fsdp * experiment.step.accumulate
    if rows % parts:
        accumulated = f" x accumulate {experiment.step.accumulate}" if experiment.step.accumulate > 1 else ""
        raise ConfigError(
            f"{rows} rows do not split over data {data} x fsdp {fsdp}{accumulated} = {parts}; give "
            f"{with_rows(experiment, max(1, rows // parts) * parts)[0]}, or another mesh"
        )


def shortage(peak_bytes: int, chip: Chip | None) -> str:
    """Why a program does not fit a GPU, whose compiler does not say so; empty if it does, or if nobody knows."""
    if chip is None or peak_bytes <= USABLE * chip.memory:
        return ""
    limit = USABLE * chip.memory / 2**30
    return f"it needs {peak_bytes / 2**30:.1f} GiB of a device's {limit:.1f} GiB that can be counted on"


def compile_for(lowered: Any, effort: float | None) -> tuple[Any, str]:
    """Returns the compiled program, or None and why there is no memory for it."""
    options = {} if effort is None else {"exec_time_optimization_effort": effort}
    try:
        return lowered.compile(compiler_options=options or None), ""
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None, _first_sentence(str(error))


def promising(experiment: Any, devices: int, memory: float) -> Iterator[tuple[str, Any]]:
    """Those of `suggestions` that fit by formula: only these are worth compiling."""
    shapes: dict[MeshConfig, tuple[TrainState, dict[str, int]]] = {}
    for options, changed in suggestions(experiment, devices):
        if isinstance(changed, Denoising):
            yield options, changed
            continue
        if changed.mesh not in shapes:
            shapes[changed.mesh] = _abstract_state(changed, devices)
        peak, _ = derive_step(changed, _head_size(changed), *shapes[changed.mesh], devices)
        if peak <= USABLE * memory:
            yield options, changed


def suggestions(experiment: Any, devices: int) -> Iterator[tuple[str, Any]]:
    """Yields changes that take less memory, mildest first, fewer rows last: options to give, the changed experiment."""
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
    shares = devices // mesh.tensor
    widths = [mesh.fsdp * more for more in (1, 2, 4, 8, 16) if devices % (mesh.fsdp * more * mesh.tensor) == 0]

    def leaner(fsdp: int, parts: int, rows: int) -> tuple[str, Any]:
        options = told + (f" --mesh.fsdp {fsdp}" if fsdp != mesh.fsdp else "")
        options += f" --step.accumulate {parts}" if parts != step.accumulate else ""
        fewer, changed = with_rows(experiment, rows)
        options += f" {fewer}" if rows != rows_of(experiment) else ""
        return options, dataclasses.replace(
            changed,
            execution=lean,
            mesh=MeshConfig(fsdp=fsdp, tensor=mesh.tensor),
            step=dataclasses.replace(step, accumulate=parts),
        )

    for fsdp in widths:
        for accumulate in (1, 2, 4, 8, 16):
            parts = step.accumulate * accumulate
            if (fsdp, accumulate) != (mesh.fsdp, 1) and rows % (parts * shares) == 0:
                yield leaner(fsdp, parts, rows)
    while rows // 2 >= shares * step.accumulate and rows // 2 % (shares * step.accumulate) == 0:
        rows //= 2
        yield leaner(widths[-1], step.accumulate, rows)


def _without_remat(experiment: Any) -> Any:
    return dataclasses.replace(experiment, execution=dataclasses.replace(experiment.execution, remat="none"))


def _executed_flops(experiment: Any) -> float:
    """Counts the step with attention as plain products: a kernel hides its own, which are fewer where it is causal."""
    plain = dataclasses.replace(
        experiment, execution=dataclasses.replace(experiment.execution, attention="reference"), step=StepConfig()
    )
    program = program_of(plain)
    # on one device: what is placed where adds no products
    single = arrange(MeshConfig(), jax.devices()[:1])
    trainer = build_trainer(
        program.build_model, program.objective, make_optimizer(plain.optimizer), single, seed=0, config=plain.step
    )
    with jax.set_mesh(single):
        return count_operations(trainer.jitted, trainer.shapes, batch_of(plain, single))


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


def _first_sentence(message: str) -> str:
    return message.replace("RESOURCE_EXHAUSTED: ", "").split(". ")[0].strip()[:300]


def _asked_bytes(message: str) -> int:
    """What the compiler says that the program needs."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    found = re.search(r"\(([\d.]+)([KMGT])\)?", message) or re.search(r"Used ([\d.]+)([KMGT])", message)
    return int(float(found[1]) * units[found[2]]) if found else 0
