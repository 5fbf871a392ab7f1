"""SA-V as released: each mask with its frame of the video, and every known fault of such files."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline import masks
from pipeline.sources.video_file import VideoFile, open_video
from shards.errors import BadInput, DroppedInput
from shards.reader import ShardSet
from tests.pipeline.built import Found, put
from tests.pipeline.sources import videos as v

FRAMES = 97
ANNOTATED = 25
NOTHING = np.zeros((v.HEIGHT, v.WIDTH), bool)


def seen(n: int, place: int) -> np.ndarray:
    """Masks at annotated frame n: 0 always, 1 from 20 on, 2 in 7 alone, 3 never; 0 and 1 overlap."""
    if place == 0:
        return v.disc(40 + n, 60, 20)
    if (place == 1 and n >= 20) or (place == 2 and n == 7):
        return v.disc(60 + n, 60, 16)
    return NOTHING


def annotation(places: int = 4, rows: int = ANNOTATED, auto: bool = False) -> dict[str, object]:
    ids = [11, 12, 13, 14][:places]
    return {
        "video_id": "sav_000001",
        "video_frame_count": float(FRAMES),
        "video_height": 120.0,
        "video_width": 160.0,
        "masklet": [[v.run_lengths(seen(n, place)) for place in range(places)] for n in range(rows)],
        "masklet_id": ids,
        "masklet_first_appeared_frame": [0.0, 20.0, 7.0, 0.0][:places],
        "masklet_type": ["auto" if auto else "manual"] * places,
        "masklet_stability_score": [[n + p / 10 for p in range(places)] for n in range(rows)] if auto else [None] * 4,
        "masklet_num": places,
    }


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("video") / "video.mp4"
    v.write_video(file, FRAMES)
    return file


def write_sav_video(root: Path, video: Path) -> Path:
    folder = root / "sav_000"
    folder.mkdir(parents=True)
    (folder / "sav_000001.mp4").write_bytes(video.read_bytes())
    (folder / "sav_000001_manual.json").write_text(json.dumps(annotation()))
    (folder / "sav_000001_auto.json").write_text(json.dumps(annotation(2, auto=True)))
    return root


@pytest.fixture
def root(tmp_path: Path, video: Path) -> Path:
    return write_sav_video(tmp_path / "sav_train", video)


@pytest.fixture
def records(tmp_path: Path) -> Path:
    return tmp_path / "records.sqlite"


def change(root: Path, **changed: object) -> None:
    (root / "sav_000/sav_000001_manual.json").write_text(json.dumps({**annotation(), **changed}))


def test_every_frame_is_the_one_of_its_number(video):
    file = VideoFile(video)
    sequence = range(FRAMES)
    assert file.count == FRAMES
    pictures = file.pictures(sequence, (120, 160))
    assert [v.number_of(picture, sequence) for picture in pictures[::7]] == [*sequence[::7]]
    for numbers in ([0], [96], [11, 12, 13], [5, 60], [23, 24]):
        for number, picture in zip(numbers, file.pictures(numbers, (120, 160)), strict=True):
            assert np.array_equal(picture, pictures[number])


def test_seeking_and_counting_give_the_same_frames(video):
    file = VideoFile(video)
    sought = file.pictures([3, 44, 95], (120, 160))
    other = VideoFile(video)
    other._times = None
    assert all(map(np.array_equal, other.pictures([3, 44, 95], (120, 160)), sought))
    assert len(other._decoded) == 3
    assert len(file.pictures(range(20), (120, 160))) == len(file._decoded) == 20  # the next masklet may use the same
    assert len(file.pictures([40], (120, 160))) == 1 and len(file._decoded) == 6


def test_a_pair_of_each_masklet(root, records):
    counts, found = v.find("sav-video", root, records)
    assert (counts["videos"], counts["manual masklets"], counts["auto masklets"]) == (1, 4, 2)
    paths = [item.path for item in found.inputs()]
    assert paths == [f"sav_000/sav_000001.mp4#{n}" for n in ("auto-0", "auto-1", *(f"manual-{n}" for n in range(4)))]
    sample = v.load("sav-video", root, records, which=2)
    assert [frame.name for frame in sample.frames] == ["00024", "00072"]  # two seconds apart
    for frame in sample.frames:
        assert v.number_of(frame.picture, range(FRAMES)) == int(frame.name)
        assert np.array_equal(frame.masks[0], seen(int(frame.name) // 4, 0))
    assert sample.objects[0].more["masklet_id"] == 11 and sample.objects[0].more["masklet_stability_score"] is None
    assert sample.more["video"]["video_id"] == "sav_000001" and sample.more["kind"] == "manual"


def test_frames_are_chosen_where_the_masklet_is_visible(root, records):
    sample = v.load("sav-video", root, records, which=3)
    assert [frame.name for frame in sample.frames] == ["00084", "00092"]
    assert sample.notes["pairs of frames less than a second apart"] == 1
    for which in (4, 5):  # empty run lengths, never null
        with pytest.raises(DroppedInput, match="visible in too few frames"):
            v.load("sav-video", root, records, which=which)
    assert [frame.name for frame in v.load("sav-video", root, records, which=4, frames=1).frames] == ["00028"]
    assert len(v.load("sav-video", root, records, which=3, frames=9).frames) == 5


def test_stability_scores_of_auto_are_those_of_the_frames(root, records):
    sample = v.load("sav-video", root, records, which=1, split="auto")
    assert sample.objects[0].more["masklet_stability_score"] == [21.1, 23.1]


def test_files_without_their_others_are_counted(root, records):
    folder = root / "sav_000"
    (folder / "sav_000001_auto.json").unlink()
    (folder / "sav_000002_manual.json").write_text("{}")
    counts, found = v.find("sav-video", root, records)
    assert counts["videos without auto annotation"] == 1 and counts["annotation files without a video"] == 1
    assert len(found.inputs()) == 4


@pytest.mark.parametrize("rows, sound", [(23, False), (24, True), (26, True), (27, False)])
def test_lengths_may_differ_by_one(root, records, rows, sound):
    change(root, masklet=annotation(rows=rows)["masklet"])
    if sound:
        sample = v.load("sav-video", root, records, which=2)
        assert sample.notes["videos and annotations that differ by one annotated frame"] == 1
        assert all(v.number_of(frame.picture, range(FRAMES)) == int(frame.name) for frame in sample.frames)
        assert len(v.load("sav-video", root, records, which=2, frames=99).frames) == min(rows, ANNOTATED)
    else:
        with pytest.raises(BadInput, match="differ in length"):
            v.load("sav-video", root, records, which=2)


def test_a_portrait_video_is_turned_as_its_file_says(tmp_path, records):
    v.write_video(tmp_path / "turned.mp4", 9, rotation=90)
    upright = open_video(tmp_path / "turned.mp4").pictures([4], (160, 120))[0]
    assert v.number_of(np.rot90(upright, -1), range(9)) == 4
    stored = open_video(tmp_path / "turned.mp4").pictures([4], (120, 160))[0]
    assert np.array_equal(np.rot90(stored), upright)
    with pytest.raises(BadInput, match="differ in size"):
        open_video(tmp_path / "turned.mp4").pictures([4], (240, 320))


def test_masks_of_another_size(root, records):
    change(root, masklet=[[v.run_lengths(v.disc(20, 20, 9, 60, 80))] * 4] * ANNOTATED)
    with pytest.raises(BadInput, match="differ in size"):
        v.load("sav-video", root, records, which=2)


@pytest.mark.parametrize(
    "changed, reason",
    [
        ({"masklet": [[None] * 3] * ANNOTATED}, "masklets of several lengths"),
        ({"masklet": None}, "not SA-V's annotation"),
        ({"masklet": [[None] * 4] * ANNOTATED}, "visible in too few frames"),
        (
            {"masklet": [[{"size": [120, 160], "counts": "~"}] * 4] * ANNOTATED},
            "no mask that can be used: broken run.*'~'",
        ),
        ({"masklet": [[{"size": [120, 160], "counts": [5, 6]}] * 4] * ANNOTATED}, "no object that can be used"),
    ],
)
def test_broken_annotations(root, records, changed, reason):
    change(root, **changed)
    with pytest.raises(BadInput, match=reason):
        v.load("sav-video", root, records, which=2)


def test_truncated_files(root, records):
    file = root / "sav_000/sav_000001_manual.json"
    file.write_bytes(file.read_bytes()[:-3000])
    counts, _ = v.find("sav-video", root, records)
    assert counts["manual masklets"] == 1
    with pytest.raises(BadInput, match="not whole JSON"):
        v.load("sav-video", root, records, which=2)
    change(root)
    video = root / "sav_000/sav_000001.mp4"
    whole = video.read_bytes()
    for data in (b"", b"no video", whole[:200], whole[: len(whole) // 2]):
        video.write_bytes(data)
        with pytest.raises(BadInput):
            v.load("sav-video", root, records, which=2)


def test_damaged_pictures_are_not_patched_up(root, records):
    video = root / "sav_000/sav_000001.mp4"
    data = bytearray(video.read_bytes())
    # pictures; the tables after them stay
    first = len(data) // 3
    end = data.rindex(b"moov") - 4
    data[first:end] = np.random.default_rng(0).bytes(end - first)
    video.write_bytes(data)
    with pytest.raises(BadInput, match="cannot be read as a video"):
        v.load("sav-video", root, records, which=2)


@pytest.mark.parametrize("name", ["sav_000001.mp4", "sav_000001_manual.json"])
def test_lfs_pointers_are_refused(root, records, name):
    (root / "sav_000" / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(BadInput, match="a pointer, not the file"):
        v.load("sav-video", root, records, which=2)


def test_run_lengths_show_whether_a_mask_is_empty():
    assert masks.has_pixels(v.run_lengths(v.disc(3, 3, 0.5))) and not masks.has_pixels(v.run_lengths(NOTHING))
    assert masks.has_pixels({"size": [2, 2], "counts": [0, 4]}) and not masks.has_pixels({"counts": [4]})
    assert not any(map(masks.has_pixels, (None, {}, [], {"counts": "~"}, {"counts": None})))


@pytest.mark.parametrize("recipe, k", [("default", 2), ("sa2va", 3)])
def test_through_shards(root, tmp_path, recipe, k):
    summary = v.through("sav-video", root, tmp_path / "out", recipe=recipe, frames=k)
    assert summary.manifest.samples == 4 and summary.manifest.left_out == {"visible in too few frames": 2}
    shards = ShardSet(tmp_path / "out/set")
    assert len({shards.key(i) for i in range(4)}) == 4
    meta = shards[0]["meta"]
    assert meta["has_paired_frame"] is (k == 2) and len(meta["frames"]) == k and meta["dataset_type"] == "sav-video"


# --- Ref-SAV


def write_ref_sav(root: Path) -> Path:
    """Beside `sav_train`, which is there."""
    folder = "sav_000/sav_train/sav_000/sav_000001"  # as the file has it, a folder repeated
    body = {
        "video_path": f"{folder}.mp4",
        "anno_path": f"{folder}_manual.json",
        "objects": {"1": {"formated": "The disc that comes late.", "long": "x"}, "0": {"formated": "A disc."}},
    }
    (root / "Ref-SAV.json").write_text(json.dumps({"sav_000001": body}))
    return root


@pytest.fixture
def ref_sav(root: Path) -> Path:
    return write_ref_sav(root.parent)


def test_ref_sav(ref_sav, records):
    counts, found = v.find("ref-sav", ref_sav, records)
    assert (counts["videos"], counts["expressions"], counts["videos without a file"]) == (1, 2, 0)
    assert [item.path for item in found.inputs()] == ["sav_train/sav_000/sav_000001.mp4"]
    sample = v.load("ref-sav", ref_sav, records)
    assert [item.id for item in sample.objects] == ["1", "0"] and sample.objects[1].texts == ("A disc.",)
    assert sample.objects[0].more["masklet_id"] == 12 and sample.objects[0].more["long"] == "x"
    assert [frame.name for frame in sample.frames] == ["00008", "00028", "00048", "00068", "00088"]
    for frame in sample.frames:
        assert v.number_of(frame.picture, range(FRAMES)) == int(frame.name)
        for place, mask in zip((1, 0), frame.masks, strict=True):
            assert np.array_equal(mask, seen(int(frame.name) // 4, place))


@pytest.mark.parametrize(
    "key, value, reason",
    [
        ("objects", {"4": {"formated": "x"}}, "no such masklet"),
        ("video_path", "../../x.mp4", "path leaves the dataset"),
        ("anno_path", "sav_train/sav_000/none.json", "no such file"),
    ],
)
def test_bad_entries_of_ref_sav(ref_sav, records, key, value, reason):
    file = ref_sav / "Ref-SAV.json"
    body = json.loads(file.read_text())
    body["sav_000001"][key] = value
    file.write_text(json.dumps(body))
    with pytest.raises(BadInput, match=reason):
        v.load("ref-sav", ref_sav, records)


def test_ref_sav_through_shards(ref_sav, tmp_path):
    v.through("ref-sav", ref_sav, tmp_path / "out", frames=2)
    assert ShardSet(tmp_path / "out/set")[0]["meta"]["objects"][1]["texts"] == ["A disc."]


@pytest.mark.parametrize("number", ["2147483648", "1" * 5000, "-1", "1e300", "true", '"3"', "null", "1000", "0"])
def test_a_number_of_masklets_that_no_file_can_hold_is_one_bad_input(tmp_path, number):
    """It is compared with the masks before an input is put down for each."""
    root = tmp_path / "raw"
    put(root / "sav_000001.mp4", b"x")
    text = '{"masklet": [["P`]<", "P`]<"]], "masklet_num": ' + number + "}"
    put(root / "sav_000001_manual.json", text.encode())
    found = Found("sav-video", root, tmp_path, split="manual")
    assert found.paths == ["sav_000001.mp4#manual-0"] and found.counts["manual masklets"] == 1
    with pytest.raises(BadInput):
        found.load()
