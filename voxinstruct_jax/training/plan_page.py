"""A plan as a page that opens from disk."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from voxinstruct_jax.config import InputError

__all__ = ["write_plan_page"]


def write_plan_page(path: Path, plan: Mapping[str, Any]) -> None:
    """Writes one HTML file without foreign parts.

    Args:
        path: Of the file.
        plan: Fields of `plan.Plan`, with `config`, `changes` and `suggestion`.

    Raises:
        InputError: It cannot be written.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("voxinstruct_jax.training"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("plan.html").render(
        plan=plan, gib=lambda size: f"{size / 2**30:.2f}", ms=lambda seconds: f"{seconds * 1e3:.1f} ms"
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(page, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise InputError(f"{path}: the page cannot be written ({error}); choose another place") from error
