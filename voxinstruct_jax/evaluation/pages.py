"""HTML pages from the templates beside this file."""

from pathlib import Path
from typing import Any

__all__ = ["write_page"]


def write_page(path: Path, template: str, **values: Any) -> None:
    """Fills a template, every value escaped, and writes the page whole or not at all.

    Args:
        path: Of the page; its folder exists.
        template: A file of `templates/`.
        **values: All that the template names.

    Raises:
        OSError: It cannot be written.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("voxinstruct_jax.evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(environment.get_template(template).render(**values), "utf-8")
    partial.replace(path)
