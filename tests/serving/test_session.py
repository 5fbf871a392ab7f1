"""Conversations of visitors, without a browser."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from inference.chat import Reply
from inference.predictor import Predictor
from serving.session import Sessions
from shards.errors import UserError
from tests.inference.videos import read_h264, write_h264
from tests.serving.conftest import LIMITS


@pytest.fixture
def sessions(speaker: Predictor, tmp_path: Path) -> Sessions:
    (tmp_path / "kept").mkdir()
    return Sessions(speaker, LIMITS, tmp_path / "kept", lambda text: said.append(text))


said: list[str] = []


def asked(session, text: str, regions=()) -> Reply:
    return [*session.stream(session.checked(text, len(regions)), regions)][-1]


def test_the_conversation_idle_longest_ends_for_a_new_one(sessions: Sessions, cat, tmp_path):
    first = sessions.start("0", cat)
    gone, folder = weakref.ref(first.chat), first.folder
    second = sessions.start("1", cat).chat
    for n in range(2, LIMITS.sessions):
        sessions.start(str(n), cat)
    assert sessions.get("1").chat is second and sessions.get("0") is first
    del first
    sessions.get("1")
    assert len(sessions) == LIMITS.sessions
    sessions.get("0")
    for n in range(1, LIMITS.sessions):
        sessions.get(str(n))
    said.clear()
    sessions.start("new", cat)
    assert said == ["a conversation of 0 questions has ended: 8 are kept"]
    with pytest.raises(UserError, match="the server keeps 8 conversations at a time"):
        sessions.get("0")
    gc.collect()
    assert gone() is None and not folder.exists()
    sessions.close()
    assert len(sessions) == 0 and not [*(tmp_path / "kept").iterdir()]


def test_what_is_painted_and_pointed_at_becomes_regions_of_the_picture(sessions: Sessions, photos, tmp_path):
    large = photos[0].repeat(5, 0).repeat(5, 1)
    Image.fromarray(large).save(tmp_path / "large.jpg")
    session = sessions.start("x", tmp_path / "large.jpg")
    assert session.step == 3 and session.shown.shape == (500, 751, 3)
    layer = np.zeros((500, 751, 4), np.uint8)
    layer[100:200, 300:400, 3] = 255
    session.keep([np.zeros_like(layer), layer])
    session.click(100, 200, True)
    session.click(700, 20, False)
    expected = session.chat.region_at(points=[(301, 601), (2101, 61)], labels=[True, False])
    square = np.zeros((1500, 2255), bool)
    square[300:600, 900:1200] = True
    regions = session.regions_with([])
    assert len(regions) == 2 and np.array_equal(regions[0], square) and np.array_equal(regions[1], expected)
    view = session.pointed_view()
    assert view[200, 100].tolist() == [255] * 3 and view[20, 700].tolist() == [0] * 3  # the clicks
    session.clear_points()
    session.click_corner(100, 200)
    assert session.pointed_view()[200, 100].tolist() == [255] * 3
    assert len(session.regions_with([])) == 1
    session.click_corner(50, 20)
    expected = session.chat.region_at(box=(151, 61, 301, 601))
    assert np.array_equal(session.regions_with([])[1], expected)
    with pytest.raises(UserError, match="too many regions; met 4; wanted at most 3"):
        session.regions_with([layer, layer])
    with pytest.raises(UserError, match="a box without an area"):
        session.click_corner(5, 5), session.click_corner(5, 5)
    asked(session, "", session.regions)
    assert "region1" not in session.chat.turns[0][0]  # one region: the question of training
    assert session.checked("", 2) == "Describe region2, region3."
    session.clear_regions()
    assert session.regions_with([]) == []


@pytest.mark.slow
def test_a_video_is_shown_with_its_masks(sessions: Sessions, photos, tmp_path):
    frames = [np.roll(photos[0][:200, :300], 8 * i, 1) for i in range(3)]
    write_h264(tmp_path / "cat.mp4", frames, 5)
    session = sessions.start("x", tmp_path / "cat.mp4")
    (tmp_path / "cat.mp4").unlink()  # the upload may be removed
    with pytest.raises(UserError, match="regions of a video cannot be marked"):
        session.click(5, 5, True)
    shown = session.draw(asked(session, "Please segment the cat."))
    assert shown.parent == session.folder
    drawn = read_h264(shown, 5)
    assert [frame.shape for frame in drawn] == [(200, 300, 3)] * 3
    colours = [np.ptp(frame.astype(int), axis=2).max() for frame in drawn]  # the picture is grey, masks are not
    assert min(colours) > 60


def test_too_large_or_no_picture(sessions: Sessions, photos, tmp_path, monkeypatch):
    Image.new("1", (20_000, 5_001)).save(tmp_path / "bomb.png")
    (tmp_path / "page.png").write_text("<svg/>")
    (tmp_path / "list.mp4").write_text("#EXTM3U\n/etc/passwd\n")
    write_h264(tmp_path / "long.mp4", [photos[0][:64, :64]] * 4, 5)
    for name, message in (
        ("bomb.png", "too large a picture; met 20000 x 5001"),
        ("page.png", "cannot be read as a picture"),
        ("list.mp4", "cannot be read"),
        ("long.mp4", "too long a video; met 4 frames; wanted <= 3"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            sessions.start("x", tmp_path / name)
        assert str(tmp_path) not in str(caught.value)
    assert len(sessions) == 0 and not [*(tmp_path / "kept").iterdir()]


def test_a_video_is_no_longer_drawn_where_its_conversation_has_ended(sessions: Sessions, photos, tmp_path):
    write_h264(tmp_path / "video.mp4", [photos[0][:64, :64]] * 3, 5)
    session = sessions.start("x", tmp_path / "video.mp4")
    made = []

    def masks() -> Iterator[np.ndarray]:
        for frame in range(3):
            made.append(frame)
            yield np.ones((1, 64, 64), np.bool_)
            sessions.end("x")

    reply = SimpleNamespace(phrases=[SimpleNamespace(numbers=range(1))], track=SimpleNamespace(masks=masks()))
    assert session.draw(reply) is None and made == [0, 1]
    assert [*(tmp_path / "kept").iterdir()] == []
