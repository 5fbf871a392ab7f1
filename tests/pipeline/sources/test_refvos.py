"""Referring video segmentation in each dataset's own layout, with every known fault of such files."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from pipeline.sources.frame_choice import choose_frames
from shards.errors import BadInput, UserError
from shards.reader import ShardSet
from tests.pipeline.sources import videos as v

LEFT = [v.disc(40 + 2 * n, 40, 18) for n in range(12)]
RIGHT = [v.disc(120 - 2 * n, 80, 15) for n in range(12)]
NOTHING = np.zeros((v.HEIGHT, v.WIDTH), bool)
FRAMES = ["00010", "00015", "00020", "00030", "00035", "00040", "00045", "00050", "00055", "00060"]


def write_json(file: Path, body: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(body))


def expression(text: str, **more: object) -> dict[str, object]:
    return {"exp": text, **more}


@pytest.fixture
def records(tmp_path: Path) -> Path:
    return tmp_path / "records.sqlite"


# --- which frames


def test_frames_are_spread_evenly_where_each_shows_all_objects():
    def chosen(count, k):
        return choose_frames(count, k, lambda n: {"a"}, {"a"})

    assert chosen(25, 5) == [2, 7, 12, 17, 22]
    assert chosen(10, 1) == [5] and chosen(3, 5) == [0, 1, 2] and chosen(1, 5) == [0]


def test_frames_that_show_objects_are_preferred():
    frames_read = []

    def shown(n):
        frames_read.append(n)
        return {"a", "b"} if n in (1, 3, 9) else {"a"} if n in (2, 7) else set()

    assert choose_frames(10, 2, shown, {"a", "b"}) == [1, 9]
    assert len(frames_read) == len(set(frames_read))
    assert choose_frames(100, 4, lambda n: {"a"} if n >= 92 else set(), {"a"}) == [93, 95, 97, 99]


def test_a_new_object_counts_more_than_several_known_ones():
    def shown(n):
        return {0: {"a", "b"}, 4: {"a", "b"}, 6: {"c"}}.get(n, set())

    assert choose_frames(8, 2, shown, {"a", "b", "c"}) == [0, 6]


def test_no_frame_shows_anything():
    with pytest.raises(BadInput, match="no visible object"):
        choose_frames(10, 3, lambda n: set(), {"a"})


# --- Ref-YouTube-VOS


def write_youtube(root: Path) -> Path:
    """Two videos; frames begin late and have a gap; object 2 is absent at first; no expression refers to object 7."""
    entries = {}
    for name in ("b0", "a1"):  # not sorted
        for n, frame in enumerate(FRAMES):
            v.write_frame(root / f"train/JPEGImages/{name}/{frame}.jpg", n)
            ids = {1: LEFT[n], 7: v.disc(80, 110, 6)} | ({2: RIGHT[n]} if n > 3 else {})
            v.write_ids(root / f"train/Annotations/{name}/{frame}.png", ids)
        expressions = {str(n): expression(f"{name} says {n}", obj_id="1" if n in (0, 10) else "2") for n in range(11)}
        entries[name] = {"expressions": expressions, "frames": FRAMES[::-1]}
    write_json(root / "meta_expressions/train/meta_expressions.json", {"videos": entries})
    objects = {"1": {"category": "person", "frames": FRAMES}, "2": {"category": "dog", "frames": FRAMES[4:]}}
    write_json(root / "train/meta.json", {"videos": {"a1": {"objects": objects}}})
    return root


@pytest.fixture
def youtube(tmp_path: Path) -> Path:
    return write_youtube(tmp_path / "rvos")


def test_youtube_vos(youtube, records):
    counts, _ = v.find("ref-youtube-vos", youtube, records)
    assert (counts["videos"], counts["expressions"], counts["objects"]) == (2, 22, 4)
    sample = v.load("ref-youtube-vos", youtube, records)
    assert [frame.name for frame in sample.frames] == ["00015", "00030", "00040", "00050", "00060"]
    for frame in sample.frames:
        n = FRAMES.index(frame.name)
        assert np.abs(np.asarray(frame.picture).astype(int) - v.picture(n)).mean() < 3
        assert np.array_equal(frame.masks[0], LEFT[n] & ~RIGHT[n] if n > 3 else LEFT[n])
        assert np.array_equal(frame.masks[1], RIGHT[n] if n > 3 else NOTHING)
    assert [item.id for item in sample.objects] == ["1", "2"]
    assert sample.objects[0].texts == ("a1 says 0", "a1 says 10") and sample.objects[0].more == {"category": "person"}
    assert len(sample.objects[1].texts) == 9 and len(sample.more["expressions"]) == 11
    assert v.load("ref-youtube-vos", youtube, records, frames=1).frames[0].name == "00040"
    assert len(v.load("ref-youtube-vos", youtube, records, frames=50).frames) == 10


def to_pickle(root: Path, order=("b0", "a1"), key=str) -> None:
    """Sa2VA's pickle: a count over expressions, in the order of the file and of ids as texts."""
    lists = {}
    number = 0
    for _ in order:
        for n in sorted((str(n) for n in range(11)), key=key):
            one = n in ("0", "10")
            masks = LEFT if one else RIGHT
            run_lengths = [v.run_lengths(masks[i], text=False) if one or i > 3 else None for i in range(len(FRAMES))]
            lists[str(number)] = run_lengths
            number += 1
    for folder in ("b0", "a1"):
        for file in (root / "train/Annotations" / folder).glob("*"):
            file.unlink()
        (root / "train/Annotations" / folder).rmdir()
    (root / "train/Annotations").rmdir()
    (root / "mask_dict.pkl").write_bytes(pickle.dumps(lists, 2))


