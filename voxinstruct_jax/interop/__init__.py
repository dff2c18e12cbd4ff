"""Weights of other programs to our modules and back; the one place that knows their files and key names."""

from voxinstruct_jax.interop.mt5 import load_mt5
from voxinstruct_jax.interop.voxinstruct import ReleaseConfig, export_voxinstruct, load_voxinstruct

__all__ = ["ReleaseConfig", "export_voxinstruct", "load_mt5", "load_voxinstruct"]
