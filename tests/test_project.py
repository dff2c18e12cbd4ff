"""The project itself: its tools pass, its pages are true, and nothing of a machine is left in its files."""

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from voxinstruct_jax.cli.convert import PORTS
from voxinstruct_jax.cli.experiments import load_experiment, override
from voxinstruct_jax.cli.main import COMMANDS, main

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "voxinstruct_jax"
SCRIPTS = Path(sys.executable).parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
MIB = 2**20

# Written so that this file does not match them.
MACHINE_PATH = re.compile(rb"/(?:work|home|root|Users)/|/tmp/(?:plan)|[A-Z]:\\(?:Users)")
REGISTRY_HOST = re.compile(rb"python(?:hosted)\.|py(?:pi)\.org|registry\.(?:npmjs)|/(?:simple)/")
REGISTRY_SETTINGS = ("PIP_INDEX_URL", "UV_INDEX_URL", "UV_DEFAULT_INDEX", "NPM_CONFIG_REGISTRY")


def run(*command: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, check=False)


def check(*command: str | Path) -> None:
    done = run(*command)
    assert done.returncode == 0, done.stdout + done.stderr


def project_files() -> list[Path]:
    """What git tracks."""
    names = run("git", "ls-files", "-z").stdout.split("\0")
    files = [path for name in names if name and (path := ROOT / name).is_file()]
    if not files:
        pytest.skip("no git checkout")
    return files


def fenced_blocks(text: str) -> list[tuple[str, str]]:
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


# --- tools -----------------------------------------------------------------------------------------------------------


def test_code_is_formatted():
    check(sys.executable, "-m", "ruff", "format", "--check", ".")


def test_code_passes_the_linter():
    check(sys.executable, "-m", "ruff", "check", ".")


def test_imports_keep_their_contracts():
    check(SCRIPTS / "lint-imports")


@pytest.mark.slow
def test_types_are_right():
    check(SCRIPTS / "basedpyright", "--pythonpath", sys.executable)


def test_importing_the_package_is_quick():
    check(sys.executable, "-c", "import sys, voxinstruct_jax; assert not {'jax', 'numpy'} & set(sys.modules)")


# --- files -----------------------------------------------------------------------------------------------------------


