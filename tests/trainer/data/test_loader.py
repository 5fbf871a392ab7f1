"""The loader: a pure order, equal steps on all ranks, and exactly what the reader returns."""

import json
import logging
import shutil
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data as photographs

from pipeline.request import make_request
from pipeline.run import run
from shards import compiled
from shards.checksum import crc32
from shards.errors import UserError
from shards.manifest import pack_manifest, sha256
from shards.reader import ShardSet
from shards.recode import recode
from tests.batches import make_loader, tensors_of
from tests.pipeline.sources.test_folder import write as write_lines
from tests.pipeline.sources.test_folder import write_pictures
from trainer.data.choice import hash64
from trainer.data.loader import BatchPlans, Loader, check_recipe
from trainer.objectives.noise import object_generators

FIELDS = ("pixel_values1", "prompt_masks1", "pixel_values2", "g_pixel_values2", "masks2")
LIGHT = ("prompt_masks1",)


def loader(folder, **options) -> Loader:
    return make_loader([folder], **{"fields": LIGHT, "batch_size": 2, "seed": 7, **options})


def keys(loader: Loader, epoch: int = 0, consumed: int = 0) -> list[list[str]]:
    return [batch.keys for batch in loader.epoch(epoch, consumed)]


def test_batches_hold_what_the_reader_returns(sav_set):
    by_key = {sample["__key__"]: sample for sample in (ShardSet(sav_set)[i] for i in range(12))}
    count = 0
    for batch in loader(sav_set, fields=FIELDS, batch_size=3, threads=3).epoch(0):
        tensors = tensors_of(batch)
        assert tensors["pixel_values1"].dtype == torch.float32 and tensors["g_pixel_values2"].dtype == torch.uint8
        assert batch.image_of_object.tolist() == [0, 1, 2] and batch.texts == [[], [], []]
        for row, key in enumerate(batch.keys):
            count += 1
            assert batch.meta[row] == by_key[key]["meta"]
            for field in FIELDS:
                stored = by_key[key][field]
                assert np.array_equal(tensors[field][row].numpy(), stored[0] if "mask" in field else stored), field
    assert count == 12


@pytest.mark.parametrize("normalise", ["host", "device"])
@pytest.mark.parametrize("codec", ["sav_set", "raw_set", "jpeg_set"])
def test_the_compiled_way_and_python_alone_give_equal_batches(codec, normalise, request):
    """In the first epoch, in which checksums are compared, and in the second."""
    if not compiled.is_compiled():
        pytest.skip("not compiled here")
    folder = request.getfixturevalue(codec)
    options = {"fields": FIELDS, "batch_size": 4, "threads": 2, "objects_per_sample": 2, "normalise": normalise}

    def epochs() -> list[dict[str, torch.Tensor]]:
        loads = loader(folder, **options)
        batches = chain(loads.epoch(0), loads.epoch(1))
        return [{name: tensor.clone() for name, tensor in tensors_of(batch).items()} for batch in batches]

    ours = epochs()
    with compiled.python_alone():
        python = epochs()
    assert len(ours) == len(python) >= 4
    for one, other in zip(ours, python, strict=True):
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_order_is_a_pure_function_of_seed_and_epoch(sav_set):
    assert keys(loader(sav_set, threads=1, prefetch=0)) == keys(loader(sav_set, threads=3, prefetch=4))
    assert keys(loader(sav_set, threads=0)) == keys(loader(sav_set))
    first = keys(loader(sav_set))
    second = keys(loader(sav_set), epoch=1)
    assert sorted(chain(*first)) == sorted(chain(*second)) and first != second
    assert first != keys(loader(sav_set, seed=8))


@pytest.fixture(scope="module")
def jpeg_set(small_set, tmp_path_factory) -> Path:
    """`small_set` with its pictures as JPEG."""
    folder = tmp_path_factory.mktemp("jpeg") / "sav"
    recode(small_set, folder, "jpeg", 1)
    return folder


@pytest.fixture(scope="module")
def coco_set(tmp_path_factory) -> Path:
    """A shard set of another source: 5 photographs of one frame and two objects each."""
    root = tmp_path_factory.mktemp("coco")
    images = [{"id": n, "file_name": f"{n:012d}.jpg", "height": 60, "width": 80} for n in range(5)]
    corners = [[5, 5, 60, 5, 60, 50, 5, 50]], [[30, 20, 79, 20, 79, 59]]
    objects = [
        {"id": 2 * image["id"] + k, "image_id": image["id"], "category_id": 1, "segmentation": polygon}
        for image in images
        for k, polygon in enumerate(corners)
    ]
    body = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "cup"}]}
    (root / "instances_train2017.json").write_text(json.dumps(body))
    (root / "train2017").mkdir()
    for image in images:
        Image.fromarray(photographs.coffee()).resize((80, 60)).save(root / "train2017" / image["file_name"])
    out = root / "shards" / "coco"
    run(make_request("coco", root, shard_bytes=10**7), out, 1, 0.0)
    return out


