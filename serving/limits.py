"""Limits on what a visitor may do: sizes, numbers, and the paths of the server that answer at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.pictures import FORMATS, MAX_PIXELS
from shards.size import size_text

_JSON_BYTES = 4 << 20
"""Most bytes of a request that uploads nothing."""
_API = "/gradio_api/"
_PAGES = frozenset(("/", "/config", "/favicon.ico", "/manifest.json", "/robots.txt", "/theme.css"))
_CALLS = frozenset(
    (
        *("app_id", "info", "login_check", "startup-events", "theme.css"),
        *("queue/join", "queue/data", "cancel", "reset", "component_server"),
        *("upload", "upload_progress"),
    )
)
_FOLDERS = ("/assets/", "/static/", f"{_API}call/", f"{_API}heartbeat/")
_FILE = f"{_API}file="
_UPLOADS = ("upload", "component_server")


@dataclass(frozen=True)
class Limits:
    """Limits of one server."""

    upload: int = 100_000_000
    """Most bytes of a file; all files that are kept take at most 20 times as much."""
    sessions: int = 8
    """Most conversations that are kept; the one that was idle longest ends for a new one."""
    waiting: int = 16
    """Most questions that wait for the model."""
    turns: int = 50
    """Most questions of a conversation."""
    letters: int = 4_000
    """Most characters of a question."""
    regions: int = 16
    """Most regions of a question."""
    frames: int = 3_000
    """Most frames of a video."""


class Guard:
    """Answers nothing but what the page and the API need; an ASGI middleware.

    gradio has further routes: to other servers, to its own tools, to recordings and settings. They do not exist here.
    """

    def __init__(self, app: ASGIApp, limits: Limits, folder: Path, local: bool) -> None:
        """Guard `app`.

        Args:
            limits: of uploads.
            folder: files in it are readable from outside, others are not.
            local: answer requests to this machine's own names alone, so that another site's name that is made to point
                here reads nothing.
        """
        self._app = app
        self._limits = limits
        self._folder = folder.resolve()
        self._local = local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 404, 413 or 507."""
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":
            return
        path = scope["path"]
        if not self._answers(path) or (self._local and not _is_local(scope)):
            return await PlainTextResponse("Not Found", 404)(scope, receive, send)
        uploads = path.removeprefix(_API).rstrip("/") in _UPLOADS
        most = self._limits.upload + (1 << 20) if uploads else _JSON_BYTES  # the parts' own headers
        if _header(scope, b"content-length").isdigit() and int(_header(scope, b"content-length")) > most:
            return await PlainTextResponse(f"at most {size_text(most)}", 413)(scope, receive, send)
        if uploads and self._stored() > 20 * self._limits.upload:
            return await PlainTextResponse("the server keeps too many files; try later", 507)(scope, receive, send)
        await self._app(scope, _at_most(most, receive), send)

    def _answers(self, path: str) -> bool:
        if path.startswith(_FILE):
            return self._is_inside(path.removeprefix(_FILE))
        plain = path.rstrip("/") or "/"
        return plain in _PAGES or plain.removeprefix(_API) in _CALLS or path.startswith(_FOLDERS)

    def _is_inside(self, path: str) -> bool:
        """Return whether a file is in the folder, wherever links on the way lead."""
        try:
            return Path(path).is_absolute() and Path(path).resolve(strict=True).is_relative_to(self._folder)
        except (OSError, ValueError, RuntimeError):  # no such file; a NUL in the name; a circle of links
            return False

    def _stored(self) -> int:
        total = 0
        for path in self._folder.rglob("*"):
            try:
                total += path.stat().st_size
            except OSError:  # removed meanwhile
                continue
        return total


@contextmanager
def restricted_pillow() -> Iterator[None]:
    """Let Pillow open nothing but the formats and sizes of pictures that the pipeline takes, as long as it lasts.

    gradio opens pictures itself, and would try all formats: of PostScript, Pillow runs another program.
    """
    Image.init()
    formats, pixels = [*Image.ID], Image.MAX_IMAGE_PIXELS
    Image.ID[:] = [form for form in formats if form in FORMATS]
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow refuses what has more than twice as many
    try:
        yield
    finally:
        Image.ID[:], Image.MAX_IMAGE_PIXELS = formats, pixels


def _at_most(most: int, receive: Receive) -> Receive:
    """Return `receive`, which ends the connection after `most` bytes: a length in the header may be wrong."""
    total = 0

    async def counted() -> Message:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        return message if total <= most else {"type": "http.disconnect"}

    return counted


def _is_local(scope: Scope) -> bool:
    host = _header(scope, b"host")
    name = host[: host.index("]") + 1] if "]" in host else host.partition(":")[0]
    return name.lower() in ("localhost", "127.0.0.1", "[::1]")


def _header(scope: Any, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")