def test_test_modules_have_names_of_their_own():
    """Two of one name can't be collected in one run, and each alone passes."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_files_stay_small():
    sizes = {path: path.stat().st_size for path in project_files()}
    assert sum(sizes.values()) < 55 * MIB
    assert sum(size for path, size in sizes.items() if path.is_relative_to(PACKAGE / "release")) < 35 * MIB


@pytest.mark.parametrize("pattern", [MACHINE_PATH, REGISTRY_HOST], ids=["machine path", "registry host"])
def test_files_name_no_machine(pattern):
    found = {path.name: match[0] for path in project_files() if (match := pattern.search(_bytes(path)))}
    assert not found


def test_files_name_no_registry_of_this_machine():
    hosts = {urlsplit(os.environ.get(name, "")).hostname or "" for name in REGISTRY_SETTINGS} - {"", "localhost"}
    found = {(str(path), host) for path in project_files() for host in hosts if host.encode() in _bytes(path)}
    assert not found


def test_machine_patterns_find_what_they_are_for():
    assert MACHINE_PATH.search(b"see " + b"/".join([b"", b"work", b"x"]))
    assert MACHINE_PATH.search(b"/".join([b"", b"tmp", b"plan"]))
    assert REGISTRY_HOST.search(b"https://pypi" + b".org")


def _bytes(path: Path) -> bytes:
    return path.read_bytes()


# --- pages -----------------------------------------------------------------------------------------------------------


def test_readme_begins_with_the_two_commands():
    blocks = fenced_blocks((ROOT / "README.md").read_text())[:2]
    assert {language for language, _ in blocks} <= {"sh", "bash"}
    assert [body.splitlines() for _, body in blocks] == [
        ["pip install -q uv", "uv run voxinstruct demo"],
        ["pip install -q uv", "uv run --all-extras --group dev pytest -q -n 2"],
    ]


def test_readme_leaves_no_figure_open():
    assert "TODO" not in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    broken = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_examples_compile_and_use_public_names(page):
    import voxinstruct_jax as vox

    for language, body in fenced_blocks(page.read_text()):
        if language == "python":
            used = [node for node in ast.walk(ast.parse(body)) if isinstance(node, ast.Attribute)]
            names = {node.attr for node in used if isinstance(node.value, ast.Name) and node.value.id == "vox"}
            assert names <= set(vox.__all__)


def documented_commands() -> list[str]:
    """Every command line of ours in shell blocks, inline code and the docstrings of configurations."""
    ours = re.compile(r"(?:^|\s)(voxinstruct [a-z]|python -m voxinstruct_jax\.|(?:python )?launch/\w)")
    found = {}
    for page in PAGES:
        text = page.read_text()
        lines = [line for language, body in fenced_blocks(text) if language in ("sh", "bash")
                 for line in body.replace("\\\n", " ").splitlines()]  # fmt: skip
        inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
        found |= dict.fromkeys(line for line in [*lines, *inline] if ours.search(line))
    for config in sorted((ROOT / "configs").glob("*.py")):
        found |= dict.fromkeys(re.findall(r"^Run: (.*)$", config.read_text(), re.MULTILINE))
    return list(found)


class ParsedError(Exception):
    """Stands in for the work of a command whose arguments were right."""


@pytest.mark.parametrize("line", documented_commands())
def test_documented_commands_parse(line, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    words = shlex.split(line.split(" > ")[0])
    if "voxinstruct" in words:
        command, *arguments = words[words.index("voxinstruct") + 1 :]
        assert command in COMMANDS
        if command == "train":
            _parse_train(arguments, monkeypatch)
        else:
            kind = (
                arguments[:1] if command == "convert" and {*arguments[:1]} & {*PORTS, "kmeans", "voxinstruct"} else []
            )
            with pytest.raises(SystemExit, match=r"^0$"):
                main([command, *kind, "--help"])
            if command == "plan" and arguments:
                arguments = _take_overrides(arguments)
            _check_options(arguments, capsys.readouterr().out)
    elif "-m" in words:
        module, *arguments = words[words.index("-m") + 1 :]
        with pytest.raises(SystemExit, match=r"^0$"):
            importlib.import_module(module).main(["--help"])
        _check_options(arguments, capsys.readouterr().out)
    else:
        place = next(index for index, word in enumerate(words) if word.startswith("launch/"))
        script, arguments = ROOT / words[place], words[place + 1 :]
        assert script.is_file()
        if arguments:
            _check_options(arguments, run(sys.executable, script, "--help").stdout)


def _take_overrides(arguments: list[str]) -> list[str]:
    """Applies `--a.b value` to the experiment that is named first; returns the other arguments."""
    dotted = [place for place, word in enumerate(arguments) if word.startswith("--") and "." in word]
    overrides = [arguments[place + offset] for place in dotted for offset in (0, 1)]
    override(load_experiment(arguments[0]), overrides, program="plan")
    return [word for place, word in enumerate(arguments) if place not in {*dotted, *(place + 1 for place in dotted)}]


def _parse_train(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs `train` up to the point where it would open data."""

    def stop(*_, **__):
        raise ParsedError

    monkeypatch.setattr("voxinstruct_jax.training.experiment.build_task", stop)
    monkeypatch.setattr("voxinstruct_jax.training.units.train_units", stop)
    with pytest.raises((ParsedError, SystemExit)) as left:
        main(["train", *arguments])
    assert left.type is ParsedError or left.value.code in (0, None)


def _check_options(arguments: list[str], shown: str) -> None:
    known = set(re.findall(r"--[a-z][a-z.-]*[a-z]", shown))
    assert {word for word in arguments if word.startswith("--")} <= known


# --- architecture ----------------------------------------------------------------------------------------------------


def rooms() -> set[str]:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    return folders | {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}


def documented_layers() -> list[set[str]]:
    """Rooms of each row of the table in architecture.md, top first."""
    cells = re.findall(r"^\| \d+ \| (.*?) \|", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
    return [set(re.findall(r"`(\w+)(?:/|\.py)`", cell)) for cell in cells]


def test_architecture_names_each_room_and_no_other():
    assert set().union(*documented_layers()) == rooms()


def test_architecture_has_the_order_of_the_import_contract():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    assert documented_layers() == [set(layer.replace(" ", "").split("|")) & rooms() for layer in layers]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_of_code_on_pages_exist(page):
    named = re.findall(rf"`((?:{'|'.join(sorted(rooms()))})(?:\.\w+)+)`", page.read_text())
    missing = [name for name in named if not name.endswith((".py", ".json")) and not _exists(name.split("."))]
    assert not missing


def _exists(parts: list[str]) -> bool:
    """Finds a dotted name below the package by reading code, without importing it."""
    place = PACKAGE
    while parts and (place / parts[0]).is_dir():
        place, parts = place / parts[0], parts[1:]
    if not parts:
        return True
    module = place / f"{parts[0]}.py"
    return module.is_file() and _defines(ast.parse(module.read_text()).body, parts[1:])


def _defines(body: list[ast.stmt], parts: list[str]) -> bool:
    if not parts:
        return True
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == parts[0]:
            return _defines(node.body if isinstance(node, ast.ClassDef) else [], parts[1:])
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names = {name.id for target in targets if target for name in ast.walk(target) if isinstance(name, ast.Name)}
        if parts[0] in names:
            return len(parts) == 1
    return False
