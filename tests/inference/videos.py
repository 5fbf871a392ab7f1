"""Write and read small videos with PyAV alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np


def write_h264(file: Path, frames: Sequence[np.ndarray], rate: int) -> None:
    """Write frames (H, W, 3) uint8 of even sides, with B-frames and a key frame in every 12."""
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "8", "preset": "veryfast"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.gop_size = 12
        stream.codec_context.max_b_frames = 2
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def read_h264(file: Path, rate: int | None = None) -> list[np.ndarray]:
    """Decode all frames from the start; check their rate."""
    with av.open(str(file)) as container:
        assert rate is None or container.streams.video[0].average_rate == rate
        assert container.streams.video[0].codec_context.name == "h264"
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
