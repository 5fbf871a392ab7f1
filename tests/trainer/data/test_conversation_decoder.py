"""Batches of conversations: exactly the frames, masks and cells that their rows name, as the reader returns them."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, product
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.request import make_request
from pipeline.run import run
from shards import compiled
from shards.errors import UserError
from shards.reader import ShardSet
from shards.recode import recode
from shards.storage.cache import Cache
from tests import mixed
from tests.batches import make_loader
from tests.servers import serving
from tests.talks import write_set
from trainer.conversations.options import ConversationOptions
from trainer.conversations.phrases import phrases_of
from trainer.data.batch import ConversationBatch
from trainer.data.conversation_decoder import CUT_TARGETS, TOO_SHORT
from trainer.data.loader import Loader
from trainer.data.stream import Stream
from trainer.data.unpack import unpacked
from trainer.model.sa2va import preset_prompts

PROMPTS = preset_prompts("tiny")
SEVERAL = ConversationOptions(seed=7, phrases=3, frames=2, negatives=0.3, no_target="empty_mask")


@pytest.fixture(scope="module")
def talks_set(tmp_path_factory) -> Path:
    """Pictures with expressions of several objects and of none, and videos in which objects come and go."""
    return write_set(tmp_path_factory.mktemp("talks"))


@pytest.fixture(scope="module")
def mixed_set(tmp_path_factory) -> Path:
    """Samples with and without objects, pictures and questions."""
    root = tmp_path_factory.mktemp("mixed")
    out = root / "shards"
    run(make_request(mixed.SOURCE, mixed.write_raw(root / "raw"), shard_bytes=10**7), out, 1, 0.0)
    return out


@pytest.fixture(scope="module")
def sets(talks_set, mixed_set) -> list[Path]:
    return [talks_set, mixed_set]


def loader(sets: list[Path], options: ConversationOptions = SEVERAL, **more: Any) -> Loader:
    given = {"fields": (), "batch_size": 3, "seed": 7, "conversations": options, "prompts": PROMPTS}
    return make_loader(sets, **{**given, **more})


def samples_of(sets: list[Path]) -> dict[str, dict[str, Any]]:
    return {sample["__key__"]: sample for folder in sets for sample in ShardSet(folder)}


def stored(sample: dict[str, Any], name: str, frame: int) -> np.ndarray:
    single = len(sample["meta"]["frames"]) == 1
    array: np.ndarray = sample[name if single else f"{name}{frame + 1}"]
    return array


def check_batch(batch: ConversationBatch, by_key: dict[str, dict[str, Any]]) -> None:
    """Compare each row's pictures, regions and masks with what the reader returns for the frames that it names."""
    masks = iter(range(len(batch.seg_of_mask)))
    pictures = Counter(batch.picture_of_mask.tolist())
    segs = 0
    picture = 0
    for row, conversation in enumerate(batch.conversations):
        sample = by_key[batch.keys[batch.sample_of_row[row]]]
        images = batch.image_of_row[row]
        assert (images >= 0).sum() == len(conversation.frames)
        for image, frame in zip(images.tolist(), conversation.frames, strict=False):
            assert np.array_equal(batch.pixel_values[image].numpy(), stored(sample, "pixel_values", frame))
        for number, region in enumerate(conversation.regions):
            cells = stored(sample, "prompt_masks", conversation.frames[-1])[region]
            assert np.array_equal(batch.regions[row, number].numpy(), cells) and cells.any()
        assert not batch.regions[row, len(conversation.regions) :].any()
        for frame in conversation.frames if conversation.targets else ():
            assert np.array_equal(batch.g_pixel_values[picture].numpy(), stored(sample, "g_pixel_values", frame))
            assert pictures[picture] == len(conversation.targets)
            for number, target in enumerate(conversation.targets):
                mask = next(masks)
                assert batch.seg_of_mask[mask] == segs + number and batch.picture_of_mask[mask] == picture
                expected = np.zeros((1024, 1024), bool)
                for n in target.objects:
                    expected |= stored(sample, "masks", frame)[n]
                assert np.array_equal(batch.masks[mask].numpy(), expected)
            picture += 1
        segs += len(conversation.targets)
        assert batch.rows[row].ids.count(PROMPTS.seg) == len(conversation.targets)
    assert next(masks, None) is None
    assert picture == (0 if batch.g_pixel_values is None else len(batch.g_pixel_values))
    assert segs == sum(row.ids.count(PROMPTS.seg) for row in batch.rows)


