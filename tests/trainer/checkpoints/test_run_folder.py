"""Checkpoints on disk: complete or absent, whenever the process is killed; the newest and the best are kept."""

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shards.lock
from shards.atomic import atomic_write
from shards.errors import UserError
from trainer.checkpoints.checkpoint import State, read_state
from trainer.checkpoints.run_folder import RunFolder

PAYLOAD = b"x" * 100_000
CALLS = ("fsync", "replace", "rename", "symlink", "unlink", "rmdir", "mkdir")
"""Calls by which a save changes the disk; the process is killed before one of them."""


def writer(step: int, held_out: float | None = None) -> Callable[[Path], None]:
    state = State(step, {"dual": {"epoch": 0, "samples": step}}, 1, held_out, {}, {}, [])

    def write(folder: Path) -> None:
        atomic_write(folder / "tensors", PAYLOAD + bytes([step]))
        atomic_write(folder / "state.json", json.dumps({"version": 1, **vars(state)}).encode())

    return write


def opened(folder: Path, keep: int = 2) -> RunFolder:
    run = RunFolder(folder, keep)
    run.open()
    return run


def names(run: RunFolder) -> list[str]:
    """Return the names in `checkpoints/`, without the lock."""
    return sorted(path.name for path in run.checkpoints.iterdir() if path.name != ".lock")


def step_of(folder: Path | None) -> int:
    """Return the step of a complete checkpoint."""
    assert folder
    step = read_state(folder).step
    assert folder.name == f"step-{step:07d}"
    assert (folder / "tensors").read_bytes() == PAYLOAD + bytes([step])
    return step


def killed_save(folder: Path, call: int) -> bool:
    """Save step 3 (keep 1) in a process killed before its `call`-th change to the disk; return whether it was."""
    child = os.fork()
    if child == 0:
        left = call

        def before(function: Callable[..., object]) -> Callable[..., object]:
            def wrapped(*args: object, **kwargs: object) -> object:
                nonlocal left
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **kwargs)

            return wrapped

        try:
            run = opened(folder, keep=1)
            for name in CALLS:
                setattr(os, name, before(getattr(os, name)))
            run.save(3, 0, writer(3))
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_a_save_killed_at_any_moment_leaves_a_complete_checkpoint(tmp_path: Path):
    found = []
    for call in range(100):
        folder = tmp_path / str(call)
        run = opened(folder, keep=1)
        run.save(2, 0, writer(2))
        run.close()
        killed = killed_save(folder, call)
        run = opened(folder, keep=1)
        found.append(step_of(run.latest()))
        # No leftovers; between `latest` and the rotation two checkpoints are rightly there.
        assert set(names(run)) <= {"latest", "step-0000002", "step-0000003"}
        assert step_of((folder / "checkpoint").resolve()) == found[-1]
        run.save(4, 0, writer(4))
        assert names(run) == ["latest", "step-0000004"] and step_of(run.latest()) == 4
        run.close()
        if not killed:
            break
    assert not killed and len(found) > 10
    assert found == sorted(found) and set(found) == {2, 3}


def test_the_newest_and_the_best_checkpoint_are_kept(tmp_path: Path):
    run = opened(tmp_path)
    held_out = {1: 0.9, 2: 0.4, 3: None, 4: float("nan"), 5: 0.5, 6: 0.6}
    for step, loss in held_out.items():
        assert step_of(run.save(step, 0, writer(step, loss))) == step
    assert names(run) == ["best", "latest", "step-0000002", "step-0000005", "step-0000006"]
    assert step_of((run.checkpoints / "best").resolve()) == 2
    run.save(7, 0, writer(7, 0.3))
    assert names(run) == ["best", "latest", "step-0000006", "step-0000007"]
    assert step_of((run.checkpoints / "best").resolve()) == 7
    run.close()


def test_a_second_run_in_the_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shards.lock, "_PATIENCE", 0.2)
    run = opened(tmp_path)
    with pytest.raises(UserError, match="another run is writing here"):
        opened(tmp_path)
    run.close()
    opened(tmp_path).close()


def test_weights_that_cannot_be_resumed_are_not_replaced(tmp_path: Path):
    (tmp_path / "checkpoint").mkdir()
    with pytest.raises(UserError, match="cannot be resumed stand here"):
        opened(tmp_path)


