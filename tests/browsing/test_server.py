"""The verb: its address, Ctrl-C, a busy port, mistakes in one line."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

import cli
from browsing.server import listen
from tests.conftest import files_of
from tests.servers import free_port


@pytest.mark.slow
def test_it_serves_until_ctrl_c_and_writes_nothing_into_a_set(sets, tmp_path):
    before = files_of(sets)
    command = [sys.executable, "-u", cli.__file__, "browse", str(sets), "--marks", str(tmp_path / "m")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        address = process.stdout.readline().split()[0]
        assert address.startswith("http://127.0.0.1:")
        for path in ("", "browse.js", "api/sav/rows?sort=area", "api/sav/0/picture"):
            assert urllib.request.urlopen(address + path).status == 200
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=30)
    assert process.returncode == 0 and said == "stopped\n" and errors == ""
    assert files_of(sets) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--where", "aera > 1"], "no such column; met aera; wanted area"),
        (["--predictions", "nothing.jsonl"], "--predictions: no predictions; met nothing.jsonl: No such file"),
        (["--marks", "{sets}/sav/manifest.json"], "not a mark"),
    ],
)
def test_mistakes_are_one_line(here, sets, options, message):
    done = here("browse", sets / "sav", *(one.format(sets=sets) for one in options))
    assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1


def test_a_busy_port_is_one_line_and_the_next_free_one_is_taken(here, sets):
    with listen(None) as first, listen(None) as second:
        assert first.getsockname()[0] == "127.0.0.1" and first.getsockname() != second.getsockname()
        busy = first.getsockname()[1]
        done = here("browse", sets / "sav", "--port", busy)
        assert done.returncode == 1
        assert (
            done.stderr
            == f"error: --port {busy}: cannot listen there; met Address already in use; give another --port\n"
        )
    port = free_port()
    with listen(port) as again:
        assert again.getsockname()[1] == port
    assert not Path("runs/browse").joinpath("sav.marks.jsonl").exists()
