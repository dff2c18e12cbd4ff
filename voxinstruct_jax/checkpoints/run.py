"""States of a training run: Orbax directories with a checksum of every file: a torn one is never taken for whole."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from voxinstruct_jax.config import InputError

__all__ = ["RunStore", "file_checksums"]


class RunStore:
    """Saves and restores the states of one run; keeps the newest few."""

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        import orbax.checkpoint as ocp

        self.folder = folder.absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False, create=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def save(self, step: int, state: Any) -> None:
        """Writes the state, then the checksums of its files: a checkpoint without them does not count."""
        import orbax.checkpoint as ocp

        self._manager.save(step, args=ocp.args.StandardSave(state), force=True)
        self._manager.wait_until_finished()
        partial = self._checksum_path(step).with_suffix(".partial")
        partial.write_text(json.dumps(file_checksums(self.folder / str(step))))
        partial.replace(self._checksum_path(step))
        for stale in self.folder.glob("checksums-*.json"):
            if int(stale.stem.split("-")[1]) not in self._manager.all_steps():
                stale.unlink()

    def whole_steps(self) -> list[int]:
        """Steps whose every file still has the content that was saved, newest first."""
        return sorted((step for step in self._manager.all_steps() if self._is_whole(step)), reverse=True)

    def restore(self, step: int, like: Any) -> Any:
        """Restores onto the shapes, types and placement of `like` (arrays or `ShapeDtypeStruct`).

        Raises:
            InputError: The saved state has other arrays.
        """
        import orbax.checkpoint as ocp

        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            return self._manager.restore(step, args=ocp.args.StandardRestore(target))
        except (ValueError, KeyError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{self.folder}/{step}: does not fit this model ({reason}); use another --out") from error

    def restore_arrays(self, step: int) -> dict[str, Any]:
        """Restores a state as it was saved: nested dicts of NumPy arrays, whatever the model and the devices."""
        import orbax.checkpoint as ocp
        from etils import epath

        handler, folder = ocp.PyTreeCheckpointHandler(), epath.Path(self.folder / str(step) / "default")
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(folder).tree)
        restored = handler.restore(folder, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
        handler.close()
        return restored

    def drop_after(self, step: int) -> None:
        """Deletes states newer than `step`: damaged ones that a resumed run will write again."""
        for newer in [found for found in self._manager.all_steps() if found > step]:
            self._manager.delete(newer)
            self._checksum_path(newer).unlink(missing_ok=True)

    def close(self) -> None:
        self._manager.close()

    def _checksum_path(self, step: int) -> Path:
        return self.folder / f"checksums-{step}.json"

    def _is_whole(self, step: int) -> bool:
        try:
            expected = json.loads(self._checksum_path(step).read_text())
        except (OSError, ValueError):  # missing, or itself damaged
            return False
        return expected == file_checksums(self.folder / str(step))


def file_checksums(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file below a folder, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
