"""Sets of version 3: samples without objects and text alone, beside samples with objects."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.derive import Deriver
from pipeline.estimate import estimate
from pipeline.request import make_request
from pipeline.run import merge, run, run_task
from pipeline.sources import chosen_source
from pipeline.workspace import TaskShare
from shards.archive import Entry, ShardWriter, encode_sample
from shards.codec import encode_masks
from shards.collation import collate
from shards.decoding import decode_sample
from shards.errors import BadShard, UserError
from shards.manifest import Manifest, pack_index, pack_manifest
from shards.preview import preview
from shards.reader import ShardSet, read_samples
from shards.recipe import Recipe
from shards.recode import decoded_sample, recode
from shards.sample import Sample
from shards.select import sample, split
from shards.stats import FRAMES, OBJECTS, TURN_WORDS, TURNS, measure_sets
from shards.verification import verify
from tests import mixed
from tests.batches import make_loader
from tests.conftest import files_of
from tests.shards.sealed import JSON, Members, change_meta, change_sample, check_any_value, reseal
from trainer.config import load_config
from trainer.doctor.data import Data, check_objective
from trainer.objectives.dual import Dual

REPOSITORY = Path(__file__).parents[2]


def numbers_of(shards: ShardSet) -> list[int]:
    """Return the number of the record that each sample was made of."""
    return [int(shards.meta(position)["path"].partition("#")[2]) for position in range(len(shards))]


def check_content(folder: Path, root: Path, chosen: list[int]) -> None:
    """The set holds the records `chosen`, with the tensors that Pillow makes of their pictures."""
    shards = ShardSet(folder)
    assert sorted(numbers_of(shards)) == sorted(chosen)
    for position, number in enumerate(numbers_of(shards)):
        sample = shards[position]
        record = mixed.RECORDS[number]
        assert list(sample) == ["__key__", "meta", *mixed.FIELDS[number]]
        assert {name: sample["meta"].get(name) for name in ("turns", "expressions", "captions")} == {
            name: record.get(name) for name in ("turns", "expressions", "captions")
        }
        assert [frame["name"] for frame in sample["meta"]["frames"]] == record.get("pictures", [])
        for field in mixed.FIELDS[number]:
            assert np.array_equal(sample[field], mixed.expected_field(root, number, field)), (number, field)
        row = shards.index[position]
        visible = int("box" in record)
        assert (row["frames"], row["letters"]) == (mixed.FRAMES[number], mixed.LETTERS[number])
        assert (row["texts"], row["regions"]) == (visible, visible)


def test_sharding_verifying_and_reading(mixed_root, mixed_set, tmp_path):
    manifest = Manifest.read(mixed_set)
    assert (manifest.version, manifest.samples, manifest.objects) == (3, 8, 2)
    assert manifest.notes["samples without objects"] == 6 and manifest.notes["samples without pictures"] == 2
    raw = Deriver(mixed_root, tmp_path, chosen_source(mixed.SOURCE))
    report = verify([mixed_set], derive=raw.derive, same_inputs=raw.same_inputs)
    assert report.ok and report.samples == 8, report.table()
    assert {name: row.samples for name, row in report.fields.items() if row.samples > 1} == {
        "pixel_values": 3,
        **{name: 2 for name in ("g_pixel_values", "g_pixel_values1", "g_pixel_values2")},
        **{name: 3 for name in ("pixel_values1", "pixel_values2")},
    }
    check_content(mixed_set, mixed_root, [*range(8)])
    in_order = [sample for info in manifest.shards for sample in read_samples(mixed_set / info.name, manifest.recipe)]
    for one, other in zip(in_order, ShardSet(mixed_set), strict=True):
        assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
    again = run(make_request(mixed.SOURCE, mixed_root, shard_bytes=600_000), mixed_set, 1, 0)
    assert again.written_now == 0 and again.manifest == manifest


def test_a_release_that_knows_no_version_3_refuses_it_in_one_line(mixed_set, monkeypatch):
    monkeypatch.setattr("shards.manifest.READABLE", (1, 2))
    with pytest.raises(BadShard) as refused:
        ShardSet(mixed_set)
    assert str(refused.value) == (
        f"{mixed_set}/manifest.json: format version; met 3; wanted 1 or 2; use the release that wrote it, or write it "
        "again"
    )


def test_samples_with_and_without_objects_in_one_batch(mixed_set):
    samples = {number: ShardSet(mixed_set)[i] for i, number in enumerate(numbers_of(ShardSet(mixed_set)))}
    batch = collate([samples[1], samples[0], samples[1]])
    assert batch["pixel_values"].shape == (3, 3, 448, 448) and batch["g_pixel_values"].shape == (3, 3, 1024, 1024)
    assert batch["image_of_object"].tolist() == [1]
    assert np.array_equal(batch["masks"].numpy(), samples[0]["masks"])
    without = collate([samples[5], samples[5]])
    assert without["masks2"].shape == (0, 1024, 1024) and without["prompt_masks1"].shape == (0, 16, 16)
    assert without["image_of_object"].shape == (0,)
    assert collate([samples[2], samples[6]])["meta"][1]["turns"] == mixed.RECORDS[6]["turns"]
    assert collate([samples[4], samples[5]])["image_of_object"].tolist() == [0]  # as many frames
    for pair in ((0, 7), (1, 2), (3, 5)):
        with pytest.raises(BadShard, match="different fields"):
            collate([samples[number] for number in pair])


def test_other_libraries_read_it(mixed_set):
    """The reader that FORMAT.md prints, webdataset, and Hugging Face's datasets with the columns given there."""
    expected = {sample["__key__"]: sample for sample in ShardSet(mixed_set)}
    tars = sorted(str(tar) for tar in mixed_set.glob("*.tar"))
    names: dict[str, Any] = {}
    document = (Path(__file__).parents[2] / "docs" / "FORMAT.md").read_text("utf-8")
    for snippet in re.findall(r"```python\n(.*?)```", document, re.S)[:2]:  # the reader to copy, then of datasets
        exec(compile(snippet, "docs/FORMAT.md", "exec"), names)
    table = names["open_set"](str(mixed_set), frames=3)
    copied = (sample for tar in tars for sample in names["read_samples"](tar))
    plain = webdataset.WebDataset(tars, shardshuffle=False)
    for found in (copied, plain.map(decode_sample), table.map(decode_sample)):
        read = {sample["__key__"]: sample for sample in found}
        assert read.keys() == expected.keys()
        for key, one in expected.items():
            for name, value in one.items():
                assert np.array_equal(read[key][name], value), name


