"""Frames of videos, read in any order, and videos that are written."""

from __future__ import annotations

import os
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from inference.video import Frames, write_video
from pipeline.sources.video_file import VideoFile
from shards.errors import UserError
from tests.inference.videos import read_h264, write_h264


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """60 frames of 48 x 64, of which each has another brightness."""
    file = tmp_path_factory.mktemp("video") / "clip.mp4"
    noise = np.random.default_rng(0).integers(0, 60, (48, 64, 3))
    write_h264(file, [(noise + 3 * i).astype(np.uint8) for i in range(60)], rate=25)
    return file


ORDERS = {
    "as a prediction reads": [0, 14, 29, 44, 59, 0, *range(1, 60)],
    "as it reads the first ones": [*range(5), *range(60)],
    "backwards": [*range(59, -1, -7)],
    "with steps": [3, 3, 9, 30, 5, 4, 20, 0, 2],
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_frames_are_those_of_a_reading_from_the_start(clip, order):
    expected = read_h264(clip)
    frames = Frames(clip)
    assert len(frames) == 60 and frames.names[59] == "00059" and frames.rate == 25
    for i in order:
        assert np.array_equal(frames[i], expected[i]), i
    assert frames[-1].mean() > frames[0].mean() + 150
    with pytest.raises(IndexError):
        frames[60]


def test_in_order_each_frame_is_decoded_once(clip, monkeypatch):
    sought, streams = [], []
    pictures, stream = VideoFile.pictures, VideoFile.stream
    monkeypatch.setattr(VideoFile, "pictures", lambda *args: (sought.append(args[1]), pictures(*args))[1])
    monkeypatch.setattr(VideoFile, "stream", lambda self: (streams.append(0), stream(self))[1])
    frames = Frames(clip)
    assert len([frames[i] for i in range(60) for _ in range(2)]) == 120
    assert not sought and len(streams) == 1


@pytest.mark.parametrize("cut", [0.5, 0.02])
def test_a_broken_file_is_one_line(clip, tmp_path, cut):
    data = bytearray(clip.read_bytes())
    middle = data.index(b"mdat") + 200
    data[middle : middle + 2000] = bytes(2000)
    (tmp_path / "broken.mp4").write_bytes(data if cut == 0.5 else data[: int(len(data) * cut)])
    with pytest.raises(UserError, match=r"^[^\n]*broken\.mp4[^\n]*$|^[^\n]*in a video[^\n]*$"):
        list(Frames(tmp_path / "broken.mp4"))


def test_a_folder_is_a_video(tmp_path):
    for i in (2, 10, 1):
        Image.new("RGB", (8, 6 + i), (i, 0, 0)).save(tmp_path / f"{i}.png")
    frames = Frames(tmp_path)
    assert frames.names == ["1.png", "2.png", "10.png"] and [frame[0, 0, 0] for frame in frames] == [1, 2, 10]
    assert frames.rate == 10 and frames[1].shape == (8, 8, 3)


def test_a_video_is_written_whole_or_not_at_all(tmp_path):
    grey = np.full((33, 47, 3), 120, np.uint8)
    with write_video(tmp_path / "deep" / "a.mp4", Fraction(30000, 1001)) as add:
        for frame in (grey, grey[:20], np.full((50, 60, 3), 200, np.uint8)):
            add(frame)
    first, cut, larger = read_h264(tmp_path / "deep" / "a.mp4", Fraction(30000, 1001))
    assert first.shape == cut.shape == larger.shape == (34, 48, 3)
    near = {"atol": 6}
    assert np.allclose(first, 120, **near) and np.allclose(larger, 200, **near)
    assert np.allclose(cut[:16], 120, **near) and np.allclose(cut[24:], 0, **near)
    with pytest.raises(ZeroDivisionError), write_video(tmp_path / "b.mp4", Fraction(10)) as add:
        add(grey)
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match="cannot be written"),
        write_video(tmp_path / "file" / "c.mp4", Fraction(10)),
    ):
        pass


def test_what_killed_programs_left_is_removed(tmp_path):
    old, new, other = (tmp_path / f".{name}.tmp" for name in ("a[1].mp4.0", "a[1].mp4.1", "b.mp4.0"))
    for file in (old, new, other):
        file.touch()
    for file in (old, other):
        os.utime(file, (0, 0))
    with write_video(tmp_path / "a[1].mp4", Fraction(5)) as add:
        add(np.zeros((8, 8, 3), np.uint8))
    assert {*tmp_path.iterdir()} == {tmp_path / "a[1].mp4", new, other}
