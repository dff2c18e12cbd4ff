"""The device mesh, and what lies where on it: parameters by their logical axes, batches by rows, activations by hints.

One table maps logical axes to mesh axes (`AXIS_RULES`); an axis that its mesh axes do not divide stays whole.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from voxinstruct_jax.config import ConfigError

__all__ = [
    "AXIS_RULES",
    "BATCH_AXES",
    "MESH_AXES",
    "MeshConfig",
    "abstract_mesh",
    "arrange",
    "build_mesh",
    "constrain",
    "parameter_sharding",
    "place_batch",
    "platform",
    "replicated",
    "row_shares",
]

MESH_AXES = ("data", "fsdp", "tensor")
"""Outermost first: `data` crosses slices, `tensor` takes neighbouring devices."""

BATCH_AXES = ("data", "fsdp")
"""Mesh axes over which the rows of a batch are split."""

AXIS_RULES: dict[str | None, str | tuple[str, ...] | None] = {
    "batch": BATCH_AXES,
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "mlp": "tensor",
    "layers": None,
    None: None,
}
"""Logical axis → mesh axes. Of activations only `batch`, `heads`, `mlp` and `vocab` are named: their width is whole."""


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

    def shape(self, num_devices: int) -> tuple[int, int, int]:
        """Returns the devices along (data, fsdp, tensor).

        Raises:
            ConfigError: The axes' product is not the number of devices.
        """
        inner = self.fsdp * self.tensor
        data = self.data or max(1, num_devices // inner)
        if data * inner != num_devices:
            raise ConfigError(
                f"mesh {data} x {self.fsdp} x {self.tensor} needs {data * inner} devices, found {num_devices}"
            )
        return data, self.fsdp, self.tensor


def build_mesh(config: MeshConfig) -> Mesh:
    """Arranges all devices as (data, fsdp, tensor); over several slices `data` is outermost.

    Raises:
        ConfigError: The axes' product is not the number of devices, or slices do not share the data axis evenly.
    """
    return arrange(config, jax.devices())


def arrange(config: MeshConfig, devices: Sequence[Any]) -> Mesh:
    """As `build_mesh`, of given devices; those of a pod that is only described will do."""
    shape = config.shape(len(devices))
    on_tpu = devices[0].platform == "tpu"
    slices = len({getattr(device, "slice_index", 0) for device in devices}) if on_tpu else 1
    if slices > 1:
        if shape[0] % slices:
            raise ConfigError(f"mesh data={shape[0]} does not split over {slices} slices; give a multiple of {slices}")
        within = (shape[0] // slices, *shape[1:])
        grid = mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), devices, allow_split_physical_axes=True)
    elif on_tpu:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        grid = np.asarray(devices).reshape(shape)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def abstract_mesh(config: MeshConfig, num_devices: int) -> AbstractMesh:
    """A mesh of devices of which nothing is known but their number: enough to say what lies where.

    Raises:
        ConfigError: The axes' product is not the number of devices.
    """
    return AbstractMesh(config.shape(num_devices), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """A whole copy on each device."""
    return NamedSharding(mesh, PartitionSpec())


def parameter_sharding(
    mesh: Mesh | AbstractMesh, names: tuple[str | None, ...] | None, shape: tuple[int, ...] | None = None
) -> NamedSharding:
    """Placement of a parameter by its logical axis names.

    Args:
        mesh: Where to.
        names: One an array axis; None = replicated.
        shape: Of the array, where known: an axis that does not divide is not split.
    """
    return NamedSharding(mesh, _spec(dict(mesh.shape), names, shape) if names else PartitionSpec())


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Says to the compiler how an activation lies on the mesh that is set (`jax.set_mesh`); without one returns `x`.

    Args:
        x: Any array.
        names: Logical name of each of its axes.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, _spec(dict(mesh.shape), names, x.shape))


def platform() -> str:
    """Returns what the program being traced will run on: "cpu", "gpu" or "tpu"; the mesh that is set decides."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    found = device.platform if device is not None else jax.default_backend()
    return "gpu" if found in ("cuda", "rocm") else found


def place_batch(mesh: Mesh, batch: Any, total_rows: int = 0) -> Any:
    """Puts this process's rows on the mesh, the rows of all processes split over `BATCH_AXES`.

    Args:
        mesh: Over all processes.
        batch: Host arrays, the rows that `row_shares` gives to this process.
        total_rows: Rows of all processes; 0 = as many as are here.

    Raises:
        ConfigError: The rows cannot be split evenly.
    """
    shares = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = total_rows or len(jax.tree.leaves(batch)[0])
    if rows % shares:
        raise ConfigError(f"{rows} rows do not split over data x fsdp = {shares} devices; give a multiple of {shares}")
    sharding = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    first = row_shares(mesh, rows)[0]

    def place(own: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(rows)
            return own[start - first : stop - first]

        return jax.make_array_from_callback((rows, *own.shape[1:]), sharding, part)

    return jax.tree.map(place, batch)


def row_shares(mesh: Mesh, rows: int) -> tuple[int, int]:
    """First and last (exclusive) row of a step that the devices of this process hold.

    Raises:
        ConfigError: They are no single stretch of rows: the mesh gives this process scattered ones.
    """
    sharding = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    places: Any = sharding.addressable_devices_indices_map((rows,)).values()
    spans = {index[0].indices(rows)[:2] for index in places}
    first, last = min(start for start, _ in spans), max(stop for _, stop in spans)
    if sum(stop - start for start, stop in spans) != last - first:
        raise ConfigError(f"this mesh gives process {jax.process_index()} scattered rows; make tensor smaller")
    return first, last


def _spec(sizes: dict[str, int], names: tuple[str | None, ...], shape: tuple[int, ...] | None) -> PartitionSpec:
    axes = [AXIS_RULES[name] for name in names]
    if shape is not None:
        axes = [axis if _divides(sizes, axis, size) else None for axis, size in zip(axes, shape, strict=True)]
    return PartitionSpec(*axes)


def _divides(sizes: dict[str, int], axis: str | tuple[str, ...] | None, size: int) -> bool:
    split = axis if isinstance(axis, tuple) else (axis,) if axis else ()
    return size % math.prod(sizes[name] for name in split) == 0