def test_a_batch_holds_what_its_rows_name(sets):
    by_key = samples_of(sets)
    seen: Counter[str] = Counter()
    options = [SEVERAL, replace(SEVERAL, one_phrase_per_row=True), replace(SEVERAL, frames=9, no_target="refusal")]
    for option, epoch in product(options, range(2)):
        for batch in loader(sets, option, threads=2).epoch(epoch):
            check_batch(batch, by_key)
            assert [batch.meta[i] for i in range(3)] == [by_key[key]["meta"] for key in batch.keys]
            assert batch.step_counts == batch.counts
            for row in batch.conversations:
                seen.update(
                    text=not row.frames,
                    video=len(row.frames) > 1,
                    twice=len({*row.frames}) < len(row.frames),
                    union=any(len(target.objects) > 1 for target in row.targets),
                    empty=any(not target.objects for target in row.targets),
                    same=len({*row.targets}) < len(row.targets),
                    chat=row.kind == "chat",
                )
    assert all(seen.values()), seen


@pytest.mark.parametrize("normalise", ["host", "device"])
def test_the_compiled_way_and_python_alone_give_equal_batches(sets, normalise):
    if not compiled.is_compiled():
        pytest.skip("not compiled here")

    def tensors() -> list[dict[str, torch.Tensor]]:
        batches = loader(sets, threads=2, normalise=normalise).epoch(1)
        return [{k: v.clone() for k, v in vars(b).items() if isinstance(v, torch.Tensor)} for b in batches]

    ours = tensors()
    with compiled.python_alone():
        python = tensors()
    assert any("masks" in batch for batch in ours) and len(ours) == len(python)
    for one, other in zip(ours, python, strict=True):
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", ["describe", "segment"])
def test_a_batch_of_one_kind(talks_set, kind):
    by_key = samples_of([talks_set])
    batches = list(loader([talks_set], kind=kind, need="texts").epoch(0))
    for batch in batches:
        check_batch(batch, by_key)
        assert {row.kind for row in batch.conversations} == {kind}
        assert (batch.masks is None) == (kind == "describe") and (batch.regions.shape[1] > 0) == (kind == "describe")
    assert len(batches) == 3


def test_a_long_description_is_cut_where_it_alone_is_trained(talks_set):
    for batch in loader([talks_set], replace(SEVERAL, max_text_tokens=9), kind="describe", need="texts").epoch(0):
        for row in batch.rows:
            assert PROMPTS.decode([label for label in row.labels if label >= 0]).startswith("thing ")
            assert sum(label >= 0 for label in row.labels) == 9 and PROMPTS.end_ids[0] not in row.labels


def flattened(batches: Iterator[ConversationBatch]) -> list[tuple[Any, ...]]:
    """What does not depend on how samples are divided into batches: by sample its rows, pictures and masks."""
    found = []
    for batch in batches:
        by_sample: dict[int, list[tuple[Any, ...]]] = {i: [] for i in range(len(batch.keys))}
        rows_of_seg = [row for row, tokens in enumerate(batch.rows) for _ in range(tokens.ids.count(PROMPTS.seg))]
        masks: dict[int, list[int]] = {}
        for mask, seg in enumerate(batch.seg_of_mask.tolist()):
            masks.setdefault(rows_of_seg[seg], []).append(mask)
        for row, tokens in enumerate(batch.rows):
            own = masks.get(row, [])
            images = [image for image in batch.image_of_row[row].tolist() if image >= 0]
            parts = (
                batch.pixel_values[images].sum().item() if images else 0,
                unpacked(batch.masks[own]).sum((1, 2)).tolist() if own else [],
                batch.g_pixel_values[batch.picture_of_mask[own].unique()].sum().item() if own else 0,
                batch.regions[row].sum().item(),
            )
            by_sample[batch.sample_of_row[row]].append((tokens.ids, tokens.labels, batch.conversations[row], parts))
        found += [(batch.keys[i], batch.copies[i], rows) for i, rows in by_sample.items()]
    return found