def test_statistics(mixed_set):
    (stats,) = measure_sets([mixed_set], 100)
    assert stats.without == {"without objects": 6, "without pictures": 2}
    assert "measured 8 samples, 6 without objects, 2 without pictures: 3 visible regions" in stats.lines()[1]
    assert sorted(stats.values[FRAMES]) == sorted(mixed.FRAMES) and sorted(stats.values[OBJECTS]) == [0] * 6 + [1] * 2
    words = [len(f"{t['question']} {t['answer']}".split()) for r in mixed.RECORDS for t in r.get("turns", ())]
    assert sorted(stats.values[TURNS]) == [1, 1, 1, 1, 2] and sorted(stats.values[TURN_WORDS]) == sorted(words)


def test_preview(mixed_set, tmp_path):
    html = preview(mixed_set, tmp_path).read_text("utf-8")
    shards = ShardSet(mixed_set)
    shapes = {}
    for position, number in enumerate(numbers_of(shards)):
        sheet = tmp_path / f"{shards.key(position)}.png"
        shapes[number] = np.asarray(Image.open(sheet)).shape[:2] if sheet.exists() else None
    # Tiles of 256 pixels and a gap of 4: a row for each frame; four with objects, otherwise one for each picture.
    tiles = {0: (1, 4), 1: (1, 2), 3: (3, 1), 4: (2, 4), 5: (2, 2), 7: (1, 1)}
    assert shapes == {2: None, 6: None, **{number: (260 * a, 260 * b) for number, (a, b) in tiles.items()}}
    assert html.count("<p>text alone</p>") == 2
    assert re.search(r"<dt>Name a prime.</dt>\s*<dd>7</dd>\s*<dt>Another\?</dt>", html)
    assert "<dt>Was läuft hier?<mark>pictures</mark></dt>" in html and "<dt><mark>pictures</mark>What is this?" in html
    assert "no object: the zebra" in html and "caption: A cat." in html


