"""The progress bar of long work: how much is done, and the time to the end."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(title: str, total: int, *, done: int = 0, visible: bool = True) -> Iterator[Callable[[], None]]:
    """Draws a bar and yields the function that moves it on by one.

    Args:
        title: Stands before the bar.
        total: Number of items in all.
        done: Items that an earlier run has finished.
        visible: False draws nothing.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=not visible) as progress:
        task = progress.add_task(title, total=total, completed=done)
        yield lambda: progress.advance(task)
