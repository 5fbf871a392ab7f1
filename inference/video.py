"""Read the frames of a video, one at a time, and write a video with its masks."""

from __future__ import annotations

import glob
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from inference.pictures import picture_files, read_picture
from pipeline.resize import UInt8
from pipeline.sources.video_file import VideoFile
from shards.errors import UserError

FOLDER_RATE = Fraction(10)
"""Frames per second of the video that is written for a folder of frames: a folder does not say its own."""
_LEFT_ALONE = 3600
"""Seconds after which a partial video, to which nothing has been written, belongs to a killed program."""
_SHORT_STEP = 8
"""Frames that are decoded in passing rather than sought."""


class Frames(Sequence[UInt8]):
    """Frames of a video, (H, W, 3) uint8 RGB. Each is read when it is indexed; in order, each is read once."""

    def __init__(self, path: Path) -> None:
        """Open a folder of frames, or a video file. Raises `UserError` where it is neither."""
        self._files: list[Path] = []
        self._video: VideoFile | None = None
        self._stream: Iterator[UInt8] = iter(())
        self.rate = FOLDER_RATE
        """Frames per second."""
        if path.is_file():
            self._video = VideoFile(path)
            self.names = [f"{i:05d}" for i in range(self._video.count)]
            """Names of the frames: of the files, or numbers from 00000."""
            self.rate = self._video.rate or FOLDER_RATE
            self._stream = self._video.stream()
        else:
            self._files = picture_files(path)
            self.names = [file.name for file in self._files]
        self._last: tuple[int, UInt8 | None] = (-1, None)
        self._position = 0  # of the next frame of the stream

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> Any:
        number = range(len(self))[index]
        if number != self._last[0]:
            self._last = number, self._read(number)
        return self._last[1]

    def _read(self, number: int) -> UInt8:
        if self._video is None:
            return read_picture(self._files[number])
        if number == 0 < self._position:  # once more from the start
            self._stream = self._video.stream()
            self._position = 0
        if not self._position <= number <= self._position + _SHORT_STEP:
            return np.asarray(self._video.pictures([number], None)[0])
        for _ in range(number - self._position):
            next(self._stream)
        self._position = number + 1
        return next(self._stream)


@contextmanager
def write_video(path: Path, rate: Fraction) -> Iterator[Callable[[UInt8], None]]:
    """Write an H.264 video in an mp4 file, which gets its name once it is complete.

    What killed programs left of the same file is removed.

    Yields a function that adds a frame (H, W, 3) uint8 RGB. The first gives the video its size, made even by repeating
    the last row and column, as H.264 needs it; larger ones are cut to it, smaller ones filled with black.

    Raises:
        UserError: the file cannot be written.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        with av.open(str(partial), "w", format="mp4") as container:
            stream: Any = container.add_stream("libx264", rate=rate, options={"crf": "18", "preset": "veryfast"})
            stream.pix_fmt = "yuv420p"
            stream.width = stream.height = 0

            def add(frame: UInt8) -> None:
                even = np.pad(frame, [(0, side % 2) for side in frame.shape[:2]] + [(0, 0)], "edge")
                if not stream.width:
                    stream.height, stream.width = even.shape[:2]
                canvas = np.zeros((stream.height, stream.width, 3), np.uint8)
                part = even[: stream.height, : stream.width]
                canvas[: part.shape[0], : part.shape[1]] = part
                container.mux(stream.encode(av.VideoFrame.from_ndarray(canvas, format="rgb24")))

            yield add
            container.mux(stream.encode())
        os.replace(partial, path)
    except (OSError, av.FFmpegError) as error:
        reason = str(error.strerror or error)
        raise UserError("cannot be written", where=str(path), met=reason) from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _remove_leftovers(path: Path) -> None:
    """Remove partial files of the video `path` that nobody writes any more."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with suppress(OSError):
            if time.time() - leftover.stat().st_mtime > _LEFT_ALONE:
                leftover.unlink()