@pytest.mark.parametrize("folder", ["", "train"])
def test_youtube_vos_from_the_pickle(youtube, records, folder):
    to_pickle(youtube)
    (youtube / "mask_dict.pkl").rename(youtube / folder / "mask_dict.pkl")
    sample = v.load("ref-youtube-vos", youtube, records)
    assert [frame.name for frame in sample.frames] == ["00015", "00030", "00040", "00050", "00060"]
    for frame in sample.frames:
        n = FRAMES.index(frame.name)
        assert np.array_equal(frame.masks[0], LEFT[n])
        assert np.array_equal(frame.masks[1], RIGHT[n] if n > 3 else NOTHING)


def test_a_pickle_in_another_order_is_noticed(youtube, records):
    to_pickle(youtube, key=int)  # "10" after "9", not after "1"
    with pytest.raises(UserError, match="masks of another order"):
        v.find("ref-youtube-vos", youtube, records)


@pytest.mark.parametrize("count, message", [(21, "fewer masks"), (23, "more masks")])
def test_a_pickle_of_another_file_is_noticed(youtube, records, count, message):
    to_pickle(youtube)
    lists = pickle.loads((youtube / "mask_dict.pkl").read_bytes())
    lists["22"] = lists["21"]
    kept = {str(n): lists[str(n)] for n in range(count)}
    (youtube / "mask_dict.pkl").write_bytes(pickle.dumps(kept))
    with pytest.raises(UserError, match=message):
        v.find("ref-youtube-vos", youtube, records)


def test_valid_holds_the_videos_of_test_too_and_no_masks(youtube, records):
    expressions = {"0": {"exp": "a dog"}}
    entries = {name: {"expressions": expressions, "frames": ["00000"]} for name in ("x", "y", "z")}
    write_json(youtube / "meta_expressions/valid/meta_expressions.json", {"videos": entries})
    write_json(youtube / "meta_expressions/test/meta_expressions.json", {"videos": {"y": entries["y"]}})
    counts, _ = v.find("ref-youtube-vos", youtube, records, split="valid")
    assert (counts["videos"], counts["expressions"], counts["videos of another split"]) == (2, 2, 1)
    with pytest.raises(BadInput, match="expressions without objects"):
        v.load("ref-youtube-vos", youtube, records, split="valid")
    with pytest.raises(UserError, match="no expressions of this split"):
        v.find("ref-youtube-vos", youtube, records, split="val")


def test_masks_saved_in_colour(youtube, records):
    from PIL import Image

    for file in (youtube / "train/Annotations/a1").glob("*.png"):
        Image.open(file).convert("RGB").save(file)
    with pytest.raises(BadInput, match="mode RGB"):
        v.load("ref-youtube-vos", youtube, records)


def test_frames_without_a_file_are_passed_over_and_counted(youtube, records):
    (youtube / "train/JPEGImages/a1/00040.jpg").unlink()
    (youtube / "train/Annotations/a1/00050.png").unlink()
    sample = v.load("ref-youtube-vos", youtube, records)
    assert not {frame.name for frame in sample.frames} & {"00040", "00050"} and len(sample.frames) == 5
    assert sample.notes["frames without a picture or mask"] == 2
    for frame in sample.frames:
        assert np.array_equal(frame.masks[1].any(), FRAMES.index(frame.name) > 3)
    for file in (youtube / "train/JPEGImages/a1").glob("*.jpg"):
        file.unlink()
    with pytest.raises(BadInput, match="no frames"):
        v.load("ref-youtube-vos", youtube, records)