def test_sources_train_together_and_are_repeated(sav_set, coco_set):
    def mixed(**options) -> Loader:
        return make_loader([str(sav_set), str(coco_set)], fields=FIELDS, batch_size=1, seed=7, **options)

    both = mixed(repeats={"coco": 3})
    visits = Counter((key, copy) for batch in both.epoch(0) for key, copy in zip(batch.keys, batch.copies, strict=True))
    assert set(visits.values()) == {1}
    times = Counter(key for key, _ in visits)
    assert Counter(times.values()) == {1: 12, 3: 5}
    names = [batch.meta[0]["source"] for batch in both.epoch(0)]
    assert names.index("sav") < 12 and "coco" in names[:12]  # shuffled among one another
    assert [len(batch.texts[0]) for batch in both.epoch(0)] == [int(name == "coco") for name in names]
    held = [key for batch in mixed(repeats={"coco": 3}, holdout=0.4, part="holdout").epoch(0) for key in batch.keys]
    assert len(held) == len(set(held)) > 0
    with pytest.raises(UserError, match=r"data.sources: no shards of this source; met refcoco; wanted coco, sav"):
        mixed(repeats={"refcoco": 2})


@pytest.fixture(scope="module")
def uneven_set(tmp_path_factory) -> Path:
    """Three samples in which some objects are in one of two frames, and some have no text or an uninformative one."""
    root = write_pictures(tmp_path_factory.mktemp("uneven"))
    late = {"id": "late", "masks": [None, "m.png"], "texts": ["the late one"]}
    early = {"id": "early", "masks": ["m.png", None], "texts": [" . "]}
    write_lines(
        root,
        {"id": "both", "frames": ["a.jpg", "b.png"], "objects": [late, early]},
        {"id": "hidden", "frames": ["a.jpg", "b.png"], "objects": [late]},
        {"id": "mute", "image": "b.png", "objects": [{"id": "only", "mask": "m.png"}]},
    )
    out = root / "shards" / "folder"
    run(make_request("folder", root, shard_bytes=10**7), out, 1, 0.0)
    return out


@pytest.mark.parametrize(
    "need, expected, warning",
    [
        ("regions", {"both": 1, "hidden": 1, "mute": 1}, ""),
        ("texts", {"both": 1, "hidden": 1}, "train part: samples left out, 1 without an object with a text"),
        (None, {"both": 2, "hidden": 1, "mute": 1}, ""),
    ],
)
def test_only_objects_are_chosen_that_can_be_used(uneven_set, caplog, need, expected, warning):
    for count in (1, 2):
        loads = make_loader([uneven_set], fields=LIGHT, batch_size=1, seed=7, objects_per_sample=count, need=need)
        for epoch in range(4):
            counts = {}
            for batch in loads.epoch(epoch):
                assert need != "texts" or batch.texts == [["the late one"]]
                assert need is None or batch.frames[0].prompt_masks.any((1, 2)).all()  # the frame is one that shows it
                assert need is None or not batch.paired.any()  # no object is in both frames
                counts[batch.meta[0]["path"].split("#")[1]] = len(batch.frames[0].prompt_masks)
            assert counts == {name: min(count, number) for name, number in expected.items()}
    assert loads.left_out == 3 - len(expected) and caplog.text.count("samples left out") == 2 * bool(warning)
    assert warning in caplog.text


def test_no_object_can_be_used(sav_set):
    with pytest.raises(UserError, match=r"too few samples.*0 samples, and 12 without an object with a text"):
        loader(sav_set, need="texts")


