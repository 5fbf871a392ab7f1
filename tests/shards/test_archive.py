"""Tars of samples: deterministic and plain, and refused where they are damaged."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.archive import MappedTar, ShardWriter, group_members, plain_header
from shards.errors import BadShard
from shards.format import FIELDS, Field, key_for
from shards.manifest import Manifest
from shards.meta import parse_meta
from shards.reader import Alike, ShardSet, StoredSample, read_samples
from tests.shards.conftest import stored_samples

MASKS_1 = Field("masks", 1)


def test_the_same_samples_give_the_same_bytes(sav_set):
    tars = []
    for _ in range(2):
        buffer = io.BytesIO()
        writer = ShardWriter(buffer)
        for sample in stored_samples(sav_set)[:3]:
            writer.write(sample)
        writer.close()
        tars.append(buffer.getvalue())
    assert tars[0] == tars[1]


def test_plain_tar_tools_read_it(sav_set):
    tar = sorted(sav_set.glob("*.tar"))[0]
    with tarfile.open(tar) as archive:
        members = archive.getmembers()
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode, m.isreg()) for m in members} == {
        (0, 0, 0, "", "", 0o644, True)
    }
    fields = ("pixel_values", "g_pixel_values", "prompt_masks", "masks")
    expected = ["json", *(f"{field}{k}" for k in (1, 2) for field in fields)]
    assert [m.name.split(".")[1] for m in members[:9]] == expected


def test_any_sample_by_position_equals_reading_in_order(sav_set):
    shards = ShardSet(sav_set)
    in_order = [s for info in shards.manifest.shards for s in read_samples(sav_set / info.name)]
    assert len(in_order) == len(shards)
    for i in (len(shards) - 1, 0, 5):
        for name, value in in_order[i].items():
            assert np.array_equal(shards[i][name], value), name


def add(tar: tarfile.TarFile, name: str, data: bytes = b"{}", **header: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in header.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize(
    "name, header",
    [
        ("../escape.json", {}),
        ("/etc/passwd.json", {}),
        ("folder/a.json", {}),
        ("a.json", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
        ("a.json", {"type": tarfile.LNKTYPE, "linkname": "b"}),
        ("a.json", {"type": tarfile.GNUTYPE_SPARSE}),
        ("a.json", {"type": tarfile.CONTTYPE}),
        (".hidden.json", {}),
        ("no extension", {}),
    ],
)
def test_members_that_are_not_plain_files_are_refused(tmp_path, name, header):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        add(tar, name, **header)
    with pytest.raises(BadShard):
        list(group_members(MappedTar(tmp_path / "a.tar").members()))


def test_a_repeated_member_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "a.json")
        add(tar, "a.json")
    with pytest.raises(BadShard, match="twice"):
        list(group_members(MappedTar(tmp_path / "a.tar").members()))


def test_a_truncated_tar_is_refused(sav_set, tmp_path):
    whole = sorted(sav_set.glob("*.tar"))[0].read_bytes()
    for size in (0, 100, 512, len(whole) // 2, len(whole) - 10240):
        (tmp_path / "cut.tar").write_bytes(whole[:size])
        with pytest.raises(BadShard):
            list(read_samples(tmp_path / "cut.tar", Manifest.read(sav_set).recipe))


@settings(max_examples=200)
@given(st.text("abzAZ09_-.", min_size=1, max_size=100), st.integers(0, 8**11 - 1))
def test_headers_are_those_of_a_plain_tar(name, size):
    info = tarfile.TarInfo(name)
    info.size = size
    assert plain_header(name.encode(), size) == info.tobuf(tarfile.USTAR_FORMAT)


def test_no_byte_of_a_header_changes_unnoticed(sav_set, tmp_path):
    whole = bytearray(sorted(sav_set.glob("*.tar"))[0].read_bytes())
    for at in (
        *range(154),
        *range(156, 512),
    ):  # the checksum may end in another way
        whole[at] ^= 1
        (tmp_path / "a.tar").write_bytes(whole[:4096])
        with pytest.raises(BadShard):
            next(MappedTar(tmp_path / "a.tar").members(0, 4096))
        whole[at] ^= 1


def test_json_is_checked_at_its_first_access(sav_set, tmp_path):
    folder = Path(shutil.copytree(sav_set, tmp_path / "sav"))
    tar = sorted(folder.glob("*.tar"))[0]
    tar.write_bytes(tar.read_bytes().replace(b'"objects"', b'"objectz"', 1))
    damaged = ShardSet(folder, check="never").open(0)
    assert (damaged.objects, damaged.frames) == (1, 2)
    with pytest.raises(BadShard, match=rf"{tar}: {damaged.key}: JSON of a sample"):
        _ = damaged.meta
    whole = ShardSet(sav_set).open(0)
    alike = Alike(1, FIELDS[3:], "zstd", 3)
    other = StoredSample("a", "a.tar", alike, memoryview(json.dumps(whole.meta).encode()), [whole.members[MASKS_1]])
    with pytest.raises(BadShard, match=r"a.tar: a: JSON and members differ; met 2 frames, 1 objects; wanted 1 "):
        _ = other.meta


@pytest.mark.parametrize("text", ["", "[]", "{", '{"frames": []}', "[" * 100_000, '{"frames": [1], "objects": [{}]}'])
def test_json_that_is_not_of_a_sample_is_refused(text):
    with pytest.raises(BadShard):
        parse_meta(text.encode())


def test_keys_are_stable_unique_and_free_of_dots_and_slashes():
    assert key_for("a/masklet_data_00000.npz") == key_for("a/masklet_data_00000.npz")
    names = ["a/m.npz", "b/m.npz", "a.b/m.npz", "a/b/m.npz", "ü/m.npz", "a/m.x.npz", "m.npz", "x/" + "n" * 300 + ".npz"]
    keys = [key_for(name) for name in names]
    assert len(set(keys)) == len(names)
    assert all(len(key) <= 64 and key.replace("-", "").replace("_", "").isalnum() and key.isascii() for key in keys)