def test_a_truncated_frame(youtube, records):
    file = youtube / "train/JPEGImages/a1/00040.jpg"
    file.write_bytes(file.read_bytes()[:1500])
    with pytest.raises(BadInput, match="cannot be read as a picture"):
        v.load("ref-youtube-vos", youtube, records)


def test_an_object_in_no_chosen_frame_is_left_out_and_named(youtube, records):
    sample = v.load("ref-youtube-vos", youtube, records, frames=1)
    assert len(sample.objects) == 2
    for file in (youtube / "train/Annotations/a1").glob("*.png"):
        v.write_ids(file, {2: RIGHT[0]})
    sample = v.load("ref-youtube-vos", youtube, records)
    assert [item.id for item in sample.objects] == ["2"] and sample.more["left_out"][0]["id"] == "1"
    assert sample.notes["objects left out: empty mask"] == 1 and len(sample.more["expressions"]) == 11


# --- MeViS


def write_mevis(root: Path) -> Path:
    """One expression for both objects, one for one; null and {} where an object is not visible."""
    frames = [f"{n:05d}" for n in range(8)]
    for n, frame in enumerate(frames):
        v.write_frame(root / f"train/JPEGImages/cafe01/{frame}.jpg", n)
    expressions = {
        "0": expression("the left one", obj_id=[0], anno_id=[12]),
        "1": expression("both of them", obj_id=[0, 1], anno_id=[12, 3]),
        "2": expression("all three", obj_id=[0, 1, 5], anno_id=[12, 3, 99]),
    }
    body = {"videos": {"cafe01": {"expressions": expressions, "vid_id": 4, "frames": frames}}}
    write_json(root / "train/meta_expressions.json", body)
    lists = {
        "3": [{} if n < 2 else v.run_lengths(RIGHT[n]) for n in range(8)],
        "12": [None if n in (2, 3, 4) else v.run_lengths(LEFT[n]) for n in range(8)],
        "500": [None] * 8,
    }
    write_json(root / "train/mask_dict.json", lists)
    return root


@pytest.fixture
def mevis(tmp_path: Path) -> Path:
    return write_mevis(tmp_path / "mevis")


def test_mevis(mevis, records):
    counts, _ = v.find("mevis", mevis, records)
    assert counts["masks that no expression of this split refers to"] == 1 and counts["objects"] == 3
    sample = v.load("mevis", mevis, records, frames=3)
    assert [item.id for item in sample.objects] == ["12", "3"]
    assert [item.texts for item in sample.objects] == [("the left one",), ()]
    assert [item["objects"] for item in sample.more["expressions"]] == [["12"], ["12", "3"], ["12", "3", "99"]]
    assert sample.more["expressions"][1]["text"] == "both of them" and sample.more["video"]["vid_id"] == 4
    assert sample.more["left_out"] == [{"id": "99", "reason": "no masks", "detail": "met no list; wanted a list of 8"}]
    for frame in sample.frames:
        n = int(frame.name)
        assert np.array_equal(frame.masks[0], NOTHING if n in (2, 3, 4) else LEFT[n])
        assert np.array_equal(frame.masks[1], NOTHING if n < 2 else RIGHT[n])


@pytest.mark.parametrize(
    "lists, reason",
    [
        ([v.run_lengths(RIGHT[n]) for n in range(7)], "masks do not fit the frames"),
        ([{"size": [120, 160], "counts": v.run_lengths(RIGHT[n])["counts"][:-2]} for n in range(8)], "broken run"),
        ([None] * 8, "empty mask"),
        (["1 2 3"] * 8, "no mask"),
        ([{"counts": v.run_lengths(RIGHT[n])["counts"]} for n in range(8)], "no mask"),
    ],
)
def test_an_object_with_bad_masks_is_left_out(mevis, records, lists, reason):
    file = mevis / "train/mask_dict.json"
    write_json(file, {**json.loads(file.read_text()), "3": lists})
    sample = v.load("mevis", mevis, records)
    assert [item.id for item in sample.objects] == ["12"]
    assert sample.more["left_out"][0]["id"] == "3" and sample.more["left_out"][0]["reason"].startswith(reason)


def test_masks_of_another_size_than_the_frames(mevis, records):
    lists = {number: [v.run_lengths(v.disc(20, 20, 9, 60, 80))] * 8 for number in ("3", "12")}
    write_json(mevis / "train/mask_dict.json", lists)
    with pytest.raises(BadInput, match="differ in size"):
        v.load("mevis", mevis, records)
    write_json(mevis / "train/mask_dict.json", {**lists, "3": [v.run_lengths(LEFT[0])] * 8})
    with pytest.raises(BadInput, match="masks of several sizes"):
        v.load("mevis", mevis, records)