def test_checkpoints_whose_link_was_lost_are_not_removed(tmp_path: Path):
    run = opened(tmp_path)
    run.save(5, 0, writer(5))
    run.close()
    (run.checkpoints / "latest").unlink()  # as a copy without links leaves it
    with pytest.raises(UserError, match=r"none is the latest.*ln -s step-0000005 .*/checkpoints/latest"):
        opened(tmp_path)
    assert step_of(run.checkpoints / "step-0000005") == 5


def test_a_write_that_fails_leaves_the_previous_checkpoint(tmp_path: Path):
    run = opened(tmp_path)
    run.save(1, 0, writer(1))

    def fail(folder: Path) -> None:
        writer(2)(folder)
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError) as raised:
        run.save(2, 123_456, fail)
    message = str(raised.value)
    assert "the checkpoint of step 2 could not be written; met No space left on device, " in message
    assert "bytes free; wanted 123,456 bytes; step-0000001 stands as it was; make room" in message
    assert names(run) == ["latest", "step-0000001"] and step_of(run.latest()) == 1
    run.close()


def test_a_damaged_state_of_an_earlier_checkpoint_does_not_end_a_run(tmp_path, caplog):
    run = opened(tmp_path)
    run.save(1, 0, writer(1, 0.5))
    (run.checkpoints / "step-0000001" / "state.json").write_text("{")
    assert step_of(run.save(2, 0, writer(2, 0.7))) == 2
    assert step_of((run.checkpoints / "best").resolve()) == 2
    assert "state.json: cannot be read as JSON" in caplog.text
    run.close()


def refuse_removal(monkeypatch: pytest.MonkeyPatch, refused: str) -> None:
    """Let `rmtree` fail for folders whose name contains `refused`, as on NFS while a file is open."""
    rmtree = shutil.rmtree

    def busy(path: Path, *args: Any, **options: Any) -> None:
        if refused in Path(path).name:
            raise OSError(errno.EBUSY, "Device or resource busy", str(path))
        rmtree(path, *args, **options)

    monkeypatch.setattr(shutil, "rmtree", busy)


def test_an_old_checkpoint_that_cannot_be_removed_ends_no_run(tmp_path, monkeypatch, caplog):
    run = opened(tmp_path, keep=1)
    run.save(1, 0, writer(1))
    with monkeypatch.context() as patch:
        refuse_removal(patch, "step-0000001")
        leftover = ".step-0000001.0.old.tmp"
        assert step_of(run.save(2, 0, writer(2))) == 2
        assert (
            f"{run.checkpoints / leftover}: this folder could not be removed (Device or resource busy)" in caplog.text
        )
        assert "the next checkpoint tries again" in caplog.text
        assert names(run) == sorted([leftover, "latest", "step-0000002"]) and step_of(run.latest()) == 2
        caplog.clear()
        assert step_of(run.save(3, 0, writer(3))) == 3
        assert leftover in caplog.text and names(run) == sorted([leftover, "latest", "step-0000003"])
    run.save(4, 0, writer(4))
    assert names(run) == ["latest", "step-0000004"]
    run.close()


def test_an_old_checkpoint_that_cannot_be_renamed_is_removed_later(tmp_path, monkeypatch, caplog):
    run = opened(tmp_path, keep=1)
    run.save(1, 0, writer(1))
    replace = os.replace

    def denied(source: Path, target: Path) -> None:
        if Path(source).name == "step-0000001":
            raise PermissionError(errno.EACCES, "Permission denied", str(source))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", denied)
        run.save(2, 0, writer(2))
        assert f"{run.checkpoints / 'step-0000001'}: this folder could not be removed (Permission" in caplog.text
    assert names(run) == ["latest", "step-0000001", "step-0000002"]
    run.save(3, 0, writer(3))
    assert names(run) == ["latest", "step-0000003"]
    run.close()


def test_leftovers_that_cannot_be_removed_do_not_stop_a_run(tmp_path, monkeypatch, caplog):
    """A folder half-written by a killed run, and a complete checkpoint that did not count yet, of the next step."""
    run = opened(tmp_path, keep=1)
    run.save(1, 0, writer(1))
    run.close()
    for name in (".step-0000002.tmp", "step-0000003"):
        (run.checkpoints / name).mkdir()
        writer(9)(run.checkpoints / name)
    with monkeypatch.context() as patch:
        refuse_removal(patch, "step-000000")
        run = opened(tmp_path, keep=1)
        assert step_of(run.latest()) == 1 and caplog.text.count("could not be removed") == 2
        for step in (2, 3):
            assert step_of(run.save(step, 0, writer(step))) == step
    run.save(4, 0, writer(4))
    assert names(run) == ["latest", "step-0000004"]
    run.close()
