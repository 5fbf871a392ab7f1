"""Members of tars and zips, read in place: exactly their bytes, or an error that names the fault."""

import io
import os
import tarfile

import pytest

from pipeline.archives import member_path, read_member, tar_members, zip_members
from shards.errors import BadInput
from tests.pipeline.built import tar_of, zipped

FILES = {"a.jpg": b"first" * 300, "b.json": b"second"}


def test_members_of_tar_and_zip(tmp_path):
    for name, pack, members in (("a.tar", tar_of, tar_members), ("a.zip", zipped, zip_members)):
        (tmp_path / name).write_bytes(pack(FILES))
        found = dict(members(tmp_path / name))
        assert {inner: read_member(tmp_path / name, place) for inner, place in found.items()} == FILES


def test_long_names_and_equal_ones(tmp_path):
    long = "d/" * 120 + "a.jpg"
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as file:
        for name, data in ((long, b"long"), ("a.jpg", b"first"), ("a.jpg", b"second")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    found = [(name, read_member(path, place)) for name, place in tar_members(path)]
    assert found == [(long, b"long"), ("a.jpg", b"first"), ("a.jpg", b"second")]


def test_members_before_the_damage_are_read(tmp_path):
    whole = tar_of(FILES)
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        second = tar.getmember("b.json")
    flipped = bytearray(whole)
    flipped[second.offset + 150] ^= 1  # tarfile takes a damaged header for the end
    cuts = [whole[:size] for size in (second.offset, second.offset + 100, second.offset_data + 3)]
    for data, before in ((flipped, 1), *((cut, 1) for cut in cuts), (whole[: second.offset_data + 512], 2), (b"", 0)):
        (tmp_path / "a.tar").write_bytes(data)
        taken = []
        with pytest.raises(BadInput, match=r"a\.tar: not a whole tar file"):
            for name, _ in tar_members(tmp_path / "a.tar"):
                taken.append(name)
        assert taken == [*FILES][:before]


def test_a_tar_that_was_cut_after_it_was_found(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_of(FILES))
    place = dict(tar_members(tmp_path / "a.tar"))["a.jpg"]
    (tmp_path / "a.tar").write_bytes(tar_of(FILES)[:900])
    with pytest.raises(BadInput, match="damaged member of an archive"):
        read_member(tmp_path / "a.tar", place)


@pytest.mark.parametrize("members", [tar_members, zip_members])
def test_pointers_and_missing_files(tmp_path, members):
    (tmp_path / "a").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid")
    with pytest.raises(BadInput, match="a pointer, not the file"):
        list(members(tmp_path / "a"))
    with pytest.raises(BadInput, match="no such file"):
        list(members(tmp_path / "none"))


@pytest.mark.parametrize("read", [tar_members, zip_members, lambda path: read_member(path, {"at": 0, "bytes": 9})])
def test_a_pipe_is_not_waited_for(tmp_path, read):
    os.mkfifo(tmp_path / "a")
    with pytest.raises(BadInput, match="cannot be read; met a pipe"):
        list(read(tmp_path / "a"))


@pytest.mark.parametrize("name", ["../a.jpg", "/a.jpg", "a/../../b.jpg", "..", "", ".", "a\0.jpg"])
def test_names_that_leave_their_folder(name):
    with pytest.raises(BadInput, match="path leaves the archive"):
        member_path(name)
    assert member_path("./in/a.jpg") == "in/a.jpg" and member_path("a..jpg") == "a..jpg"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"bytes": 10}, "damaged member"),
        ({"crc": 1}, "damaged member"),
        ({"at": 5}, "damaged member of a zip"),
        ({"method": 14}, "a zip that cannot be read"),
        ({"method": -1}, "a zip that cannot be read"),
        ({"bytes": 1 << 40}, "too large a file"),
        ({"method": 0}, "damaged member"),
    ],
)
def test_zip_members_that_are_not_what_the_index_says(tmp_path, change, what):
    file = tmp_path / "a.zip"
    file.write_bytes(zipped({"x.png": b"some bytes, some bytes, some bytes, some bytes"}))
    ((_, member),) = zip_members(file)
    assert read_member(file, member).startswith(b"some bytes")
    with pytest.raises(BadInput, match=what):
        read_member(file, {**member, **change})