def test_an_index_with_wrong_counts_is_an_error(sav_set, tmp_path):
    shutil.copytree(sav_set, tmp_path / "sav")
    index = np.load(tmp_path / "sav" / "index.npy")
    index["texts"] = 1
    np.save(tmp_path / "sav" / "index.npy", index)
    with pytest.raises(UserError, match="index and sample differ; wanted an object with a text"):
        next(loader(tmp_path / "sav", need="texts", check="never").epoch(0))


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("codec", ["sav_set", "raw_set"])
def test_a_flipped_bit_ends_the_epoch_before_its_batch(codec, tmp_path, threads, request):
    source = request.getfixturevalue(codec)
    folder = Path(shutil.copytree(source, tmp_path / "sav"))
    fields = ("g_pixel_values1", "g_pixel_values2", "prompt_masks1", "masks2")
    light = {"fields": fields, "batch_size": 1, "threads": threads, "prefetch": 0, "normalise": "device"}
    loads = loader(folder, **light)
    order = loads.order(0)
    shards = ShardSet(source)
    row = shards.index[order[2]]
    tar = folder / shards.manifest.shards[row["shard"]].name
    whole = tar.read_bytes()
    begin = int(row["offset"])
    size = int(row["size"])
    in_a_picture = begin + size // 4
    for byte in (in_a_picture, begin, begin + 600, begin + size - 1):  # the tar's header, the JSON, the padding
        data = bytearray(whole)
        data[byte] ^= 16
        tar.unlink()
        tar.write_bytes(data)
        delivered = []
        with pytest.raises(UserError, match=f"{tar}: {row['key'].decode()}: CRC-32 of the sample; met "):
            delivered.extend(batch.keys for batch in loader(folder, **light).epoch(0))
        assert len(delivered) <= 2
    if codec == "raw_set":
        data = bytearray(whole)
        data[in_a_picture] ^= 16
        tar.write_bytes(data)
        assert len(list(loader(folder, check="never", **light).epoch(0))) == len(order)  # read as data


def test_raw_pictures_are_equal_with_and_without_checksums(raw_set):
    fields = (*FIELDS, "g_pixel_values1")
    for where in ("host", "device"):
        ways = {check: loader(raw_set, fields=fields, normalise=where, check=check) for check in ("always", "never")}
        for one, two in zip(ways["always"].epoch(0), ways["never"].epoch(0), strict=True):
            one = tensors_of(one)
            two = tensors_of(two)
            assert all(torch.equal(one[field], two[field]) for field in fields)


def test_a_sample_is_compared_with_its_checksum_once_for_all_threads_and_epochs(sav_set, monkeypatch):
    compared = Counter()
    real = crc32
    monkeypatch.setattr("shards.reader.crc32", lambda view: compared.update(["sample"]) or real(view))
    loads = loader(sav_set, threads=2)
    for epoch in range(3):
        assert len(list(loads.epoch(epoch))) == loads.steps_per_epoch
    assert compared["sample"] == len(loads.order(0))
    for epoch in range(2):
        list(loader(sav_set, threads=2, check="always").epoch(epoch))
    assert compared["sample"] == 3 * len(loads.order(0))


def test_copies_of_a_sample_get_different_draws(coco_set):
    one = make_loader([coco_set], fields=LIGHT, batch_size=1, seed=7, repeats={"coco": 2})
    draws = [object_generators(batch, 7)[0].initial_seed() for batch in one.epoch(0)]
    assert len(set(draws)) == 10


def test_an_epoch_can_be_resumed_in_the_middle(sav_set):
    assert keys(loader(sav_set), consumed=8) == keys(loader(sav_set))[4:]


@pytest.mark.parametrize("batch_size, world_size", [(1, 4), (2, 2), (5, 2), (1, 5)])
def test_ranks_share_the_global_batches(sav_set, batch_size, world_size, caplog):
    caplog.set_level(logging.INFO)
    ranks = [loader(sav_set, batch_size=batch_size, rank=r, world_size=world_size) for r in range(world_size)]
    steps = [keys(rank) for rank in ranks]
    assert len({len(step) for step in steps}) == 1
    whole = keys(loader(sav_set, batch_size=batch_size * world_size))
    assert [[*chain(*parts)] for parts in zip(*steps, strict=True)] == whole
    assert ranks[0].unused == 12 % (batch_size * world_size) < batch_size * world_size
    assert f"{ranks[0].unused} samples of each epoch unused" in caplog.text


def test_held_out_part(sav_set):
    train = loader(sav_set, holdout=0.4, batch_size=1)
    rest = loader(sav_set, holdout=0.4, batch_size=1, part="holdout")
    a = {k for [k] in keys(train)}
    b = {k for [k] in keys(rest)}
    assert a | b == {ShardSet(sav_set).key(i) for i in range(12)} and not a & b and b


def test_mixing_spreads_evenly():
    hashed = hash64(np.arange(100_000, dtype=np.uint64), salt=3)
    assert len(np.unique(hashed)) == len(hashed)
    counts = np.bincount((hashed >> np.uint64(60)).astype(int), minlength=16)
    assert ((counts - 6250) ** 2 / 6250).sum() < 40  # chi-square, 15 degrees of freedom


