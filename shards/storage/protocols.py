"""The protocols of URLs that sets are read from and written to, and fsspec's file system for a URL."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from shards.errors import UserError
from shards.extras import extra

HUB = "hf"
"""Protocol of the Hugging Face hub; its endpoint and token are configured where huggingface_hub looks for them."""
CONNECT_SECONDS = 20
"""Longest wait for a connection."""
READ_SECONDS = 60
"""Longest wait for the next byte."""
_UPLOADED_PARTS = 2  # of a large object, 50 MB each, that a process has in memory

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/")  # one slash: `Path` makes one of two
_PLAIN_FOLDER = re.compile(r"[^:]+://[^/?#]+(/[^?#]*)?")
_HUB_FOLDER = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@([^/?#@]+))?(?:/([^?#@]*))?", re.ASCII)
# In Azure's URLs, what stands before @ is a container.
_USER = re.compile(r"(?<!\baz:)(?<!\babfs:)(?<!\babfss:)//[^/@]*@")


@dataclass(frozen=True)
class StorageProtocol:
    """A protocol's abilities, and the options of its file system."""

    options: Callable[[], dict[str, Any]]
    """Return options for fsspec's file system: limits on waiting, and no retries beneath `shards.storage.retry`."""
    can_write: bool = True
    """Whether sets are written there: an object appears when its last byte has arrived, and not before."""
    can_list: bool = True
    """Whether the names in a folder can be listed."""


def _http_options() -> dict[str, Any]:
    import aiohttp

    limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
    return {"client_kwargs": {"timeout": limits, "read_bufsize": 1 << 20}}


def _s3_options() -> dict[str, Any]:
    config = {
        "connect_timeout": CONNECT_SECONDS,
        "read_timeout": READ_SECONDS,
        "retries": {"total_max_attempts": 1},
    }
    return {"config_kwargs": config, "max_concurrency": _UPLOADED_PARTS}


def _google_options() -> dict[str, Any]:
    return {"requests_timeout": READ_SECONDS}


def _azure_options() -> dict[str, Any]:
    return {"connection_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS}


def _hub_options() -> dict[str, Any]:
    return {"skip_instance_cache": True}  # an instance keeps what it has listed, also that a repository is missing


_HTTP = StorageProtocol(_http_options, can_write=False, can_list=False)
_S3 = StorageProtocol(_s3_options)
_GOOGLE = StorageProtocol(_google_options)
_AZURE = StorageProtocol(_azure_options)
_HUB = StorageProtocol(_hub_options, can_write=False)  # each file would be a commit: `shards.publish` writes there
PROTOCOLS: dict[str, StorageProtocol] = {
    "http": _HTTP,
    "https": _HTTP,
    "s3": _S3,
    "s3a": _S3,
    "gs": _GOOGLE,
    "gcs": _GOOGLE,
    "az": _AZURE,
    "abfs": _AZURE,
    "abfss": _AZURE,
    HUB: _HUB,
}


def is_url(path: object) -> bool:
    """Return whether `path` names something elsewhere and not a file of this machine."""
    return _URL.match(str(path)) is not None


def is_hub(url: str) -> bool:
    """Return whether `url` is one of the Hugging Face hub."""
    return url.startswith(f"{HUB}:/")


def hub_parts(url: str) -> tuple[str, str, str]:
    """Return (repository, revision or "", folder or "") of the URL of a dataset of the hub; raises `UserError`."""
    match = _HUB_FOLDER.fullmatch(url.rstrip("/"))
    if match is None:
        wanted = "hf://datasets/OWNER/NAME, then @REVISION and /FOLDER where they are needed"
        raise UserError("not a dataset of the hub", where=without_secrets(url), wanted=wanted)
    return match[1], unquote(match[2] or ""), match[3] or ""


def without_secrets(text: str) -> str:
    """Return a URL, or a text with one, without user, password and query, which may be a signature."""
    return _USER.sub("//", text).split("?")[0]


def protocol_of(url: str) -> StorageProtocol:
    """Return the protocol of the URL of a folder.

    Raises:
        UserError: an unknown protocol, or not the plain URL of a folder.
    """
    name = url.split(":")[0].lower()
    where = without_secrets(url)
    if name not in PROTOCOLS:
        raise UserError("URL of an unknown kind", where=where, met=name, wanted=" or ".join(PROTOCOLS))
    if not _PLAIN_FOLDER.fullmatch(url) or "::" in url:
        raise UserError("not the URL of a folder", where=where, wanted=f"{name}://HOST-OR-BUCKET/FOLDER")
    if name == HUB:
        hub_parts(url)
    return PROTOCOLS[name]


def file_system(url: str) -> tuple[Any, str]:
    """Return fsspec's file system for the folder at `url`, which never waits for ever, and the folder's path in it.

    Raises:
        UserError: as `protocol_of` does; or a package is missing.
    """
    protocol = protocol_of(url)
    name = url.split(":")[0].lower()
    with extra("remote", where=without_secrets(url)):
        import fsspec
        from fsspec.config import conf

        options = {"use_listings_cache": False, **protocol.options()}  # others write there too
        for option, value in conf.get(name, {}).items():  # what the user configured counts more
            both = isinstance(value, dict) and isinstance(options.get(option), dict)
            options[option] = {**options[option], **value} if both else value
        files, path = fsspec.core.url_to_fs(url.rstrip("/"), **options)
    files.retries = 1  # s3fs has retries of its own beside botocore's
    return files, path
