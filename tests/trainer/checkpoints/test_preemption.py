"""Signals: the first is noted, a later one exits at once; a killed launcher counts as one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainer.checkpoints.preemption import SIGNALS, Preemption

REPOSITORY = Path(__file__).parents[3]
LISTEN = """
import sys, time
from trainer.checkpoints.preemption import Preemption
with Preemption() as preemption:
    print("listening", flush=True)
    while not preemption.signal:
        time.sleep(0.02)
    print("asked", preemption.signal.__int__(), flush=True)
    time.sleep(60 if "stay" in sys.argv else 0)
"""


@pytest.fixture
def handlers():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


def listen(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", LISTEN, *arguments],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_its_echo_ignored(handlers, number: signal.Signals, monkeypatch):
    monkeypatch.setattr("trainer.checkpoints.preemption._ECHO", 600)  # one that comes later ends this process
    with Preemption() as preemption:
        assert preemption.signal == 0
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)  # as a launcher passes it on
        assert preemption.signal == number


def test_without_a_signal_the_handlers_are_restored(handlers):
    with Preemption():
        pass
    assert {number: signal.getsignal(number) for number in SIGNALS} == handlers


def test_a_second_signal_exits_at_once():
    with listen("stay") as process:
        assert process.stdout and process.stdout.readline() == "listening\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "asked 15\n"
        time.sleep(2.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=50) == 128 + signal.SIGTERM


def test_a_launcher_that_is_killed_counts_as_a_signal():
    """kill -9 of the launcher, which then cannot pass a signal on."""
    launcher = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {LISTEN!r}])"
    environment = {**os.environ, "TORCHELASTIC_RUN_ID": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", launcher], cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stdout.readline() == "listening\n"
        process.kill()
        assert process.stdout.readline() == "asked 15\n"
