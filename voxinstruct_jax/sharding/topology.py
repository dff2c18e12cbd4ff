"""Devices of pods that are not here: enough to compile for them."""

import math
import os
from collections.abc import Sequence
from importlib import util
from typing import Any

from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.sharding.chips import CHIPS

__all__ = ["GPUS_A_HOST", "described_devices", "device_count", "is_gpu", "prepare_environment"]

POD_SIDES = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2, "tpu7x": 3}
POD_CHIPS = {"v4": 4096, "v5e": 256, "v5p": 6144, "v6e": 256, "tpu7x": 9216}
"""The largest slice: Google Cloud's pages on each TPU, "configurations"."""
SMALL_SHAPES = {
    2: ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)),
    3: ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4)),
}
"""All slices of two sides; of three sides those that are no blocks of 4 x 4 x 4."""
DEVICES_A_CHIP = {"tpu7x": 2}
CHIP_CONFIGS = {"v4": "megacore"}
"""The two cores of a chip as one device, as programs on such a machine see it; else the compiler's default does that.
"""

GPUS = {
    "H100": {"memory_bandwidth": 3352320000000, "device_memory_size": 84942979072, "name": "NVIDIA H100 80GB HBM3"},
    "H200": {"memory_bandwidth": 4800000000000, "device_memory_size": 151397597184, "name": "NVIDIA H200"},
}
"""After the target descriptions of openxla/xla."""
HOPPER = {
    "threads_per_block_limit": 1024, "threads_per_warp": 32, "shared_memory_per_block": 49152,
    "shared_memory_per_core": 233472, "threads_per_core_limit": 2048, "core_count": 132, "fpus_per_core": 128,
    "block_dim_limit_x": 2147483647, "block_dim_limit_y": 65535, "block_dim_limit_z": 65535,
    "l2_cache_size": 52428800, "clock_rate_ghz": 1.98, "shared_memory_per_block_optin": 232448,
    "registers_per_core_limit": 65536, "registers_per_block_limit": 65536, "thread_dim_limit_x": 1024,
    "thread_dim_limit_y": 1024, "thread_dim_limit_z": 64, "device_address_bits": 64, "pcie_bandwidth": 34359738368,
}  # fmt: skip
GPUS_A_HOST = 8


def prepare_environment() -> None:
    """Keeps the TPU compiler from looking for a TPU; to be called before JAX starts."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")  # any; without one it complains
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # Programs for devices that are not here can be written to the compile cache, and not read back.
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)


def is_gpu(topology: str) -> bool:
    """Whether a topology is one of GPUs, such as "H100:64", of any kind."""
    chip, _, shape = topology.partition(":")
    return chip not in POD_SIDES and (chip in CHIPS or (shape.isdigit() and int(shape) > 0))


def device_count(topology: str, slices: int = 1) -> int:
    """Returns the devices of a pod by its name, without its compiler.

    Raises:
        ConfigError: There is no such pod.
    """
    chip, _, shape = topology.partition(":")
    if is_gpu(topology):
        if not shape.isdigit() or not int(shape):
            raise ConfigError(f"topology {topology!r}: expected the number of GPUs, such as {chip}:8")
        count = int(shape) * slices
        if count > GPUS_A_HOST and count % GPUS_A_HOST:
            raise ConfigError(f"topology {topology!r}: {count} GPUs are no whole hosts of {GPUS_A_HOST}")
        return count
    if chip not in POD_SIDES or not shape:
        raise ConfigError(f"topology {topology!r}: expected CHIP:SHAPE such as v5e:16x16; chips: {', '.join(CHIPS)}")
    return math.prod(_sides(topology, chip, shape)) * slices * DEVICES_A_CHIP.get(chip, 1)


def described_devices(topology: str, slices: int = 1) -> Sequence[Any]:
    """Returns the devices of a pod by its name; none for GPUs whose compiler is not here.

    Args:
        topology: "v5e:16x16", "v5p:4x4x8" and so on for TPUs; "H100:64" for GPUs, eight a host.
        slices: Pods of this shape, joined by the data centre's network.

    Raises:
        ConfigError: There is no such pod, or the compiler for it is not installed.
    """
    chip, _, shape = topology.partition(":")
    count = device_count(topology, slices)
    if is_gpu(topology):
        return _gpus(chip, count) if chip in GPUS and util.find_spec("jax_cuda12_plugin") else ()
    if util.find_spec("libtpu") is None:
        raise ConfigError("planning for TPUs needs libtpu: run with `uv run --extra plan`, or install [plan]")
    from jax.experimental import topologies

    extra: dict[str, Any] = {} if slices == 1 else {"num_slices": slices}
    if chip in CHIP_CONFIGS:
        extra["chip_config_name"] = CHIP_CONFIGS[chip]
    if shape == "1x1":
        extra["chips_per_host_bounds"] = (1, 1, 1)
    try:
        return topologies.get_topology_desc(topology, "tpu", **extra).devices
    except Exception as error:  # the compiler's own errors have no common kind
        raise ConfigError(f"topology {topology!r} is not known to the TPU compiler: {str(error)[:200]}") from error


def _sides(topology: str, chip: str, shape: str) -> tuple[int, ...]:
    """Reads a shape, and refuses slices that nobody can rent, which the compiler would take all the same."""
    count, small = POD_SIDES[chip], SMALL_SHAPES[POD_SIDES[chip]]
    sides = tuple(int(side) for side in shape.split("x") if side.isdigit())
    blocks = len(sides) == 3 and all(side and side % 4 == 0 for side in sides) and math.prod(sides) <= POD_CHIPS[chip]
    if shape.count("x") != count - 1 or not (sides in small or (count == 3 and blocks)):
        known = ", ".join("x".join(map(str, each)) for each in small)
        more = f", or blocks of 4x4x4 up to {POD_CHIPS[chip]} chips, such as 4x4x8" if count == 3 else ""
        raise ConfigError(f"topology {topology!r}: there is no such slice; {chip} has {known}{more}")
    return sides


def _gpus(chip: str, count: int) -> Sequence[Any]:
    from jax.experimental import topologies

    hosts = max(1, count // GPUS_A_HOST)
    description = topologies.get_topology_desc(
        platform="cuda", target_config=_target(chip), topology=f"1x{hosts}x{count // hosts}"
    )
    return description.devices


def _target(chip: str) -> str:
    """The compiler's description of a GPU, as protobuf text."""
    about = GPUS[chip]
    numbers = {**HOPPER, **{name: value for name, value in about.items() if name != "name"}}
    lines = [f"  {name}: {value}" for name, value in numbers.items()]
    lines += [
        "  cuda_compute_capability { major: 9 minor: 0 }",
        '  device_vendor: "NVIDIA Corporation"',
        f'  name: "{about["name"]}"',
        '  driver_version: "13.0.0"',
        '  runtime_version: "12.8.0"',
        '  compile_time_toolkit_version: "12.8.0"',
        "  ecc_enabled: true",
    ]
    body = "\n".join(lines)
    version = "dnn_version_info { major: 9 minor: 10 patch: 0 }"
    return (
        f'gpu_device_info {{\n{body}\n}}\nplatform_name: "CUDA"\n{version}\ndevice_description_str: "{about["name"]}"\n'
    )
