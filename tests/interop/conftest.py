from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest


@pytest.fixture(scope="session")
def release_golden():
    """Inputs and outputs of the original programs of VoxInstruct with small random weights."""
    with np.load(Path(__file__).parents[1] / "golden" / "voxinstruct_tiny.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def release_tensors(release_golden):
    """State dicts under the original's keys."""
    return {
        name: {key[len(name) + 3 :]: array for key, array in release_golden.items() if key.startswith(f"{name}/w/")}
        for name in ("ar", "nar")
    }


@pytest.fixture(scope="session")
def release_config():
    """What the shapes of the small release don't tell."""
    from voxinstruct_jax.interop import ReleaseConfig

    return ReleaseConfig(num_semantic=20, num_heads=4, lora_alpha=8.0, text_slots=12)


@pytest.fixture(scope="session")
def release_files(release_tensors, tmp_path_factory):
    """The two files of the small release."""
    from voxinstruct_jax.interop.pytorch_files import write_pytorch

    folder = tmp_path_factory.mktemp("release")
    for name, tensors in release_tensors.items():
        write_pytorch(folder / f"{name}.pyt", {"model": tensors, "steps": 1800000})
    return SimpleNamespace(ar=folder / "ar.pyt", nar=folder / "nar.pyt")


@pytest.fixture(scope="session")
def release(release_files, release_config):
    """The small release, loaded."""
    from voxinstruct_jax.interop import load_voxinstruct

    with jax.default_matmul_precision("highest"):
        yield load_voxinstruct(release_files.ar, release_files.nar, release_config)
