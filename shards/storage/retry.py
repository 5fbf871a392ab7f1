"""One rule for failed requests: what is tried again, after which pause, and how often."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from shards.errors import BadShard, UserError
from shards.storage.protocols import is_hub, without_secrets

log = logging.getLogger(__name__)

ATTEMPTS = 8
"""Attempts at a file before its fault is an error; about 45 seconds of pauses."""
_FIRST_PAUSE = 0.5  # seconds
_LONGEST_PAUSE = 30.0
_TRANSIENT_STATUS = {408, 425, 429}  # HTTP's 4xx that pass
_PERMANENT = (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)
_LIBRARIES = {
    "adlfs",
    "aiobotocore",
    "aiohttp",
    "azure",
    "botocore",
    "fsspec",
    "gcsfs",
    "google",
    "http",
    "httpcore",
    "httpcore2",
    "httpx",
    "httpx2",
    "huggingface_hub",
    "requests",
    "urllib3",
}
_ABSENT = {
    "RepositoryNotFoundError": "no such dataset on the hub, or a private one",
    "RevisionNotFoundError": "no such revision of the dataset",
    "HFValidationError": "not the name of a dataset of the hub",
}
LOG_IN = "log in with `hf auth login` or HF_TOKEN"
_T = TypeVar("_T")


class TransientError(Exception):
    """A fault that another attempt may not meet, such as a body without the manifest's checksum.

    Arguments as of `UserError`.
    """

    def __init__(self, what: str, met: str = "", wanted: str = "") -> None:
        super().__init__(what, met, wanted)
        self.what = what
        self.met = met
        self.wanted = wanted


class MissingFileError(BadShard):
    """A file that is not at its URL."""


def retry(action: Callable[[], _T], url: str, attempts: int) -> _T:
    """Return `action()`. While it fails in a way that may pass, call it again after a pause.

    Pauses double from half a second to 30 seconds, with jitter.

    Args:
        url: of the file, for messages.
        attempts: calls at most.

    Raises:
        Exception: what the last call raised.
    """
    for attempt in range(1, attempts + 1):
        try:
            return action()
        except Exception as error:
            if attempt == attempts or not may_pass(error):
                raise
            what, value, _ = _described(error)
            pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (attempt - 1)) * random.uniform(0.5, 1)
            level = logging.WARNING if attempt > 2 else logging.INFO
            where = without_secrets(url)
            log.log(level, "%s: %s, %s; attempt %d in %.1f s", where, what, value, attempt + 1, pause)
            time.sleep(pause)
    raise AssertionError("no attempts")


def retry_read(action: Callable[[], _T], url: str, attempts: int) -> _T:
    """Return `action()`, which reads the file at `url`, with `retry`.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        return retry(action, url, attempts)
    except UserError:
        raise
    except Exception as error:
        if error_text := permanent_error(error, url):
            raise error_text from None
        if not may_pass(error):
            raise  # a mistake in a program is no fault of a network
        what, value, expected = _described(error)
        do = f"tried {attempts} times; the same command tries again"
        raise BadShard(what, where=without_secrets(url), met=value, wanted=expected, do=do) from None


def permanent_error(error: Exception, url: str) -> UserError | None:
    """Return the line for a fault that no other attempt mends; None for one that may pass."""
    status = status_of(error)
    where = without_secrets(url)
    kinds = {type(error).__name__, type(error.__cause__).__name__}
    if "OfflineModeIsEnabled" in kinds:
        return UserError(
            "the hub is switched off", where=where, met="HF_HUB_OFFLINE", do="unset it, or copy the set here"
        )
    if kinds & _ABSENT.keys():
        what = next(_ABSENT[kind] for kind in kinds if kind in _ABSENT)
        return MissingFileError(what, where=where, do=f"mend the URL, or {LOG_IN}")
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return MissingFileError("no such file", where=where, do="finish or copy the set there, or mend the URL")
    if isinstance(error, PermissionError) or status in (401, 403) or any("Credentials" in kind for kind in kinds):
        do = "set up the credentials that fsspec finds (environment or its configuration)"
        return UserError("not allowed to read", where=where, do=LOG_IN if is_hub(url) else do)
    if isinstance(status, int) and 400 <= status < 500 and status not in _TRANSIENT_STATUS:
        return UserError("refused by the server", where=where, met=f"HTTP {status}")
    if isinstance(error, _PERMANENT):
        return UserError("cannot be read", where=where, met=_error_text(error))
    return None


def may_pass(error: Exception) -> bool:
    """Return whether another attempt may succeed."""
    if isinstance(error, UserError) or permanent_error(error, "") is not None:
        return False
    expected = isinstance(error, TransientError | OSError | EOFError)
    return expected or type(error).__module__.split(".")[0] in _LIBRARIES


def _described(error: Exception) -> tuple[str, str, str]:
    """Return (what, met, wanted) of an error, without a reference to it: its traceback holds open connections."""
    if isinstance(error, TransientError):
        return error.what, error.met, error.wanted
    return "cannot be read", _error_text(error), ""


def status_of(error: BaseException) -> int | None:
    """Return the status of the HTTP answer that `error` is about; None where there is none."""
    response = getattr(error, "response", None)  # of the hub's client; botocore's is a dict
    status = getattr(error, "status", None) or getattr(response, "status_code", None)
    return status if isinstance(status, int) else None


def _error_text(error: Exception) -> str:
    if status := status_of(error):
        return f"HTTP {status}"
    return without_secrets(f"{type(error).__name__}: {error}").strip(": ")
