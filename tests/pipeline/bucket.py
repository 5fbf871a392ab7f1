"""A real S3-compatible server on this machine, and a way to it on which uploads fail."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import s3fs

KEYS = {
    "AWS_ACCESS_KEY_ID": "someone",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "1",  # of botocore; s3fs has five of its own on top
}


@contextmanager
def s3_server() -> Iterator[int]:
    """The port of a server, a process of its own, with an empty bucket `bucket`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 120
        while True:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
                connection.request("PUT", "/bucket")
                assert connection.getresponse().status == 200
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < until
                time.sleep(0.1)
        yield port
    finally:
        process.kill()
        process.wait()


def environment(port: int) -> dict[str, str]:
    """What a command needs to reach the server."""
    return {**os.environ, **KEYS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}


def objects(port: int, folder: str = "") -> dict[str, bytes]:
    """Every object below `bucket/folder`, past any fault on the way."""
    files = s3fs.S3FileSystem(
        key="someone", secret="secret", endpoint_url=f"http://127.0.0.1:{port}", use_listings_cache=False
    )
    prefix = f"bucket/{folder}".rstrip("/") + "/"
    return {name.removeprefix(prefix): files.cat_file(name) for name in files.find(prefix)}


class FaultyWay(ThreadingHTTPServer):
    """Passes requests on to a server. After `sound` uploads whose name ends with `ending`, each further one fails:
    answered with 500, or cut when half of its body has come."""

    daemon_threads = True

    def __init__(self, upstream: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.counting = threading.Lock()
        self.heal()

    def fail(self, ending: str, sound: int, cut: bool) -> None:
        self.ending, self.sound, self.cut = ending, sound, cut

    def heal(self) -> None:
        self.fail("no such ending", 0, False)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyWay

    def _pass_on(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if self.command == "PUT" and self.path.partition("?")[0].endswith(self.server.ending):
            with self.server.counting:
                self.server.sound -= 1
                fails = self.server.sound < 0
            if fails and self.server.cut:
                self.rfile.read(length // 2)
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            if fails:
                self.rfile.read(length)
                self._answer(500, {}, b"<Error><Code>InternalError</Code></Error>")
                return
        connection = http.client.HTTPConnection("127.0.0.1", self.server.upstream, timeout=60)
        connection.request(self.command, self.path, body=self.rfile.read(length), headers=dict(self.headers))
        answer = connection.getresponse()
        headers = {k: v for k, v in answer.getheaders() if k.lower() not in ("connection", "transfer-encoding")}
        self._answer(answer.status, headers, answer.read())

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def faulty_way(upstream: int) -> Iterator[FaultyWay]:
    server = FaultyWay(upstream)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def sparse(path: Path, size: int) -> Path:
    """A file of that many bytes that takes no room."""
    with open(path, "wb") as file:
        file.truncate(size)
    return path
