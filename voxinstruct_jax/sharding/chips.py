"""Accelerators by name: what they reach at best. The one home of such constants.

Sources: jax-ml/scaling-book, tpus.md and roofline.md (TPU tables, DCN, H100); Google Cloud's page "TPU7x (Ironwood)",
system architecture; NVIDIA A100, H100, H200 and HGX B200 data sheets and the target descriptions of openxla/xla (memory
bandwidths). The network of GPUs is taken as one adapter each: 200 Gbit/s beside an A100, 400 beside the others.
"""

import dataclasses

__all__ = ["CHIPS", "Chip", "chip_of"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One accelerator, as JAX counts devices: of a TPU7x chip, which is two devices, a half."""

    flops: float
    """Dense bfloat16 operations a second."""
    memory: float
    """Bytes of HBM."""
    bandwidth: float
    """Bytes of HBM a second."""
    link: float
    """Bytes a second, one way, over one link to a neighbour (ICI; NVLink: all links together)."""
    num_links: int
    """Links that a collective along one mesh axis can use at once."""
    network: float
    """Bytes a second and chip to other slices or hosts (DCN)."""


CHIPS: dict[str, Chip] = {
    "v4": Chip(flops=2.75e14, memory=32e9, bandwidth=1.2e12, link=4.5e10, num_links=2, network=2.5e10 / 4),
    "v5e": Chip(flops=1.97e14, memory=16e9, bandwidth=8.1e11, link=4.5e10, num_links=2, network=2.5e10 / 8),
    "v5p": Chip(flops=4.59e14, memory=96e9, bandwidth=2.8e12, link=9e10, num_links=2, network=2.5e10 / 4),
    "v6e": Chip(flops=9.2e14, memory=32e9, bandwidth=1.6e12, link=9e10, num_links=2, network=2.5e10 / 8),
    "tpu7x": Chip(flops=1.1535e15, memory=1.03e11, bandwidth=3.69e12, link=5e10, num_links=2, network=1.25e10 / 2),
    "A100": Chip(flops=3.12e14, memory=80e9, bandwidth=2.039e12, link=3e11, num_links=1, network=2.5e10),
    "A100-40": Chip(flops=3.12e14, memory=40e9, bandwidth=1.555e12, link=3e11, num_links=1, network=2.5e10),
    "H100": Chip(flops=9.89e14, memory=80e9, bandwidth=3.35e12, link=4.5e11, num_links=1, network=5e10),
    "H200": Chip(flops=9.89e14, memory=141e9, bandwidth=4.8e12, link=4.5e11, num_links=1, network=5e10),
    "B200": Chip(flops=2.25e15, memory=180e9, bandwidth=7.7e12, link=9e11, num_links=1, network=5e10),
}

_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
}
_GPU_KINDS = {"B200": "B200", "H200": "H200", "H100": "H100", "A100-SXM4-40": "A100-40", "A100-PCIE-40": "A100-40",
              "A100": "A100"}  # fmt: skip
"""What stands in JAX's name of a GPU, the narrower first."""


def chip_of(device_kind: str) -> Chip | None:
    """Returns the chip that JAX calls by this name (`device.device_kind`), None if it is not known (a CPU, say)."""
    name = _KINDS.get(device_kind) or next((chip for part, chip in _GPU_KINDS.items() if part in device_kind), None)
    return CHIPS[name] if name else None
