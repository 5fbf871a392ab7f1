"""The log names the process that others wait for: a stopped one, or one that is behind."""

import logging
import os
import re
import signal
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from tests.joined import Joined
from tests.trainer.runs import SMALL, train_signalled, wait_for
from trainer.command import run_command
from trainer.stall import StallWatch


def soon(holds: Callable[[], object], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it does not come about"
        time.sleep(0.05)


def test_a_silent_process_and_a_slow_one_are_named(tmp_path: Path, caplog):
    caplog.set_level(logging.WARNING)
    watches = [StallWatch(tmp_path, rank, 3, 1.5, 1800) for rank in range(3)]
    with closing(watches[0]) as first, closing(watches[1]) as second, closing(watches[2]) as third:
        for watch in watches:
            watch.at("step 7")
        second.advance()
        for watch in watches:
            watch.start()
        soon(lambda: len(list((tmp_path / ".processes").glob("?.json"))) == 3)
        third._left.set()  # as a process that is stopped: it writes no more
        where = rf"\({re.escape(first._host)}, pid {os.getpid()}\), at step 7, which"
        behind = (
            rf"process 1 waits at step 7 for .*process 0 {where} is slower; process 2 {where} gives no sign of life.*"
        )
        # On a busy machine the first lines may say more.
        soon(lambda: any(re.fullmatch(f"{behind}the run ends after 1800 s .*", line) for line in caplog.messages))
        first.at("step 8")

        def goes_on() -> bool:
            second.at("step 8")
            return "process 1 goes on" in caplog.text

        soon(goes_on)
    (tmp_path / ".processes" / "2.json").unlink(missing_ok=True)
    assert not list(tmp_path.glob(".processes/*"))


def test_a_process_that_goes_on_and_ends_before_the_next_look_says_so(tmp_path: Path, caplog):
    with closing(StallWatch(tmp_path, 0, 2, 1, 9)) as watch:  # the other one never starts
        watch.start()
        soon(lambda: "process 0 waits at start" in caplog.text)
        watch.at("step 1")
    assert caplog.messages[-1] == "process 0 goes on"


def test_equal_progress_is_not_logged_and_a_run_of_one_process_writes_nothing(tmp_path: Path, caplog):
    with closing(StallWatch(tmp_path, 0, 2, 1, 9)) as first, closing(StallWatch(tmp_path, 1, 2, 1, 9)) as second:
        first.start()
        second.start()
        soon(lambda: len(list((tmp_path / ".processes").glob("?.json"))) == 2)
        first._since = second._since = time.monotonic()
        caplog.clear()  # on a machine that is very busy one waited for the other's file
        time.sleep(1.6)
        assert not caplog.messages or "no sign of life" in caplog.text  # on a machine that is very busy
    with closing(StallWatch(tmp_path / "alone", 0, 1, 1, 9)) as alone:
        alone.start()
    assert not (tmp_path / "alone").exists()


@pytest.mark.slow
def test_a_stopped_process_is_named_by_the_other_and_the_run_ends_well(sav_set: Path, tmp_path: Path):
    arguments = [f"data.shards=[{sav_set}]", "data.holdout=0", "batch_size=1", "accumulation=1", *SMALL, "steps=4"]
    arguments += ["stall_notice=2", f"output_dir={tmp_path / 'run'}"]
    output = tmp_path / "said"
    beats = tmp_path / "run" / ".processes" / "1.json"
    run = Joined(2, train_signalled, arguments, signal.SIGSTOP, 3, beats, log=output)
    stopped = psutil.Process(run.processes[1].pid)
    wait_for(lambda: stopped.status() == psutil.STATUS_STOPPED, run)
    before = len(output.read_text())
    line = re.compile(rf"process 0 waits at .*step .* for process 1 \(\S+, pid {stopped.pid}\), at .*no sign of life")
    try:
        soon(lambda: line.search(output.read_text(), before))
    finally:
        stopped.send_signal(signal.SIGCONT)
    assert run.wait() == [0, 0] and "process 0 goes on" in output.read_text()[before:], output.read_text()
    assert "step 00004/00004" in output.read_text() and not (tmp_path / "run" / ".processes").exists()


def test_a_collective_that_takes_too_long_is_one_line(monkeypatch: pytest.MonkeyPatch):
    def late(arguments: list[str]) -> None:
        raise RuntimeError("[../gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 1000ms for recv operation")

    monkeypatch.setattr("sys.argv", ["train.py"])
    with pytest.raises(SystemExit, match=r"^error: another process of this run did not answer in time"):
        run_command(late, None)
