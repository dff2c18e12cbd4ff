"""Weights of other programs to our modules and back; the one place that knows their files and key names."""

from voxinstruct_jax.interop.encodec import load_encodec
from voxinstruct_jax.interop.hubert import load_hubert, load_kmeans
from voxinstruct_jax.interop.mimi import load_mimi
from voxinstruct_jax.interop.mmaudio_vae import load_mmaudio_vae
from voxinstruct_jax.interop.mt5 import load_mt5
from voxinstruct_jax.interop.unison import load_unison
from voxinstruct_jax.interop.vocos import load_vocos
from voxinstruct_jax.interop.voxinstruct import ReleaseConfig, export_voxinstruct, load_voxinstruct

__all__ = [
    "ReleaseConfig",
    "export_voxinstruct",
    "load_encodec",
    "load_hubert",
    "load_kmeans",
    "load_mimi",
    "load_mmaudio_vae",
    "load_mt5",
    "load_unison",
    "load_vocos",
    "load_voxinstruct",
]
