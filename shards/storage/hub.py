"""A dataset of the Hugging Face hub as a destination: files go up with Git LFS, then a commit names them.

Large files are stored by their SHA-256 before the commit. So what a killed run has sent is not sent again, and a
commit never names a file that is not whole.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from hashlib import sha1
from typing import Any

from shards.errors import UserError
from shards.extras import extra
from shards.storage.destination import Destination, Item, Tick
from shards.storage.protocols import CONNECT_SECONDS, READ_SECONDS, hub_parts
from shards.storage.remote_folder import RemoteFolder
from shards.storage.retry import ATTEMPTS, LOG_IN, may_pass, permanent_error, retry, status_of

_COMMIT_FILES = 50
_COMMIT_BYTES = 5 << 30
_ANSWER_SECONDS = 300
"""Longest wait for the hub's answer: it may take minutes over a commit of large files."""
_ADVICE = {
    401: LOG_IN,
    402: "make room there, or see the plan of the account",
    403: "use a token that may write there",
    409: "somebody else changes the dataset now: give the same command again later",
    413: "make room there, or see the plan of the account",
}


class Hub(Destination):
    """A folder of a dataset repository, in one of its branches.

    Args:
        url: hf://datasets/OWNER/NAME, then @BRANCH and /FOLDER where they are needed.
        private: a repository that is made is private.
        attempts: at a commit, before its fault is an error; the client beneath repeats single requests on its own.
    """

    compared = "the hub's listing: SHA-256 of the files in Git LFS, git's SHA-1 of the others"

    def __init__(self, url: str, private: bool = False, attempts: int = ATTEMPTS) -> None:
        self.url = url.rstrip("/")
        self.name, branch, self.folder = hub_parts(url)
        self.branch = branch or "main"
        self._private = private
        self._attempts = attempts
        with extra("remote", where=url):
            import huggingface_hub
            import huggingface_hub.errors
            import huggingface_hub.utils
        self._hub: Any = huggingface_hub

    def __str__(self) -> str:
        return self.url

    @cached_property
    def _api(self) -> Any:
        # Its own bars stand in the way of ours. Its warnings hold signed URLs, and its faults are reported here.
        self._hub.utils.disable_progress_bars()
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        return self._hub.HfApi()

    def prepare(self) -> None:
        def make() -> None:
            repository = {"repo_id": self.name, "repo_type": "dataset", "exist_ok": True}
            self._api.create_repo(**repository, private=self._private or None)
            if self.branch != "main":
                self._api.create_branch(**repository, branch=self.branch)

        self._retried(make)

    def sizes(self) -> dict[str, int]:
        return {name: file.size for name, file in self._files().items()}

    def right(self, items: Sequence[Item]) -> set[str]:
        found = self._files()
        return {item.name for item in items if item.name in found and _is_right(item, found[item.name])}

    def _files(self) -> dict[str, Any]:
        """Return the files directly in the folder, by name; {} where there is no folder or no repository."""
        errors = self._hub.errors

        def listed() -> dict[str, Any]:
            try:
                entries = self._api.list_repo_tree(
                    self.name, self.folder or None, revision=self.branch, repo_type="dataset"
                )
                return {entry.path.rpartition("/")[2]: entry for entry in entries if hasattr(entry, "size")}
            except (errors.EntryNotFoundError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
                return {}

        return self._retried(listed)

    def send(self, items: Sequence[Item], tick: Tick) -> None:
        for batch in _batches(items):
            self._send(batch, tick)

    def _send(self, items: Sequence[Item], tick: Tick) -> None:
        """Send some files in one commit."""
        waiting = list(items)
        counted = _Counted(tick)
        attempts = 0

        def commit() -> None:
            nonlocal waiting, attempts
            attempts += 1
            if attempts > 1:  # the answer to a commit may have been lost
                right = self.right(waiting)
                waiting = [item for item in waiting if item.name not in right]
            with counted.opened(waiting) as files:
                operations = [
                    self._hub.CommitOperationAdd(self._path(item.name), file)
                    for item, file in zip(waiting, files, strict=True)
                ]
                for item, operation in zip(waiting, operations, strict=True):
                    if operation.upload_info.sha256.hex() != item.sha256:
                        raise UserError("the file has changed while it was published", where=str(item.path))
                counted.begin()
                if operations:
                    more = f" and {len(waiting) - 1} more files" if len(waiting) > 1 else ""
                    self._commit(operations, f"Add {waiting[0].name}{more}")

        self._retried(commit)
        counted.finish(items)

    def _commit(self, operations: Sequence[Any], message: str) -> None:
        try:
            self._api.create_commit(
                self.name, operations, commit_message=message, repo_type="dataset", revision=self.branch
            )
        except RuntimeError as error:  # the client's word for whatever befell an upload
            if isinstance(error.__cause__, Exception):
                raise error.__cause__ from None
            raise
        except ValueError as error:  # it refuses single files: "Encountered error for file with OID ...: `WORDS", each
            words = dict.fromkeys(line.rpartition("`")[2] for line in str(error).split("\n")[1:])
            met = "; ".join(words) or str(error)
            raise UserError("refused by the hub", where=self.url, met=met, do=_ADVICE[413]) from None

    def read(self, name: str) -> bytes:
        folder = RemoteFolder(self.url, self._attempts)
        return folder.retried(name, lambda: folder.read_at_most(name, 1 << 30))

    def remove(self, names: Iterable[str]) -> None:
        unwanted = sorted(names)

        def commit() -> None:
            standing = self._files()
            operations = [self._hub.CommitOperationDelete(self._path(name)) for name in unwanted if name in standing]
            if operations:
                self._commit(operations, "Remove files of an earlier state")

        self._retried(commit)

    def _path(self, name: str) -> str:
        return f"{self.folder}/{name}".lstrip("/")

    def _retried(self, action: Any) -> Any:
        """Return `action()`, retried; raises `UserError` with the hub's own words."""

        def bounded() -> Any:
            session = self._hub.utils.get_session()
            if session.timeout.read is None:  # the client waits for ever unless it is told otherwise
                session.timeout = (CONNECT_SECONDS, _ANSWER_SECONDS, READ_SECONDS, READ_SECONDS)
            return action()

        try:
            return retry(bounded, self.url, self._attempts)
        except UserError:
            raise
        except Exception as error:
            raise self._refusal(error) from None

    def _refusal(self, error: Exception) -> UserError:
        """Return the line for an error of the client; raise the error where it is a mistake in a program."""
        status = status_of(error)
        words = str(getattr(error, "server_message", None) or "")
        if status in _ADVICE:
            met = f"HTTP {status}{f': {words}' if words else ''}"
            return UserError("refused by the hub", where=self.url, met=met, do=_ADVICE[status])
        if (line := permanent_error(error, self.url)) is not None:
            return UserError(line.what, where=line.where, met=f"{line.met} {words}".strip(), do=line.do)
        if not may_pass(error):
            raise error
        met = f"HTTP {status} {words}".strip() if status else type(error).__name__
        do = f"tried {self._attempts} times; the same command goes on"
        return UserError("the hub cannot be reached or fails", where=self.url, met=met, do=do)


def _is_right(item: Item, entry: Any) -> bool:
    """Compare an item with an entry of the hub's listing."""
    if entry.size != item.size:
        return False
    if entry.lfs is not None:
        return bool(entry.lfs.sha256 == item.sha256)
    digest = sha1(b"blob %d\0" % item.size, usedforsecurity=False)
    with item.open() as file:
        digest.update(file.read())
    return bool(entry.blob_id == digest.hexdigest())


def _batches(items: Sequence[Item]) -> Iterator[list[Item]]:
    """Yield the items in order, in parts of a commit each."""
    batch: list[Item] = []
    for item in items:
        if batch and (len(batch) == _COMMIT_FILES or sum(i.size for i in batch) + item.size > _COMMIT_BYTES):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


class _Counted:
    """Counts the bytes of files that the client reads to send them, once each, however often it reads them."""

    def __init__(self, tick: Tick) -> None:
        self._tick = tick
        self._counting = False
        self._sent: dict[str, int] = {}

    @contextmanager
    def opened(self, items: Sequence[Item]) -> Iterator[list[io.BufferedIOBase]]:
        """Open the items for the client."""
        self._counting = False
        files = [_File(self, item) for item in items]
        try:
            yield [*files]
        finally:
            for file in files:
                file.close()

    def begin(self) -> None:
        """Count from now on: before, the client reads files for their checksums."""
        self._counting = True

    def reached(self, name: str, position: int) -> None:
        if self._counting and (more := position - self._sent.get(name, 0)) > 0:
            self._sent[name] = position
            self._tick(more)

    def finish(self, items: Sequence[Item]) -> None:
        """Count what was not read since the hub had it."""
        for item in items:
            self.reached(item.name, item.size)


class _File(io.BufferedReader):
    """A file that tells how far it was read. The client sends open files over HTTP, never through Xet."""

    def __init__(self, counted: _Counted, item: Item) -> None:
        raw = item.open()
        super().__init__(raw.detach() if isinstance(raw, io.BufferedReader) else raw)  # type: ignore[arg-type]
        self._counted = counted
        self._name = item.name

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self._counted.reached(self._name, self.tell())
        return data
