"""Files and folders that operating systems and tools leave between data, and that are no data."""

from __future__ import annotations

_NAMES = {
    "__macosx",  # a Mac's zip files
    "icon\r",
    "thumbs.db",  # Windows
    "ehthumbs.db",
    "desktop.ini",
    "$recycle.bin",
    "system volume information",
    "@eadir",  # Synology
    "#recycle",
    "#snapshot",
    "@recycle",  # QNAP
    "lost+found",
    "__pycache__",
}
_STREAM = ":zone.identifier"  # beside a downloaded file that Windows copied elsewhere


def is_hidden(name: str) -> bool:
    """Whether a file or folder called `name`, without slashes, is no data: `._a.jpg`, `.DS_Store`, `Thumbs.db`, ...

    Names that begin with a dot are hidden by convention; a Mac writes `._NAME` beside each file on foreign disks.
    """
    if name.startswith("."):
        return name not in (".", "..")
    folded = name.lower()
    return folded in _NAMES or folded.endswith(_STREAM)


def is_hidden_path(path: str) -> bool:
    """Whether a part of a relative path with forward slashes is hidden."""
    return any(map(is_hidden, path.split("/")))


def hidden_stand_in(name: str) -> str:
    """The file that a hidden one goes with by its name: `._a.jpg` and `.a.jpg` -> `a.jpg`."""
    if name.lower().endswith(_STREAM):
        return name[: -len(_STREAM)]
    return name.removeprefix("._").removeprefix(".")
