"""Groups of samples that show the same thing, from the names of their files."""

import numpy as np
import pytest

from shards.errors import UserError
from shards.format import key_for
from shards.groups import GROUPS, group_name, groups_of, named_group, picture_name, pictures_by_key


def groups(path: str, frames: int = 1):
    return groups_of(key_for(path), path, frames)


@pytest.mark.parametrize(
    "paths",
    [
        (
            "train2017/000000581857.jpg",
            "images/COCO_train2014_000000581857.jpg",
            "581857.png",
            "000000581857_jpg.rf.a.jpg",
        ),
        ("sav_000/sav_000001.mp4#manual-0", "sav_train/sav_000/sav_000001.mp4", "deep/SAV_000001.mp4#auto-3"),
        ("train/JPEGImages/bear", "valid/bear", "MeViS/bear"),
        ("sa_000020/sa_223750.jpg", "img/sa_223750.jpg"),
    ],
)
def test_a_picture_is_the_same_in_every_set(paths):
    assert len({groups(path).picture for path in paths}) == 1
    assert len({groups(path).file for path in paths}) == len(paths)
    keys = np.array([key_for(path) for path in paths], "S64")
    assert pictures_by_key(keys).tolist() == [groups(path).picture for path in paths]  # so in an older index


def test_other_pictures_have_other_names():
    names = ("000000581857.jpg", "000000581858.jpg", "coco_581857.jpg", "a_jpg_b.jpg", "a.jpg", "0.jpg", "_.jpg")
    assert len({groups(name).picture for name in names}) == len(names)
    assert picture_name(key_for("a/000.jpg")) == "0"


def test_pairs_of_frames_belong_to_their_video():
    first = groups("v1/masklet_data_00000.npz", 2)
    second = groups("v1/masklet_data_00001.npz", 2)
    assert first.picture == second.picture == first.folder != groups("v2/masklet_data_00000.npz", 2).picture
    assert first.file != second.file
    frames = groups("clips/v1/00000.jpg#left", 2), groups("clips/v1/00040.jpg#right", 2)
    assert frames[0].picture == frames[1].picture != groups("clips/v2/00000.jpg", 2).picture
    # Pictures of one frame in a folder are not frames of a video, and a folder of videos is none.
    assert groups("cats/a.jpg").picture != groups("cats/b.jpg").picture
    assert groups("sav_000/sav_1.mp4#manual-0", 2).picture != groups("sav_000/sav_2.mp4#manual-0", 2).picture
    assert groups("masklet_data_00000.npz", 2).picture != groups("masklet_data_00001.npz", 2).picture


def test_records_of_a_picture_and_texts_of_a_file():
    """Records of one picture or folder of frames belong together; texts alone do not, though one file holds them."""
    assert groups("coco/train2017/000000000036.jpg#7", 1).picture == groups("000000000036.jpg").picture
    assert groups("videos/v_1#7", 5).picture == groups("videos/v_1#12", 5).picture == groups("v_1.mp4#3", 5).picture
    assert groups("a.json#7", 0).picture != groups("a.json#8", 0).picture
    assert groups("a.json#7", 0).file == groups("a.json#8", 0).file


def test_names_of_groups():
    path = "sav_000/sav_1.mp4#manual-0"
    assert [group_name("key", path, 2, by) for by in GROUPS[:3]] == ["key", "sav_000/sav_1.mp4", "sav_000"]
    assert group_name("key", "v1/a.npz", 2, "picture") == group_name("other", "v1/b.npz", 2, "picture")
    with pytest.raises(UserError, match="met video; wanted sample or file or folder or picture"):
        named_group("video")
