"""`data.where`: what trainings take under a condition, compared with what follows from the samples' JSON and cells."""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from shards.errors import UserError
from shards.manifest import Manifest
from shards.reader import ShardSet
from shards.sample import FrameTensors, Sample, letters_of, usable_objects
from shards.storage.cache import Cache
from shards.table import TABLE, write_table
from shards.table_list import LIST
from tests.batches import make_loader
from tests.conftest import without_tables
from tests.servers import serving
from tests.shards.conftest import write_set
from trainer.conversations.options import ConversationOptions
from trainer.data.loader import Loader
from trainer.data.selection import select
from trainer.model.prompts import Prompts
from trainer.model.tokenizer import byte_tokenizer

TEXTS = ["a cup", "...", "é", "漢字", "½", "\ud83d", "\ud83d!", "", " "]
"""Some say something, some do not; half of a surrogate pair is an escape in the table."""
WHERE = "(more->>'$.mark')::int < 5"
LIGHT = ("prompt_masks1",)


def random_samples(number: int) -> Iterator[Sample]:
    """Yield samples of 1 or 2 small frames with up to 6 objects, of which some have no text and some no cell."""
    draws = Random(0)
    for n in range(number):
        frames = draws.choice([1, 2])
        objects = []
        for k in range(draws.randrange(7)):
            texts = draws.choices(TEXTS, k=draws.randrange(3))
            objects.append({"id": f"o{k}", "texts": texts, "mark": draws.randrange(10)})
        ids = [item["id"] for item in objects]
        meta: dict[str, Any] = {"source": "sav", "dataset_type": "pair", "path": f"{n}.npz", "objects": objects}
        meta["frames"] = [{"name": str(f), "height": 8, "width": 8} for f in range(frames)]
        meta["has_paired_frame"] = frames == 2
        if draws.random() < 0.3:
            named = [draws.sample(ids, min(len(ids), draws.randrange(3))) for _ in range(3)]
            meta["expressions"] = [{"text": f"thing {k}", "objects": some} for k, some in enumerate(named)]
        cells = np.zeros((frames, len(objects), 16, 16), np.bool_)
        for f, k in np.ndindex(cells.shape[:2]):
            cells[f, k, k, : draws.choice([0, 0, 3])] = True
        masks = cells.repeat(64, 2).repeat(64, 3)
        pictures = np.zeros((3, 448, 448), np.uint8), np.zeros((3, 1024, 1024), np.uint8)
        tensors = tuple(FrameTensors(*pictures, cells[f], masks[f]) for f in range(frames))
        yield Sample(f"n{n}-{n:016x}", meta, tensors)


