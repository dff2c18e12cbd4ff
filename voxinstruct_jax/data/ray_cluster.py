"""The connection to a Ray cluster that preparing and synthesis jobs share."""

import contextlib
from collections.abc import Iterator
from typing import Any

from voxinstruct_jax.config import InputError

__all__ = ["connected"]


@contextlib.contextmanager
def connected(ray: Any, address: str) -> Iterator[None]:
    """Connects to a cluster, and leaves it again; a connection that this process has already stays as it is.

    Args:
        ray: The module, which not everybody has installed.
        address: As `ray.init` takes it: auto, HOST:PORT, ray://..., or local for a cluster of one's own.

    Raises:
        InputError: There is no such cluster.
    """
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"no Ray cluster at {address!r} ({reason}); start one with `ray start --head`") from error
    try:
        yield
    finally:
        ray.shutdown()
