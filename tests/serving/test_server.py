"""The verb serve: where it listens, how it stops, what it says."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from contextlib import ExitStack, suppress
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from gradio import http_server

from serving.server import serving
from shards.errors import UserError
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


def test_a_port_that_is_taken_after_the_check(monkeypatch):
    """Two servers that start at once find the same free port: the second one takes the next, or says so in one line."""
    start = http_server.start_server
    found = []

    def start_later(*, server_port: int, **settings):
        found.append(server_port)
        with ExitStack() as others:
            if len(found) == 1:
                with suppress(OSError):  # another test may have been as quick
                    others.enter_context(socket.create_server(("127.0.0.1", server_port)))
            return start(server_port=server_port, **settings)

    monkeypatch.setattr(http_server, "start_server", start_later)
    monkeypatch.setenv("GRADIO_SERVER_PORT", "9")
    with serving(None) as address:
        assert 7860 <= found[0] < found[-1] == urlsplit(address).port < 7960
        assert b"Sa2VA" in urlopen(address, timeout=60).read()
        assert b"/ask" in urlopen(f"{address}gradio_api/info", timeout=60).read()
    found.clear()
    port = free_port()
    message = f"--host 127.0.0.1 --port {port}: cannot listen there; met another program has just taken it"
    with pytest.raises(UserError, match=message), serving(None, port=port):
        pass
    assert found == [port]


def test_an_address_of_ip_version_6():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with serving(None, host="::1") as address:
        assert address == f"http://[::1]:{urlsplit(address).port}/"
        assert b"Sa2VA" in urlopen(address, timeout=60).read()


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
