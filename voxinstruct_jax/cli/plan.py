"""`voxinstruct plan CONFIG --topology v5e:16x16`."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from voxinstruct_jax.cli.experiments import load_experiment, override
from voxinstruct_jax.cli.options import parse_known
from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.sharding.chips import CHIPS

__all__ = ["run"]

EXAMPLE = "example: voxinstruct plan configs/pretrain_ar.py --topology v5e:16x16 --mesh.fsdp 16 --data.batch.rows 1024"
DOES_NOT_FIT = 1
MOST_TRIES = 2
GIB = 2**30


def run(arguments: list[str]) -> int:
    """Plans a training step for a pod; exit code 1 if it does not fit."""
    parser = argparse.ArgumentParser(
        "voxinstruct plan",
        description="Compile the train step of a configuration, and decoding, for a pod that is not here: does it fit, "
        f"what does it move, how long will a step take at least; `--a.b value` changes the configuration. {EXAMPLE}",
    )
    parser.add_argument("config", help="a file of configs/ that trains AR, NAR or a denoiser")
    parser.add_argument("--topology", required=True, help="v5e:16x16, v5p:4x4x8, tpu7x:4x4x4, H100:64 ...")
    parser.add_argument("--slices", type=int, default=1, help="pods of this shape; --mesh.data spans them (default: 1)")
    parser.add_argument("--price", type=float, default=0.0, help="of a device hour, for the cost of all steps")
    parser.add_argument("--clip-slots", type=int, default=640, help="mean slots of a clip, for MFU (default: 640)")
    parser.add_argument(
        "--quick", action="store_true", help="compile with little effort: half the time, a rougher plan"
    )
    parser.add_argument(
        "--formula", action="store_true", help="compile nothing: seconds in place of minutes, and all of it derived"
    )
    parser.add_argument(
        "--requests",
        type=int,
        default=16,
        help="that AR decodes at once on a device; 0 leaves decoding out (default: 16)",
    )
    parser.add_argument("--html", type=Path, help="write a page")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    options, rest = parse_known(parser, arguments)
    if options.slices < 1 or options.requests < 0:
        raise ConfigError(f"--slices {options.slices} must be at least 1, --requests {options.requests} at least 0")
    from voxinstruct_jax.sharding.topology import prepare_environment

    prepare_environment()
    from voxinstruct_jax.training.ar import ARExperiment
    from voxinstruct_jax.training.experiment import Plannable
    from voxinstruct_jax.training.plan import plan_step

    experiment = override(load_experiment(options.config), rest, program=f"plan {options.config}")
    if not isinstance(experiment, Plannable):
        raise ConfigError(
            f"{options.config}: a {type(experiment).__name__} cannot be planned; training of AR, NAR and models of "
            "latents can"
        )
    settings = {
        "slices": options.slices,
        "price": options.price,
        "clip_slots": options.clip_slots,
        "effort": -1.0 if options.quick else None,
        "formula": options.formula,
    }
    plan = plan_step(experiment, options.topology, **settings)
    found = dataclasses.asdict(plan) | {"config": options.config, "changes": rest}
    found["suggestion"] = _what_fits(experiment, options.topology, plan, settings) if plan.fits is False else None
    found["decode"] = None
    if options.requests and isinstance(experiment, ARExperiment):
        compiling = {name: settings[name] for name in ("effort", "formula")}
        found["decode"] = _decoding(experiment, options.topology, options.requests, compiling)
    if options.html:
        from voxinstruct_jax.evaluation.plan_page import write_plan_page

        write_plan_page(options.html, found)
    print(json.dumps(found, indent=1) if options.json else "\n".join(_lines(found)))
    return DOES_NOT_FIT if plan.fits is False else 0


def _decoding(experiment: Any, topology: str, requests: int, compiling: dict[str, Any]) -> dict[str, Any]:
    """The plan of decoding; training knows nothing of it, so the program is put together here."""
    from voxinstruct_jax.cli.decode_program import decode_program
    from voxinstruct_jax.training.plan_decode import plan_decode

    return dataclasses.asdict(plan_decode(decode_program(experiment.model, requests), topology, **compiling))


def _what_fits(experiment: Any, topology: str, plan: Any, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The first change that compiles into the memory that there is, of those that should by formula."""
    from voxinstruct_jax.training.plan import plan_step, promising

    for number, (options, changed) in enumerate(promising(experiment, plan.devices, plan.memory_bytes)):
        if number == MOST_TRIES:
            break
        print(f"does not fit; trying {options}", file=sys.stderr, flush=True)
        tried = plan_step(changed, topology, **{**settings, "effort": -1.0})
        if tried.fits:
            return {"options": options, "peak_bytes": tried.peak_bytes, "step_s": tried.step_s, "mfu": tried.mfu}
    return None


