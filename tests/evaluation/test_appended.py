"""Claims of work that processes share; files of lines are tested as predictions, in published/test_predictions.py."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal

from evaluation.appended import Claims

FORKS = mp.get_context("fork")


def _hold(path, ready) -> None:
    claims = Claims(path)
    with claims.claim(1) as free:
        ready.send(free)
        signal.pause()


def test_a_claim_ends_with_its_process(tmp_path):
    ours, others = FORKS.Pipe()
    process = FORKS.Process(target=_hold, args=(tmp_path / "claims", others))
    process.start()
    assert ours.recv() is True
    claims = Claims(tmp_path / "claims")
    with claims.claim(1) as one, claims.claim(2) as two:
        assert (one, two) == (False, True)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with claims.claim(1) as free:
        assert free