def test_broken_files_of_mevis(mevis, records):
    file = mevis / "train/mask_dict.json"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not whole JSON"):
        v.find("mevis", mevis, records)
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(UserError, match="a pointer, not the file"):
        v.find("mevis", mevis, records)
    for entry in ({"frames": []}, {"frames": [], "expressions": {"0": {"exp": 5, "obj_id": [0], "anno_id": [12]}}}):
        write_json(mevis / "train/meta_expressions.json", {"videos": {"x": entry}})
        with pytest.raises(UserError, match="not the entry of a video"):
            v.find("mevis", mevis, records)


@pytest.mark.parametrize("name, frame", [("../../out", "00000"), ("cafe01", "../../../out/00000")])
def test_nothing_is_read_outside_the_root(mevis, records, name, frame):
    v.write_frame(mevis.parent / "out" / "00000.jpg", 0)
    expressions = {"0": expression("x", obj_id=[0], anno_id=[12])}
    body = {"videos": {name: {"expressions": expressions, "frames": [frame]}}}
    write_json(mevis / "train/meta_expressions.json", body)
    write_json(mevis / "train/mask_dict.json", {"12": [v.run_lengths(LEFT[0])]})
    with pytest.raises(BadInput, match="path leaves the dataset"):
        v.load("mevis", mevis, records)


def test_two_frames_with_different_objects_are_no_pair(mevis, tmp_path):
    masks_of_objects = {"12": LEFT, "3": RIGHT}
    lists = {
        k: [v.run_lengths(masks[n]) if (n < 4) == (k == "12") else None for n in range(8)]
        for k, masks in masks_of_objects.items()
    }
    write_json(mevis / "train/mask_dict.json", lists)
    v.through("mevis", mevis, tmp_path / "out", frames=2)
    meta = ShardSet(tmp_path / "out/set")[0]["meta"]
    assert meta["has_paired_frame"] is False and len(meta["frames"]) == 2


# --- ReVOS


def write_revos(root: Path, base: str = "ReVOS/", pictures: str = "ReVOS/JPEGImages/") -> Path:
    """A video whose name has slashes and a dot, and one of whose expressions none refers to an object."""
    name = "MOSE/c0.ffee/v1"
    for n in range(4):
        v.write_frame(root / pictures / name / f"{n:05d}.jpg", n)
    expressions = {
        "0": expression("which one may fly?", obj_id=[1], anno_id=[7], type_id=1),
        "1": expression("the elephant", obj_id=[], anno_id=[], type_id=2),
        "2": expression("the giraffe", type_id=2),
    }
    frames = [f"{n:05d}" for n in range(4)]
    entry = {"expressions": expressions, "frames": frames, "height": 120, "width": 160, "vid_id": 0}
    none = {"expressions": {"0": expressions["1"]}, "frames": frames}
    write_json(root / base / "meta_expressions_train_.json", {"videos": {name: entry, "MOSE/none": none}})
    lists = {"7": [v.run_lengths(LEFT[n]) for n in range(4)], "8": [None] * 30}  # 8: of the other split
    write_json(root / base / "mask_dict.json", lists)
    return root


@pytest.mark.parametrize(
    "base, pictures", [("ReVOS/", "ReVOS/JPEGImages/"), ("", "JPEGImages/"), ("", ""), ("revos/", "revos/")]
)
def test_revos_in_both_layouts(tmp_path, records, base, pictures):
    root = write_revos(tmp_path / "data", base, pictures)
    counts, found = v.find("revos", root, records)
    assert counts["expressions without an object"] == 3 and counts["videos without frames"] == 1
    assert [item.path for item in found.inputs()] == [f"{pictures}MOSE/c0.ffee/v1", f"{pictures}MOSE/none"]
    sample = v.load("revos", root, records)
    assert len(sample.frames) == 4 and sample.objects[0].texts == ("which one may fly?",)
    assert [item["type_id"] for item in sample.more["expressions"]] == [1, 2, 2]
    assert sample.more["expressions"][2]["objects"] == []


