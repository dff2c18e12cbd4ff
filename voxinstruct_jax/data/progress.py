"""The progress bar of long work: how much is done, and the time to the end."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["count_items", "progress_bar"]

T = TypeVar("T")
ITEMS_AN_UPDATE = 1000


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


def count_items(items: Iterable[T], title: str) -> Iterator[T]:
    """Passes items on and shows on the error output, if that is a terminal, how many there were so far."""
    columns = (TextColumn("{task.description}"), TextColumn("{task.completed:,.0f}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(title, total=None)
        for number, item in enumerate(items, 1):
            if number % ITEMS_AN_UPDATE == 0:
                progress.update(task, completed=number)
            yield item
