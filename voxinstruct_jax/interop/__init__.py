"""Weights of other programs to our modules and back; the one place that knows their files and key names."""

from voxinstruct_jax.interop.mt5 import load_mt5

__all__ = ["load_mt5"]