def test_written_again_in_every_way(mixed_root, mixed_set, tmp_path):
    """recode, split and sample keep every tensor and text, and give the version that their samples need."""
    recode(mixed_set, tmp_path / "raw", "raw", 2)
    assert verify([tmp_path / "raw"]).ok
    check_content(tmp_path / "raw", mixed_root, [*range(8)])
    recode(tmp_path / "raw", tmp_path / "gradient", "gradient")
    assert files_of(tmp_path / "gradient") == files_of(mixed_set)
    parts = split(tmp_path / "raw", tmp_path, 0.5, "sample", 600_000)
    chosen = [numbers_of(ShardSet(tmp_path / name)) for name in ("raw-train", "raw-val")]
    assert sorted([*chosen[0], *chosen[1]]) == [*range(8)]
    for manifest, name, numbers in zip(parts, ("raw-train", "raw-val"), chosen, strict=True):
        assert verify([tmp_path / name]).ok and manifest.version == 3
        check_content(tmp_path / name, mixed_root, numbers)
    versions = set()
    for seed in range(40):
        manifest = sample(mixed_set, tmp_path / f"one-{seed}", 1, seed, 1)
        (number,) = numbers_of(ShardSet(tmp_path / f"one-{seed}"))
        assert manifest.version == (2 if "box" in mixed.RECORDS[number] else 3)
        versions.add(manifest.version)
        if len(versions) == 2:
            break
    assert versions == {2, 3}
    assert verify([tmp_path / f"one-{n}" for n in range(seed + 1)]).ok


def test_tasks_are_merged(mixed_root, mixed_set, tmp_path):
    request = make_request(mixed.SOURCE, mixed_root, shard_bytes=600_000)
    for task in (1, 0):
        run_task(request, tmp_path / "mixed", TaskShare(task, 2), 1, 0)
    assert not (tmp_path / "mixed" / "manifest.json").exists()
    merge(str(tmp_path / "mixed"), 0)
    assert files_of(tmp_path / "mixed") == files_of(mixed_set)


def test_killed_and_begun_again_it_ends_with_the_same_bytes(mixed_root, mixed_set, tmp_path):
    root = Path(shutil.copytree(mixed_root, tmp_path / "raw"))
    command = [sys.executable, "cli.py", "shard", "--source", "tests.mixed:Killed", "--root", str(root)]
    command += ["--out", str(tmp_path), "--shard-size", "600KB", "--workers", "1"]
    for number in ("4", "6"):  # only those before are read to measure the samples
        (root / "kill-at").write_text(number)
        killed = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
        assert killed.returncode and not (root / "kill-at").exists(), killed.stderr
    tars = [*(tmp_path / "mixed").glob("*.tar")]
    assert tars and len(tars) < len([*mixed_set.glob("*.tar")])
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    rows = [re.sub(r"\W+", " ", line).strip() for line in done.stdout.splitlines()]
    assert {"samples written 8", "objects 2", "samples without objects 6", "samples without pictures 2"} <= {*rows}
    assert files_of(tmp_path / "mixed") == files_of(mixed_set)


