"""Folders of raw data: links are followed, each folder once, and hidden files are skipped."""

import io
import os
from collections import Counter

import numpy as np
import pytest
from PIL import Image

import cli
from demo.make_sav import write as write_sav
from pipeline import walk as walking
from pipeline.dataset import find_dataset
from pipeline.records import Records, RecordsWriter
from pipeline.request import make_request
from shards.errors import BadInput, UserError
from shards.manifest import Manifest, read_ledger
from tests.pipeline.built import Found, box, jpeg, put, rle, tar_of
from tests.pipeline.sources import test_sa1b


def found(root, work, is_data=lambda name: name.endswith(".jpg"), **options):
    """Paths and sizes below `root`, what was counted, and the inputs that were refused."""
    counts = Counter()
    with RecordsWriter(work / "records.sqlite") as records:
        files = dict(walking.walk(root, is_data, counts, records, **options))
    return files, dict(counts), [item.path for item in Records(work / "records.sqlite").inputs()]


def test_linked_folders_are_followed_once(tmp_path):
    root = tmp_path / "root"
    disk = tmp_path / "disk"
    put(root / "a/1.jpg", b"1")
    put(disk / "b/2.jpg", b"22")
    put(disk / "b/deep/3.jpg", b"333")
    os.symlink(disk / "b", root / "b")  # to another disk
    os.symlink(root / "a", root / "0-latest")  # to a folder beside it: `a` itself is the path without a link
    os.symlink(root, root / "a/up")  # a loop
    os.symlink(disk / "b", root / "c")  # a second link to one folder
    os.symlink("b", disk / "relative")
    os.symlink(disk / "b/2.jpg", root / "a/file.jpg")
    files, counts, refused = found(root, tmp_path)
    assert files == {"a/1.jpg": 1, "a/file.jpg": 2, "b/2.jpg": 2, "b/deep/3.jpg": 3}
    assert counts == {walking.TWICE: 3} and refused == []


def test_two_folders_that_are_linked_to_each_other_end(tmp_path):
    for n in range(12):
        put(tmp_path / f"root/{n:02d}/{n}.jpg", b"x")
        for other in range(12):
            os.symlink(tmp_path / f"root/{other:02d}", tmp_path / f"root/{n:02d}/to-{other}")
    files, counts, _ = found(tmp_path / "root", tmp_path)
    assert sorted(files) == [f"{n:02d}/{n}.jpg" for n in range(12)] and counts == {walking.TWICE: 144}


def test_dangling_links_are_bad_inputs(tmp_path):
    root = tmp_path / "root"
    put(root / "1.jpg", b"1")
    os.symlink(tmp_path / "gone/2.jpg", root / "2.jpg")
    os.symlink(tmp_path / "gone/folder", root / "folder")
    os.symlink(root / "loop", root / "loop")
    os.symlink(tmp_path / "gone/notes.txt", root / "notes.txt")
    files, _, refused = found(root, tmp_path)
    assert files == {"1.jpg": 1, "2.jpg": 0} and refused == ["folder", "loop", "notes.txt"]


def test_hidden_files_are_counted_where_they_would_be_data(tmp_path):
    for name in (
        "1.jpg",
        "._1.jpg",
        ".DS_Store",
        "._notes.txt",
        "__MACOSX/2.jpg",
        "@eaDir/1.jpg/thumb.jpg",
        "Thumbs.db",
    ):
        put(tmp_path / "root" / name, b"x")
    files, counts, _ = found(tmp_path / "root", tmp_path)
    assert [*files] == ["1.jpg"] and counts == {walking.HIDDEN: 1, walking.HIDDEN_FOLDERS: 2}


def test_other_kinds_are_counted_by_their_suffix(tmp_path):
    for name in ("1.jpg", "2.gif", "3.GIF", "4.HEIC", "5.JPG.txt", "6"):
        put(tmp_path / "root" / name, b"x")
    files, counts, _ = found(tmp_path / "root", tmp_path, resembles=lambda name: True)
    expected = {f"{walking.OTHER} {kind}": 1 for kind in ("*.heic", "*.txt", "without a suffix")}
    assert [*files] == ["1.jpg"] and counts == {**expected, f"{walking.OTHER} *.gif": 2}
    for n in range(40):
        put(tmp_path / f"root/x.{n}", b"x")
    _, counts, _ = found(tmp_path / "root", tmp_path, resembles=lambda name: True)
    assert sum(counts.values()) == 45 and len(counts) <= 13


