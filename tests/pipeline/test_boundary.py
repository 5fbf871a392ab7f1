"""Exceptions are sorted by the data, the machine or this program, and each names the input."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import tokenize
from pathlib import Path

import numpy as np
import pytest

from pipeline.boundary import ProgramError, input_errors
from pipeline.sources import source_named
from pipeline.sources.coco import Coco
from pipeline.sources.folder import FolderSource
from pipeline.sources.sav import Sav
from shards.errors import BadInput, DroppedInput, UserError
from shards.manifest import Manifest, read_ledger
from tests.layouts import CASES

INPUT = "a/1.jpg"


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError


def raised(error: BaseException, root: Path = Path("/data/raw")) -> UserError:
    """Return the error that `input_errors` makes of `error`."""
    with pytest.raises(UserError) as caught, input_errors(root, INPUT):
        raise error
    return caught.value


OF_THE_DATA = [
    RecursionError("maximum recursion depth exceeded"),
    tokenize.TokenError("EOF in multi-line statement", (2, 0)),
    KeyError("size"),
    OverflowError("cannot convert float infinity to integer"),
    SyntaxError("broken PNG file"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    SystemError("tile cannot extend outside image"),
    StopIteration(),
    Unprintable(),
    OSError(errno.EACCES, "Permission denied", "/data/raw/a/1.jpg"),
    UserError("not a whole pickle", where="/data/raw/x.p"),
]


@pytest.mark.parametrize("error", OF_THE_DATA, ids=lambda error: type(error).__name__)
def test_what_a_library_raises_on_data_is_a_bad_input(error):
    bad = raised(error)
    assert type(bad) is BadInput and bad.where == INPUT and bad.met
    assert isinstance(error, UserError) or type(error).__name__ in bad.what
    assert "/data/raw" not in str(bad)


def test_the_values_in_messages_are_kept(tmp_path):
    bad = raised(KeyError("counts"))
    assert (bad.what, bad.wanted) == ("cannot be read: KeyError", "a sound input")
    assert re.fullmatch(r"'counts' \(pipeline/boundary\.py:\d+\)", bad.met)
    inner = raised(BadInput("no mask", where="/data/raw/m/1.png", met="mode F", wanted="mode L", do="convert it"))
    assert str(inner) == f"{INPUT}: no mask; met m/1.png: mode F; wanted mode L; convert it"
    dropped = raised(DroppedInput("no annotated object"))
    assert type(dropped) is DroppedInput and str(dropped) == f"{INPUT}: no annotated object"


def test_no_address_comes_into_the_ledger():
    """Messages of the ledger hold no memory address, so a set's bytes are equal in every run."""
    assert " at 0x" not in str(raised(ValueError(f"cannot read {io.BytesIO()!r}")))
    assert len(str(raised(ValueError("x" * 100_000)))) < 500


def test_a_claim_of_more_memory_than_any_machine_has_is_a_bad_input():
    with pytest.raises(BadInput, match="MemoryError"), input_errors(Path("/data"), INPUT):
        np.empty((1 << 40, 1 << 10))


def wrapped(inner: BaseException) -> BaseException:
    """Wrap an exception in another, as readers wrap what they catch."""
    try:
        try:
            raise inner
        except BaseException:
            raise BadInput("cannot be read") from None
    except BadInput as error:
        return error


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE])
def test_missing_disk_or_memory_is_not_a_bad_input(number):
    for error in (OSError(number, os.strerror(number)), wrapped(OSError(number, os.strerror(number)))):
        captured = raised(error)
        assert not isinstance(captured, BadInput) and captured.where == INPUT and os.strerror(number) in captured.met
    for error in (MemoryError(), wrapped(MemoryError())):
        captured = raised(error)
        assert not isinstance(captured, BadInput) and captured.what == "out of memory" and "--workers" in captured.do


@pytest.mark.parametrize("error", [NameError("name 'x' is not defined"), ImportError("No module named 'x'")])
def test_a_fault_of_the_program_names_the_input_and_keeps_its_traceback(error):
    captured = raised(error)
    assert isinstance(captured, ProgramError) and captured.where == INPUT and str(error) in captured.met
    file = Path(re.search(r"\S+\.txt", captured.do)[0])
    assert "Traceback" in file.read_text() and INPUT in file.read_text()
    file.unlink()