def test_a_batch_stays_valid_until_the_next_but_one(sav_set):
    batches = loader(sav_set, batch_size=1, fields=("pixel_values1",)).epoch(0)
    first = next(batches)
    copy = first.frames[0].pixel_values.clone()
    next(batches)
    assert torch.equal(first.frames[0].pixel_values, copy)


def test_the_buffers_of_an_epoch_serve_in_the_next(sav_set):
    ready = loader(sav_set, batch_size=1, fields=("pixel_values1",), prefetch=1)
    assert len({batch.frames[0].pixel_values.data_ptr() for epoch in (0, 1) for batch in ready.epoch(epoch)}) == 3


@pytest.mark.parametrize("batches", [2, 6])
def test_the_last_batch_of_an_epoch_stays_valid_in_the_next(sav_set, batches):
    ready = loader(sav_set, fields=("pixel_values1",))
    *_, last = islice(ready.epoch(0), batches)
    copy = last.frames[0].pixel_values.clone()
    following = ready.epoch(1)
    next(following)
    following.close()
    assert torch.equal(last.frames[0].pixel_values, copy)


def test_only_the_tars_are_opened_whose_samples_are_read(sav_set, tmp_path):
    """10,000 shards of which all but those of the first three batches are missing."""
    shards = ShardSet(sav_set)
    one = {**json.loads((sav_set / "manifest.json").read_text())["shards"][0], "samples": 1}
    manifest = json.loads((sav_set / "manifest.json").read_text())
    manifest |= {"shards": [{**one, "name": f"sav-{n:06d}.tar"} for n in range(10_000)], "samples": 10_000}
    index = np.repeat(shards.index[:1], 10_000)
    index["shard"] = np.arange(10_000)
    np.save(tmp_path / "index.npy", index)
    manifest["index_sha256"] = sha256((tmp_path / "index.npy").read_bytes())
    (tmp_path / "manifest.json").write_bytes(pack_manifest(manifest))
    many = loader(tmp_path)
    for n in many.order(0)[:6]:
        (tmp_path / f"sav-{n:06d}.tar").hardlink_to(sav_set / one["name"])
    assert len(next(many.epoch(0)).keys) == 2
    (tmp_path / f"sav-{many.order(0)[0]:06d}.tar").unlink()
    with pytest.raises(UserError, match=r"cannot be read.*No such file"):
        next(loader(tmp_path).epoch(0))


def test_masks_of_several_objects_are_packed(coco_set, sav_set):
    options = {"fields": ("masks1",), "batch_size": 5, "seed": 7, "objects_per_sample": 2}
    loaders = [make_loader([coco_set, sav_set], **options, normalise=where) for where in ("host", "device")]
    masks = [next(loader.epoch(0)).frames[0].masks for loader in loaders]
    assert 5 < len(masks[0]) < 10 and np.array_equal(np.packbits(masks[0].numpy(), axis=2), masks[1].numpy())


def test_plans_are_made_once_whoever_asks_first():
    made: list[int] = []

    def make(number: int) -> list[int]:
        made.append(number)
        time.sleep(0.01)
        if number == 2:
            raise UserError("broken")
        return [number]

    plans = BatchPlans(make)
    with ThreadPoolExecutor(8) as pool:
        asked = [number for number in (0, 1) for _ in range(8)]
        assert [*pool.map(plans.of, asked)] == [[number] for number in asked]
    assert sorted(made) == [0, 1]
    plans.forget(0)
    assert plans.of(1) == [1] and plans.of(0) == [0] and made[2:] == [0]
    for _ in range(2):  # whoever asks is told
        with pytest.raises(UserError, match="broken"):
            plans.of(2)


@pytest.mark.parametrize(("threads", "prefetch"), [(1, 0), (4, 0), (4, 1), (3, 2), (5, 8)])
def test_batches_are_the_same_however_they_are_divided(unequal_set, threads, prefetch):
    """Also where steps hold more batches than are decoded ahead."""
    how = {"fields": FIELDS, "batch_size": 2, "accumulation": 3, "objects_per_sample": 2}
    alone = loader(unequal_set, threads=0, **how)
    divided = loader(unequal_set, threads=threads, prefetch=prefetch, **how)
    count = 0
    for one, other in zip(alone.epoch(1), divided.epoch(1), strict=True):
        count += 1
        assert (one.keys, one.objects, one.turns, one.step_counts) == (
            *(other.keys, other.objects, other.turns, other.step_counts),
        )
        one, other = tensors_of(one), tensors_of(other)
        assert all(torch.equal(one[field], other[field]) for field in FIELDS)
    assert count == 6


