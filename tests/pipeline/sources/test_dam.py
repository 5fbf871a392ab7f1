"""Describe Anything: regions with captions, their pictures in tars that are read in place."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.finder import OUTSIDE
from pipeline.regions import LEFT_OUT, SCALED
from pipeline.sources.dam import NO_CAPTION
from shards.errors import BadInput, UserError
from tests.pipeline.built import HEIGHT, WIDTH, Found, box, jpeg, put, rle, through

NAME = "000000000009.jpg"
FIRST = box(5, 5, 45, 60)
SECOND = box(30, 40, 90, 120)


def region(mask=FIRST, caption="A cat's head.", ann_id=1, **more):
    return {
        "img_id": 9,
        "ann_id": ann_id,
        "image": NAME,
        "tar_file": "000.tar",
        "mask_rle": rle(mask) if isinstance(mask, np.ndarray) else mask,
        "caption": caption,
        **more,
    }


def tar(path: Path, members: dict[str, bytes], link: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        if link is not None:
            info = tarfile.TarInfo(NAME)
            info.type = tarfile.SYMTYPE
            info.linkname = link
            file.addfile(info)
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def write(root: Path, *regions, members=None, subset="COCOStuff") -> Path:
    put(root / subset / "annotations.json", {"9": list(regions)})
    tar(root / subset / "images" / "000.tar", {NAME: jpeg()} if members is None else members)
    return root


def found(tmp_path: Path, *regions, **more) -> Found:
    return Found("dam", write(tmp_path / "raw", *regions, **more), tmp_path)


def test_a_picture_with_two_regions(tmp_path):
    sample = found(tmp_path, region(), region(SECOND, " The BODY ", 2, extra=[1])).load()
    assert sample.path == f"COCOStuff/images/000.tar/{NAME}"
    assert [(one.id, one.texts) for one in sample.objects] == [("1", ("A cat's head.",)), ("2", (" The BODY ",))]
    assert sample.objects[1].more["annotations"] == [
        {"img_id": 9, "ann_id": 2, "image": NAME, "tar_file": "000.tar", "extra": [1]}
    ]
    assert np.array_equal(sample.frames[0].masks, [FIRST, SECOND])
    assert sample.more == {"subset": "COCOStuff"}


@pytest.mark.parametrize(
    "image, member",
    [
        (NAME, f"train2017/{NAME}"),
        (f"train2017/{NAME}", NAME),
        (NAME, f"./{NAME}"),
        (NAME, "9.jpg"),
        ("9.jpg", NAME),
        ("9.jpg", f"deep/er/{NAME}"),
        (NAME, "000009.png"),
    ],
)
def test_names_that_differ_by_padding_or_folder(tmp_path, image, member):
    members = {"000000000091.jpg": jpeg("coffee"), member: jpeg(), "90.jpg": jpeg("coffee")}
    sets = found(tmp_path, region(image=image), members=members)
    sample = sets.load()
    assert sample.path == f"COCOStuff/images/000.tar/{member.removeprefix('./')}"
    assert np.abs(np.asarray(sample.frames[0].picture).astype(int) - decoded()).max() == 0
    assert sets.counts["pictures without a region"] == 2


def test_members_that_are_no_pictures_are_counted(tmp_path):
    sets = found(tmp_path, region(), members={NAME: jpeg(), "a.txt": b"", "b.txt": b"", "LICENSE": b"", "8.jpg": b""})
    counts = {name: count for name, count in sets.counts.items() if name.startswith("files with other suffixes: ")}
    assert [*counts.values()] == [2, 1] and "files with other suffixes: *.txt" in counts
    assert sets.counts["pictures without a region"] == 1


def decoded():
    from PIL import Image

    with Image.open(io.BytesIO(jpeg())) as image:
        return np.asarray(image)


def test_the_exact_name_wins_and_an_ambiguous_one_is_not_guessed(tmp_path):
    members = {f"a/{NAME}": jpeg(), f"b/{NAME}": jpeg("coffee")}
    sets = found(tmp_path, region(image=f"b/{NAME}"), region(image=NAME), members=members)
    assert sets.paths == [f"COCOStuff/images/000.tar/{name}" for name in (NAME, f"b/{NAME}")]
    assert sets.counts["regions without a picture"] == 1
    with pytest.raises(BadInput, match="no such picture in its tar"):
        sets.load(sets.paths[0])


def test_the_order_of_members_changes_nothing_but_where_they_lie(tmp_path):
    samples = []
    for order in (1, -1):
        members = dict([(NAME, jpeg()), ("8.pickle", b"x" * 3000), ("7.jpg", jpeg("coffee"))][::order])
        sets = found(tmp_path / str(order), region(), region(ann_id=2, image="7.jpg"), members=members)
        samples.append([sets.load(path) for path in sets.paths])
    for one, other in zip(*samples, strict=True):
        assert one.path == other.path and np.array_equal(one.frames[0].picture, other.frames[0].picture)


def test_subsets_are_kept_apart(tmp_path):
    root = tmp_path / "raw"
    for subset in ("LVIS", "SAM", "PACO"):
        write(root, region(caption=subset), subset=subset)
    sets = Found("dam", root, tmp_path)
    assert sets.paths == [f"{subset}/images/000.tar/{NAME}" for subset in ("LVIS", "PACO", "SAM")]
    for path in sets.paths:
        sample = sets.load(path)
        assert sample.more["subset"] == sample.objects[0].texts[0] == path.split("/")[0]
    alone = Found("dam", root / "LVIS", tmp_path)
    assert alone.paths == [f"images/000.tar/{NAME}"] and alone.load().more["subset"] == "LVIS"


def test_pictures_of_an_unpacked_tar(tmp_path):
    put(tmp_path / "raw/COCOStuff/annotations.json", {"9": [region()]})
    put(tmp_path / f"raw/COCOStuff/images/{NAME}", jpeg())
    assert Found("dam", tmp_path / "raw", tmp_path).load().path == f"COCOStuff/images/{NAME}"


def test_a_region_without_a_caption_is_kept_and_counted(tmp_path):
    bare = region(SECOND, ann_id=2)
    del bare["caption"]
    sample = found(tmp_path, region(), bare, region(box(1, 1, 20, 20), " ", 3), subset="SAV").load()
    assert [one.texts for one in sample.objects] == [("A cat's head.",), (), ()]
    assert sample.notes == {NO_CAPTION: 2}


def test_all_captions_of_a_region_and_equal_ids_of_different_regions(tmp_path):
    sample = found(tmp_path, region(), region(caption="Another."), region(SECOND, "Third.")).load()
    assert [(one.id, one.texts) for one in sample.objects] == [
        ("1", ("A cat's head.", "Another.")),
        ("1-2", ("Third.",)),
    ]
    assert np.array_equal(sample.frames[0].masks, [FIRST, SECOND])


def test_masks_of_their_own_size(tmp_path):
    mask = box(20, 30, 120, 200, (1066, 1600))  # as Open Images has them: 683 x 1024 once 1066 x 1600, rounded
    sets = found(tmp_path, region(mask), members={NAME: jpeg(size=(205, 307))}, subset="OpenImages")
    sample = sets.load()
    assert sample.frames[0].picture.size == (307, 205)
    assert np.array_equal(sample.frames[0].masks[0], mask) and sample.notes == {SCALED: 1}


def test_masks_of_another_shape_are_left_out(tmp_path):
    turned = box(5, 5, 60, 45, (WIDTH, HEIGHT))
    sample = found(tmp_path, region(), region(turned, ann_id=2)).load()
    assert [one.id for one in sample.objects] == ["1"]
    assert sample.notes == {LEFT_OUT + "mask and picture differ in shape": 1}
    with pytest.raises(BadInput, match="no region that can be used: mask and picture differ in shape"):
        found(tmp_path, region(turned)).load()


@pytest.mark.parametrize(
    "bad, why",
    [
        (np.zeros((HEIGHT, WIDTH), bool), "empty mask"),
        ({"size": [HEIGHT, WIDTH], "counts": "~~~"}, "broken run lengths"),
        ({"counts": "abc"}, "no mask"),
        (None, "no mask"),
    ],
)
def test_masks_that_cannot_be_used(tmp_path, bad, why):
    sample = found(tmp_path, region(bad), region(SECOND, ann_id=2)).load()
    assert [one.id for one in sample.objects] == ["2"] and sample.notes == {LEFT_OUT + why: 1}


def test_exif_orientation_follows_the_masks_size(tmp_path):
    members = {NAME: jpeg(orientation=6)}
    assert found(tmp_path, region(), members=members).load().frames[0].picture.size == (WIDTH, HEIGHT)
    turned = box(5, 5, 60, 45, (WIDTH, HEIGHT))
    assert found(tmp_path, region(turned), members=members).load().frames[0].picture.size == (HEIGHT, WIDTH)


def test_a_truncated_picture_in_a_sound_tar(tmp_path):
    with pytest.raises(BadInput, match="cannot be read as a picture"):
        found(tmp_path, region(), members={NAME: jpeg()[:700]}).load()


def test_regions_that_have_no_picture_are_counted(tmp_path):
    sets = found(tmp_path, region(), region(image="8.jpg"), region(tar_file="001.tar"), region(image=5), "text")
    missing = [f"COCOStuff/images/{name}" for name in (f"001.tar/{NAME}", "000.tar/8.jpg")]
    assert sets.paths == sorted([f"COCOStuff/images/000.tar/{NAME}", *missing])
    for path in missing:
        with pytest.raises(BadInput, match="no such picture in its tar"):
            sets.load(path)
    assert sets.counts["regions"] == 3
    assert sets.counts["regions without a picture"] == 2 and sets.counts["regions of another shape"] == 2


@pytest.mark.parametrize("name", ["../000.tar", "/tmp/000.tar", "../../000.tar"])
@pytest.mark.parametrize("field", ["tar_file", "image"])
def test_names_that_leave_the_root_are_refused(tmp_path, name, field):
    tar(tmp_path / "raw/000.tar", {NAME: jpeg()})
    sets = found(tmp_path, region(**{field: name}))
    with pytest.raises(BadInput, match=OUTSIDE):
        sets.load()


def test_members_that_leave_the_root_and_links_are_passed_over(tmp_path):
    secret = put(tmp_path / "secret.jpg", jpeg("coffee"))
    root = write(tmp_path / "raw", region())
    members = {f"../{NAME}": jpeg("coffee"), f"/{NAME}": jpeg("coffee"), f"in/{NAME}": jpeg()}
    tar(root / "COCOStuff/images/000.tar", members, link=str(secret))
    sets = Found("dam", root, tmp_path)
    assert sets.paths == [f"COCOStuff/images/000.tar/in/{NAME}"]
    assert np.array_equal(sets.load().frames[0].picture, decoded())
    assert sets.counts["tar members that would leave their folder"] == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:700],
        lambda data: data[:100],
        lambda data: b"version https://git-lfs.github.com/spec/v1\n",
        lambda data: data[: 512 + 3072] + b"garbage" + data[512 + 3072 + 7 :],  # the second header
    ],
)
def test_a_damaged_tar_stops_the_run(tmp_path, damage):
    path = (
        write(tmp_path / "raw", region(), members={"8.pickle": b"x" * 3000, NAME: jpeg()}) / "COCOStuff/images/000.tar"
    )
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"000.tar: (not a whole tar file|a pointer, not the file)"):
        Found("dam", tmp_path / "raw", tmp_path)


def test_a_tar_cut_after_it_was_read(tmp_path):
    sets = found(tmp_path, region())
    path = tmp_path / "raw/COCOStuff/images/000.tar"
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(BadInput, match="damaged member of an archive"):
        sets.load()


def test_a_folder_without_annotations(tmp_path):
    with pytest.raises(UserError, match="no annotations"):
        Found("dam", tmp_path, tmp_path)


def test_through_shards_verify_and_preview(tmp_path):
    root = write(tmp_path / "raw", region(), region(SECOND, "Its body.", 2), subset="PACO")
    write(root, region(), region(image="8.jpg"), members={NAME: jpeg("coffee"), "8.jpg": b"broken"}, subset="LVIS")
    summary, samples = through("dam", root, tmp_path, max_bad=0.5)
    assert summary.manifest.left_out == {"cannot be read as a picture": 1}
    assert set(samples) == {f"LVIS/images/000.tar/{NAME}", f"PACO/images/000.tar/{NAME}"}
    texts = [one["texts"] for one in samples[f"PACO/images/000.tar/{NAME}"]["objects"]]
    assert texts == [["A cat's head."], ["Its body."]]
