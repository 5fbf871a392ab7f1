"""Files and folders that operating systems and tools leave among data."""

from __future__ import annotations

_NAMES = {
    "__macosx",  # zip files made on macOS
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
    """Return whether a file or folder of this name, without slashes, is not data: `._a.jpg`, `Thumbs.db`, ...

    Names that begin with a dot are hidden by convention; macOS writes `._NAME` beside each file on other file systems.
    """
    if name.startswith("."):
        return name not in (".", "..")
    folded = name.lower()
    return folded in _NAMES or folded.endswith(_STREAM)


def is_hidden_path(path: str) -> bool:
    """Return whether any part of a relative path with forward slashes is hidden."""
    return any(map(is_hidden, path.split("/")))


def visible_counterpart(name: str) -> str:
    """Return the name of the file that a hidden file belongs to: `._a.jpg` and `.a.jpg` -> `a.jpg`."""
    if name.lower().endswith(_STREAM):
        return name[: -len(_STREAM)]
    return name.removeprefix("._").removeprefix(".")
