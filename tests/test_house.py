"""Tests of the structure: which package imports which, and which module resizes."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
ROOMS = {
    "browsing": {"evaluation", "shards", "trainer"},
    "commands": {"browsing", "evaluation", "inference", "pipeline", "serving", "shards", "trainer"},
    "evaluation": {"inference", "pipeline", "shards", "trainer"},
    "inference": {"pipeline", "shards", "trainer"},
    "pipeline": {"shards"},
    "serving": {"evaluation", "inference", "pipeline", "shards", "trainer"},
    "trainer": {"shards"},
    "shards": set(),
}
RESIZING = {"resize", "interpolate", "Upsample", "thumbnail", "reduce", "resized_crop", "adaptive_avg_pool2d", "zoom"}


def modules(room: str) -> list[Path]:
    return sorted((REPOSITORY / room).rglob("*.py"))


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("room", ROOMS)
def test_packages_import_only_what_the_table_allows(room):
    for path in modules(room):
        others = imported(path) & {"cli", "demo", *ROOMS} - {room}
        assert others <= ROOMS[room], path


@pytest.mark.parametrize(
    ("lower", "upper"), [("data", "objectives"), ("model", "objectives"), ("objectives", "measure")]
)
def test_the_trainers_folders_are_layers(lower, upper):
    for path in modules(f"trainer/{lower}"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert not node.module.startswith((f"trainer.{upper}", "trainer.measure")), path


def test_exactly_one_module_resizes():
    found = set()
    for room in ROOMS:
        for path in modules(room):
            tree = ast.parse(path.read_text("utf-8"))
            from_pipeline = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module == "pipeline"]
            calls_it = any(alias.name == "resize" for node in from_pipeline for alias in node.names)
            for node in ast.walk(tree):
                name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
                is_module = isinstance(node, ast.Attribute) and getattr(node.value, "id", "") in ("functools", "Image")
                is_module |= getattr(getattr(node, "value", None), "attr", "") == "_accelerator"  # over processes
                is_ours = calls_it and isinstance(node, ast.Name) and name == "resize"
                if name in RESIZING and not is_module and not is_ours:
                    found.add(path.relative_to(REPOSITORY).as_posix())
    assert found == {"pipeline/resize.py"}


def test_pictures_are_opened_with_a_list_of_formats_and_nowhere_without():
    opened = []
    for room in (*ROOMS, "demo", "benchmarks"):
        for path in modules(room):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.ImportFrom) and node.module == "PIL.Image":
                    assert "open" not in {alias.name for alias in node.names}, path
                if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Image.open", "PIL.Image.open"):
                    formats = [ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg == "formats"]
                    assert formats and formats != ["None"], f"{path}:{node.lineno}"
                    opened.append(path.relative_to(REPOSITORY).as_posix())
    assert {"pipeline/pictures.py", "shards/lossy.py"} <= {*opened}


VERBS = (
    *("shard", "estimate", "merge", "verify-shard", "recode", "split", "sample", "preview", "stats", "table"),
    *("overlap", "publish", "energon", "browse"),
    *("doctor", "evaluate", "export", "predict", "serve"),
)


def test_help_imports_nothing_heavy():
    code = (
        "import sys, cli\n"
        f"for words in ((), *((verb,) for verb in {VERBS!r})):\n"
        "    sys.argv = ['cli.py', *words, '--help']\n"
        "    try:\n        cli.main()\n    except SystemExit as end:\n        assert not end.code\n"
        "heavy = {'numpy', 'torch', 'PIL', 'transformers', 'backports.zstd', 'tqdm', 'pyarrow', 'duckdb'}\n"
        "heavy |= {'browsing', 'evaluation', 'gradio', 'starlette', 'uvicorn', 'inference', 'pipeline', 'serving'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "trainer = {name for name in sys.modules if name.split('.')[0] == 'trainer'}\n"
        "assert trainer <= {'trainer', 'trainer.objectives'}, trainer  # the objectives' names, without their modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage") == 1 + len(VERBS)


def test_git_ignores_data_below_shards_and_nothing_else_there():
    paths = ["shards/sav/sav-000000.tar", "shards/sav/manifest.json", "shards/reader.py", "data/sav/a.npz", "runs/x"]
    done = subprocess.run(["git", "check-ignore", *paths], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.stdout.split() == [path for path in paths if path != "shards/reader.py"]


MOST_LINES = 60
MOST_ARGUMENTS = 12


def test_functions_of_the_trainer_are_short_and_take_few_arguments():
    """The limits are 60 lines and the number of arguments below."""
    too_large = []
    for path in modules("trainer"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                parameters = node.args
                arguments = len(parameters.posonlyargs) + len(parameters.args) + len(parameters.kwonlyargs)
                if lines > MOST_LINES or arguments > MOST_ARGUMENTS:
                    too_large.append(f"{path}: {node.name}, {lines} lines, {arguments} arguments")
    assert not too_large
