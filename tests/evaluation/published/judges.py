"""A judge on this machine: an HTTP server that answers, fails, stalls, cuts connections and lies about its format."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.servers import running

STALL = 10.0
"""Seconds of a stall."""


class JudgeServer(ThreadingHTTPServer):
    """Answers each prompt with its reply, after the faults that are listed for it, one for each request."""

    daemon_threads = True

    def __init__(self, replies: Mapping[str, str], faults: Mapping[str, Sequence[str]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.replies = dict(replies)
        self.faults = {prompt: list(names) for prompt, names in faults.items()}
        self.asked: list[tuple[str, str, dict[str, Any]]] = []
        """Path, Authorization and body of each request."""
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def prompts(self) -> list[str]:
        return [body["messages"][0]["content"] for _, _, body in self.asked]


class _Handler(BaseHTTPRequestHandler):
    server: JudgeServer

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][0]["content"]
        with self.server.lock:
            self.server.asked.append((self.path, self.headers.get("Authorization", ""), body))
            waiting = self.server.faults.get(prompt) or self.server.faults.get("*", [])
            fault = waiting.pop(0) if waiting else "reply"
        reply = {"choices": [{"message": {"role": "assistant", "content": self.server.replies.get(prompt, "A")}}]}
        text = json.dumps(reply).encode()
        with suppress(OSError):  # the client has gone
            self._send(fault, text)

    def _send(self, fault: str, text: bytes) -> None:
        if fault.isdigit():
            self._head(int(fault), {"Retry-After": "0", "Location": "/v1/elsewhere"}, b"the reason\n" * 99)
        elif fault == "stall":
            time.sleep(STALL)
            self._head(200, {}, text)
        elif fault == "cut":
            self.close_connection = True
        elif fault == "cut in the middle":
            self._head(200, {"Content-Length": str(len(text))}, text[:20])
        elif fault == "drip":
            self._head(200, {"Content-Length": "1000000"}, b"")
            for _ in range(int(STALL / 0.05)):
                self.wfile.write(b" ")
                time.sleep(0.05)
        elif fault == "endless":
            self._head(200, {"Content-Length": str(1 << 40)}, b"")
            while True:
                self.wfile.write(b" " * 65536)
        else:
            lies = {"html": b"<html>Sign in</html>", "no choices": b'{"choices": []}', "no text": b'{"choices": [{}]}'}
            lies |= {"deep": b"[" * 100_000, "null": b'{"choices": [{"message": {"content": null}}]}', "reply": text}
            self._head(200, {}, lies[fault])

    def _head(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | dict(headers)).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def judge_server(
    replies: Mapping[str, str] | None = None, faults: Mapping[str, Sequence[str]] | None = None
) -> AbstractContextManager[JudgeServer]:
    """Serve a judge for the time of the context."""
    return running(JudgeServer(replies or {}, faults or {}))
