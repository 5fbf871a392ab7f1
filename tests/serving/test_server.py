"""The verb serve: where it listens, how it stops, what it says."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from urllib.request import urlopen

from tests.servers import free_port
from trainer.model.sa2va import Sa2VA
from trainer.released.loaded import LoadedModel


def test_ctrl_c_ends_it_in_one_line(here, talker: Sa2VA, monkeypatch):
    monkeypatch.setattr("inference.loading.load", lambda *_: LoadedModel(talker))
    port = free_port()
    pages = []

    def interrupt() -> None:
        until = time.monotonic() + 300
        while not pages and time.monotonic() < until:
            try:
                pages.append(urlopen(f"http://127.0.0.1:{port}/", timeout=5).read())
            except OSError:
                time.sleep(0.1)
        while signal.getsignal(signal.SIGINT) is before and time.monotonic() < until:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=interrupt)
    thread.start()
    done = here("serve", "--model", "runs/cat", "--port", port, "--max-upload", "3MB")
    thread.join()
    assert done.returncode == 0 and b"Ask cat" in pages[0]
    address = f"http://127.0.0.1:{port}/"
    assert done.stdout == f"{address}  (pictures and videos of at most 3MB; Ctrl-C stops)\nstopped\n"
    assert "Traceback" not in done.stderr and signal.getsignal(signal.SIGINT) is before


def test_mistakes_are_one_line(here, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for words, message in (
            (["--port", port], f"--host 127.0.0.1 --port {port}: cannot listen there; met Address already in use"),
            (["--host", "no.such.host.invalid"], "--host no.such.host.invalid: cannot listen there"),
            (["--max-upload", "7x"], "--max-upload: not a size; met '7x'"),
            ([], "none: no such folder; wanted a model folder"),
        ):
            done = here("serve", "--model", "none", *words)
            assert done.returncode == 1 and message in done.stderr.splitlines()[-1]
    monkeypatch.setitem(sys.modules, "gradio", None)
    done = here("serve", "--model", "none")
    assert done.returncode == 1 and 'pip install "sa2va-shards[serve]"' in done.stderr.splitlines()[-1]
