"""Compare names of files without differences that a reader cannot see: slashes, accents, case, escapes, mounts."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import PurePosixPath
from urllib.parse import unquote

Parts = tuple[str, ...]

_COCO_NAME = re.compile(r"(?:.*_)?(\d{12}\.jpg)")
_COCO_FOLDER = re.compile(r"(?:train|val|test)20(?:14|15|17)")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://[^/]*(.*)", re.DOTALL)  # a drive has one letter
_LOCAL_FILE = re.compile(r".*[?&]d=([^&]*).*", re.DOTALL)  # Label Studio: /data/local-files/?d=folder/a.jpg
_DRIVE = re.compile(r"[A-Za-z]:(?=/)")
_UPLOAD = re.compile(r"[0-9a-f]{8}-(.+)", re.DOTALL)  # Label Studio: in front of each name that is uploaded
_SUFFIXES = {".jpeg": ".jpg", ".jpe": ".jpg", ".jfif": ".jpg", ".tiff": ".tif"}
_MOST_TAILS = 32


@lru_cache(maxsize=1 << 12)  # for the names of folders above all
def look_alike(name: str) -> str:
    """Return a key that names share if they differ only in case, accents, escapes (%20), outer blanks or .jpg/.jpeg."""
    plain = unquote(name) if "%" in name else name
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", plain.strip()).casefold())
    stem, dot, suffix = folded.rpartition(".")
    return stem.strip() + _SUFFIXES.get(dot + suffix, dot + suffix)


def parts_of(name: str) -> tuple[Parts, bool]:
    """Return a name's parts, and whether it begins outside of the dataset: with a URL, a drive, a slash or `..`."""
    url = _URL.fullmatch(name)
    local = _LOCAL_FILE.fullmatch(name)
    text = local[1] if local else re.split(r"[?#]", url[1])[0] if url else name
    text = text.replace("\\", "/").strip()
    elsewhere = bool(url or local or _DRIVE.match(text) or text.startswith("/") or ".." in text.split("/"))
    parts = [part for part in _DRIVE.sub("", text).split("/") if part.strip() not in ("", ".")]
    while ".." in parts:
        parts = parts[parts.index("..") + 1 :]
    return tuple(parts), elsewhere


def spellings(name: str, bare: bool) -> list[Parts]:
    """Return the paths that a name may refer to, in parts, the longest first.

    Args:
        bare: return the ends of every path, down to the last part alone, and that one without the eight letters that
            Label Studio puts in front. Otherwise the ends of two parts and more, of names that begin elsewhere.
    """
    found: list[Parts] = []
    for text in (name, unquote(name)):
        parts, elsewhere = parts_of(text)
        shortest = 1 if bare else 2
        last = len(parts) - shortest if bare or elsewhere else 0
        found += [parts[start:] for start in range(min(last, _MOST_TAILS) + 1)]
        if bare and parts:
            found.append(parts[-1:])
            if match := _UPLOAD.fullmatch(parts[-1]):
                found.append((match[1],))
    return [parts for parts in dict.fromkeys(found) if parts]


def coco_names(name: str) -> list[str]:
    """Return the names that a picture may have on disk, where annotations call it `name`.

    COCO's pictures are named with and without the prefix of 2014. The order is the same whatever the name, so that all
    names of a picture find one file.
    """
    last = name.rsplit("/", 1)[-1]
    match = _COCO_NAME.fullmatch(last)
    if match is None:
        return list(dict.fromkeys((name, last)))
    plain = match[1]
    folders = [name.removesuffix(last) + plain] if last != name else []
    return [*folders, plain, f"COCO_train2014_{plain}", f"COCO_val2014_{plain}"]


def is_coco_name(name: str) -> bool:
    """Whether a name ends with an image number of COCO, which identifies its picture in any folder."""
    return _COCO_NAME.fullmatch(name.rsplit("/", 1)[-1]) is not None


def identifying_parts(name: str) -> Parts:
    """Return the parts of a name that identify its picture; COCO's numbers do so without prefix and folder."""
    parts = parts_of(name)[0]
    match = _COCO_NAME.fullmatch(parts[-1]) if parts else None
    if match is None:
        return parts
    folders = [part for part in parts[:-1] if not _COCO_FOLDER.fullmatch(part)]
    return (*folders, match[1])


def may_be_same(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether one of two names is the end of the other, so that both may refer to one file."""
    shorter, longer = sorted((tuple(first), tuple(second)), key=len)
    return longer[len(longer) - len(shorter) :] == shorter


def tail(path: str, count: int) -> str:
    """Return the last `count` parts of a path."""
    return "/".join(PurePosixPath(path).parts[-count:])
