"""The command line as a user types it: real subprocesses on real files."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

import cli as program
from shards.errors import UserError
from shards.size import parse_size

REPOSITORY = Path(__file__).parents[1]


def cli(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "cli.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


@pytest.mark.parametrize("text, size", [("1GB", 10**9), ("64MiB", 64 << 20), ("1.5 mb", 1_500_000), ("4096", 4096)])
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1 parsec", "0"])
def test_wrong_sizes(text):
    with pytest.raises(UserError, match=r"data\.cache_limit: not a size"):
        parse_size(text, "data.cache_limit")


@pytest.mark.slow
def test_shard_verify_and_preview_with_the_defaults(sav_root, tmp_path):
    """`shard --source sav --out shards/` reads data/sav; then verify-shard and preview, as in the README."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sav").symlink_to(sav_root)
    sharded = cli("shard", "--source", "sav", "--out", "shards/", cwd=tmp_path)
    assert sharded.returncode == 0, sharded.stderr
    for word in ("samples written", "12", "bytes", "seconds"):
        assert word in sharded.stdout
    assert "sample/s" in sharded.stderr  # rate; the time left stands before it
    verified = cli("verify-shard", "shards/sav", "--against", "data/sav", cwd=tmp_path)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    for field in ("pixel_values1", "g_pixel_values2", "prompt_masks1", "masks2"):
        assert field in verified.stdout
    shown = cli("preview", "shards/sav", "--samples", "2", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    page = tmp_path / shown.stdout.removeprefix("preview: ").strip()
    assert page.suffix == ".html" and list(page.parent.glob("*.png"))


def test_verify_says_which_sample_differs_from_the_raw_files(here, sav_root, sav_set, tmp_path):
    raw = tmp_path / "raw"
    shutil.copytree(sav_root, raw)
    changed = raw / "sav_chelsea" / "masklet_data_00000.npz"
    with np.load(changed) as stored:
        arrays = {name: stored[name] for name in stored.files}
    arrays["frame2"][100, 100, 0] = 255 - arrays["frame2"][100, 100, 0]
    np.savez(changed, **arrays)
    done = here("verify-shard", sav_set, "--against", raw, "--json", "--workers", 1)
    assert done.returncode == 1
    failures = json.loads(done.stdout)["failures"]
    assert failures and all("masklet_data_00000" in failure["key"] for failure in failures)
    assert {failure["field"] for failure in failures} <= {"pixel_values2", "g_pixel_values2"}


def test_verify_says_that_raw_files_are_missing_from_the_shards(here, sav_root, sav_set, tmp_path):
    raw = tmp_path / "raw"
    shutil.copytree(sav_root, raw)
    shutil.copy(raw / "sav_rocket" / "masklet_data_00000.npz", raw / "sav_rocket" / "masklet_data_00001.npz")
    done = here("verify-shard", sav_set, "--against", raw, "--workers", 1)
    assert done.returncode == 1 and "raw files" in done.stdout


@pytest.mark.parametrize("verb", ["verify-shard", "preview"])
def test_a_folder_that_is_no_shard_set(here, verb, tmp_path):
    done = here(verb, tmp_path)
    assert done.returncode == 1
    assert "manifest" in done.stdout + done.stderr


VERBS = [verb.__name__.replace("_", "-") for verb in program.VERBS]


@pytest.mark.parametrize("verb", [None, *VERBS])
def test_help_names_the_command_as_called_and_is_not_cut(here, verb):
    done = here(*([verb] if verb else []), "--help")
    assert done.returncode == 0
    usage, *lines = done.stdout.splitlines()
    assert usage.startswith(" ".join(["Usage: python", *done.args[:1], *([verb] if verb else [])]))
    # Below a long path the usage line is broken before its repeated argument.
    assert not [line for line in lines if line.rstrip().endswith("...") and not line.endswith("]...")]


def test_help_lists_every_verb_with_a_sentence(here):
    listed = here("--help").stdout.partition("Commands:\n")[2]
    starts = [line.split()[0] for line in listed.splitlines() if line[2] != " "]
    assert starts == VERBS
    assert len([line for line in listed.splitlines() if line.endswith(".")]) == len(VERBS)


def test_the_installed_command_names_itself(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["/some/bin/sa2va-shards", "stats", str(tmp_path)])
    with pytest.raises(SystemExit, match="finish the set with the same `sa2va-shards shard` command"):
        program.main()
    monkeypatch.setattr(sys, "argv", ["/some/bin/sa2va-shards", "stats", "--help"])
    with pytest.raises(SystemExit) as end:
        program.main()
    assert not end.value.code and capsys.readouterr().out.startswith("Usage: sa2va-shards stats ")


def test_version(here):
    done = here("--version")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [f"{name} {version(name)}" for name in ("sa2va-shards", "torch")]


@pytest.mark.slow
@pytest.mark.parametrize(
    "verb, module, extra",
    [
        (["shard", "--source", "sav", "--out", "x"], "pipeline.plan", None),
        (["shard", "--source", "sav", "--out", "x"], "tqdm", "pipeline"),
        (["shard", "--source", "coco", "--out", "x"], "pycocotools", "pipeline"),
        (["estimate", "--source", "coco"], "pycocotools", "pipeline"),
        (["merge", "x"], "tqdm", "pipeline"),
        (["export", "--checkpoint", "x", "--out", "y"], "torch", "train"),
        (["predict", "--model", "x"], "torch", "train"),
        (["evaluate", "--model", "x", "--shards", "y"], "torch", "train"),
        (["doctor"], "torch", "train"),
        (["rows"], "torch", "train"),
    ],
)
def test_a_verb_whose_packages_are_missing_says_what_to_install(verb, module, extra, tmp_path):
    code = f"import sys; sys.modules[{module!r}] = None\nimport cli\nsys.argv = ['cli.py', *{verb!r}]\ncli.main()"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 1
    if extra is None:  # one of ours: a bug, not a missing package
        assert "Traceback" in done.stderr
    else:
        last = done.stderr.splitlines()[-1]
        assert last.startswith("error: a package is missing") and module in last
        assert last.endswith(f'; pip install "sa2va-shards[{extra}]"') and "Traceback" not in done.stderr
