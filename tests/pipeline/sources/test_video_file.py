"""Videos where seeking fails: each frame equals that of decoding from the start."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.sources.video_file import VideoFile
from shards.errors import BadInput
from tests.pipeline.sources.videos import HEIGHT, WIDTH, number_of, picture

FRAMES = 48
FAST = {"crf": "12", "preset": "veryfast"}
OPEN = {**FAST, "x264-params": "open-gop=1:keyint=16:min-keyint=1:bframes=3:b-adapt=0"}
REFRESH = {**FAST, "x264-params": "intra-refresh=1:keyint=16"}
CLOSED = {**FAST, "x264-params": "keyint=16:bframes=2"}
LONG = [10, 8, 12, 40]  # of frames in turn, in 240ths of a second


def write(file: Path, codec: str, options: dict[str, str], varying: bool) -> Path:
    with av.open(str(file), "w") as container:
        stream = container.add_stream(codec, rate=24, options=options)
        stream.width = WIDTH
        stream.height = HEIGHT
        stream.pix_fmt = "yuv420p"
        stream.codec_context.max_b_frames = 2
        if varying:
            stream.codec_context.time_base = Fraction(1, 240)
        for n in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(picture(n), format="rgb24")
            if varying:
                frame.pts = sum(LONG) * (n // 4) + sum(LONG[: n % 4])
                frame.time_base = Fraction(1, 240)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file


@pytest.mark.parametrize(
    ("name", "codec", "options", "varying"),
    [
        ("open.mp4", "libx264", OPEN, False),
        ("open.mkv", "libx264", OPEN, True),
        ("refresh.mp4", "libx264", REFRESH, False),
        ("refresh.ts", "libx264", REFRESH, False),
        ("varying.mp4", "libx264", CLOSED, True),
        ("untimed.avi", "libx264", CLOSED, False),
        ("open.mpg", "mpeg2video", {"qscale": "2"}, False),
        ("parts.mp4", "mpeg4", {"qscale": "2"}, False),
    ],
)
def test_every_frame_is_that_of_a_reading_from_the_start(tmp_path, name, codec, options, varying):
    file = write(tmp_path / name, codec, options, varying)
    with av.open(str(file)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == VideoFile(file).count == FRAMES
    assert number_of(frames[33], range(FRAMES)) == 33
    for numbers in ([0], [17], [15, 16, 40], [18, 46], [47], [3, 4]):
        pictures = VideoFile(file).pictures(numbers, (HEIGHT, WIDTH))
        expected = [frames[number] for number in numbers]
        assert len(pictures) == len(expected) and all(map(np.array_equal, pictures, expected)), numbers


def test_damage_is_found_when_an_open_group_is_read_from_its_start(tmp_path):
    file = write(tmp_path / "open.mp4", "libx264", OPEN, False)
    with av.open(str(file)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(file.read_bytes())
    at, size = packets[20]
    data[at + size // 4 : at + size] = bytes(size - size // 4)
    file.write_bytes(data)
    assert np.array(VideoFile(file).pictures([2], (HEIGHT, WIDTH))[0]).any()
    with pytest.raises(BadInput, match=r"open\.mp4: (cannot be read as a video|broken picture|video ends early)"):
        VideoFile(file).pictures([46], (HEIGHT, WIDTH))


def test_a_playlist_opens_no_other_file(tmp_path):
    write(tmp_path / "real.mp4", "libx264", CLOSED, False)
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile real.mp4\n")
    with av.open(str(tmp_path / "list.mp4")) as container:
        assert container.format.name == "concat"  # FFmpeg alone would take it
    with pytest.raises(BadInput, match=r"list\.mp4: cannot be read as a video"):
        VideoFile(tmp_path / "list.mp4")
