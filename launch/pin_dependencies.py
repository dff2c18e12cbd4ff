"""Writes exact versions of all dependencies into pyproject.toml, as constraints that `uv run` obeys.

uv's own lock file names the hosts that packages came from, so it is not kept; the constraints name versions only.

Run: uv run --no-project launch/pin_dependencies.py
"""

import re
import subprocess
import sys
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
PINS = re.compile(r"^constraint-dependencies = \[\n.*?^\]\n", re.MULTILINE | re.DOTALL)
COMPILE = (
    "uv pip compile pyproject.toml --all-extras --group dev --no-header --no-annotate --no-emit-index-url "
    "--no-emit-find-links --upgrade --quiet"
)


def main() -> int:
    """Resolves without the old constraints, then writes the new ones."""
    bare = PINS.sub("", PYPROJECT.read_text())
    PYPROJECT.write_text(bare)
    found = subprocess.run(COMPILE.split(), cwd=PYPROJECT.parent, capture_output=True, text=True, check=False)
    if found.returncode:
        print(found.stderr, file=sys.stderr)
        return 1
    pins = [line.split(" ;")[0].strip() for line in found.stdout.splitlines() if "==" in line]
    rows = "".join(f'    "{pin}",\n' for pin in pins)
    PYPROJECT.write_text(f"{bare.rstrip()}\nconstraint-dependencies = [\n{rows}]\n")
    print(f"{len(pins)} versions pinned")
    return 0


if __name__ == "__main__":
    sys.exit(main())