@pytest.mark.parametrize("more", [{"anno_id": []}, {"type_id": 2}])
def test_a_video_of_which_no_expression_has_an_object_is_a_sample_without_objects(tmp_path, records, more):
    root = write_revos(tmp_path / "data")
    file = root / "ReVOS/meta_expressions_train_.json"
    frames = [f"{n:05d}" for n in range(9)]
    videos = {"MOSE/none": {"expressions": {"0": expression("the elephant", **more)}, "frames": frames}}
    write_json(file, {"videos": videos})
    for n in range(9):
        v.write_frame(root / f"ReVOS/JPEGImages/MOSE/none/{n:05d}.jpg", n)
    sample = v.load("revos", root, records, frames=3)
    assert [frame.name for frame in sample.frames] == ["00001", "00004", "00007"]
    assert sample.objects == () and sample.segmentable and all(frame.masks == () for frame in sample.frames)
    assert [(one["text"], one["objects"]) for one in sample.more["expressions"]] == [("the elephant", [])]
    videos["MOSE/none"]["expressions"]["1"] = expression("which?", type_id=1)  # as in a split without annotations
    write_json(file, {"videos": videos})
    with pytest.raises(BadInput, match="expressions without objects; met texts alone"):
        v.load("revos", root, records)


# --- Ref-DAVIS17


def write_davis(root: Path) -> Path:
    """Ids not contiguous, names misspelt, two encodings, masks of every frame."""
    for n in range(6):
        v.write_frame(root / f"DAVIS/JPEGImages/480p/classic-car/{n:05d}.jpg", n)
        v.write_ids(root / f"DAVIS/Annotations_unsupervised/480p/classic-car/{n:05d}.png", {4: RIGHT[n], 2: LEFT[n]})
    texts = root / "davis_text_annotations"
    texts.mkdir()
    (root / "DAVIS/ImageSets/2017").mkdir(parents=True)
    (root / "DAVIS/ImageSets/2017/train.txt").write_text("classic-car\n")
    for kind in ("annot1", "annot1_full_video", "annot2", "annot2_full_video"):
        lines = "".join(f'clasic-car {n} "{kind} café {n}"\n' for n in (4, 2))
        (texts / f"Davis17_{kind}.txt").write_bytes(lines.encode("utf-8" if "annot1" in kind else "latin-1"))
    return root


def test_davis_as_released(tmp_path, records):
    root = write_davis(tmp_path / "davis")
    counts, _ = v.find("ref-davis", root, records)
    assert (counts["videos"], counts["expressions"], counts["objects"]) == (1, 8, 2)
    sample = v.load("ref-davis", root, records, frames=2)
    assert [frame.name for frame in sample.frames] == ["00001", "00004"]
    assert [item.id for item in sample.objects] == ["2", "4"]
    expected = [f"{kind} café 2" for kind in ("annot1", "annot1_full_video", "annot2", "annot2_full_video")]
    assert list(sample.objects[0].texts) == expected
    assert np.array_equal(sample.frames[0].masks[1], RIGHT[1] & ~LEFT[1])
    for file in ("davis_text_annotations/Davis17_annot1.txt", "DAVIS/ImageSets/2017/train.txt"):
        whole = (root / file).read_bytes()
        for damage, message in (
            (b"version https://git-lfs.github.com/spec/v1\n", "a pointer"),
            (b"\xff", "not its enc"),
        ):
            (root / file).write_bytes(damage)
            with pytest.raises(UserError, match=f"{file}: {message}"):
                v.find("ref-davis", root, records)
        (root / file).write_bytes(whole)
    (root / "DAVIS/Annotations_unsupervised").rename(root / "DAVIS/Annotations")
    with pytest.raises(UserError, match="Annotations_unsupervised"):
        v.find("ref-davis", root, records)


def test_davis_as_converted(youtube, records):
    assert len(v.load("ref-davis", youtube, records).objects) == 2


def test_masks_of_davis_2016_hold_no_ids(youtube, records):
    from PIL import Image

    for file in (youtube / "train/Annotations/a1").glob("*.png"):
        Image.fromarray(LEFT[0].astype(np.uint8) * 255).save(file)
    with pytest.raises(
        BadInput, match="no object that can be used: no pixel of an object's id; met object 1: ids 255 in the masks"
    ):
        v.load("ref-davis", youtube, records)


# --- all the way


@pytest.mark.parametrize("recipe", ["default", "sa2va"])
def test_through_shards(youtube, tmp_path, recipe):
    summary = v.through("ref-youtube-vos", youtube, tmp_path / "out", recipe=recipe, frames=3)
    assert summary.manifest.samples == 2 and summary.manifest.options["found"]["expressions"] == 22
    sample = ShardSet(tmp_path / "out/set")[0]
    assert sample["meta"]["has_paired_frame"] is False and len(sample["meta"]["frames"]) == 3
    assert sample["masks3"].shape[1:] == (1024, 1024) and "pixel_values3" in sample and "pixel_values" not in sample
    assert len(sample["meta"]["expressions"]) == 11
