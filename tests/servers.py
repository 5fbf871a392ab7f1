"""Real servers on this machine (files over HTTP, S3-compatible) with faults of the network, and the size of a cache."""

from __future__ import annotations

import fcntl
import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Literal, TypeVar

_Server = TypeVar("_Server", bound=ThreadingHTTPServer)
Fault = Literal["", "503", "403", "cut", "corrupt", "late", "stall"]
KEYS = {
    "AWS_ACCESS_KEY_ID": "someone",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "1",  # of botocore; s3fs has five of its own on top
}


class FaultyServer(ThreadingHTTPServer):
    """Serves a folder, or the answers of another server, with faults.

    `faults(name, n)` says what befalls the n-th request, from 0, for the file `name`; `gets` counts them. After
    `fail(...)`, all but the first uploads whose name ends so fail: answered with a status, or cut when half has come.
    """

    daemon_threads = True

    def __init__(self, root: Path | None = None, upstream: int | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.upstream = upstream
        self.gets: Counter[str] = Counter()
        self.faults: Callable[[str, int], Fault] = lambda name, n: ""
        self.counting = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.heal()

    def fail(self, ending: str, sound: int, cut: bool = False, status: int = 500) -> None:
        self.ending = ending
        self.sound = sound
        self.cut = cut
        self.status = status

    def heal(self) -> None:
        self.fail("no such ending", 0)

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore a client that closed its connection."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyServer

    def do_GET(self) -> None:
        name = self.path.split("?")[0].rsplit("/", 1)[-1]
        with self.server.counting:
            fault = self.server.faults(name, self.server.gets[name])
            self.server.gets[name] += 1
        status, headers, body = self._answer()
        if fault in ("503", "403"):
            status = int(fault)
            headers = {}
            body = b"<Error><Code>SlowDown</Code></Error>"
        if fault == "late":
            time.sleep(0.1)
        if fault == "corrupt" and body:
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault == "cut":
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        elif fault == "stall":
            self.wfile.write(body[: len(body) // 2])
            time.sleep(60)
        else:
            self.wfile.write(body)

    def do_PUT(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        fails = False
        if self.path.split("?")[0].endswith(self.server.ending):
            with self.server.counting:
                self.server.sound -= 1
                fails = self.server.sound < 0
        if fails and self.server.cut:
            self.rfile.read(length // 2)
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        sent = self.rfile.read(length)
        code = b"AccessDenied" if self.server.status == 403 else b"InternalError"
        error = self.server.status, {}, b"<Error><Code>%s</Code></Error>" % code
        status, headers, body = error if fails else self._answer(sent)
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_POST = do_DELETE = do_HEAD = do_PUT

    def _answer(self, sent: bytes = b"") -> tuple[int, dict[str, str], bytes]:
        if self.server.upstream is None:
            path = self.server.root / self.path.lstrip("/")
            return (200, {}, path.read_bytes()) if path.is_file() else (404, {}, b"")
        connection = http.client.HTTPConnection("127.0.0.1", self.server.upstream, timeout=60)
        connection.request(self.command, self.path, body=sent, headers=dict(self.headers))
        answer = connection.getresponse()
        replaced = {"connection", "content-length", "transfer-encoding", "server", "date"}
        if self.command == "HEAD":
            replaced -= {"content-length"}
        headers = {key: value for key, value in answer.getheaders() if key.lower() not in replaced}
        return answer.status, headers, answer.read()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def running(server: _Server) -> Iterator[_Server]:
    """Serve in a thread for the time of the context."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def serving(root: Path | None = None, upstream: int | None = None) -> AbstractContextManager[FaultyServer]:
    return running(FaultyServer(root, upstream))


_PORTS = count(20_000 + os.getpid() % 90 * 100)


def free_port() -> int:
    """Return a port of 127.0.0.1 that stays free until a program takes it.

    Linux gives ports from 32768 on to those who ask for any, and no other test process comes to these here.
    """
    for port in _PORTS:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError


@contextmanager
def s3_server() -> Iterator[int]:
    """The port of an S3-compatible server, in a separate process, with an empty bucket `bucket`."""
    port = free_port()
    code = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
    environment = {**os.environ, "MOTO_S3_DEFAULT_KEY_BUFFER_SIZE": str(64 << 20)}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    try:
        until = time.monotonic() + 120
        while True:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
                connection.request("PUT", "/bucket")
                assert connection.getresponse().status == 200
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < until, "it does not start"
                time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()


def reach(port: int) -> dict[str, str]:
    """The environment in which the library finds that server."""
    return {**KEYS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}


def objects(port: int, folder: str = "") -> dict[str, bytes]:
    """Return every object below `bucket/folder`, read without the faults."""
    import s3fs

    files = s3fs.S3FileSystem(
        key="someone", secret="secret", endpoint_url=f"http://127.0.0.1:{port}", use_listings_cache=False
    )
    prefix = f"bucket/{folder}".rstrip("/") + "/"
    return {name.removeprefix(prefix): files.cat_file(name) for name in files.find(prefix)}


def used(cache: Path) -> int:
    """Return the bytes of all files of a cache, unfinished downloads included."""
    total = 0
    with open(cache / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # nothing is deleted, and no room taken, between two listings
        for path in cache.glob("*/*"):
            with suppress(FileNotFoundError):
                total += path.stat().st_size if path.suffix != ".json" else 0
    return total
