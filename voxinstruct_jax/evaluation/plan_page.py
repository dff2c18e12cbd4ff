"""A plan as a page that opens from disk."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from voxinstruct_jax.config import InputError
from voxinstruct_jax.evaluation.pages import write_page

__all__ = ["write_plan_page"]


def write_plan_page(path: Path, plan: Mapping[str, Any]) -> None:
    """Writes one HTML file without foreign parts.

    Args:
        path: Of the file.
        plan: Fields of `plan.Plan`, with `config`, `changes`, `suggestion` and `decode` (fields of
            `plan_decode.DecodePlan`, or None).

    Raises:
        InputError: It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_page(
            path,
            "plan.html",
            plan=plan,
            gib=lambda size: f"{size / 2**30:.2f}",
            ms=lambda seconds: f"{seconds * 1e3:.1f} ms",
        )
    except OSError as error:
        raise InputError(f"{path}: the page cannot be written ({error}); choose another place") from error