def test_samples_are_the_same_for_any_number_of_processes_threads_and_batches_per_step(sets):
    def epoch(world: int, accumulation: int, threads: int, consumed: int = 0, **more: Any) -> list[Any]:
        size = 8 // (world * accumulation)
        options = {"batch_size": size, "accumulation": accumulation, "threads": threads, "world_size": world, **more}
        ranks = [flattened(loader(sets, rank=r, **options).epoch(1, consumed)) for r in range(world)]
        groups = [[rank[i : i + size] for i in range(0, len(rank), size)] for rank in ranks]
        return [*chain.from_iterable(chain.from_iterable(zip(*groups, strict=True)))]

    whole = epoch(1, 1, 0)
    assert len(whole) == 16 and sum(len(rows) for _, _, rows in whole) > 10
    for world, accumulation, threads, prefetch in [(1, 4, 0, 2), (2, 1, 2, 0), (2, 2, 1, 3), (4, 2, 1, 1)]:
        assert epoch(world, accumulation, threads, prefetch=prefetch) == whole
        assert epoch(world, accumulation, threads, consumed=8) == whole[8:]


@pytest.mark.parametrize("threads", [0, 1])
def test_the_first_batch_of_a_step_gives_the_counts_of_the_step(sets, threads):
    for rank in range(2):
        batches = list(loader(sets, batch_size=1, accumulation=4, threads=threads, rank=rank, world_size=2).epoch(0))
        assert len(batches) == 8
        for begin in (0, 4):
            step = batches[begin : begin + 4]
            total = sum((Counter(batch.counts) for batch in step), Counter())
            assert {name: total[name] for name in step[0].counts} == dict(step[0].step_counts)
            counted = Counter(rows=sum(len(b.rows) for b in step), masks=sum(len(b.seg_of_mask) for b in step))
            assert {name: step[0].step_counts[name] for name in ("rows", "masks")} == dict(counted)


def test_a_batch_stays_valid_until_the_next_but_one_while_memory_grows(sets):
    """Samples of one picture first and videos later, so that the buffers of later batches grow."""
    names = ("pixel_values", "g_pixel_values", "masks")
    ready = loader(sets, batch_size=1, prefetch=1)
    before: tuple[ConversationBatch, dict[str, Any]] | None = None
    for batch in chain(ready.epoch(0), ready.epoch(1)):
        if before:
            for name, copy in before[1].items():
                assert torch.equal(getattr(before[0], name), copy)
        held = {name: getattr(batch, name) for name in names if getattr(batch, name) is not None}
        before = batch, {name: tensor.clone() for name, tensor in held.items()}


def test_packed_masks_and_stored_pictures_become_those_of_the_host_on_the_device(sets):
    ways = [loader(sets, normalise=where).epoch(0) for where in ("host", "device")]
    for host, stored_batch in zip(*ways, strict=True):
        if stored_batch.masks is not None:
            assert stored_batch.masks.shape[1:] == (1024, 128)
        moved = stored_batch.to(torch.device("cpu"))
        for name in ("pixel_values", "g_pixel_values", "masks", "regions", "image_of_row", "picture_of_mask"):
            one, two = getattr(host, name), getattr(moved, name)
            assert (one is None and two is None) or (one.dtype == two.dtype and torch.equal(one, two)), name


def test_targets_beyond_the_longest_row_are_dropped_with_their_masks(talks_set):
    by_key = samples_of([talks_set])
    notes: Counter[str] = Counter()
    for most in (420, 300, 270, 100):
        for batch in loader([talks_set], replace(SEVERAL, frames=1, max_row_tokens=most)).epoch(0):
            check_batch(batch, by_key)
            assert all(len(row.ids) <= most for row in batch.rows)
            assert all(len(row.targets) <= 3 for row in batch.conversations)
            notes.update(batch.notes)
            if most == 100:  # less than a picture takes
                assert not batch.rows and batch.pixel_values is None and batch.masks is None
                assert batch.image_of_row.shape == (0, 1) and batch.regions.shape == (0, 0, 16, 16)
                assert batch.counts == {"rows": 0, "tokens": 0, "masks": 0, "frames": 0}
    assert notes[CUT_TARGETS] and notes[TOO_SHORT] >= 9


