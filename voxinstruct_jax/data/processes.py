"""What worker processes have in common, whatever they do: their environment, and that they end with their parent."""

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Iterator, Mapping

__all__ = ["ONE_CORE", "ONE_THREAD", "end_with_parent", "environment"]

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""Workers share the cores as processes: libraries that start threads of their own would fight over them."""
ONE_CORE = {"NPROC": "1", **ONE_THREAD}
"""The same for XLA's thread pool, which obeys NPROC."""


def end_with_parent() -> None:
    """Makes this process end with the one that started it, even if that is killed; does nothing in a main process."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Sets variables that a process started meanwhile inherits."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
