"""Saves beside the training: one at a time, and no error of one is lost."""

from __future__ import annotations

import threading

import pytest

from shards.errors import UserError
from trainer.checkpoints.background import BackgroundWriter
from trainer.checkpoints.run_folder import RunFolder


def test_the_second_save_waits_for_the_first():
    writer = BackgroundWriter()
    go_on = threading.Event()
    done: list[str] = []

    def first() -> None:
        go_on.wait(30)
        done.append("first")

    writer.start(first)
    writer.check()  # does not wait
    assert done == []
    threading.Timer(0.05, go_on.set).start()
    writer.start(lambda: done.append(f"second after {done}"))
    writer.wait()
    assert done == ["first", "second after ['first']"]


def test_an_error_is_raised_once_by_the_next_call():
    def fail() -> None:
        raise UserError("the disk is full")

    for call in (BackgroundWriter.wait, BackgroundWriter.check, lambda writer: writer.start(print)):
        writer = BackgroundWriter()
        writer.start(fail)
        assert writer._thread is not None
        writer._thread.join()
        with pytest.raises(UserError, match="the disk is full"):
            call(writer)
        writer.check()
        writer.wait()


def test_closing_the_folder_waits_and_logs_the_error(tmp_path, caplog):
    """The run ends for another reason: the folder stays locked while it is written to."""
    folder = RunFolder(tmp_path, 1)
    folder.open()
    locked = []

    def fail() -> None:
        locked.append(folder._lock is not None)
        raise UserError("the disk is full")

    folder.writer.start(fail)
    folder.close()
    assert locked == [True] and "the disk is full" in caplog.text
