"""Sort exceptions while raw data is read: by the program, by the machine, or by the data.

- The program: `NameError` and `ImportError`; `AssertionError` and `NotImplementedError` that this package raised itself
  (libraries raise these two on bad data as well). It ends the run as a `ProgramError`, which names the input.
- The machine: no memory, no room, too many open files, a file system that is gone. It ends the run, and nothing is
  recorded about the input: the same command goes on with it.
- The data: all other exceptions of a library or this package. An input goes to the ledger. A broken annotation file
  ends the run with its place.
"""

from __future__ import annotations

import errno
import os
import re
import sqlite3
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.formats import make_sample
from shards.errors import BadInput, UserError
from shards.sample import Sample

if TYPE_CHECKING:
    from pipeline.dataset import Job

AGAIN = "mend it and give the same command: it goes on where it stopped"
_HERE = Path(__file__).parents[1]
_MACHINE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.EROFS),
    *(errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED, errno.EHOSTUNREACH),
    *(errno.EHOSTDOWN, errno.ENETDOWN, errno.ENETUNREACH, errno.ESHUTDOWN),
}
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # differs from run to run: a ledger's bytes must not
_LONGEST = 300  # characters of an exception's text
_MOST_BYTES = 1 << 33  # of one array: a request for more is a fault of the data, however large the memory is
_Item = TypeVar("_Item")
_place: ContextVar[tuple[str, int]] = ContextVar("_place", default=("", 0))


class ProgramError(UserError):
    """A fault of this program, met while some input was read. The traceback is in a file that the message names."""


def read_sample(job: Job, path: str) -> tuple[Sample, Counter[str]]:
    """Read one input and make its sample. Returns the sample and the counts for the manifest's notes.

    Raises:
        BadInput: it cannot become a sample. Names the input.
        UserError: the fault is the machine's, or the program's.
    """
    with input_errors(job.root, path):
        parts = job.records.parts(path)
        return make_sample(job.source.load(job.root, path, job.options, parts), job.recipe)


@contextmanager
def input_errors(root: Path, path: str) -> Iterator[None]:
    """Turn any exception about the input at `path` into `BadInput`, `ProgramError` or, for the machine, `UserError`."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise BadInput("file name is not UTF-8", where=repr(path), do="rename it") from None
    try:
        yield
    except ProgramError:
        raise
    except Exception as error:
        raise _about_input(error, root, path) from None


@contextmanager
def annotation_errors(root: Path) -> Iterator[None]:
    """Turn any exception in the search for inputs below `root` into one `UserError`."""
    _place.set(("", 0))
    try:
        yield
    except (UserError, sqlite3.Error):
        raise
    except Exception as error:
        file, entry = _place.get()
        where = f"{file}, entry {entry}" if entry else file or str(root)
        if (machine := _of_the_machine(error)) is not None or isinstance(error, OSError):
            found = machine or error
            at = getattr(found, "filename", None) or where
            raise UserError("cannot be read", where=str(at), met=_error_text(found), do=AGAIN) from None
        if _of_the_program(error):
            raise _program_error(error, where) from None
        raise UserError(
            "annotations of another shape",
            where=where,
            met=f"{type(error).__name__}: {_error_text(error)} ({_last_line_in_package(error)})",
            wanted="what the source's page in docs/datasets/ says",
        ) from None


def track_entries(file: Path, items: Iterable[_Item]) -> Iterator[_Item]:
    """Yield the `items` of an annotation file; an error before the next one is reported with this one's number."""
    _place.set((str(file), 0))
    for number, item in enumerate(items, 1):
        _place.set((str(file), number))
        yield item


def _about_input(error: Exception, root: Path, path: str) -> UserError:
    machine = _of_the_machine(error)
    if machine is not None:
        return UserError(
            "out of memory" if isinstance(machine, MemoryError) else "cannot be read now",
            where=path,
            met=_error_text(machine),
            do=f"fewer --workers take less memory; {AGAIN}" if isinstance(machine, MemoryError) else AGAIN,
        )
    if isinstance(error, UserError):
        kind = type(error) if isinstance(error, BadInput) else BadInput
        inner = _without_root(error.where, root)
        return kind(
            error.what,
            where=path,
            met=": ".join(part for part in (inner if inner != path else "", error.met) if part),
            wanted=error.wanted,
            do=error.do,
        )
    if _of_the_program(error):
        return _program_error(error, path)
    return BadInput(
        f"cannot be read: {type(error).__name__}",
        where=path,
        met=f"{_without_root(_error_text(error), root)} ({_last_line_in_package(error)})",
        wanted="a sound input",
    )


def _of_the_machine(error: BaseException | None) -> BaseException | None:
    """Return the first exception in the chain that is a fault of the machine; readers wrap what they catch."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _MACHINE:
            return error
        if isinstance(error, MemoryError) and _claimed_bytes(error) <= _MOST_BYTES:
            return error
        if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
            return error
        error = error.__cause__ or error.__context__
    return None


def _claimed_bytes(error: MemoryError) -> int:
    """Return the bytes of the array that numpy could not allocate; 0 where they are unknown."""
    size: Any = getattr(error, "_total_size", 0)
    return int(size)


def _of_the_program(error: Exception) -> bool:
    if isinstance(error, NameError | ImportError):
        return True
    if not isinstance(error, AssertionError | NotImplementedError):
        return False
    last = traceback.extract_tb(error.__traceback__)[-1:]
    return any(_in_package(frame.filename) for frame in last)


def _program_error(error: Exception, where: str) -> ProgramError:
    handle, name = tempfile.mkstemp(prefix="sa2va-shards-", suffix=".txt")
    with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(f"{where}\n")
        file.writelines(traceback.format_exception(error))
    return ProgramError(
        "a fault of this program, not of the data",
        where=where,
        met=f"{type(error).__name__}: {_error_text(error)}",
        do=f"please report it, with {name}",
    )


def _error_text(error: BaseException) -> str:
    """Return an exception's text on one line, the same in every run; its class name where it has none."""
    try:
        text = " ".join((getattr(error, "strerror", None) or str(error)).split())
    except Exception:  # an exception of a library that cannot even be printed
        text = ""
    text = _ADDRESS.sub("", text) or type(error).__name__
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " ..."


def _last_line_in_package(error: Exception) -> str:
    """Return file and line of the last frame of the traceback that is in this package."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _in_package(frame.filename)]
    if not frames:
        return "outside of this package"
    return f"{Path(frames[-1].filename).relative_to(_HERE)}:{frames[-1].lineno}"


def _in_package(file: str) -> bool:
    return Path(file).parent.is_relative_to(_HERE / "pipeline") or Path(file).parent.is_relative_to(_HERE / "shards")


def _without_root(text: str, root: Path) -> str:
    """Return `text` with paths below `root` made relative: sets do not depend on where the raw data lies."""
    for folder in (root.absolute(), root):
        if folder.name:  # not "." or "/"
            text = text.replace(f"{folder}/", "")
    return text
