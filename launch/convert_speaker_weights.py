"""Turns the voice encoder of the Resemblyzer wheel into `voxinstruct_jax/judges/weights/speaker.safetensors`.

Run: pip download --no-deps resemblyzer==0.1.4, then
    uv run launch/convert_speaker_weights.py Resemblyzer-0.1.4-py3-none-any.whl
"""

import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from voxinstruct_jax.interop.pytorch_files import read_pytorch

TARGET = Path(__file__).parents[1] / "voxinstruct_jax" / "judges" / "weights"
PARTS = ("lstm.", "linear.")  # the rest is the state of its training


def main(wheel: str) -> int:
    """Reads the weights without running anything that the wheel holds; half precision, a third of the size."""
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        state = read_pytorch(Path(archive.extract("resemblyzer/pretrained.pt", folder)))["model_state"]
        kept = {name: np.array(value, np.float16) for name, value in state.items() if name.startswith(PARTS)}
        licence = next(name for name in archive.namelist() if name.endswith("LICENSE"))
        (TARGET / "speaker.LICENSE").write_bytes(archive.read(licence))
    save_file(kept, TARGET / "speaker.safetensors")
    print(f"{TARGET}: {sum(value.nbytes for value in kept.values()) / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
