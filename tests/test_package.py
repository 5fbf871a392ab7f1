"""The wheel: what it holds, and that each package imports only what its extra installs."""

import ast
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
DISTRIBUTIONS = {
    "backports": "backports.zstd",
    "compression": "backports.zstd",  # the standard library's name for it, from Python 3.14 on
    "megatron": "megatron-energon",
    "PIL": "pillow",
    "yaml": "pyyaml",
    "google": "protobuf",
    "pydantic_core": "pydantic",
}
BROUGHT_ALONG = {"markupsafe": "jinja2", "starlette": "gradio"}
"""Packages that a listed one always installs."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    names = subprocess.check_output(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=REPOSITORY, text=True
    ).splitlines()
    for name in names:
        if (REPOSITORY / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((REPOSITORY / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", folder, source], check=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_holds_what_the_code_needs_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    code = {p for p in names if p.endswith(".py")}
    rooms = ("browsing", "commands", "evaluation", "inference", "pipeline", "serving", "shards", "trainer")
    tracked = subprocess.check_output(["git", "ls-files", "*.py"], cwd=REPOSITORY, text=True).split()
    assert code >= {name for name in tracked if name.split("/")[0] in rooms} | {"cli.py"}
    assert {name.split("/")[0] for name in code} == {*rooms, "cli.py"}
    needed = {"trainer/configs/sa2va.yaml", *(f"trainer/launch/{name}.yaml" for name in ("ddp", "fsdp2", "zero2"))}
    assert names >= needed
    assert {f"{room}/py.typed" for room in rooms} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_a_fresh_folder_imports_the_wheel(wheel, tmp_path, small_set):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = "import shards, sys; print(shards.__file__, len(shards.open_set(sys.argv[1])))"
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code, small_set], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.stdout.split() == [str(tmp_path / "shards" / "__init__.py"), "8"], done.stderr


def test_without_the_command_lines_packages_one_line_says_what_to_install():
    code = "import sys; sys.modules['typer'] = None; import cli"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 1
    assert done.stderr == 'error: the command line is not installed; pip install "sa2va-shards[pipeline]"\n'


def requirements(*extras: str) -> set[str]:
    """The distributions that the base and these extras name, extras that they include too."""
    names: set[str] = set()
    waiting = [*PROJECT["dependencies"], *(line for e in extras for line in PROJECT["optional-dependencies"][e])]
    while waiting:
        requirement = Requirement(waiting.pop())
        if requirement.name == PROJECT["name"]:
            waiting += [line for e in requirement.extras for line in PROJECT["optional-dependencies"][e]]
        else:
            names.add(requirement.name.lower())
    return names


def imported(path: Path, deferred: bool) -> set[str]:
    """The packages that a module imports: when it is imported itself, or also later."""
    tree = ast.parse(path.read_text("utf-8"))
    nodes = ast.walk(tree) if deferred else (n for top in tree.body for n in at_import(top))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    project = {p.name for p in REPOSITORY.iterdir()} | {"cli"}
    return {name for name in found if name not in sys.stdlib_module_names and name not in project}


def at_import(node: ast.stmt) -> list[ast.AST]:
    """The nodes that run when the module is imported; not those for type checkers, nor those with an alternative."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Try):
        return []
    if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
        return []
    return [*ast.walk(node)]


@pytest.mark.parametrize(
    ("room", "extras"),
    [
        ("pipeline", ["pipeline", "ray", "remote"]),
        ("commands", ["pipeline", "train"]),
        ("trainer", ["train", "deploy", "trackers"]),
        ("inference", ["train", "deploy"]),
        ("evaluation", ["train", "benchmark"]),
        ("serving", ["serve"]),
        ("shards", ["pipeline", "remote", "energon"]),
    ],
)
def test_a_package_imports_only_what_its_extras_install(room, extras):
    installed = requirements(*extras) | {"deepspeed"}  # asked for by name where it is missing
    for path in (REPOSITORY / room).rglob("*.py"):
        for name in imported(path, deferred=True):
            name = BROUGHT_ALONG.get(name, name)
            assert DISTRIBUTIONS.get(name, name).replace("_", "-").lower() in installed, (path, name)


def test_the_lock_pins_each_requirement_within_its_range():
    pins = dict(
        line.split("==")
        for line in (REPOSITORY / "requirements.lock").read_text().splitlines()
        if line.count("==") == 1
    )
    lines = [
        *PROJECT["dependencies"],
        *(
            line
            for e in ("pipeline", "train", "deploy", "ray", "benchmark")
            for line in PROJECT["optional-dependencies"][e]
        ),
    ]
    for line in lines:
        requirement = Requirement(line)
        if requirement.name not in (PROJECT["name"], "sam2"):
            assert requirement.specifier.contains(pins[requirement.name.lower()].split(";")[0].strip()), line
    for tool in ("ruff",):
        assert f'"{tool}=={pins[tool]}"' in (REPOSITORY / ".pre-commit-config.yaml").read_text()
