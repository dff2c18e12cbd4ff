"""The device mesh and the placement of batches and parameters on it."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from voxinstruct_jax.config import ConfigError

__all__ = ["AXIS_RULES", "BATCH_AXES", "MeshConfig", "build_mesh", "parameter_sharding", "place_batch"]

AXIS_RULES: dict[str | None, str | None] = {
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "mlp": "tensor",
    "layers": None,
    None: None,
}
"""Logical axis of a parameter → mesh axis."""

BATCH_AXES = ("data", "fsdp")
"""Mesh axes over which the rows of a batch are split."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each axis; `data` = 0 takes all that the other axes leave."""

    data: int = 0
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        if self.data < 0 or min(self.fsdp, self.tensor) < 1:
            raise ConfigError(
                f"mesh data={self.data} must be at least 0, fsdp={self.fsdp} and tensor={self.tensor} at least 1"
            )


def build_mesh(config: MeshConfig) -> Mesh:
    """Arranges all devices as (data, fsdp, tensor).

    Raises:
        ConfigError: The axes' product is not the number of devices.
    """
    devices, inner = jax.device_count(), config.fsdp * config.tensor
    data = config.data or max(1, devices // inner)
    if data * inner != devices:
        raise ConfigError(
            f"mesh {data} x {config.fsdp} x {config.tensor} needs {data * inner} devices, found {devices}"
        )
    grid = np.asarray(jax.devices()).reshape(data, config.fsdp, config.tensor)
    return Mesh(grid, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def parameter_sharding(mesh: Mesh, names: tuple[str | None, ...] | None) -> NamedSharding:
    """Placement of a parameter by its logical axis names; None = replicated."""
    return NamedSharding(mesh, PartitionSpec(*(AXIS_RULES[name] for name in names or ())))


def place_batch(mesh: Mesh, batch: Any) -> Any:
    """Puts host arrays on the mesh, rows split over `BATCH_AXES`.

    Raises:
        ConfigError: The rows cannot be split evenly.
    """
    shares = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = len(jax.tree.leaves(batch)[0])
    if rows % shares:
        raise ConfigError(f"{rows} rows do not split over data x fsdp = {shares} devices; give a multiple of {shares}")
    sharding = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    return jax.tree.map(lambda rows: jax.device_put(rows, sharding), batch)
