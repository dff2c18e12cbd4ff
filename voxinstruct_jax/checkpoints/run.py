"""States of a training run: Orbax directories with a checksum of every file: a torn one is never taken for whole.

A save goes on in the background while training does; it counts from the moment when the checksums of its files are
written, which is after Orbax has committed them. All processes of a run call every method together; the folder is
shared between them.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from voxinstruct_jax.config import InputError

__all__ = ["RunStore", "file_checksums"]


class RunStore:
    """Saves and restores the states of one run; keeps the newest few, and the best one where a metric is given."""

    def __init__(self, folder: Path, *, keep: int = 2, best_of: str = "") -> None:
        """Opens a folder, or makes it.

        Args:
            folder: Of this run only.
            keep: Newest states kept.
            best_of: Metric whose lowest value marks the best state, which is kept too; empty = none is.
        """
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers as policies

        self.folder = folder.absolute()
        self._best_of = best_of
        kept: list[Any] = [policies.LatestN(keep)]
        if best_of:
            kept.append(policies.BestN(get_metric_fn=lambda values: values[best_of], reverse=True, n=1))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(kept), enable_async_checkpointing=True, create=True
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)
        self._pending: int | None = None

    def save(self, step: int, state: Any, values: dict[str, float] | None = None) -> None:
        """Begins to write a state; returns once it is copied off the devices, so that they may go on.

        Args:
            step: Names it.
            state: Pytree of arrays.
            values: Metrics, for `best_of`.

        Raises:
            InputError: This or the save before it could not be written.
        """
        import orbax.checkpoint as ocp

        self.finish()
        metrics = {self._best_of: values[self._best_of]} if self._best_of and values else None
        try:
            self._manager.save(step, args=ocp.args.StandardSave(state), metrics=metrics, force=True)
        except (OSError, ValueError) as error:
            raise self._unwritable(step, error) from error
        self._pending = step

    def finish(self) -> None:
        """Waits for the save that is going on, if any, and makes it count.

        Raises:
            InputError: It could not be written.
        """
        step, self._pending = self._pending, None
        if step is None:
            return
        try:
            self._manager.wait_until_finished()
            if jax.process_index() == 0:
                partial = self._checksum_path(step).with_suffix(".partial")
                partial.write_text(json.dumps(file_checksums(self.folder / str(step))))
                partial.replace(self._checksum_path(step))
        except (OSError, ValueError) as error:
            raise self._unwritable(step, error) from error
        if jax.process_index() == 0:
            for stale in self.folder.glob("checksums-*.json"):
                if int(stale.stem.split("-")[1]) not in self._manager.all_steps():
                    stale.unlink(missing_ok=True)

    def finish_if_written(self) -> None:
        """As `finish`, and does nothing while files are still being written."""
        if self._pending is not None and not self._manager.is_saving_in_progress():
            self.finish()

    def whole_steps(self) -> list[int]:
        """Steps whose every file still has the content that was saved, newest first."""
        return [step for step in sorted(self._manager.all_steps(), reverse=True) if self._is_whole(step)]

    def newest_whole_step(self) -> int | None:
        """The first of `whole_steps`, without reading the older ones; all processes get the same answer."""
        steps = sorted(self._manager.all_steps(), reverse=True)
        reads = jax.process_index() == 0
        found = next((step for step in steps if self._is_whole(step)), -1) if reads else -1
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            found = int(multihost_utils.broadcast_one_to_all(np.int32(found)))
        return found if found >= 0 else None

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
            if jax.process_index() == 0:
                self._checksum_path(newer).unlink(missing_ok=True)

    def close(self) -> None:
        """Finishes the save that is going on and closes the folder."""
        try:
            self.finish()
        finally:
            self._manager.close()

    def _unwritable(self, step: int, error: Exception) -> InputError:
        reason = str(error).strip().splitlines()[0][:200]
        return InputError(
            f"{self.folder}: the state of step {step} could not be written ({reason}); make room or mend the folder, "
            "the same command goes on from the state before it"
        )

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
    return {path.relative_to(folder).as_posix(): _sha256(path) for path in files}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
