"""Files at URLs (S3, GCS, HTTP) through fsspec: retried where that can help, else one clear line.

Credentials, endpoints and proxies are fsspec's own affair (its configuration files, environment variables); none of
them gets into a message.
"""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from shards.errors import BadShard, UserError

log = logging.getLogger(__name__)

PACKAGES = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
"""What fsspec needs for each kind of URL."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/")  # one slash: `Path` makes one of two
_CONNECT, _READ = 20, 60  # seconds without any answer, or any byte
_BLOCK = 16 << 20  # bytes of an object that one request asks for; HTTP is one request a file
_BACKOFF, _MOST_BACKOFF = 0.5, 30.0  # seconds
_ONCE_MORE = {408, 425, 429}  # HTTP's 4xx that pass
_LIBRARIES = {"aiohttp", "aiobotocore", "botocore", "fsspec", "gcsfs", "google", "http", "requests", "urllib3"}
_T = TypeVar("_T")


class Transient(Exception):
    """A fault that another try may not meet, such as a body that is not the manifest's. `met` as in `UserError`."""

    def __init__(self, what: str, met: str = "", wanted: str = "") -> None:
        super().__init__(what, met, wanted)
        self.what, self.met, self.wanted = what, met, wanted


def is_url(path: object) -> bool:
    """Whether `path` names something elsewhere and not a file here."""
    return _URL.match(str(path)) is not None


def shown(url: str) -> str:
    """`url` without a user's name and password, and without a query, which may be a signature."""
    return re.sub(r"//[^/@]*@", "//", url).split("?")[0]


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system for `url`, which never waits for ever, and the path of `url` inside it.

    Raises:
        UserError: no such kind of URL, one that is not a plain folder's, or a package that is missing.
    """
    protocol = url.split(":")[0].lower()
    where = shown(url)
    if protocol not in PACKAGES:
        raise UserError("URL of an unknown kind", where=where, met=protocol, wanted=" or ".join(PACKAGES))
    if not re.fullmatch(r"[^:]+://[^/?#]+(/[^?#]*)?", url) or "::" in url:
        raise UserError("not the URL of a folder", where=where, wanted=f"{protocol}://HOST-OR-BUCKET/FOLDER")
    import fsspec
    from fsspec.config import conf

    try:
        given = _limits(protocol)
        for name, value in conf.get(protocol, {}).items():  # what the user configured counts more
            both = isinstance(value, dict) and isinstance(given.get(name), dict)
            given[name] = {**given[name], **value} if both else value
        files = fsspec.filesystem(protocol, **given)
    except ImportError:
        package = PACKAGES[protocol]
        do = f"pip install {package}, or sa2va-shards[remote]"
        raise UserError(
            f"{protocol} URLs need a package", where=where, met="not installed", wanted=package, do=do
        ) from None
    return files, files._strip_protocol(url.rstrip("/"))


def _limits(protocol: str) -> dict[str, Any]:
    """Time limits, and no retries of the library's own beneath ours."""
    if protocol.startswith("http"):
        import aiohttp

        limits = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT, sock_read=_READ)
        return {"client_kwargs": {"timeout": limits, "read_bufsize": 1 << 20}}
    if protocol == "s3":
        retries = {"total_max_attempts": 1}
        return {"config_kwargs": {"connect_timeout": _CONNECT, "read_timeout": _READ, "retries": retries}}
    return {"requests_timeout": _READ}


def explained(error: Exception, url: str) -> UserError | None:
    """What to tell the user of an error that no other try mends; None where one may."""
    status, where = getattr(error, "status", None), shown(url)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return BadShard("no such file", where=where, do="finish or copy the set there, or mend the URL")
    if isinstance(error, PermissionError) or status in (401, 403) or "Credentials" in type(error).__name__:
        do = "set up the credentials that fsspec finds (environment or its configuration)"
        return UserError("not allowed to read", where=where, do=do)
    if isinstance(status, int) and 400 <= status < 500 and status not in _ONCE_MORE:
        return UserError("refused by the server", where=where, met=f"HTTP {status}")
    return None


def retried(action: Callable[[], _T], url: str, attempts: int) -> _T:
    """`action()`, again after a pause where it failed and another try may help: exponential, with jitter.

    Raises:
        UserError: the `attempts` are used up, or it is a fault that no other try mends.
    """
    for attempt in range(1, attempts + 1):
        try:
            return action()
        except UserError:
            raise
        except Exception as error:
            ours = isinstance(error, Transient | OSError | EOFError)
            if not ours and type(error).__module__.split(".")[0] not in _LIBRARIES:
                raise  # a mistake in a program is no fault of a network
            if clear := explained(error, url):
                raise clear from None
            fault = (
                Transient(error.what, error.met, error.wanted)
                if isinstance(error, Transient)
                else Transient("cannot be read", _said(error))
            )
            if attempt == attempts:
                do = f"tried {attempts} times; the same command tries again"
                raise BadShard(fault.what, where=shown(url), met=fault.met, wanted=fault.wanted, do=do) from None
            pause = min(_MOST_BACKOFF, _BACKOFF * 2 ** (attempt - 1)) * random.uniform(0.5, 1)
            level = logging.WARNING if attempt > 2 else logging.INFO
            log.log(level, "%s: %s, %s; attempt %d in %.1f s", shown(url), fault.what, fault.met, attempt + 1, pause)
            time.sleep(pause)
    raise AssertionError("no attempts")


def _said(error: Exception) -> str:
    if status := getattr(error, "status", None):
        return f"HTTP {status}"
    return shown(f"{type(error).__name__}: {error}").strip(": ")


class RemoteFolder:
    """The files of one folder at a URL.

    Args:
        url: of the folder.
        attempts: at a file, before its fault is an error.

    Raises:
        UserError: as `file_system` does.
    """

    def __init__(self, url: str, attempts: int = 8) -> None:
        self._files, self._path = file_system(url)
        self._http = url.lower().startswith("http")
        self._attempts = attempts
        self.url = shown(url.rstrip("/"))
        """For messages."""

    def pieces(self, name: str, most: int) -> Iterator[bytes]:
        """Yield the bytes of the file `name` as they arrive; at most `most`, then it ends.

        Raises what the libraries raise: to be read within `retried`.
        """
        how: dict[str, Any] = (
            {"block_size": 0, "size": 1} if self._http else {"block_size": _BLOCK, "cache_type": "none"}
        )
        with self._files.open(f"{self._path}/{name}", "rb", **how) as file:
            if not self._http:  # there the size is not asked for; elsewhere a range past the end may be refused
                most = min(most, file.size)
            while most > 0 and (piece := file.read(min(most, _BLOCK))):
                most -= len(piece)
                yield piece

    def read(self, name: str, most: int) -> bytes:
        """The file `name`, which holds at most `most` bytes; to be called within `retried`."""
        data = b"".join(self.pieces(name, most + 1))
        if len(data) > most:
            met, wanted = f"more than {most} bytes", f"<= {most} bytes"
            raise BadShard("too large", where=f"{self.url}/{name}", met=met, wanted=wanted)
        return data

    def retried(self, name: str, action: Callable[[], _T]) -> _T:
        """`action()`, which reads the file `name`, again where it failed and another try may help.

        Raises:
            UserError: as the function `retried` does.
        """
        return retried(action, f"{self.url}/{name}", self._attempts)