def test_asserts_of_libraries_are_bad_inputs_and_ours_are_program_faults():
    assert type(raised(AssertionError())) is BadInput  # raised by this test, which is not of the package
    source = compile("def fail(): raise NotImplementedError", str(Path(Sav.load.__code__.co_filename)), "exec")
    names: dict = {}
    exec(source, names)
    with pytest.raises(ProgramError) as caught, input_errors(Path("/data"), INPUT):
        names["fail"]()
    Path(re.search(r"\S+\.txt", caught.value.do)[0]).unlink()


# Through the commands


def root_of(tmp_path: Path, source: str = "folder") -> Path:
    CASES[source].write(tmp_path / "raw")
    return tmp_path / "raw"


@pytest.mark.parametrize("source", ["gcg", "mevis", "sa1b"])
def test_any_exception_of_load_goes_to_the_ledger(source, tmp_path, here, monkeypatch):
    """The ledger names the kind that is raised, and the run goes on. Verify and estimate name it too."""
    root = root_of(tmp_path, source)
    kind = type(source_named(source))
    load = kind.load
    first = []

    def fail_once(self, root, path, options, parts):
        first[:] = first or [path]
        if path == first[0]:
            raise tokenize.TokenError("EOF in multi-line statement", (2, 0))
        return load(self, root, path, options, parts)

    monkeypatch.setattr(kind, "load", fail_once)
    arguments = ["--source", source, "--root", root, *CASES[source].options]
    captured = here("shard", *arguments, "--out", tmp_path, "--workers", 1, "--max-bad", 1)
    one_left = CASES[source].samples > 1
    assert (captured.returncode == 0) == one_left
    lines = read_ledger(tmp_path / source)
    assert (lines[0].path, lines[0].reason, lines[0].bad) == (first[0], "cannot be read: TokenError", True)
    assert "EOF in multi-line statement" in lines[0].detail
    lines = [line for line in captured.stderr.splitlines() if line.startswith("bad input, the first of its kind: ")]
    assert len(lines) == 1 and first[0] in lines[0] and "EOF in multi-line statement" in lines[0]
    assert here("estimate", *arguments, "--out", tmp_path / "x").returncode == (0 if one_left else 1)


def test_a_fault_of_the_program_ends_the_run_in_one_line(tmp_path, here, monkeypatch):
    def load(self, root, path, options, parts):
        return undefined  # noqa: F821

    monkeypatch.setattr(FolderSource, "load", load)
    for verb in (("shard", "--workers", 1), ("estimate",)):
        if not (tmp_path / "raw").exists():
            root_of(tmp_path)
        captured = here(*verb, "--source", "folder", "--root", tmp_path / "raw", "--out", tmp_path)
        (line,) = [line for line in captured.stderr.splitlines() if line.startswith("error: ")]
        assert captured.returncode == 1 and "a.jpg#1: a fault of this program" in line and "'undefined'" in line
        assert "Traceback" not in captured.stderr
        Path(re.search(r"\S+\.txt", line)[0]).unlink()


def test_a_verification_names_what_cannot_be_read_again(tmp_path, here, monkeypatch):
    root = root_of(tmp_path, "sa1b")
    arguments = ("--source", "sa1b", "--root", root, "--out", tmp_path, "--workers", 1)
    assert here("shard", *arguments).returncode == 0

    def load(self, root, path, options, parts):
        raise RecursionError("maximum recursion depth exceeded")

    monkeypatch.setattr(type(source_named("sa1b")), "load", load)
    captured = here("verify-shard", tmp_path / "sa1b", "--against", root, "--workers", 1)
    assert captured.returncode == 1 and "cannot be derived again: cannot be read: RecursionError" in captured.stdout


def test_faults_caused_by_annotations_are_one_line_with_their_place(tmp_path, here, monkeypatch):
    root = root_of(tmp_path, "coco")
    monkeypatch.setattr("pipeline.sources.coco.id_of", lambda record, key="id": record["no such key"])
    captured = here("shard", "--source", "coco", "--root", root, "--out", tmp_path / "out", "--workers", 1)
    (line,) = captured.stderr.splitlines()
    assert captured.returncode == 1
    assert line.startswith(f"error: {root}/annotations/instances_train2017.json, entry 1: ")
    assert "KeyError: 'no such key' (pipeline/sources/coco.py:" in line and "docs/datasets/" in line
    assert not (tmp_path / "out" / "coco").exists()


