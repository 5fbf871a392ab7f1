"""Read pictures from a video file, by their number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from pipeline.fit import advice, size_difference
from pipeline.input_files import input_state, open_input, refuse_pointer
from pipeline.pictures import MAX_PIXELS
from pipeline.resize import UInt8
from shards.errors import BadInput

# No playlists: FFmpeg would open the files that they name, whatever the video's own suffix.
_FORMATS = "mov,mp4,matroska,webm,avi,mpeg,mpegts,flv,asf,ogg,m4v,ivf,h264,hevc,mpegvideo,mxf"
_ONLY = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
_KEPT = 6  # pictures per video, and all of the last call: its samples follow each other, and often use the same frames


class VideoFile:
    """A video file. It is opened for each call, so that objects can be cached; raises `BadInput` where it is broken."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._decoded: dict[tuple[int, tuple[int, int] | None], Image.Image] = {}
        with open_input(path) as file:
            refuse_pointer(file.read(64), str(path))
        with self._opened() as (container, stream):
            times = [packet.pts for packet in container.demux(stream) if packet.size and not packet.is_discard]
            self.rate: Fraction | None = stream.average_rate
            """Frames per second, on average; None where the container does not say it."""
            timed = container.format.name != "avi"  # AVI has no times: libraries guess them, in decoding order
        self._times = sorted(times) if timed and None not in times and len({*times}) == len(times) else None
        self.count = len(times)
        """Number of frames that the container lists; nothing is decoded."""

    def pictures(self, numbers: Sequence[int], size: tuple[int, int] | None, slack: int = 0) -> list[Image.Image]:
        """Return the frames of these numbers (ascending, from 0), each (H, W, 3) uint8 RGB, read-only.

        Args:
            size: (H, W) that annotations were made for; None for any. Frames are turned upright by the rotation that
                the file states, unless only the stored frame has this size.
            slack: pixels by which each side may differ from it.
        """
        missing = [number for number in numbers if (number, size) not in self._decoded]
        if missing:
            found = self._seek(missing)
            if found is None:
                self._times = None  # seeking fails in this file: decode it from its start, now and later
                with self._opened() as (container, stream):
                    found = _decode_from_start(container, stream, missing)
            for number, frame in zip(missing, found, strict=True):
                self._decoded[number, size] = self._picture(frame, size, slack)
        pictures = [self._decoded[number, size] for number in numbers]
        for key in [*self._decoded][: -max(_KEPT, len(numbers))]:
            del self._decoded[key]
        return pictures

    def stream(self) -> Iterator[UInt8]:
        """Yield all frames in order, each (H, W, 3) uint8 RGB, upright; one is in memory at a time.

        Raises:
            BadInput: a broken frame, or fewer frames than the container lists.
        """
        with self._opened() as (container, stream):
            number = -1
            for number, frame in enumerate(container.decode(stream)):
                _check_whole(frame, number)
                yield np.asarray(self._picture(frame, None, 0))
            if number + 1 < self.count:
                raise _ends_early(number + 1, self.count - 1)

    def _seek(self, numbers: Sequence[int]) -> list[Any] | None:
        """Return the frames, each decoded from the key frame before it; None where that does not give all of them.

        An error is no sign of damage here: after a key frame of an open group, or of pictures that are refreshed piece
        by piece, frames refer to others before it.
        """
        if self._times is None:
            return None
        found = []
        try:
            with self._opened() as (container, stream):
                for number in numbers:
                    time = self._times[number]
                    container.seek(time, stream=stream, backward=True)
                    frame = next((f for f in container.decode(stream) if f.pts is None or f.pts >= time), None)
                    if frame is None or frame.pts != time or frame.is_corrupt:
                        return None
                    found.append(frame)
        except BadInput:
            return None
        return found

    def _picture(self, frame: Any, size: tuple[int, int] | None, slack: int) -> Image.Image:
        if frame.width * frame.height > MAX_PIXELS:
            raise BadInput(
                "too large a picture",
                where=str(self._path),
                met=f"{frame.width} x {frame.height}",
                wanted=f"at most {MAX_PIXELS} pixels",
            )
        stored: UInt8 = frame.to_ndarray(format="rgb24")
        upright = np.rot90(stored, round(frame.rotation / 90))
        if size is None:
            return Image.fromarray(np.ascontiguousarray(upright))
        off_upright = size_difference(size, upright.shape[:2])
        off_stored = size_difference(size, stored.shape[:2])
        picture, off = (stored, off_stored) if off_stored < off_upright else (upright, off_upright)
        if off > slack:
            raise BadInput(
                "picture and annotation differ in size",
                where=str(self._path),
                met=f"{picture.shape[0]} x {picture.shape[1]}",
                wanted=f"{size[0]} x {size[1]}",
                do=advice(off),
            )
        return Image.fromarray(np.ascontiguousarray(picture))

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        wanted = _FORMATS.replace(",", ", ")
        try:
            with av.open(str(self._path), mode="r", options=_ONLY) as container:
                wanted = ""  # it is one of these
                stream = container.streams.video[0]
                stream.codec_context.thread_count = 1  # workers are processes
                stream.codec_context.options = {"err_detect": "explode"}  # else FFmpeg conceals damage
                yield container, stream
        except FileNotFoundError:
            raise BadInput("no such file", where=str(self._path)) from None
        except (av.FFmpegError, IndexError, ValueError) as error:
            raise BadInput(
                "cannot be read as a video",
                where=str(self._path),
                met="no picture in it" if isinstance(error, IndexError) else str(error).splitlines()[0],
                wanted=wanted,
            ) from None


def _decode_from_start(container: Any, stream: Any, numbers: Sequence[int]) -> list[Any]:
    requested = {*numbers}
    found = []
    number = -1
    for number, frame in enumerate(container.decode(stream)):
        if number in requested:
            found.append(frame)
            _check_whole(frame, number)
        if len(found) == len(requested):
            return found
    raise _ends_early(number + 1, max(requested))


def _check_whole(frame: Any, number: int) -> None:
    if frame.is_corrupt:
        raise BadInput("broken picture in a video", met=f"frame {number}", wanted="a whole video")


def _ends_early(frames: int, wanted: int) -> BadInput:
    return BadInput("video ends early", met=f"{frames} frames", wanted=f"frame {wanted}")


@lru_cache(maxsize=2)
def _kept(path: Path, changed: int, size: int) -> VideoFile:
    return VideoFile(path)


def open_video(path: Path) -> VideoFile:
    """Return the video at `path`. Neighbours in a plan share videos, so the last two are cached."""
    state = input_state(path)
    return _kept(path, state.st_mtime_ns, state.st_size)
