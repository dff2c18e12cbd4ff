"""A run's numbers: `metrics.jsonl` for programs, TensorBoard for people, a progress line for whoever watches."""

import json
from collections.abc import Mapping
from pathlib import Path

__all__ = ["MetricsLog"]


class MetricsLog:
    """Appends one row a logged step. A resumed run first drops the rows after the step it starts from."""

    def __init__(self, folder: Path, start_step: int) -> None:
        from tensorboardX import SummaryWriter

        self.path = folder / "metrics.jsonl"
        self._keep_rows_until(start_step)
        self._sink = self.path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1 if start_step else None)

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        """Writes one row; values that are None (unknown) stay out of TensorBoard."""
        self._sink.write(json.dumps({"step": step, **values}) + "\n")
        self._sink.flush()
        for name, value in values.items():
            if value is not None:
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._sink.close()
        self._board.close()

    def _keep_rows_until(self, step: int) -> None:
        """Rows of steps that will be done again go, and so does a last line torn by a kill."""
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        kept = [line for line in lines if line.endswith(b"\n") and json.loads(line)["step"] <= step]
        partial = self.path.with_suffix(".partial")
        partial.write_bytes(b"".join(kept))
        partial.replace(self.path)
