"""Placeholders of files that were not downloaded: Git LFS and git-annex pointers, web pages."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from shards.errors import UserError

_HEAD = 256
_KINDS = (
    (b"version https://git-lfs", "a Git LFS pointer", "fetch the file itself: git lfs pull"),
    (b"version https://hawser", "a Git LFS pointer", "fetch the file itself: git lfs pull"),
    (b"/annex/objects/", "a git-annex pointer", "fetch the file itself: git annex get"),
    (b"<!doctype html", "a web page", "download the file, not the page about it"),
    (b"<html", "a web page", "download the file, not the page about it"),
)


def refuse_pointers(paths: Iterable[Path]) -> None:
    """Raise `UserError` where one of the files is a placeholder; missing and unreadable ones pass."""
    for path in paths:
        if not path.is_file():
            continue
        try:
            with path.open("rb") as file:
                head = file.read(_HEAD).lstrip(b"\xef\xbb\xbf \r\n\t").lower()
        except OSError:
            continue  # reported where the file is needed
        for begins, kind, do in _KINDS:
            if head.startswith(begins):
                raise UserError("not a model's file but what stands in for it", where=str(path), met=kind, do=do)