def test_files_that_are_no_data_are_counted_too(tmp_path):
    for name in ("1.jpg", "2.gif", "a/3.txt", "a/4.TXT", "5", ".hidden.txt"):
        put(tmp_path / "root" / name, b"x")
    files, counts, _ = found(tmp_path / "root", tmp_path, resembles=lambda name: name.endswith(".gif"))
    kind = walking.NOT_READ[0]
    assert [*files] == ["1.jpg"]
    assert counts == {f"{walking.OTHER} *.gif": 1, f"{kind} *.txt": 2, f"{kind} without a suffix": 1}


def write_pictures(root, count=3):
    """Pictures and masks in `images/` and `masks/`."""
    for n in range(count):
        put(root / f"images/{n}.jpg", jpeg())
        mask = io.BytesIO()
        Image.fromarray(box(10, 10, 60, 60).astype(np.uint8)).save(mask, "PNG")
        put(root / f"masks/{n}.png", mask.getvalue())


SMALL_SETS = [("sav", lambda root: write_sav(root, 3)), ("folder", write_pictures)]


@pytest.mark.parametrize(("source", "write"), SMALL_SETS)
def test_one_dangling_link_does_not_stop_a_run(tmp_path, capsys, source, write):
    write(tmp_path / "raw")
    os.symlink(tmp_path / "gone", tmp_path / "raw/link")
    for name in ("notes.txt", "1.heic", "2.heic"):
        put(tmp_path / "raw" / name, b"x")
    arguments = ["--source", source, "--root", str(tmp_path / "raw"), "--out", str(tmp_path), "--workers", "1"]
    assert cli.app(["shard", *arguments], standalone_mode=False) in (None, 0)
    printed = capsys.readouterr()
    assert "bad input, the first of its kind: link: a link to nothing; met link -> " in printed.err
    assert "left out: files with other suffixes │ 3: .heic 2, .txt 1" in " ".join(printed.out.split())
    (line,) = read_ledger(tmp_path / source)
    assert (line.path, line.bad, Manifest.read(tmp_path / source).samples) == ("link", True, 3)
    with pytest.raises(UserError, match=r"too many bad inputs.*; wanted at most 0"):
        cli.app(["shard", *arguments, "--max-bad", "0", "--overwrite", "--limit", "9"], standalone_mode=False)


def test_a_dangling_link_among_the_masks_goes_to_the_ledger(tmp_path):
    write_pictures(tmp_path / "raw")
    (tmp_path / "raw/masks/2.png").unlink()
    for name in ("2", "of_no_picture"):
        os.symlink(tmp_path / "gone", tmp_path / f"raw/masks/{name}.png")
    folder = Found("folder", tmp_path / "raw", tmp_path)
    assert folder.paths == [*(f"images/{n}.jpg" for n in range(3)), "masks/of_no_picture.png"]
    for path in folder.paths[2:]:
        with pytest.raises(BadInput, match=r"a link to nothing; met .* -> "):
            folder.load(path)


@pytest.mark.parametrize(("source", "write"), SMALL_SETS)
def test_files_that_are_not_read_change_no_plan(tmp_path, source, write):
    def digest(name):
        return find_dataset(make_request(source, tmp_path / "raw"), tmp_path / name).digest

    write(tmp_path / "raw")
    before = digest("before")
    for name in ("notes.txt", "other/a.txt", "LICENSE"):
        put(tmp_path / "raw" / name, b"x")
    assert digest("after") == before


def test_folders_that_are_too_deep_are_counted(tmp_path):
    put(tmp_path / "root/a/b/1.jpg", b"1")
    assert found(tmp_path / "root", tmp_path, depth=1) == ({}, {"folders passed over: too deep": 1}, [])


def test_a_root_that_is_no_folder_is_an_error(tmp_path):
    with pytest.raises(UserError, match="a folder that cannot be read; met No such file"):
        found(tmp_path / "none", tmp_path)


def linked(root, disk, name):
    """Move `name` to another disk, and link to it."""
    disk.mkdir(exist_ok=True)
    os.rename(root / name, disk / "moved")
    os.symlink(disk / "moved", root / name)


def test_sav_follows_links(tmp_path):
    root = tmp_path / "raw"
    write_sav(root, 4)
    plain = Found("sav", root, tmp_path)
    (folder,) = {path.rpartition("/")[0] for path in plain.paths if "/" in path} or {""}
    if not folder:
        (root / "part").mkdir()
        for path in plain.paths[:2]:
            os.rename(root / path, root / "part" / path)
        plain = Found("sav", root, tmp_path)
        folder = "part"
    linked(root, tmp_path / "disk", folder)
    os.symlink(tmp_path / "gone.npz", root / "masklet_data_99999.npz")
    os.symlink(tmp_path / "gone", root / "other")
    put(root / "._masklet_data_00000.npz", b"\0\5\26\7")
    put(root / "masklet_data_0.npz.part", b"")
    again = Found("sav", root, tmp_path)
    assert [path for path in again.paths if path in plain.paths] == plain.paths
    assert {*again.paths} - {*plain.paths} == {"masklet_data_99999.npz", "other"}
    assert again.counts == {walking.HIDDEN: 1, f"{walking.OTHER} *.part": 1}
    for path, target in (("masklet_data_99999.npz", "gone.npz"), ("other", "gone")):
        with pytest.raises(BadInput, match=rf"a link to nothing; met {path} -> .*{target}; wanted a link to a file"):
            again.source.load(root, path, {"value_range": 255}, again.records.parts(path))


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "masklet_data_00000.npz")
    one = Found("sav", tmp_path, tmp_path)
    with pytest.raises(BadInput, match="cannot be read; met a pipe"):
        one.source.load(tmp_path, one.paths[0], {"value_range": 255}, [])


