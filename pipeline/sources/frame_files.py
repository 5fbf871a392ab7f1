"""Find the pictures of a video's frames, one file each."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path, PurePosixPath

from pipeline.spelling import look_alike
from pipeline.walk import list_names

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class FrameFiles:
    """Finds files in a folder by the names of frames, with or without a suffix."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def named(self, name: str) -> Path | None:
        """Return `NAME.jpg`, or else the only picture whose name is alike; None where there is none."""
        usual = self._folder / f"{name}.jpg"
        if usual.is_file():
            return usual
        found = self._alike.get(look_alike(name)) or self._alike.get(look_alike(f"{name}.jpg"))
        return self._folder / found if found else None

    @cached_property
    def _alike(self) -> dict[str, str | None]:
        """Key (`look_alike`) with and without suffix -> name of a picture; None where several are alike."""
        try:
            names = list_names(self._folder)
        except OSError:
            return {}
        alike: dict[str, str | None] = {}
        for name in names:
            pure = PurePosixPath(name)
            if pure.suffix.lower() in SUFFIXES:
                for key in {look_alike(name), look_alike(pure.stem)}:
                    alike[key] = None if key in alike else name
        return alike