def test_phrases_of_other_samples_come_from_other_pictures_of_the_tar(talks_set):
    shards = ShardSet(talks_set)
    ready = loader([talks_set])
    texts = [{*phrases_of(shards.meta(number))} for number in range(len(shards))]
    for number in range(len(shards)):
        entry, _ = ready._order.locate(number)
        drawn = [ready._other_phrases.draw(entry, number, Random(n)) for n in range(30)]
        assert drawn == [ready._other_phrases.draw(entry, number, Random(n)) for n in range(30)]
        tar = np.flatnonzero(shards.index["shard"] == shards.index["shard"][number]).tolist()
        expected = set().union(*(texts[other] for other in tar if other != number))
        assert {phrase for phrase in drawn if phrase} <= expected and bool(expected) == any(drawn)
    assert len({*shards.index["shard"].tolist()}) < len(shards)


@pytest.mark.parametrize("codec, threads", [("zstd", 0), ("raw", 2)])
def test_a_flipped_bit_ends_the_epoch(talks_set, tmp_path, codec, threads):
    recode(talks_set, tmp_path / "set", codec, 1)
    row = ShardSet(tmp_path / "set").index[4]
    tar = sorted((tmp_path / "set").glob("*.tar"))[row["shard"]]
    data = bytearray(tar.read_bytes())
    data[int(row["offset"]) + int(row["size"]) // 3] ^= 16
    tar.write_bytes(data)
    with pytest.raises(UserError, match="CRC-32 of the sample"):
        list(loader([tmp_path / "set"], threads=threads, normalise="device").epoch(0))


def test_steps_of_like_length_have_the_same_samples_on_any_number_of_processes_interrupted_or_not(sets):
    def steps(size: int, world: int, accumulation: int, consumed: Any = None) -> list[list[str]]:
        options = {"batch_size": size, "accumulation": accumulation, "world_size": world, "repeats": {"talks": 1.5}}
        loaders = [loader(sets, group_by_length=True, threads=0, rank=r, **options) for r in range(world)]
        streams = [Stream({"converse": each}, accumulation, consumed) for each in loaders]
        found = []
        for _ in range(6 if consumed else 8):
            parts = [[batch.keys for _, batch in stream.step()] for stream in streams]
            found.append([*chain(*(chain(*together) for together in zip(*parts, strict=True)))])
        assert all(stream.position == streams[0].position for stream in streams)
        return found

    whole = steps(4, 1, 1)
    position = {"converse": {"epoch": 0, "samples": 8}}
    for shape in ((1, 2, 2), (2, 2, 1), (1, 1, 4), (1, 4, 1)):
        assert steps(*shape) == whole
        assert steps(*shape, consumed=position) == whole[2:]


def test_grouping_by_length_leaves_less_padding(sets):
    def padding(grouped: bool) -> float:
        loads = loader(sets, batch_size=4, group_by_length=grouped, threads=0, repeats={"talks": 4, "mixed": 4})
        rows = [[len(row.ids) for row in batch.rows] for batch in loads.epoch(0)]
        padded = sum(max(lengths) * len(lengths) for lengths in rows if lengths)
        return 1 - sum(map(sum, rows)) / padded

    assert padding(True) < 0.5 * padding(False)


def test_batches_from_a_url_equal_those_of_the_folder_and_fetch_no_tar_twice(talks_set, tmp_path, short_pauses):
    with serving(talks_set.parent) as server:
        far = loader([f"{server.url}/talks"], cache=Cache(tmp_path, 10**9, 2, 3))
        for epoch, consumed in ((0, 0), (1, 3)):
            assert flattened(far.epoch(epoch, consumed)) == flattened(loader([talks_set]).epoch(epoch, consumed))
        assert {n for name, n in server.gets.items() if name.endswith(".tar")} == {1}


def test_what_was_asked_and_left_out_is_summed_over_the_steps(sets):
    stream = Stream({"converse": loader(sets)}, 1)
    expected: Counter[str] = Counter()
    for _ in range(5):
        for name, batch in stream.step():
            expected.update({f"{name}: {what}": count for what, count in batch.notes.items()})
    assert stream.notes == expected and stream.notes["converse: phrases"] > 5


def test_samples_without_a_text_are_left_out(sav_set):
    with pytest.raises(UserError, match=r"too few samples.*0 samples, and 12 without a text"):
        loader([sav_set], need="letters")


def test_a_kind_for_a_source_that_is_not_there_is_refused(sets):
    with pytest.raises(UserError, match=r"conversation\.kinds: no shards of this source; met nothing; wanted mixed"):
        loader(sets, replace(SEVERAL, kinds={"nothing": "chat"}))