def test_too_few_samples_for_one_batch(sav_set):
    with pytest.raises(UserError, match=r"too few samples.*12 samples.*26"):
        loader(sav_set, batch_size=13, world_size=2)


def test_shards_of_two_recipes_are_refused(sav_set, tmp_path):
    shutil.copytree(sav_set, tmp_path / "other")
    manifest = json.loads((tmp_path / "other" / "manifest.json").read_text())
    manifest["recipe"]["image_filter"] = "bicubic"
    values = {k: v for k, v in manifest["recipe"].items() if k != "name"}
    manifest["recipe_hash"] = sha256(json.dumps(values, sort_keys=True).encode())[:16]
    (tmp_path / "other" / "manifest.json").write_bytes(pack_manifest(manifest))
    with pytest.raises(UserError, match="different recipes"):
        make_loader([str(sav_set), str(tmp_path / "other")], fields=LIGHT, batch_size=2, seed=0)


def test_a_recipe_that_does_not_fit_the_model_is_refused(sav_set):
    recipe = loader(sav_set).recipe
    fitting = {"vision_size": 448, "grid": 16, "sam_size": 1024, "mean": recipe.mean, "std": recipe.std}
    check_recipe(recipe, **fitting)
    for name, other in (("vision_size", 336), ("grid", 32), ("sam_size", 512), ("mean", (0.5, 0.5, 0.5))):
        with pytest.raises(UserError, match=rf"recipe\.{name}"):
            check_recipe(recipe, **{**fitting, name: other})


def test_a_broken_shard_is_named(sav_set, tmp_path):
    shutil.copytree(sav_set, tmp_path / "sav")
    tar = tmp_path / "sav" / "sav-000000.tar"
    data = bytearray(tar.read_bytes())
    row = ShardSet(sav_set).index[0]
    data[int(row["offset"]) + 3000 : int(row["offset"]) + 400_000] = bytes(397_000)
    tar.write_bytes(data)
    with pytest.raises(UserError, match=ShardSet(sav_set).key(0)):
        list(loader(tmp_path / "sav", fields=FIELDS).epoch(0))


def test_an_unfinished_set_is_refused(tmp_path):
    (tmp_path / "sav").mkdir()
    with pytest.raises(UserError, match="no manifest"):
        loader(tmp_path / "sav")


def test_objects_of_a_sample_are_continued_from_epoch_to_epoch(unequal_set):
    """Every object comes, over several epochs, before one comes twice; copies of a sample divide them."""
    for most, times in ((1, 1), (2, 1), (4, 1), (1, 2)):
        options = {"need": "texts", "objects_per_sample": most, "repeats": {"folder": times}, "batch_size": 1}
        loads = loader(unequal_set, **options)
        taken = dict[str, list[int]]()
        epochs = [sorted(loads.epoch(e), key=lambda b: b.copies) for e in range(-(-6 // (most * times)))]
        for batch in chain(*epochs):
            number = len(batch.meta[0]["objects"])
            visit = taken.setdefault(batch.keys[0], [])
            assert batch.turns == [visit.count(n) for n in batch.objects]
            if len(visit) < number:  # not all have come so far
                assert not {*batch.objects} & {*visit} or len({*visit, *batch.objects}) == number
            visit += batch.objects
        assert [sorted({*visit}) for visit in taken.values()] == [[*range(max(v) + 1)] for v in taken.values()]
        assert Counter(max(visit) + 1 for visit in taken.values()) == {5: 3, 6: 3, 1: 3, 4: 3}


@pytest.mark.parametrize(("most", "threads"), [(1, 1), (4, 0), (4, 2)])
def test_the_first_batch_of_a_step_gives_the_number_of_its_objects(unequal_set, most, threads):
    """A step has more batches than are prefetched, so this needs no more memory than one batch."""
    options = {"need": "texts", "objects_per_sample": most, "threads": threads, "prefetch": 1, "batch_size": 1}
    for accumulation, consumed in ((1, 0), (3, 0), (3, 6), (6, 0)):
        loads = [loader(unequal_set, **options, accumulation=accumulation, rank=r, world_size=2) for r in (0, 1)]
        for rank in loads:
            batches = [(b.step_counts["objects"], len(b.image_of_object)) for b in rank.epoch(2, consumed)]
            steps = [batches[i : i + accumulation] for i in range(0, len(batches), accumulation)]
            assert len(batches) == (12 - consumed) // 2
            assert all(total == sum(n for _, n in step) for step in steps for total, _ in step)
            assert most == 1 or len({total for total, _ in batches}) > 1 or len(steps) == 1
