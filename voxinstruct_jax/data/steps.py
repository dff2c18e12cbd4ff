"""Reading ahead in sources whose item is a training step.

A source here is a pure function of the step: `source[step]` gives this host's part of the batch, the same after a
restart and for any number of hosts. Grain only computes steps before they are asked for.
"""

from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar, runtime_checkable

__all__ = ["StepSource", "read_ahead"]

Batch = TypeVar("Batch", covariant=True)

MAX_STEPS = 2**31 - 1


@runtime_checkable
class StepSource(Protocol[Batch]):
    """Anything that gives the batch of a step."""

    def __getitem__(self, step: int) -> Batch: ...


def read_ahead(
    source: StepSource[Batch], *, start_step: int, num_steps: int, num_threads: int = 1, buffer_size: int = 4
) -> Iterator[Batch]:
    """Yields `source[start_step]`, `source[start_step + 1]`, ... for `num_steps` steps.

    Args:
        source: Batches by step.
        start_step: First step; a resumed run passes the step it stopped at.
        num_steps: How many batches to give.
        num_threads: Threads that compute batches before they are needed.
        buffer_size: Batches kept ready.
    """
    import grain

    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=buffer_size)
    steps = grain.MapDataset.source(_Steps(source))[start_step : start_step + num_steps]
    return iter(steps.to_iter_dataset(options))


class _Steps(Generic[Batch]):
    """The length that Grain asks of a source; steps themselves never end."""

    def __init__(self, source: StepSource[Batch]) -> None:
        self._source = source

    def __len__(self) -> int:
        return MAX_STEPS

    def __getitem__(self, index: int) -> Batch:
        return self._source[int(index)]
