"""`data.texts`: what objects are trained with, compared with the file that was joined and the samples' JSON."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards import table as tables
from shards.errors import UserError
from shards.join import join_file
from shards.manifest import Manifest
from shards.reader import ShardSet
from shards.table import write_table
from tests.batches import make_loader
from tests.shards.conftest import write_set
from tests.trainer.data.test_selection import LIGHT, WHERE, random_samples
from trainer.conversations.options import ConversationOptions
from trainer.data import object_texts
from trainer.data.loader import Loader
from trainer.data.object_texts import count_letters
from trainer.data.selection import _answer, select
from trainer.model.prompts import Prompts
from trainer.model.tokenizer import byte_tokenizer

Rows = dict[tuple[str, int], Any]
CAPTION = ["captions.caption"]


def caption_of(number: int) -> Any:
    return (None, f"caption {number}", "...", f"sentence {number}.")[number % 4]


def join_captions(folder: Path, file: Path, **columns: Any) -> Rows:
    """Join a column of captions, and others; return the captions by key and object."""
    rows = pq.read_table(folder / "objects.parquet", columns=["key", "object"])
    captions = [caption_of(n) for n in range(len(rows))]
    for name, values in {"caption": pa.array(captions), **columns}.items():
        rows = rows.append_column(name, values)
    pq.write_table(rows, file)
    join_file(folder, file, "captions")
    return dict(zip(zip(rows["key"].to_pylist(), rows["object"].to_pylist(), strict=True), captions, strict=True))


@pytest.fixture(scope="module")
def captioned(sav_set: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows]:
    """30 samples of `random_samples` to which captions were joined, and these. Not to be changed."""
    folder = tmp_path_factory.mktemp("captioned") / "sav"
    write_set(folder, replace(Manifest.read(sav_set), version=3), [*random_samples(30)])
    write_table(folder, 2)
    count = Manifest.read(folder).objects
    lists = pa.array(
        [None if n % 3 else [f"first {n}", "?", f"second {n}"] for n in range(count)], pa.list_(pa.string())
    )
    numbers = pa.array(range(count))
    return folder, join_captions(folder, folder.parent / "captions.parquet", several=lists, score=numbers)


def loader(folder: Path, **options: Any) -> Loader:
    return make_loader([folder], **{"fields": LIGHT, "batch_size": 1, "seed": 7, **options})


def says(text: Any) -> bool:
    return isinstance(text, str) and any(map(str.isalnum, text))


@pytest.mark.parametrize("where", [None, WHERE])
@pytest.mark.parametrize("names", [CAPTION, ["source", *CAPTION], [*CAPTION, "source"]])
def test_pairs_have_the_joined_texts_in_place_of_those_of_the_source_or_beside_them(
    captioned, names, where, monkeypatch
):
    folder, captions = captioned
    monkeypatch.setattr(object_texts, "read_batches", partial(tables.read_batches, rows=7))
    _answer.cache_clear()
    expected = {}
    mute = total = 0
    for sample in ShardSet(folder):
        cells = [array for name, array in sample.items() if name.startswith("prompt_masks")]
        for number, item in enumerate(sample["meta"]["objects"]):
            given = {"source": item["texts"], CAPTION[0]: [captions[sample["__key__"], number]]}
            texts = [text for name in names for text in given[name] if says(text)]
            chosen = where is None or item["mark"] < 5
            total += chosen
            mute += chosen and not texts
            if chosen and texts and any(frame[number].any() for frame in cells):
                expected[sample["__key__"], number] = texts
    loads = loader(folder, need="texts", texts=names, where=where)
    found = {}
    for epoch in range(6):
        for batch in loads.epoch(epoch):
            found |= {(batch.keys[0], n): texts for n, texts in zip(batch.objects, batch.texts, strict=True)}
    assert found == expected and len(loads.order(0)) == len({key for key, _ in expected})
    objects = "objects" if where is None else "chosen objects"
    assert loads.selected[-1] == f"{folder}: texts {', '.join(names)}: {mute} of {total} {objects} have none"
    assert len(loads.selected) == 1 + bool(where)


def asked(
    folder: Path, kind: str, epochs: int, **options: Any
) -> Iterator[tuple[str, str, tuple[int, ...], list[int]]]:
    """Yield key, phrase and objects of each target of the rows that a loader makes, or the regions with the answer."""
    prompts = Prompts(byte_tokenizer(), "qwen_chat", vocabulary=272)
    talks = ConversationOptions(seed=7, phrases=4)
    loads = loader(folder, fields=(), conversations=talks, kind=kind, prompts=prompts, **options)
    for epoch in range(epochs):
        for batch in loads.epoch(epoch):
            for row, talk in enumerate(batch.conversations):
                key = batch.keys[batch.sample_of_row[row]]
                yield from ((key, target.phrase, target.objects) for target in talk.targets)
                if talk.regions:
                    yield key, talk.turns[0].answer[0], talk.regions


@pytest.mark.parametrize("names", [CAPTION, ["source", *CAPTION]])
def test_expressions_are_asked_for_where_the_texts_of_the_source_count(captioned, names):
    folder, captions = captioned
    expected = set()
    for sample in ShardSet(folder):
        meta = sample["meta"]
        numbers = {item["id"]: n for n, item in enumerate(meta["objects"])}
        if "source" in names:
            stated = [(one["text"], tuple(numbers[i] for i in one["objects"])) for one in meta.get("expressions", ())]
            own = [(text, (n,)) for n, item in enumerate(meta["objects"]) for text in item["texts"] if says(text)]
            asked_for = stated if "expressions" in meta else own
            expected |= {(sample["__key__"], text, objects) for text, objects in asked_for if objects}
    expected |= {(key, text, (number,)) for (key, number), text in captions.items() if says(text)}
    assert {*asked(folder, "referring", 8, need="letters", texts=names)} == expected


def test_descriptions_are_of_every_text_of_a_list(captioned):
    folder, captions = captioned
    found = {*asked(folder, "describe", 16, need="texts", texts=["captions.several"])}
    shown = {
        (sample["__key__"], n)
        for sample in ShardSet(folder)
        for name, cells in sample.items()
        if name.startswith("prompt_masks")
        for n in np.flatnonzero(cells.any(axis=(1, 2))).tolist()
    }
    places = enumerate(captions)
    expected = {
        (*place[:1], f"{word} {row}", (place[1],))
        for row, place in places
        if row % 3 == 0 and place in shown
        for word in ("first", "second")
    }
    assert found == expected


def test_what_is_usable_follows_the_texts(captioned):
    folder, captions = captioned
    shards = ShardSet(folder)
    in_place = select(shards, None, CAPTION)
    by_key: dict[str, int] = defaultdict(int)
    for (key, _), text in captions.items():
        by_key[key] += len(text) if says(text) else 0
    for position, sample in enumerate(shards):
        stated = sum(len(one["text"]) for one in sample["meta"].get("expressions", ()))
        assert in_place.counts("letters")[position] == by_key[sample["__key__"]] + stated
    assert np.array_equal(in_place.counts("regions"), shards.index["regions"])
    assert select(shards, None, ["source"]) is None and select(shards, None, {"coco": CAPTION}) is None


def test_other_texts_of_the_same_name_are_another_run(captioned, tmp_path):
    folder = Path(shutil.copytree(captioned[0], tmp_path / "sav"))
    [before] = loader(folder, texts=CAPTION).described
    rows = pq.read_table(folder / "captions.parquet")
    keys = pq.read_table(folder / "objects.parquet", columns=["key", "object"])
    other = keys.append_column("caption", pa.array([*reversed(rows["caption"].to_pylist())]))
    pq.write_table(other, tmp_path / "other.parquet")
    join_file(folder, tmp_path / "other.parquet", "captions", overwrite=True)
    [after] = loader(folder, texts=CAPTION).described
    assert before != after and before.split("captions.parquet")[0] == after.split("captions.parquet")[0]
    assert "texts" not in loader(folder).described[0]


REFUSED = {
    "titles.title": r"no such table was joined; met titles.title; wanted captions; join it with .* --as titles",
    "captions.captoin": r"no such column; met captions.captoin; wanted captions.caption",
    "captions.score": r"a column without texts; met captions.score: int64; wanted string or list<string>",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_holds_no_texts_is_one_line(captioned, name):
    with pytest.raises(UserError, match=f"texts of {captioned[0]}: {REFUSED[name]}"):
        loader(captioned[0], texts=[name])
    with pytest.raises(UserError, match=r"data.texts: no shards of this source; met coco; wanted sav"):
        loader(captioned[0], texts={"coco": [name]})


def test_letters_are_counted_as_python_counts_them():
    texts = ["a cup", "\ud83d", "\ud83d cup", "漢字", "½", "...", "", "é!", "٣", "🙂", "ᾀ"]
    stored = pa.array([text.encode("utf-8", "backslashreplace").decode() for text in texts])
    assert count_letters(stored).tolist() == [len(t) * any(letter.isalnum() for letter in t) for t in texts]
    assert count_letters(stored[3:6]).tolist() == [2, 1, 0]