def test_pictures_of_a_lossy_set(mixed_root, mixed_set, tmp_path):
    """Text alone loses nothing, and needs no PSNR; a set of JPEGs without one stays refused."""
    recode(mixed_set, tmp_path / "jpeg", "jpeg")
    manifest = Manifest.read(tmp_path / "jpeg")
    assert manifest.psnr and verify([tmp_path / "jpeg"], allow_lossy=True).ok
    assert "psnr" not in ShardSet(tmp_path / "jpeg").meta(numbers_of(ShardSet(mixed_set)).index(2))
    root = mixed.write_raw(tmp_path / "raw", [record for record in mixed.RECORDS if "pictures" not in record])
    manifest = run(make_request(mixed.SOURCE, root, codec="jpeg"), tmp_path / "texts", 1, 0).manifest
    assert (manifest.psnr, manifest.codec, manifest.version, manifest.objects) == (None, "jpeg", 3, 0)
    assert run(make_request(mixed.SOURCE, root, codec="jpeg"), tmp_path / "texts", 1, 0).written_now == 0
    assert verify([tmp_path / "texts"]).ok
    assert [meta["turns"][0]["answer"] for meta in map(ShardSet(tmp_path / "texts").meta, range(2))] == ["7", "2"]
    unmarked = json.loads((tmp_path / "jpeg/manifest.json").read_bytes())
    del unmarked["psnr"]
    (tmp_path / "jpeg/manifest.json").write_bytes(pack_manifest(unmarked))
    shards = ShardSet(tmp_path / "jpeg")
    for position, frames in enumerate(shards.index["frames"]):
        if frames:
            with pytest.raises(BadShard, match="a lossy codec and no PSNR; met jpeg"):
                shards.open(position)
    assert "a lossy codec and no PSNR" in {failure.what for failure in verify([tmp_path / "jpeg"]).failures}


