"""A judge: a language model behind an OpenAI-compatible address. Its replies are kept, so nothing is asked twice."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from tqdm import tqdm

from shards.errors import UserError
from shards.strict_json import parse_json

FILE = "verdicts.jsonl"
"""The replies of judges, one in a line, in the folder of a benchmark."""
KEY_VARIABLE = "JUDGE_API_KEY"
MODEL = "meta-llama/Meta-Llama-3.1-8B-Instruct"
"""The judge of DLC-Bench."""
_MOST_BYTES = 1 << 20  # of a server's answer
_MOST_TOKENS = 300
_LONGEST_PAUSE = 60.0  # seconds, that a server may ask for
_UNUSABLE_IN_A_ROW = 5
_SHOWN = 100  # characters of a server's answer


class _FailedError(Exception):
    """No answer, or one that says to try again; it holds the seconds to wait that the server asks for."""

    def __init__(self, what: str, pause: float = 0.0) -> None:
        super().__init__(what)
        self.pause = pause


class _UnusableError(Exception):
    """An answer without a text in it."""


@dataclass(frozen=True)
class Judge:
    """How a judge is asked.

    Args:
        url: address of the API, such as http://localhost:8000/v1; questions go to its chat/completions.
        key: sent as a bearer token; None: none is sent.

    Raises:
        UserError: an address of another kind, or a key that no header can hold.
    """

    url: str
    model: str = MODEL
    key: str | None = field(default=None, repr=False)
    timeout: float = 60.0
    """Seconds that one answer may take."""
    attempts: int = 5
    pause: float = 1.0
    """Seconds before the second attempt; each next pause is twice as long."""
    at_once: int = 8
    """Questions that wait for an answer at the same time."""

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable or parts.username or parts.password or not self.url.isprintable() or " " in self.url:
            do = f"give a key in the environment variable {KEY_VARIABLE}" if "@" in self.url else ""
            wanted = "such as http://localhost:8000/v1"
            raise UserError(
                "no address of a judge", where="--judge", met=self.url.rpartition("@")[2], wanted=wanted, do=do
            )
        if self.key is not None and not (self.key.isascii() and self.key.isprintable()):
            raise UserError("a key that no header can hold", where=KEY_VARIABLE)

    def ask(self, prompt: str) -> str:
        """Send a prompt once and return the reply.

        Raises:
            _FailedError: no answer in time, a connection that is cut, or an error of the server that may pass.
            _UnusableError: an answer in another format.
            UserError: the server refuses the request.
        """
        parts = urlsplit(self.url)
        path = parts.path.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        settings = {"temperature": 0, "top_p": 1, "max_tokens": _MOST_TOKENS}
        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}], **settings}
        data = json.dumps(body).encode("ascii")
        request = urllib.request.Request(urlunsplit(parts._replace(path=path)), data, headers, method="POST")
        deadline = time.monotonic() + self.timeout
        try:
            with _OPENER.open(request, timeout=self.timeout) as response:
                return _reply_in(_read(response, deadline))
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(error) from None
        except (OSError, http.client.HTTPException) as error:
            raise _FailedError(str(getattr(error, "reason", error)) or type(error).__name__) from None

    def _refused(self, error: urllib.error.HTTPError) -> Exception:
        if error.code in (408, 425, 429) or error.code >= 500:
            asked = error.headers.get("Retry-After", "")
            pause = min(float(asked), _LONGEST_PAUSE) if asked.isascii() and asked.isdigit() else 0.0
            return _FailedError(f"HTTP {error.code}", pause)
        try:
            said = error.read(_SHOWN).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException):
            said = ""
        met = f"HTTP {error.code} {' '.join(said.split())}".strip()
        return UserError("the judge refuses", where=self.url, met=met, do="check --judge, --judge-model and the key")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Treats a redirection as an error: a key must not go to another address."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def _read(response: http.client.HTTPResponse, deadline: float) -> bytes:
    """Return the body of an answer; raises `_FailedError` or `_UnusableError` where it is cut, too slow or too long."""
    parts: list[bytes] = []
    size = 0
    while part := response.read1(1 << 16):
        parts.append(part)
        size += len(part)
        if size > _MOST_BYTES:
            raise _UnusableError(f"more than {_MOST_BYTES:,} bytes")
        if time.monotonic() > deadline:
            raise _FailedError("timed out")
    if response.length:
        raise _FailedError("the connection was cut")
    return b"".join(parts)


def _reply_in(body: bytes) -> str:
    """Return the reply in the JSON of an answer."""
    try:
        reply = parse_json(body)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        reply = None
    if not isinstance(reply, str):
        raise _UnusableError(f"{body[:_SHOWN].decode('utf-8', 'replace')!r}, which has no reply")
    return reply


class Verdicts:
    """The replies of a judge that a folder holds, by content: the judge's name and the whole prompt.

    Args:
        model: the judge's name; None: that of all replies in the folder.

    Raises:
        UserError: the file cannot be read; several judges, and no name.
    """

    def __init__(self, folder: Path, model: str | None = None) -> None:
        self._path = folder / FILE
        self._replies: dict[str, str] = {}
        judges: set[str] = set()
        for line in self._lines():
            try:
                values = parse_json(line)
                key, judge, reply = values["key"], values["judge"], values["reply"]
            except (ValueError, LookupError, TypeError):  # torn by a kill
                continue
            if all(isinstance(text, str) for text in (key, judge, reply)):
                self._replies[key] = reply
                judges.add(judge)
        if model is None and len(judges) > 1:
            met = ", ".join(sorted(judges))
            raise UserError("replies of several judges", where=str(self._path), met=met, do="give --judge-model")
        self.model = model or next(iter(judges), "")
        """Name of the judge; "" where there is no reply."""

    def _lines(self) -> list[bytes]:
        try:
            return self._path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError("cannot be read", where=str(self._path), met=error.strerror or str(error)) from None

    def reply(self, prompt: str) -> str | None:
        """Return the reply to a prompt; None without one."""
        return self._replies.get(self._key(prompt))

    def ask(self, judge: Judge, prompts: Sequence[str], shown: bool = True) -> dict[str, str]:
        """Ask all that no reply is known to; each reply is written as soon as it is there.

        Args:
            shown: whether progress is shown.

        Returns:
            The prompts that the judge gave no usable answer to, each with the last answer's fault.

        Raises:
            UserError: the judge refuses, or cannot be reached. What it has replied is kept.
        """
        new = [prompt for prompt in dict.fromkeys(prompts) if self.reply(prompt) is None]
        unusable: dict[str, str] = {}
        in_a_row = 0
        stop = Event()
        with (
            ThreadPoolExecutor(judge.at_once) as threads,
            tqdm(total=len(new), unit="verdict", disable=not (shown and new)) as bar,
        ):
            waiting: dict[Future[str], str] = {threads.submit(_ask_again, judge, one, stop): one for one in new}
            try:
                while waiting:
                    done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in done:
                        prompt = waiting.pop(future)
                        try:
                            self._add(prompt, future.result())
                            in_a_row = 0
                        except _UnusableError as error:
                            unusable[prompt] = str(error)
                            in_a_row += 1
                        if in_a_row == _UNUSABLE_IN_A_ROW:
                            wanted = "JSON with choices[0].message.content"
                            raise UserError("no judge", where=judge.url, met=unusable[prompt], wanted=wanted)
                        bar.update()
            except BaseException:
                stop.set()
                threads.shutdown(wait=False, cancel_futures=True)
                raise
        return unusable

    def _key(self, prompt: str) -> str:
        return hashlib.sha256(json.dumps([self.model, prompt]).encode("ascii")).hexdigest()

    def _add(self, prompt: str, reply: str) -> None:
        key = self._key(prompt)
        line = json.dumps({"key": key, "judge": self.model, "reply": reply}).encode("ascii") + b"\n"
        try:
            with open(self._path, "ab") as file:
                if file.tell() and not self._ends_whole():
                    line = b"\n" + line
                file.write(line)
        except OSError as error:
            raise UserError("cannot be written", where=str(self._path), met=error.strerror or str(error)) from None
        self._replies[key] = reply

    def _ends_whole(self) -> bool:
        with open(self._path, "rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() == b"\n"


def _ask_again(judge: Judge, prompt: str, stop: Event) -> str:
    """Return the judge's reply to a prompt, after as many attempts as it takes.

    Raises:
        _UnusableError: the last attempt brought an answer in another format.
        UserError: the last attempt failed, or the judge refuses.
    """
    for attempt in range(1, judge.attempts + 1):
        pause = judge.pause * 2 ** (attempt - 1)
        try:
            return judge.ask(prompt)
        except _UnusableError:
            if attempt == judge.attempts:
                raise
        except _FailedError as error:
            if attempt == judge.attempts or stop.is_set():
                do = "start the same command again: the replies that are there are kept"
                met = f"{error}, after {attempt} attempts"
                raise UserError("the judge does not answer", where=judge.url, met=met, do=do) from None
            pause = max(pause, error.pause)
        if stop.wait(pause):
            break
    raise _UnusableError("stopped")
