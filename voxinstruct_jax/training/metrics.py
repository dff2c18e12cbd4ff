"""A run's numbers: `metrics.jsonl` for programs, TensorBoard and, if asked for, Weights & Biases for people."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from voxinstruct_jax.config import InputError, fingerprint

__all__ = ["MetricsLog"]


class MetricsLog:
    """Appends one row a logged step. A resumed run first drops the rows after the step it starts from."""

    def __init__(self, folder: Path, start_step: int, *, wandb_project: str = "") -> None:
        """Opens the logs.

        Args:
            folder: Of the run.
            start_step: That it goes on from.
            wandb_project: Empty = no Weights & Biases.

        Raises:
            InputError: `wandb` is not installed, or cannot be reached.
        """
        from tensorboardX import SummaryWriter

        self.path = folder / "metrics.jsonl"
        self._keep_rows_until(start_step)
        self._sink = self.path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1 if start_step else None)
        self._wandb = _open_wandb(wandb_project, folder) if wandb_project else None

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        """Writes one row; values that are None (unknown) stay out of TensorBoard."""
        self._sink.write(json.dumps({"step": step, **values}) + "\n")
        self._sink.flush()
        for name, value in values.items():
            if value is not None:
                self._board.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log({name: value for name, value in values.items() if value is not None}, step=step)

    def close(self) -> None:
        self._sink.close()
        self._board.close()
        if self._wandb:
            self._wandb.finish()

    def _keep_rows_until(self, step: int) -> None:
        """Rows of steps that will be done again go, and so does a last line torn by a kill."""
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        kept = [line for line in lines if line.endswith(b"\n") and json.loads(line)["step"] <= step]
        partial = self.path.with_suffix(".partial")
        partial.write_bytes(b"".join(kept))
        partial.replace(self.path)


def _open_wandb(project: str, folder: Path) -> Any:
    """A run of Weights & Biases that a resumed run goes on with; `WANDB_MODE=offline` keeps it on this machine."""
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise InputError("wandb is missing; run with `uv run --extra wandb`, or leave --train.wandb out") from error
    try:
        name = fingerprint(str(folder.resolve()))
        return wandb.init(project=project, name=folder.name, id=name, dir=folder, resume="allow")
    except (wandb.Error, OSError) as error:
        what = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise InputError(f"wandb: {what}; log in, set WANDB_MODE=offline, or leave --train.wandb out") from error
