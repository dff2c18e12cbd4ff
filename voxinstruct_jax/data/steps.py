"""Reading ahead in sources whose item is a training step.

A source here is a pure function of the step: `source[step]` gives this host's part of the batch, the same after a
restart and for any number of hosts. Grain only computes steps before they are asked for.
"""

from collections.abc import Iterator
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np

__all__ = ["StepSource", "read_ahead"]

Batch = TypeVar("Batch", covariant=True)

MAX_STEPS = 2**31 - 1


@runtime_checkable
class StepSource(Protocol[Batch]):
    """Anything that gives the batch of a step."""

    def __getitem__(self, step: int) -> Batch: ...


def read_ahead(
    source: StepSource[Batch], *, start_step: int, num_steps: int, workers: int = 0, buffer_size: int = 4
) -> Iterator[Batch]:
    """Yields `source[start_step]`, `source[start_step + 1]`, ... for `num_steps` steps.

    Args:
        source: Batches by step; with `workers` it must be picklable.
        start_step: First step; a resumed run passes the step it stopped at.
        num_steps: How many batches to give.
        workers: Processes that compute batches before they are needed; 0 = a thread of this process.
        buffer_size: Batches kept ready, by each worker.
    """
    import grain

    steps = grain.MapDataset.source(_Steps(source))[start_step : start_step + num_steps]
    if not workers:
        return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=buffer_size)))
    _allow_workers()
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=buffer_size)
    plain = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return _own(iter(steps.to_iter_dataset(plain).mp_prefetch(options)))


def _own(batches: Any) -> Iterator[Any]:
    """Copies what lies in memory shared with the workers, and ends them with the iterator."""
    try:
        for batch in batches:
            yield jax.tree.map(np.array, batch)
    finally:
        batches.close()


def _allow_workers() -> None:
    """Grain's worker processes read absl's flags, which nobody has parsed where the program is no absl app."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


class _Steps(Generic[Batch]):
    """The length that Grain asks of a source; steps themselves never end."""

    def __init__(self, source: StepSource[Batch]) -> None:
        self._source = source

    def __len__(self) -> int:
        return MAX_STEPS

    def __getitem__(self, index: int) -> Batch:
        return self._source[int(index)]