@pytest.fixture(scope="module")
def random_set(sav_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 samples of `random_samples` with their table. Not to be changed."""
    folder = tmp_path_factory.mktemp("random") / "sav"
    write_set(folder, replace(Manifest.read(sav_set), version=3), [*random_samples(40)])
    write_table(folder, 2)
    return folder


def chosen_by_hand(folder: Path) -> dict[str, dict[int, tuple[dict[str, Any], bool]]]:
    """The chosen objects of each sample by key and number, each with whether a frame has a cell of it."""
    found = {}
    for sample in ShardSet(folder):
        cells = [array for name, array in sample.items() if name.startswith("prompt_masks")]
        shown = [bool(any(frame[n].any() for frame in cells)) for n in range(len(sample["meta"]["objects"]))]
        objects = enumerate(zip(sample["meta"]["objects"], shown, strict=True))
        found[sample["__key__"]] = {n: pair for n, pair in objects if pair[0]["mark"] < 5}
    return found


def says(item: dict[str, Any]) -> bool:
    return any(letter.isalnum() for text in item["texts"] for letter in text)


def loader(folder: Path | str, **options: Any) -> Loader:
    return make_loader([folder], **{"fields": LIGHT, "batch_size": 1, "seed": 7, **options})


def test_the_counts_are_those_of_an_index_of_samples_with_their_chosen_objects_alone(random_set):
    shards = ShardSet(random_set)
    everything = select(shards, "true")
    chosen = select(shards, WHERE)
    for need in ("texts", "regions", "letters"):
        with_objects = np.array([len(sample["meta"]["objects"]) for sample in shards]) > 0
        assert np.array_equal(everything.counts(need), shards.index[need] * with_objects)
    for position, sample in enumerate(shards):
        kept = [n for n, item in enumerate(sample["meta"]["objects"]) if item["mark"] < 5]
        objects = [sample["meta"]["objects"][n] for n in kept]
        cells = [array[kept] for name, array in sample.items() if name.startswith("prompt_masks")]
        assert chosen.of(position) == kept
        assert (chosen.counts("texts")[position], chosen.counts("regions")[position]) == usable_objects(objects, cells)
        expected = letters_of({**sample["meta"], "objects": objects}) if kept else 0
        assert chosen.counts("letters")[position] == expected
    assert {*chosen.counts("texts").tolist()} >= {0, 1}


@pytest.mark.parametrize("need", ["regions", "texts", None])
@pytest.mark.parametrize("most", [1, 2])
def test_pairs_take_each_chosen_object_before_one_comes_twice(random_set, need, most):
    by_hand = chosen_by_hand(random_set)
    usable = {
        key: [n for n, (item, shown) in some.items() if (shown or need is None) and (says(item) or need != "texts")]
        for key, some in by_hand.items()
    }
    usable = {key: some for key, some in usable.items() if some}
    loads = loader(random_set, need=need, objects_per_sample=most, where=WHERE)
    taken: dict[str, list[int]] = defaultdict(list)
    for epoch in range(6):
        for batch in loads.epoch(epoch):
            (key,) = batch.keys
            assert batch.turns == [taken[key].count(n) for n in batch.objects]
            taken[key] += batch.objects
    assert {key: sorted({*some}) for key, some in taken.items()} == usable
    for key, some in taken.items():
        counts = Counter(some)
        if most == 1:
            assert max(counts.values()) - min(counts[n] for n in usable[key]) <= 1
    kept = sum(bool(some) for some in by_hand.values())
    assert (loads.left_out, len(loads.order(0))) == (kept - len(usable), len(usable))
    (line,) = loads.selected
    objects = sum(map(len, by_hand.values()))
    total = sum(len(sample["meta"]["objects"]) for sample in ShardSet(random_set))
    without = sum(not sample["meta"]["objects"] for sample in ShardSet(random_set))
    assert line == (
        f"{random_set}: where {WHERE}: {objects} of {total} objects, in {kept} of 40 samples; the others are left out, "
        f"{without} samples without objects too"
    )


def asked(folder: Path, kind: str | None, epochs: int, **options: Any) -> Iterator[tuple[str, list[Any], list[int]]]:
    """Yield key, targets and regions of each row that a loader makes."""
    prompts = Prompts(byte_tokenizer(), "qwen_chat", vocabulary=272)
    of_talks = {name: options.pop(name) for name in ("phrases", "negatives", "frames") if name in options}
    talks = ConversationOptions(seed=7, **of_talks)
    loads = loader(folder, fields=(), conversations=talks, kind=kind, prompts=prompts, where=WHERE, **options)
    for epoch in range(epochs):
        for batch in loads.epoch(epoch):
            for row, talk in enumerate(batch.conversations):
                yield batch.keys[batch.sample_of_row[row]], [*talk.targets], [*talk.regions]


@pytest.mark.parametrize("kind", ["segment", "describe"])
def test_conversations_ask_for_the_chosen_objects_alone(random_set, kind):
    by_hand = chosen_by_hand(random_set)
    expected = {key: {n for n, (item, shown) in some.items() if shown and says(item)} for key, some in by_hand.items()}
    taken: dict[str, set[int]] = defaultdict(set)
    for key, targets, regions in asked(random_set, kind, 6, need="texts"):
        taken[key] |= {*regions} | {number for target in targets for number in target.objects}
    assert taken == {key: some for key, some in expected.items() if some}


def test_expressions_that_name_an_object_that_is_not_chosen_are_not_asked_for(random_set):
    by_hand = chosen_by_hand(random_set)
    metas = {sample["__key__"]: sample["meta"] for sample in ShardSet(random_set)}
    expected = set()
    for key, some in by_hand.items():
        for expression in metas[key].get("expressions", []) if some else []:
            if {*expression["objects"]} <= {item["id"] for item, _ in some.values()}:
                expected.add((key, expression["text"], tuple(expression["objects"])))
        if "expressions" not in metas[key]:
            texts = [
                (text, item["id"]) for item, _ in some.values() for text in item["texts"] if says({"texts": [text]})
            ]
            expected |= {(key, text, (name,)) for text, name in texts}
    found = set()
    options = {"need": "letters", "phrases": 3}
    for key, targets, _ in asked(random_set, "referring", 9, **options):
        ids = [item["id"] for item in metas[key]["objects"]]
        found |= {(key, target.phrase, tuple(ids[n] for n in target.objects)) for target in targets}
    assert found == {one for one in expected if one[2]}  # those of no object are refused in words


def test_phrases_of_other_samples_are_those_of_chosen_objects(random_set):
    by_hand = chosen_by_hand(random_set)
    metas = {sample["__key__"]: sample["meta"] for sample in ShardSet(random_set)}
    phrases = {
        text
        for key, some in by_hand.items()
        for text in (
            [one["text"] for one in metas[key]["expressions"] if one["objects"]]
            if "expressions" in metas[key]
            else [text for item, _ in some.values() for text in item["texts"]]
        )
    }
    loads = loader(random_set, where=WHERE)
    drawn = set()
    for position in loads.order(0).tolist():
        entry, number = loads._order.locate(position)
        for seed in range(30):
            drawn.add(loads._other_phrases.draw(entry, number, Random(seed)))
    assert drawn - {None} <= phrases and len(drawn) > 3


def test_the_choice_does_not_depend_on_the_number_of_processes(unequal_set, tmp_path):
    folder = tabled(unequal_set, tmp_path)
    options = {"need": "texts", "objects_per_sample": 2, "where": "object % 2 = 0"}
    whole = [(b.keys, b.objects) for b in loader(folder, **options, batch_size=4).epoch(1)]
    ranks = [loader(folder, **options, batch_size=1, rank=rank, world_size=4) for rank in range(4)]
    steps = zip(*([(b.keys, b.objects) for b in rank.epoch(1)] for rank in ranks), strict=True)
    assert [tuple([*chain(*lists)] for lists in zip(*step, strict=True)) for step in steps] == whole
    assert len(whole) == 3 and all(number % 2 == 0 for _, objects in whole for number in objects)


def tabled(source: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(source, tmp_path / source.name))
    write_table(folder)
    return folder


def test_no_sample_that_was_held_out_is_trained_under_a_condition(random_set):
    def keys(**options: Any) -> set[str]:
        return {key for batch in loader(random_set, holdout=0.3, **options).epoch(0) for key in batch.keys}

    by_hand = chosen_by_hand(random_set)
    for part in ("train", "holdout"):
        everything = keys(part=part, need="regions")
        kept = {key for key in everything if any(shown for _, shown in by_hand[key].values())}
        assert keys(part=part, need="regions", where=WHERE) == kept and 2 < len(kept) < len(everything)


def test_conditions_by_source_and_sets_that_are_taken_whole(random_set, unequal_set, tmp_path):
    folder = tabled(unequal_set, tmp_path)

    def sources(**options: Any) -> Counter[str]:
        loads = make_loader([random_set, folder], fields=LIGHT, batch_size=1, seed=7, need="regions", **options)
        return Counter(batch.meta[0]["source"] for batch in loads.epoch(0)), loads.selected

    whole, nothing = sources()
    counts, lines = sources(where={"folder": "object = 5"})
    assert counts == {"sav": whole["sav"], "folder": 3} and not nothing
    assert lines == [f"{folder}: where object = 5: 3 of 48 objects, in 3 of 12 samples; the others are left out"]
    counts, lines = sources(where={"folder": "object = 9"})  # a set of which nothing is left
    assert counts == {"sav": whole["sav"]} and "0 of 48 objects, in 0 of 12 samples" in lines[0]
    with pytest.raises(UserError, match=r"data.where: no shards of this source; met coco; wanted folder, sav"):
        sources(where={"coco": "true"})


def test_sets_that_a_pattern_finds_are_filtered_each(random_set, unequal_set, tmp_path):
    for name in ("one", "two"):
        tabled(unequal_set, tmp_path).rename(tmp_path / f"set-{name}")
    shutil.copytree(random_set, tmp_path / "others")
    for path in (tmp_path / "set-*", tmp_path):
        options = {"fields": LIGHT, "batch_size": 1, "seed": 7, "sources": ["folder"]}
        loads = make_loader([path], **options, where="object = 5")
        assert len(loads.order(0)) == 6 and len(loads.selected) == 2


def test_a_set_without_objects_is_taken_whole_and_one_without_a_table_is_refused(sav_set, tmp_path):
    texts = tmp_path / "texts"
    samples = [Sample(f"n{n}-{n:016x}", {**MUTE, "path": f"{n}"}, ()) for n in range(3)]
    write_set(texts, replace(Manifest.read(sav_set), version=3), samples)
    loads = loader(texts, where="area > 0.5")
    assert len(loads.order(0)) == 3
    assert loads.selected == [f"{texts}: its samples have no objects, so it is taken whole, whatever data.where says"]
    bare = without_tables(Path(shutil.copytree(sav_set, tmp_path / "bare")))
    with pytest.raises(UserError, match=r"no table of its objects; wanted objects.parquet; .*table ") as caught:
        loader(bare, where="true")
    assert str(bare) in str(caught.value) and "\n" not in str(caught.value)


MUTE: dict[str, Any] = {"source": "sav", "dataset_type": "text", "objects": [], "frames": [], "has_paired_frame": False}
MUTE["turns"] = [{"question": "Why?", "answer": "So."}]


def test_a_set_at_a_url_gives_what_its_folder_gives(random_set, tmp_path, short_pauses):
    options = {"need": "texts", "where": WHERE, "objects_per_sample": 2}
    expected = [(batch.keys, batch.objects) for batch in loader(random_set, **options).epoch(0)]
    with serving(random_set.parent) as server:
        server.faults = lambda name, n: "cut" if n == 0 else ""
        loads = loader(f"{server.url}/sav", **options, cache=Cache(tmp_path, 10**9))
        assert [(batch.keys, batch.objects) for batch in loads.epoch(0)] == expected
        assert server.gets["objects.parquet"] == 2


def test_too_few_chosen_samples_are_one_line(random_set):
    with pytest.raises(UserError, match=r"met 1 samples, 39 of which data.where chooses nothing; wanted 9"):
        loader(random_set, where="position = 0", need="regions", batch_size=9)


def test_another_choice_of_the_same_condition_is_another_run(random_set, tmp_path):
    """A table that says something else of the objects, of the same manifest; it is of a release without a list."""
    folder = Path(shutil.copytree(random_set, tmp_path / "sav", ignore=shutil.ignore_patterns(LIST)))
    [before] = loader(folder, where="words > 1").described
    assert before.startswith("sav: 40 samples, plan ") and ", choice " in before
    table = pq.read_table(folder / TABLE)
    at = table.schema.get_field_index("words")
    pq.write_table(
        table.set_column(at, table.schema.field(at), pc.add(table["words"], pc.cast(1, "int32"))), folder / TABLE
    )
    [after] = loader(folder, where="words > 1").described
    assert before != after
