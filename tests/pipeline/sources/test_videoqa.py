"""Conversations about videos: Chat-UniVi's layout, videos and folders of frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.sources.videoqa import FEWER, OTHER_FILE
from shards.errors import BadInput
from tests.pipeline.built import Found, put, through
from tests.pipeline.sources import videos as v
from tests.pipeline.sources.test_llava import spelled, talk

FILE = "chat_univi/video_chat.json"
VIDEOS = "chat_univi/Activity_Videos"
FRAMES = 23


def record(*values, video="v_k_ZXmr8pmrs.mkv", **more):
    return {"id": "v_k_ZXmr8pmrs", "video": video, "conversations": talk(*values), **more}


RECORDS = [
    record("What is he doing? \n<video>", " He waves.\n", " Where?", "Outside."),
    record("<video>\nWho is it?", "A woman.", video="frames_of_it.mp4"),
]


def write_videoqa(root: Path, *records, frames: int = 12) -> Path:
    """Write a video under another suffix than its record states, and a folder of frames."""
    put(root / FILE, [*(records or RECORDS)])
    v.write_video(root / VIDEOS / "v_k_ZXmr8pmrs.mp4", FRAMES)
    for n in range(frames):
        v.write_frame(root / VIDEOS / f"frames_of_it/frame{n}.jpg", n)
    put(root / VIDEOS / "frames_of_it/notes.txt", b"")
    return root


def load(tmp_path, *records, **options):
    return Found("videoqa", write_videoqa(tmp_path / "raw", *records), tmp_path, **options).load()


def middles(count: int, k: int) -> list[int]:
    """Return the frames in the middle of k equal stretches, computed from their bounds."""
    bounds = [count * i // k for i in range(k + 1)]
    ideal = [int((i + 0.5) * count / k) for i in range(k)]
    return [min(max(one, a), b - 1) for one, a, b in zip(ideal, bounds[:-1], bounds[1:], strict=True)]


@pytest.mark.parametrize("frames", [1, 5, 16])
def test_frames_and_turns_of_both_kinds(tmp_path, frames):
    found = Found("videoqa", write_videoqa(tmp_path / "raw"), tmp_path, frames=frames)
    assert found.paths == [f"{VIDEOS}/frames_of_it#1", f"{VIDEOS}/v_k_ZXmr8pmrs.mp4#0"]
    folder, video = map(found.load, found.paths)
    assert spelled(video.more["turns"]) == [("{}\nWhat is he doing?", "He waves."), ("Where?", "Outside.")]
    assert spelled(folder.more["turns"]) == [("{}\nWho is it?", "A woman.")]
    wanted = middles(FRAMES, frames)
    assert [frame.name for frame in video.frames] == [f"{n:05d}" for n in wanted]
    assert [v.number_of(frame.picture, range(FRAMES)) for frame in video.frames] == wanted
    wanted = middles(12, min(frames, 12))
    assert [frame.name for frame in folder.frames] == [f"frame{n}.jpg" for n in wanted]
    for n, frame in zip(wanted, folder.frames, strict=True):
        assert np.abs(np.asarray(frame.picture, int) - v.picture(n)).mean() < 4
    assert folder.notes[FEWER] == (frames == 16) and not video.notes[FEWER]
    assert (folder.more["video"], video.more["video"]) == (
        {"name": "frames_of_it.mp4", "frames": 12},
        {"name": "v_k_ZXmr8pmrs.mkv", "frames": FRAMES},
    )
    assert not any(sample.objects or sample.segmentable for sample in (folder, video))
    assert found.counts[OTHER_FILE] == 2 and found.counts["videos that are missing"] == 0
    files = [[*found.source.files(path, iter(found.records.parts(path)))] for path in found.paths]
    assert files == [[f"{VIDEOS}/frames_of_it/frame{n}.jpg" for n in wanted], [f"{VIDEOS}/v_k_ZXmr8pmrs.mp4"]]


def test_the_mark_of_a_picture_in_the_first_message(tmp_path):
    """Sa2VA's code takes `<image>` out after the blanks, so that its line end stays."""
    sample = load(tmp_path, record("<image>\nWhat?", "A.", "<video>C?", "D."), frames=1)
    assert spelled(sample.more["turns"]) == [("{}\n\nWhat?", "A."), ("C?", "D.")]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"video": None}, "no name of a video"),
        ({"video": ["a.mp4"]}, "no name of a video"),
        ({"video": "gone.mp4"}, "no such file; met no 'gone.mp4'"),
        ({"video": "../../gone.mp4"}, "path leaves the dataset"),
        ({"video": "empty"}, "a video without frames"),
        ({"video": "text.mp4"}, "cannot be read as a video"),
        ({"conversations": talk("<video>?", "a", "<image>?", "b")}, "<image> after the first message; met turn 1"),
        ({"conversations": talk("<video>?", "a", "<video>", "b")}, "an empty question"),
        ({"conversations": talk("<video>?")}, "no question with an answer"),
    ],
)
def test_a_record_with_a_fault_is_one_bad_input(tmp_path, bad, why):
    root = write_videoqa(tmp_path / "raw", {**record("<video>?", "a"), **bad}, frames=1)
    put(root / VIDEOS / "text.mp4", b"not a video")
    (root / VIDEOS / "empty").mkdir()
    with pytest.raises(BadInput, match=why):
        Found("videoqa", root, tmp_path, frames=1).load()


def test_through_shards_verify_and_preview(tmp_path):
    summary, samples = through("videoqa", write_videoqa(tmp_path / "raw"), tmp_path, frames=2)
    assert summary.manifest.version == 3 and summary.manifest.samples == 2
    meta = samples[f"{VIDEOS}/v_k_ZXmr8pmrs.mp4#0"]
    assert [one["name"] for one in meta["frames"]] == [f"{n:05d}" for n in middles(FRAMES, 2)]
    assert {*meta["crc32"]} == {"pixel_values1", "pixel_values2"} and meta["objects"] == []
