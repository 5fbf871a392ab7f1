"""Run the page on this machine until it is stopped."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import uvicorn
from starlette.types import ASGIApp

from shards.errors import UserError

HOST = "127.0.0.1"
_PORTS = range(8860, 8960)


def listen(port: int | None) -> socket.socket:
    """Return a socket that listens on a port of this machine alone; None takes the first free one from 8860 on.

    Raises:
        UserError: it is in use.
    """
    reason = ""
    for candidate in _PORTS if port is None else [port]:
        opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            opened.bind((HOST, candidate))
            opened.listen(128)
        except OSError as error:
            opened.close()
            reason = error.strerror or str(error)
        else:
            return opened
    where = f"{HOST}, port {_PORTS.start} to {_PORTS[-1]}" if port is None else f"--port {port}"
    raise UserError("cannot listen there", where=where, met=reason, do="give another --port")


def server_of(app: ASGIApp) -> uvicorn.Server:
    """Return a server of the application; its `run` takes the socket."""
    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=2)
    return uvicorn.Server(config)


@contextmanager
def serving(app: ASGIApp) -> Iterator[str]:
    """Serve in a thread, on the first free port, as long as the context lasts; yield the address."""
    server = server_of(app)
    with listen(None) as opened:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]}, daemon=True)
        thread.start()
        yield f"http://{HOST}:{opened.getsockname()[1]}/"
        server.should_exit = True
        thread.join()


def run(app: ASGIApp, opened: socket.socket, say: Callable[[str], None]) -> None:
    """Serve until Ctrl-C is pressed, or the process is told to end.

    Args:
        opened: of `listen`; closed at the end.
        say: tells the person who runs the server what happens.
    """
    with opened, suppress(KeyboardInterrupt):
        server_of(app).run(sockets=[opened])
    say("stopped")