def _lines(found: dict[str, Any]) -> list[str]:
    """The plan for people."""
    mesh = " x ".join(str(size) for size in found["mesh"].values())
    memory = f" of {found['memory_bytes'] / GIB:.1f}" if found["memory_bytes"] else ""
    peak, state = found["peak_bytes"] / GIB, found["state_bytes"] / GIB
    lines = [
        f"{found['topology']}: {found['devices']} devices, mesh {mesh} (data x fsdp x tensor), {found['rows']} rows",
        f"fits: {_verdict(found)}",
        f"peak memory of a device: {peak:.2f}{memory} GiB; state {state:.2f} GiB",
        f"operations a step: {found['flops']:.3g} executed, {found['useful_flops']:.3g} useful",
    ]
    for item in found["collectives"]:
        lines.append(
            f"{item['kind']} over {item['link']}, {item['group']} devices: {item['runs']} runs, "
            f"{item['sent_bytes'] / 1e9:.3g} GB sent by a device"
        )
    if found["step_s"]:
        low, high = found["step_s"]
        binding = ", ".join(f"{name} {seconds * 1e3:.1f} ms" for name, seconds in found["bounds_s"].items())
        lines.append(f"step: {low * 1e3:.1f} to {high * 1e3:.1f} ms, bound by {found['bound_by']} ({binding})")
        lines.append(f"MFU at best: {found['mfu'][0]:.1%} to {found['mfu'][1]:.1%}; a bound, not a promise")
        lines.append(f"all steps: {found['hours'][0]:.1f} to {found['hours'][1]:.1f} hours")
    elif found["fits"] is None:
        lines.append(f"step: not known, since this chip's constants are not; known: {', '.join(CHIPS)}")
    if found["cost"]:
        lines.append(f"cost: {found['cost'][0]:.0f} to {found['cost'][1]:.0f}")
    lines += [f"derived: {what}" for what in found["derived"]]
    if found["suggestion"]:
        peak = found["suggestion"]["peak_bytes"] / GIB
        lines.append(f"this fits: {found['suggestion']['options']} (peak {peak:.2f} GiB)")
    elif found["fits"] is False:
        lines.append("nothing that was tried fits; take a larger pod, fewer rows, or shorter ones")
    return lines + (_decode_lines(found["decode"]) if found["decode"] else [])


def _verdict(found: dict[str, Any]) -> str:
    return {True: "yes", False: f"no, {found['why_not']}", None: "not known, since the device's memory is not"}[
        found["fits"]
    ]


def _decode_lines(decode: dict[str, Any]) -> list[str]:
    """Decoding for people."""
    peak, weights, cache = (decode[name] / GIB for name in ("peak_bytes", "weight_bytes", "cache_bytes"))
    lines = [
        f"decoding {decode['requests']} requests on one device, {decode['slots']} slots each: fits: {_verdict(decode)}",
        f"peak memory {peak:.2f} GiB; a token step reads weights {weights:.2f} GiB and cache {cache:.2f} GiB",
    ]
    if decode["step_s"]:
        tokens = decode["requests"] / decode["step_s"]
        lines.append(
            f"token step: at least {decode['step_s'] * 1e3:.2f} ms, bound by {decode['bound_by']}; at best "
            f"{tokens:.0f} tokens a second"
        )
    return lines + [f"derived: {what}" for what in decode["derived"]]