def test_an_index_of_an_older_release(mixed_set, tmp_path):
    """Without `frames` and `letters` a set is read; what is written of it has them."""
    old = Path(shutil.copytree(mixed_set, tmp_path / "old"))
    index = np.load(old / "index.npy")
    kept = [name for name in index.dtype.names if name not in ("frames", "letters")]
    narrow = np.empty(len(index), [(name, index.dtype[name]) for name in kept])
    for name in kept:
        narrow[name] = index[name]
    np.save(old / "index.npy", narrow)
    reseal(old)
    assert verify([old]).ok and len(ShardSet(old)[0]) == len(ShardSet(mixed_set)[0])
    recode(old, tmp_path / "new", "gradient")
    assert (tmp_path / "new/index.npy").read_bytes() == (mixed_set / "index.npy").read_bytes()
    entry = Entry("a", 0, 512, 0, 1, 1)
    unknown = np.load(io.BytesIO(pack_index([[entry], [replace(entry, key="b", frames=2, letters=3)]])))
    assert list(unknown.dtype.names) == kept and unknown["key"].tolist() == [b"a", b"b"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Sets of one sample: of two frames without objects, and of text alone. Not to be changed."""
    base = tmp_path_factory.mktemp("sound")
    records = {"frames": mixed.RECORDS[5] | {"turns": [mixed.turn("Why?", "So.", picture=2)]}, "text": mixed.RECORDS[2]}
    for name, record in records.items():
        run(make_request(mixed.SOURCE, mixed.write_raw(base / "raw" / name, [record])), base / name, 1, 0)
    return {name: base / name for name in records}


def without(name: str) -> Callable[[Members], Members]:
    """Return a change that removes a member, and its checksum from the JSON."""

    def change(members: Members) -> Members:
        field = name.partition(".")[0]
        kept = {other: data for other, data in members.items() if other != name}
        return change_meta(kept, lambda meta: meta["crc32"].pop(field))

    return change


def with_masks(members: Members) -> Members:
    masks = {"masks1.bits": encode_masks(np.ones((1, 1024, 1024), np.bool_))}
    masks["masks2.bits"] = masks["masks1.bits"]
    sums = {name.partition(".")[0]: zlib.crc32(data) for name, data in masks.items()}
    return change_meta({**members, **masks}, lambda meta: meta["crc32"].update(sums))


def with_meta(**changes: Any) -> Callable[[Members], Members]:
    return lambda members: change_meta(members, lambda meta: meta.update(changes))


FAULTS = {
    "g_pixel_values of some frames": ("frames", without("g_pixel_values2.grad"), "fields of a sample without objects"),
    "no pixel_values": ("frames", without("pixel_values1.grad"), "fields of a sample without objects"),
    "a member that the JSON does not name": (
        "frames",
        lambda members: {name: data for name, data in members.items() if name != "g_pixel_values2.grad"},
        "incomplete sample",
    ),
    "masks without objects": ("frames", with_masks, "fields of a sample without objects"),
    "masks that the JSON does not name": (
        "frames",
        lambda members: {**with_masks(members), "json": members["json"]},
        "incomplete sample",
    ),
    "objects without masks": (
        "frames",
        with_meta(objects=[{"id": "0", "texts": []}]),
        ("incomplete sample", "JSON and members differ"),
    ),
    "frames [] with tensors": (
        "frames",
        with_meta(frames=[], turns=[mixed.turn("Why?", "So.")]),
        "fields of a sample without objects",
    ),
    "frames without tensors": (
        "text",
        with_meta(frames=[{"name": "a", "height": 1, "width": 1}]),
        "fields of a sample without objects",
    ),
    "objects in text alone": ("text", with_meta(objects=[{"id": "0", "texts": []}]), "objects without a frame"),
    "text alone without turns": (
        "text",
        lambda members: change_meta(members, lambda meta: meta.pop("turns")),
        "a sample without frames",
    ),
    "turns is a text": ("text", with_meta(turns="Why?"), "turns"),
    "no turn": ("text", with_meta(turns=[]), "turns"),
    "a turn is a list": ("text", with_meta(turns=[["Why?", "So."]]), "turns"),
    "no answer": ("text", with_meta(turns=[{"question": "Why?"}]), "answer of turn 1"),
    "a question is a number": (
        "text",
        with_meta(turns=[mixed.turn("a", "b"), mixed.turn(1, "b")]),
        "question of turn 2",
    ),
    "a picture in text alone": ("text", with_meta(turns=[mixed.turn("Why?", "So.", picture=0)]), "picture of turn 1"),
    "picture after the question": ("frames", with_meta(turns=[mixed.turn("Why?", "", picture=5)]), "picture of turn 1"),
    "picture before the question": ("frames", with_meta(turns=[mixed.turn("a", "", picture=-1)]), "picture of turn 1"),
    "picture is true": ("frames", with_meta(turns=[mixed.turn("Why?", "", picture=True)]), "picture of turn 1"),
    "picture in a later turn": (
        "frames",
        with_meta(turns=[mixed.turn("a", "b"), mixed.turn("c", "d", picture=0)]),
        "picture of turn 2",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_damage_is_one_clear_line(sound, tmp_path, fault):
    name, change, what = FAULTS[fault]
    folder = Path(shutil.copytree(sound[name], tmp_path / "set"))
    change_sample(folder, change)
    (failure,) = verify([folder]).failures
    whats = (what,) if isinstance(what, str) else what
    assert failure.what == whats[0]
    shards = ShardSet(folder)
    for read in (lambda: shards[0], lambda: shards.meta(0), lambda: [*read_samples(min(folder.glob("*.tar")))]):
        with pytest.raises(BadShard) as refused:
            read()
        line = str(refused.value)
        assert any(what in line for what in whats) and shards.key(0) in line and "\n" not in line


def test_faults_of_the_set(sound, tmp_path):
    """What no sample tells: a version without such samples, counts of the index, the flag of a pair."""
    folder = Path(shutil.copytree(sound["frames"], tmp_path / "set"))
    reseal(folder, version=2)
    assert [failure.what for failure in verify([folder]).failures] == ["a sample without objects"]
    with pytest.raises(BadShard, match="a sample without objects; met format version 2; wanted objects, or version 3"):
        ShardSet(folder).open(0)
    reseal(folder, version=3)
    assert verify([folder]).ok
    index = np.load(folder / "index.npy")
    index["frames"] += 1
    index["letters"] += 1
    index["regions"] = 1
    np.save(folder / "index.npy", index)
    change_sample(folder, with_meta(has_paired_frame=True))
    assert {failure.what for failure in verify([folder]).failures} == {
        *("frames in the index", "letters in the index", "objects with a text, with a region, in the index"),
        "has_paired_frame",
    }


@pytest.mark.parametrize("name", ["frames", "text"])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([("frames",), ("objects",), ("crc32",), ("turns",), ("turns", 0), ("turns", 0, "picture")]), JSON
)
def test_any_value_is_one_line_or_sound(sound, tmp_path, name, place, value):
    check_any_value(sound[name], tmp_path, place, value)


def test_the_writer_refuses_what_readers_would(mixed_set):
    """`g_pixel_values` of some frames, or of none beside objects."""
    for number in (5, 4):
        whole = decoded_sample(ShardSet(mixed_set), numbers_of(ShardSet(mixed_set)).index(number))
        first = replace(whole.frames[0], g_pixel_values=None)
        with pytest.raises(BadShard, match="frames with g_pixel_values; met 1 of 2 frames; wanted all, or none"):
            encode_sample(replace(whole, frames=(first, whole.frames[1])))
    with pytest.raises(BadShard, match="fields of a sample without objects; met nothing"):
        encode_sample(replace(decoded_sample(ShardSet(mixed_set), 0), frames=(), meta={**whole.meta, "objects": []}))


def test_neither_an_object_nor_a_text_is_a_bad_input(tmp_path):
    records = [{"pictures": ["a"]}, {"pictures": ["a"], "captions": [{"text": "..."}]}, mixed.RECORDS[6], {"turns": []}]
    root = mixed.write_raw(tmp_path / "raw", records)
    manifest = run(make_request(mixed.SOURCE, root), tmp_path / "mixed", 1, 1).manifest
    assert manifest.left_out == {"neither an object nor a text": 3} and manifest.samples == 1


TEXT = st.text(max_size=20) | st.sampled_from(["\ud800", "<image>", "[SEG]", "a\u2028b", "\0"])


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4))
def test_any_turns_are_read_as_they_were_written(tmp_path, texts):
    turns = [mixed.turn(question, answer) for question, answer in texts]
    meta = {"source": "a", "dataset_type": "a", "path": "a", "has_paired_frame": False, "frames": [], "objects": []}
    with open(tmp_path / "a.tar", "wb") as file:
        writer = ShardWriter(file)
        for key in ("a", "b"):
            writer.write(Sample(key, {**meta, "turns": turns}, ()))
        writer.close()
    read = [*read_samples(tmp_path / "a.tar", Recipe())]
    assert [(one["__key__"], one["meta"]["turns"]) for one in read] == [("a", turns), ("b", turns)]
    said = [len(text) for pair in texts for text in pair if re.search(r"[^\W_]", text)]
    assert (writer.entries[0].letters, writer.entries[0].frames) == (sum(said), 0)


def test_raw_files_that_are_newer_are_compared(mixed_root, mixed_set, tmp_path):
    root = Path(shutil.copytree(mixed_root, tmp_path / "raw"))
    folder = Path(shutil.copytree(mixed_set, tmp_path / "mixed"))
    later = (folder / "manifest.json").stat().st_mtime + 9
    for file in root.iterdir():
        os.utime(file, (later, later))
    request = make_request(mixed.SOURCE, root, shard_bytes=600_000)
    assert run(request, folder, 1, 0).written_now == 0
    (root / "b.png").write_bytes((root / "b.png").read_bytes()[::-1])
    os.utime(root / "b.png", (later, later))
    with pytest.raises(UserError, match=r"a raw file has changed since this set was finished; met records.json#1: "):
        run(request, folder, 1, 0)


def test_an_estimate(mixed_root):
    found = estimate(make_request(mixed.SOURCE, mixed_root))
    assert (found.inputs, found.samples.total, found.samples.error) == (8, 8, 0)


def test_objectives_of_objects_take_the_samples_with_objects(mixed_set):
    """The index says which they are: no other sample is opened."""
    loader = make_loader([mixed_set], need="regions", batch_size=1, seed=0, fields=Dual.training_fields)
    batches = [*loader.epoch(0)]
    assert sorted(text for batch in batches for texts in batch.texts for text in texts) == ["the cat", "the rocket"]


def test_doctor_sends_texts_to_the_objective_that_reads_them(sound):
    config = load_config([f"data.shards=[{sound['text']}]", "data.holdout=0", "objective=dual", "model.preset=tiny"])
    (finding,) = check_objective(config, Data([ShardSet(sound["text"])]))
    assert finding.level == "fail" and finding.text == (
        f"dual, {sound['text']}: 0 of 1 samples have an object with a prompt cell; train its texts with the objective "
        "converse"
    )
