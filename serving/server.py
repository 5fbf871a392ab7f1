"""Run the page on an address of this machine until it is stopped."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import gradio as gr
from starlette.middleware import Middleware

from serving.limits import Guard, Limits, restricted_pillow
from serving.page import CSS, Page
from serving.session import Sessions
from shards.errors import UserError

if TYPE_CHECKING:
    from inference.predictor import Predictor

_LOCAL = ("127.0.0.1", "localhost", "::1")
_FONTS = ["system-ui", "sans-serif"]  # gradio's own come from other machines


def check_address(host: str, port: int | None) -> None:
    """Check that `port`, or one from 7860 on, can be listened on.

    Raises:
        UserError: the address cannot be listened on.
    """
    next(_free_ports(host, port))


def _free_ports(host: str, port: int | None) -> Iterator[int]:
    """Yield `port`, or those from 7860 on, where each is free when it is yielded; raises `UserError` after the last."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    reason = "another program has just taken it, or the server does not start"
    for candidate in [port] if port is not None else range(7860, 7960):
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, candidate))
            except OSError as error:
                reason = error.strerror or str(error)
                if isinstance(error, socket.gaierror):  # a host that has no address has none for other ports
                    break
                continue
        yield candidate
    where = f"--host {host}" + ("" if port is None else f" --port {port}")
    raise UserError("cannot listen there", where=where, met=reason, do="give another --port or --host")


@contextmanager
def serving(
    predictor: Predictor,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    limits: Limits | None = None,
    title: str = "Sa2VA",
    say: Callable[[str], None] = print,
) -> Iterator[str]:
    """Serve the page and its API as long as the context lasts; files that visitors uploaded are removed at its end.

    Args:
        predictor: answers.
        host: address to listen on. One of this machine alone answers requests to names of this machine alone.
        port: None takes the first free one from 7860 on.
        limits: None: the defaults.
        title: of the page.
        say: tells the person who runs the server what happens.

    Yields:
        The address.

    Raises:
        UserError: the address cannot be listened on.
    """
    limits = limits or Limits()
    check_address(host, port)
    with (
        tempfile.TemporaryDirectory(prefix="sa2va-serve-") as name,
        _settings(GRADIO_TEMP_DIR=name, GRADIO_EXAMPLES_CACHE=name, GRADIO_ANALYTICS_ENABLED="False"),
        restricted_pillow(),
    ):
        folder = Path(name).resolve()
        sessions = Sessions(predictor, limits, folder, say)
        page = Page(sessions, folder).build(title)
        # Stop, New and clicks stand in it, too: those of a page must not be refused because questions wait.
        page.queue(max_size=limits.waiting + 4 * limits.sessions, api_open=False)
        guard = Middleware(Guard, limits=limits, folder=folder, local=host in _LOCAL)
        try:
            yield _launch(
                page,
                host,
                port,
                share=False,
                prevent_thread_lock=True,
                quiet=True,
                show_error=False,
                max_file_size=limits.upload,
                state_session_capacity=4 * limits.sessions,
                enable_monitoring=False,
                run_history=False,
                ssr_mode=False,
                mcp_server=False,
                pwa=False,
                footer_links=[],
                theme=gr.themes.Default(font=_FONTS, font_mono=["ui-monospace", "monospace"]),
                css=CSS,
                app_kwargs={"middleware": [guard]},
            )
        finally:
            sessions.close()
            page.close(verbose=False)


def _launch(page: gr.Blocks, host: str, port: int | None, **options: Any) -> str:
    """Start the server and return its address; another program may take a free port first: the next one is tried."""
    ports = _free_ports(host, port)
    name = f"[{host}]" if ":" in host else host  # as addresses of pages have it
    while True:
        try:
            return page.launch(server_name=name, server_port=next(ports), **options)[1]
        except OSError as error:
            if error.errno is not None:  # gradio's own, of a port that is taken, has none
                raise


@contextmanager
def _settings(**values: str) -> Iterator[None]:
    """Give gradio these settings of the environment alone: others would open folders, or share the page."""
    earlier = {name: value for name, value in os.environ.items() if name.startswith("GRADIO_")}
    for name in earlier:
        del os.environ[name]
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            del os.environ[name]
        os.environ.update(earlier)


def wait() -> None:
    """Return when Ctrl-C is pressed, or the process is told to end."""
    stopped = Event()
    earlier = {number: signal.signal(number, lambda *_: stopped.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        stopped.wait()
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