def test_folder_follows_links(tmp_path):
    for name in ("a/1.jpg", "b/1.jpg", "b/._1.jpg", "b/2.gif"):
        put(tmp_path / f"raw/images/{name}", jpeg())
    put(tmp_path / "raw/masks/a/1/x.png", b"")
    plain = Found("folder", tmp_path / "raw", tmp_path)
    linked(tmp_path / "raw/images", tmp_path / "disk", "b")
    os.symlink(tmp_path / "gone.jpg", tmp_path / "raw/images/3.jpg")
    again = Found("folder", tmp_path / "raw", tmp_path)
    assert plain.paths == ["images/a/1.jpg", "images/b/1.jpg"]
    assert again.paths == ["images/3.jpg", *plain.paths]
    assert again.counts[walking.HIDDEN] == again.counts[f"{walking.OTHER} *.gif"] == 1
    with pytest.raises(BadInput, match=r"a link to nothing; met 3\.jpg -> "):
        again.load("images/3.jpg")


@pytest.mark.parametrize("place", ["js", "."])
def test_hidden_files_of_sa1b_in_folders_and_tars(tmp_path, place):
    photo = test_sa1b.photo()
    json = b"{}"
    names = ("sa_1.jpg", "._sa_1.jpg", "__MACOSX/sa_1.jpg", "__MACOSX/._sa_1.jpg", "./.DS_Store", "./sa_1.json")
    put(tmp_path / "raw/sa_000000.tar", tar_of({n: json if n.endswith("json") else photo for n in names}))
    put(tmp_path / "raw/._sa_000000.tar", b"\0\5\26\7")
    put(tmp_path / "raw/more/sa_2.jpg", photo)
    put(tmp_path / "raw/more/._sa_2.jpg", b"\0\5\26\7")
    put(tmp_path / "raw/more/sa_3.png", photo)
    one = Found("sa1b", tmp_path / "raw", tmp_path)
    assert one.paths == ["more/sa_2.jpg", "sa_000000.tar/sa_1.jpg"]
    assert one.counts[walking.HIDDEN] == 5 and one.counts[f"{walking.OTHER} *.png"] == 1


def test_sav_video_follows_links(tmp_path):
    root = tmp_path / "raw"
    for folder, name in (("sav_000", "sav_000001"), ("sav_001", "sav_000002")):
        put(root / folder / f"{name}.mp4", b"")
        put(root / folder / f"{name}_manual.json", {"masklet": [[rle(box(0, 0, 9, 9))]], "masklet_num": 1})
        put(root / folder / f"._{name}.mp4", b"\0\5\26\7")
    plain = Found("sav-video", root, tmp_path, split="manual")
    linked(root, tmp_path / "disk", "sav_001")
    os.symlink(tmp_path / "gone.mp4", root / "sav_000003.mp4")
    os.symlink(tmp_path / "gone.json", root / "sav_000003_manual.json")
    again = Found("sav-video", root, tmp_path, split="manual")
    assert plain.paths == ["sav_000/sav_000001.mp4#manual-0", "sav_001/sav_000002.mp4#manual-0"]
    assert again.paths == sorted([*plain.paths, "sav_000003.mp4#manual-0"]) and again.counts[walking.HIDDEN] == 2
    with pytest.raises(BadInput, match=r"a link to nothing; met sav_000003_manual\.json -> "):
        again.load("sav_000003.mp4#manual-0")


def test_patterns_pass_over_hidden_files(tmp_path):
    for name in ("a.json", "._a.json", "__MACOSX/a.json", "b/a.json"):
        put(tmp_path / name, b"")
    assert [p.name for p in walking.matching(tmp_path, "*a.json")] == ["a.json"]
    assert [str(p.relative_to(tmp_path)) for p in walking.matching(tmp_path, "*/a.json")] == ["b/a.json"]
    assert walking.list_names(tmp_path) == ["a.json", "b"]