@pytest.mark.parametrize("verb", [("shard", "--dry-run"), ("estimate",)])
def test_folders_that_cannot_be_listed_are_one_line(verb, tmp_path, here, monkeypatch):
    def find(self, root, choices, records):
        raise PermissionError(errno.EACCES, "Permission denied", str(root / "secret"))

    monkeypatch.setattr(Coco, "find", find)
    captured = here(*verb, "--source", "coco", "--root", tmp_path, "--out", tmp_path / "out")
    (line,) = captured.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path}/secret: cannot be read; met Permission denied")


def kill_over(path: str, number: int):
    """`load` kills its process over one input, as a faulty decoder would."""
    load = Sav.load

    def dies(self, root, name, options, parts=()):
        if name == path:
            os.kill(os.getpid(), number)
        return load(self, root, name, options, parts)

    return dies


@pytest.mark.slow
def test_a_worker_that_dies_is_named_with_its_input(sav_root, tmp_path):
    """Run it in processes of its own. There the fault has to be put in by the module that they import."""
    script = (
        "import os, signal\n"
        "from pipeline.sources.sav import Sav\n"
        "load = Sav.load\n"
        "def dies(self, root, name, options, parts=()):\n"
        "    if name == 'sav_coffee/masklet_data_00001.npz' and os.environ.get('DIE_IN') != str(os.getpid()):\n"
        "        os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    return load(self, root, name, options, parts)\n"
        "Sav.load = dies\n"
        "import cli, sys\n"
        "if __name__ == '__main__':\n"
        "    os.environ['DIE_IN'] = str(os.getpid())\n"
        "    cli.main()\n"
    )
    (tmp_path / "run.py").write_text(script)
    arguments = ["--source", "sav", "--root", sav_root, "--out", tmp_path, "--shard-size", "10MB", "--workers", 2]
    call = [sys.executable, tmp_path / "run.py", "shard", *arguments]
    done = subprocess.run([*map(str, call)], capture_output=True, text=True)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and "a worker process died" in line
    assert f"{signal.SIGSEGV.name} while it read sav_coffee/masklet_data_00001.npz" in line
    assert not [*(tmp_path / "sav" / ".work").glob("*.tmp")]


def test_a_killed_run_names_its_input_when_it_goes_on(sav_root, tmp_path, here):
    arguments = ["--source", "sav", "--root", sav_root, "--out", tmp_path, "--workers", 1, "--shard-size", "10MB"]
    if (child := os.fork()) == 0:  # killed in the middle of an input, with all that it holds
        try:
            Sav.load = kill_over("sav_coffee/masklet_data_00001.npz", signal.SIGKILL)
            options = {"value_range": 255}
            Sav.options = lambda *_: options
            import pipeline.plan

            pipeline.plan._PROBES = 1
            here("shard", *arguments)
        finally:
            os._exit(0)  # whatever happened: it must never go on as a second copy of the test run
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    captured = here("shard", *arguments)
    assert captured.returncode == 0
    assert "was killed while it read: sav_coffee/masklet_data_00001.npz; if this" in captured.stderr
    assert Manifest.read(tmp_path / "sav").samples == 12


# Sets of nothing


def test_a_set_without_a_sample_is_an_error(tmp_path, here):
    root = root_of(tmp_path)
    lines = [
        json.loads(line) if line != "broken" else line
        for line in (root / "samples.jsonl").read_text().split("\n")
        if line.startswith("{")
    ]
    (root / "samples.jsonl").write_text("".join(json.dumps({**line, "objects": []}) + "\n" for line in lines))
    arguments = ["--source", "folder", "--root", root, "--out", tmp_path]
    captured = here("shard", *arguments, "--workers", 1)
    (line,) = [line for line in captured.stderr.splitlines() if line.startswith("error: ")]
    assert (
        captured.returncode == 1
        and "not one sample; met 2 inputs left out: 2 x no annotated object; the first: a.jpg#1" in line
    )
    assert not (tmp_path / "folder" / "manifest.json").exists()
    assert len(read_ledger(tmp_path / "folder")) == 2
    assert "; found: 2 lines" in line
    captured = here("estimate", *arguments)
    assert captured.returncode == 1 and "not one sample" in captured.stderr
