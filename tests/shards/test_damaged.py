"""Damaged and hostile sets: every change is reported in one line, within limits on memory, and without a traceback."""

from __future__ import annotations

import json
import random
import shutil
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.run import merge
from shards import codec
from shards.errors import UserError
from shards.manifest import INDEX_DTYPE, Manifest, read_index, read_ledger
from shards.preview import preview
from shards.reader import ShardSet, read_samples
from shards.recode import recode
from shards.select import split
from shards.stats import measure_sets
from shards.verification import verify
from tests.batches import make_loader
from tests.shards.sealed import JSON, change_meta, change_sample, check_any_value, reseal

OLD = Path(__file__).parent / "version_1" / "folder"


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three samples, a tar and some kilobytes each, and a line of the ledger. Not to be changed."""
    folder = tmp_path_factory.mktemp("tiny") / "folder"
    recode(OLD, folder, "zstd")
    return folder


@pytest.fixture
def tiny(tiny_set: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_set, tmp_path / "set"))


def whats(folder: Path) -> set[str]:
    """Return the faults that `verify` finds in a set; none if it is sound."""
    report = verify([folder])
    assert report.ok == (not report.failures) and all(str(f).count("\n") == 0 for f in report.failures)
    return {failure.what for failure in report.failures}


def flipped(data: bytes, bit: int) -> bytes:
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


def test_the_functions_that_tamper_add_no_fault(tiny):
    change_sample(tiny, lambda members: members)
    assert not whats(tiny)


@pytest.mark.parametrize("name", ["manifest.json", "index.npy", "ledger.jsonl", "folder-000002.tar"])
def test_a_flipped_bit_anywhere_is_reported(tiny, name):
    path = tiny / name
    rng = random.Random(name)
    whole = path.read_bytes()
    for bit in rng.sample(range(8 * len(whole)), 12):
        path.write_bytes(flipped(whole, bit))
        assert whats(tiny), bit
    path.write_bytes(whole)
    assert not whats(tiny)


def test_every_flipped_bit_of_the_manifest_is_found(tiny_set):
    """A flip of any bit is noticed, also in options, notes and plan, which nothing else covers."""
    whole = (tiny_set / "manifest.json").read_bytes()
    read = []
    for bit in range(8 * len(whole)):
        try:
            read.append(Manifest.parse(flipped(whole, bit), "m"))
        except UserError:
            continue
    assert not read


def test_flipped_bits_of_index_and_ledger_are_one_line(tiny):
    """The parsers alone, without the checksums that find each of them."""
    for name, parse in (("index.npy", read_index), ("ledger.jsonl", read_ledger)):
        whole = (tiny / name).read_bytes()
        refused = 0
        head = 8 * min(len(whole), 256)  # of the index: its header
        for bit in range(0, head, 3) if name == "index.npy" else range(0, 8 * len(whole), 7):
            (tiny / name).write_bytes(flipped(whole, bit))
            try:
                parse(tiny)
            except UserError:
                refused += 1
        assert refused > 60, name


@pytest.mark.parametrize("key", ["plan", "notes", "options", "selection", "source", "inputs"])
def test_the_checksum_of_the_manifest_covers_all_keys(tiny, key):
    body = json.loads((tiny / "manifest.json").read_bytes())
    body[key] = {"notes": {"x": 7}, "options": {}, "inputs": 5}.get(key, "0" * 32)
    (tiny / "manifest.json").write_text(json.dumps(body))
    assert whats(tiny) == {"checksum of the manifest itself"}
    del body["manifest_sha256"]
    (tiny / "manifest.json").write_text(json.dumps(body))
    assert whats(tiny) == {"checksum of the manifest itself"}
    with pytest.raises(UserError, match="checksum of the manifest itself"):
        ShardSet(tiny)


LONG = "[" * 200_000
MANIFESTS = {
    "deep": LONG,
    "deep option": '{"format": "sa2va-shards", "version": 2, "options": ' + '{"a":' * 100_000,
    "not UTF-8": b"\xff\xfe{}",
    "a list": "[]",
    "nothing": "",
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_what_is_not_a_manifest_is_refused(tiny, name):
    data = MANIFESTS[name]
    (tiny / "manifest.json").write_bytes(data if isinstance(data, bytes) else data.encode())
    assert whats(tiny) <= {"not a manifest", "not a manifest of ours"} and whats(tiny)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1, 1 << 63, 10**400, 1.0, True, "3", None, [3], {}])
@pytest.mark.parametrize("key", ["samples", "inputs", "objects", "bytes", "version"])
def test_impossible_counts_of_a_manifest_are_refused(tiny, key, value):
    body = json.loads((tiny / "manifest.json").read_bytes())
    if key == "bytes":
        reseal(tiny, shards=[{**body["shards"][0], "bytes": value}, *body["shards"][1:]])
    else:
        reseal(tiny, **{key: value})
    assert whats(tiny)
    with pytest.raises(UserError):
        ShardSet(tiny)[0]


def header(text: str, rows: int = 3) -> bytes:
    data = text.encode().ljust(-(-(len(text) + 11) // 64) * 64 - 11) + b"\n"
    return b"\x93NUMPY\1\0" + len(data).to_bytes(2, "little") + data + bytes(rows * INDEX_DTYPE.itemsize)


DESCR = repr(INDEX_DTYPE.descr)
PLAIN = "{'descr': %s, 'fortran_order': False, 'shape': (%s,), }"
INDEXES = {
    "minus": header("-" * 8000 + "1"),
    "brackets": header("(" * 3000),
    "2 ** 70 rows": header(PLAIN % (DESCR, 2**70)),
    "10 ** 14 rows": header(PLAIN % (DESCR, 10**14)),
    "rows that are true": header(PLAIN % (DESCR, "True")),
    "negative rows": header(PLAIN % (DESCR, -1)),
    "a row too few": header(PLAIN % (DESCR, 4)),
    "a row too many": header(PLAIN % (DESCR, 2)),
    "two dimensions": header((PLAIN % (DESCR, "1, 3")).replace("3,)", "3)")),
    "objects": header(PLAIN % ("[('key', '|O')]", 3)),
    "a call": header(PLAIN % ("[('key', __import__('os').getcwd())]", 3)),
    "another order": header(PLAIN % (repr(INDEX_DTYPE.descr[::-1]), 3)),
    "bytes of no kind": header(PLAIN % (repr([*INDEX_DTYPE.descr, ("more", "|b7")]), 3)),
    "a wide row": header(PLAIN % (repr([*INDEX_DTYPE.descr, ("more", "|S999")]), 3)),
    "npz": b"PK\x03\x04" + bytes(200),
    "nothing": b"",
}


@pytest.mark.parametrize("name", INDEXES)
def test_what_is_not_an_index_is_refused(tiny, name):
    (tiny / "index.npy").write_bytes(INDEXES[name])
    reseal(tiny)
    assert whats(tiny) & {"not an index", "size of the index", "header of the index"}
    with pytest.raises(UserError, match="index"):
        ShardSet(tiny)


def test_unknown_columns_of_the_index_are_ignored(tiny):
    index = np.load(tiny / "index.npy")
    wider = np.zeros(len(index), [*INDEX_DTYPE.descr, ("twin", "<u8"), ("more", "|S9")])
    for name in INDEX_DTYPE.names or ():
        wider[name] = index[name]
    np.save(tiny / "index.npy", wider)
    reseal(tiny)
    assert not whats(tiny) and len(ShardSet(tiny)[2]["meta"]["objects"]) == 2


@pytest.mark.parametrize(
    "column, value", [("offset", 1 << 63), ("size", (1 << 64) - 1), ("shard", 9), ("key", b"\xff")]
)
def test_an_index_that_points_at_wrong_samples_is_refused(tiny, column, value):
    index = np.load(tiny / "index.npy")
    index[column][1] = value
    np.save(tiny / "index.npy", index)
    reseal(tiny)
    assert whats(tiny)
    for read in (lambda: ShardSet(tiny)[1], lambda: measure_sets([tiny], 9), lambda: recode(tiny, tiny / "o", "raw")):
        with pytest.raises(UserError):
            read()


LEDGERS = ["[" * 100_000, "5", "{}", '{"path": 1, "reason": "r", "detail": "", "bad": true}', "x" * (1 << 21), "\xff"]


@pytest.mark.parametrize("text", LEDGERS, ids=range(len(LEDGERS)))
def test_what_is_not_a_ledger_is_refused(tiny, text):
    (tiny / "ledger.jsonl").write_bytes(text.encode("latin-1") + b"\n")
    reseal(tiny)
    assert whats(tiny) == {"not a ledger"}


def test_names_with_line_ends_stay_one_line_of_the_ledger(tiny):
    names = ["a\u2028b", "a\u2029b", "a\x85b", "a\x0bb", "a\x0cb", "a\x1cb", "a\rb", "a\nb"]
    lines = [{"path": name, "reason": "no such file", "detail": name, "bad": True} for name in names]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (tiny / "ledger.jsonl").write_text(text, encoding="utf-8", newline="\n")
    reseal(tiny, left_out={"no such file": 8}, inputs=11)
    assert not whats(tiny) and [line.path for line in read_ledger(tiny)] == names


CHANGES: dict[str, tuple[Any, str]] = {
    "another source": (lambda m: m.update(source="other"), "source"),
    "another dataset_type": (lambda m: m.update(dataset_type="other"), "dataset_type"),
    "no pair": (lambda m: m.update(has_paired_frame=False), "has_paired_frame"),
    "left_out as a number": (lambda m: m.update(left_out=5), "left_out"),
    "filled as text": (lambda m: m["objects"][0].update(filled="x"), "filled"),
    "mask_sizes of another shape": (lambda m: m["objects"][0].update(mask_sizes=[[1, 1]]), "mask_sizes"),
    "mask_sizes without end": (lambda m: m["objects"][0].update(mask_sizes=[[1 << 60, 1]] * 2), "mask_sizes"),
    "height as text": (lambda m: m["frames"][0].update(height="3"), "height"),
    "width without end": (lambda m: m["frames"][0].update(width=1 << 60), "width"),
    "an id that is a number": (lambda m: m["objects"][0].update(id=1), "object"),
    "infinity": (lambda m: m.update(more=1e400), "not JSON"),
    "more checksums": (lambda m: m["crc32"].update(other=1), "crc32"),
    "no checksum": (lambda m: m["crc32"].pop("masks1"), "crc32"),
    "4,097 objects": (lambda m: m.update(objects=m["objects"] * 4097), "too many objects"),
    "16 GiB of masks": (lambda m: m.update(objects=m["objects"] * 4096, frames=m["frames"] * 2), "too many masks"),
    "100 frames": (lambda m: m.update(frames=m["frames"] * 50), "too many frames"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_wrong_values_in_a_samples_json_are_reported(tiny, name):
    change, what = CHANGES[name]
    change_sample(tiny, lambda members: change_meta(members, change))
    assert what in whats(tiny)


def test_a_sample_of_one_frame_is_not_a_pair(tiny):
    min(tiny.glob("*.tar")).unlink()
    index = np.load(tiny / "index.npy")[1:]
    index["shard"] -= 1
    np.save(tiny / "index.npy", index)
    body = json.loads((tiny / "manifest.json").read_bytes())
    body["shards"] = body["shards"][1:]
    (tiny / "manifest.json").write_text(json.dumps(body))
    reseal(tiny, samples=2, objects=3, inputs=3)
    assert not whats(tiny)
    change_sample(tiny, lambda members: change_meta(members, lambda m: m.update(has_paired_frame=True)))
    assert whats(tiny) == {"has_paired_frame"}


@pytest.mark.parametrize("more", [10_240, 512, 20 << 20])
def test_bytes_after_the_end_of_a_tar_are_reported(tiny, more):
    tar = min(tiny.glob("*.tar"))
    tar.write_bytes(tar.read_bytes() + bytes(more))
    reseal(tiny)
    assert whats(tiny) == {"end of archive"}


@pytest.mark.parametrize("field, value", [("mode", 0o7777), ("mtime", 1), ("uid", 5), ("uname", "x")])
def test_headers_that_are_not_plain_are_reported(tiny, field, value):
    change_sample(tiny, lambda members: members, **{field: value})
    assert whats(tiny) == {"header of a member"}


def test_padding_that_is_not_zeros_is_reported(tiny):
    tar = min(tiny.glob("*.tar"))
    data = bytearray(tar.read_bytes())
    length = int(bytes(data[124:135]), 8)
    data[512 + length] = 1  # behind the JSON
    tar.write_bytes(data)
    index = np.load(tiny / "index.npy")
    index["crc32"][0] = zlib.crc32(data[: int(index["size"][0])])
    np.save(tiny / "index.npy", index)
    reseal(tiny)
    assert whats(tiny) == {"padding of a member"}


PLACES = [
    *[("source",), ("path",), ("has_paired_frame",), ("frames",), ("objects",), ("crc32",), ("left_out",), ("psnr",)],
    *[("frames", 0), ("frames", 0, "height"), ("frames", 1, "name"), ("objects", 0), ("objects", 0, "id")],
    *[("objects", 0, "texts"), ("objects", 0, "filled"), ("objects", 0, "mask_sizes"), ("crc32", "masks1")],
    *[("expressions",), ("captions",), ("records",), ("turns",), ("source_keys",)],
]


@pytest.mark.slow
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(PLACES), JSON)
def test_any_value_at_any_place_of_a_sample_is_one_line_or_sound(tiny_set, tmp_path, place, value):
    check_any_value(tiny_set, tmp_path, place, value)


def test_many_masks_are_never_all_in_memory(tiny):
    """100 masks, all on, in a member of some kilobytes: 200 MB if those of both frames were unpacked."""
    count = 100
    on = codec.encode_masks(np.ones((1, 1024, 1024), np.bool_))[8:]
    ends = np.cumsum([len(on)] * count)
    prompts = codec.encode_prompts(np.ones((count, 16, 16), np.bool_))

    def many(members: dict[str, bytes]) -> dict[str, bytes]:
        masks = np.array([count, *ends], "<u4").tobytes() + on * count
        members = {
            name: masks if "masks" in name and name.endswith("bits") else prompts if name.endswith("npy") else data
            for name, data in members.items()
        }
        return change_meta(members, lambda m: m.update(objects=m["objects"] * count))

    change_sample(tiny, many)
    tracemalloc.start()
    try:
        verify([tiny])
        preview(min(tiny.glob("*.tar")), tiny / "page", 1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 90e6, peak


@pytest.fixture
def empty(tiny: Path) -> Path:
    """A finished set of no sample: every input was left out."""
    for tar in tiny.glob("*.tar"):
        tar.unlink()
    np.save(tiny / "index.npy", np.empty(0, INDEX_DTYPE))
    body = json.loads((tiny / "manifest.json").read_bytes())
    (tiny / "manifest.json").write_text(json.dumps({**body, "shards": []}))
    reseal(tiny, samples=0, inputs=1, objects=0)
    return tiny


def test_a_set_of_no_samples_is_an_error_everywhere(empty, tmp_path, here):
    assert whats(empty) == {"a set without samples"}
    calls = [
        *(["verify-shard", empty], ["stats", empty], ["preview", empty, "--out", tmp_path / "p"]),
        *(["split", empty, "--out", tmp_path / "s"], ["sample", empty, "--out", tmp_path / "t", "--n", 1]),
        ["recode", empty, "--out", tmp_path / "r", "--codec", "raw"],
    ]
    for call in calls:
        done = here(*call)
        assert done.returncode == 1 and "set without samples" in done.stdout + done.stderr, call
        assert "Traceback" not in done.stderr and "all checks hold" not in done.stdout
    assert not [path for path in tmp_path.iterdir() if path != empty]
    with pytest.raises(UserError, match="a set without samples"):
        make_loader([empty], fields=("masks1",), batch_size=1, seed=0)
    with pytest.raises(UserError, match="a set without samples"):
        split(empty, tmp_path / "s", 0.5, "file", 10)
    assert list(read_samples(OLD / "folder-000001.tar"))


DAMAGE = [b"", b"{}", b"[]", b"[" * 100_000, b"\xff", b'{"shard": 5, "entries": []}', b'{"shard": {"name": 1}}']


@pytest.mark.parametrize("data", DAMAGE, ids=range(len(DAMAGE)))
def test_damaged_notes_of_an_unfinished_copy_are_written_again(tiny_set, tmp_path, data, monkeypatch):
    """A tar whose note is damaged is written again; a damaged plan is another set's."""
    with monkeypatch.context() as patch:
        patch.setattr("shards.rewrite.pack_index", lambda entries: 1 / 0)  # stopped when all tars stand
        with pytest.raises(ZeroDivisionError):
            recode(tiny_set, tmp_path / "set", "raw")
    note = min((tmp_path / "set" / ".work").glob("*.json"))
    note.write_bytes(data)
    recode(tiny_set, tmp_path / "set", "raw")
    assert not whats(tmp_path / "set")
    (tmp_path / "other" / ".work").mkdir(parents=True)
    (tmp_path / "other" / ".work" / "plan").write_bytes(data)
    with pytest.raises(UserError, match="another shard set stands here"):
        recode(tiny_set, tmp_path / "other", "raw")


@pytest.mark.parametrize("data", DAMAGE, ids=range(len(DAMAGE)))
def test_damaged_notes_of_an_unfinished_set_do_no_harm(tmp_path, data):
    shutil.copytree(OLD, tmp_path / "set")
    shutil.copytree(OLD.parent / "work", tmp_path / "set" / ".work")
    (tmp_path / "set" / "manifest.json").unlink()
    note = tmp_path / "set" / ".work" / "folder-000002.json"
    whole = note.read_bytes()
    note.write_bytes(data)
    with pytest.raises(UserError, match=r"shards are missing; met 1 of 4 missing: folder-000002"):
        merge(tmp_path / "set", 1)
    note.write_bytes(whole)
    (tmp_path / "set" / ".work" / "plan").write_bytes(data)
    with pytest.raises(UserError, match="not a plan of this version"):
        merge(tmp_path / "set", 1)
