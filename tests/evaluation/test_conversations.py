"""Evaluation of conversations: all that the texts ask for once, and the numbers of an independent computation."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from evaluation.conversations import ConversationReader
from evaluation.evaluate import evaluate
from evaluation.items import NO_OBJECT, NO_TEXT, group_samples
from evaluation.published.predictions import read_predictions
from pipeline.request import make_request
from pipeline.run import run
from shards.reader import ShardSet
from shards.table import write_table
from tests import mixed
from tests.fresh_accelerate import reset_accelerate
from tests.joined import Joined, command_line
from tests.trainer.runs import SMALL
from trainer.data.selection import select
from trainer.model.sa2va import build
from trainer.objectives.conversation import ConversationObjective
from trainer.released.folder import save_model
from trainer.train import main

BOX = mixed.BOX


def phrase(text: str, caption: str) -> dict[str, Any]:
    start = caption.index(text)
    return {"text": text, "start": start, "end": start + len(text), "objects": ["0"]}


CAPTION = "A cat beside the cat."
RECORDS = [
    {
        "pictures": ["a"],
        "box": BOX,
        "texts": ["unused"],
        "expressions": [{"text": text, "objects": ids} for text, ids in (("The cat.", ["0"]), ("the zebra", []))],
    },
    {
        "pictures": ["b"],
        "box": BOX,
        "texts": ["x"],
        "captions": [
            {"text": CAPTION, "phrases": [phrase("A cat", CAPTION), phrase("the cat", CAPTION)]},
            {"text": "The cat sits.", "phrases": [phrase("The cat", "The cat sits.")]},
        ],
    },
    {"pictures": ["c"], "segmentable": False, "turns": [mixed.turn("What?", "A rocket.", picture=0)]},
    {"turns": [mixed.turn("Name a prime.", "7"), mixed.turn("Another?", "11")]},
    {"pictures": ["a", "b", "c"], "box": BOX, "texts": ["the thing", "it", "?!"]},
    {"pictures": ["b"], "box": BOX, "texts": ["?!"]},
]
ASKED = {
    (0, "referring", ("The cat.",), 1),
    (0, "referring", (), 1),
    (1, "grounded_caption", ("A cat", "the cat"), 1),
    (1, "grounded_caption", ("The cat",), 1),
    (2, "chat", (), 1),
    (3, "chat", (), 0),
    (4, "referring", ("the thing",), 2),
    (4, "referring", ("it",), 2),
}
"""Number of the record, kind, phrases with a mask, and frames of each row, where a video shows 2 frames at most."""


@pytest.fixture(scope="module")
def mixed_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shard(RECORDS, tmp_path_factory.mktemp("mixed"))


def shard(records: Sequence[dict[str, Any]], root: Path) -> Path:
    mixed.write_raw(root, records)
    run(make_request(mixed.SOURCE, root, shard_bytes=10**7), root / "shards" / "mixed", 1, 0.0)
    return root / "shards" / "mixed"


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "sa2va"
    save_model(build("tiny"), folder)
    return folder


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_all_that_the_texts_ask_for_is_a_row_once(mixed_set: Path, size: int):
    shards = ShardSet(mixed_set)
    reader = ConversationReader(shards, None, build("tiny").prompts, size, frames=2, no_target="refusal")
    rows = []
    left_out = Counter[str]()
    for samples, batches in reader.read(group_samples([(shards, n) for n in range(len(shards))], size)):
        left_out += sum((sample.left_out for sample in samples), Counter())
        for batch, sources in batches:
            assert sources == ["mixed"] * len(batch.rows) and 0 < len(batch.rows) <= max(size, 1)
            pairs = zip(batch.conversations, batch.sample_of_row, strict=True)
            assert len({(n, frame) for talk, n in pairs if talk.targets for frame in talk.frames}) <= max(size, 2)
            segs = 0
            for talk, row, sample in zip(batch.conversations, batch.rows, batch.sample_of_row, strict=True):
                number = int(batch.meta[sample]["path"].rpartition("#")[2])
                rows.append((number, talk.kind, tuple(target.phrase for target in talk.targets), len({*talk.frames})))
                assert row.ids.count(reader._decoder._prompts.seg) == len(talk.targets)
                for target in range(segs, segs + len(talk.targets)):
                    own = batch.seg_of_mask == target
                    assert own.sum() == len(talk.frames)
                    for frame, picture in zip(talk.frames, batch.picture_of_mask[own], strict=True):
                        name = RECORDS[number]["pictures"][frame]
                        stored = np.asarray(mixed.expected_picture(mixed_set.parents[1], name, 1024))
                        assert np.abs(batch.g_pixel_values[picture].numpy().astype(int) - stored).max() <= 1
                segs += len(talk.targets)
    assert Counter(rows) == Counter(ASKED)
    assert left_out == {"samples without a conversation of kind referring": 1}


def test_a_sample_is_decoded_into_one_batch_after_another(mixed_set: Path):
    shards = ShardSet(mixed_set)
    reader = ConversationReader(shards, None, build("tiny").prompts, 1, frames=2, no_target="refusal")
    asked = (reader._ask(shards, number) for number in range(len(shards)))
    sample = next(sample for sample in asked if sample.plan.sizes["masks"])
    one, other = (reader._batch(reader._ring.next(), [sample])[0] for _ in range(2))
    assert one.tensors() and all(map(torch.equal, one.tensors(), other.tensors()))


@pytest.mark.parametrize("kind", ["segment", "describe"])
def test_each_text_of_each_object_is_a_row_once(mixed_set: Path, kind: str):
    """In the first frame that shows the object."""
    shards = ShardSet(mixed_set)
    prompts = build("tiny").prompts
    reader = ConversationReader(shards, kind, prompts, 8, frames=5, no_target="refusal")
    asked = []
    left_out = Counter[str]()
    for samples, batches in reader.read([[(shards, n) for n in range(len(shards))]]):
        left_out += sum((sample.left_out for sample in samples), Counter())
        for batch, _ in batches:
            for talk, row, sample in zip(batch.conversations, batch.rows, batch.sample_of_row, strict=True):
                text = talk.targets[0].phrase if kind == "segment" else talk.turns[0].answer[0]
                assert talk.frames == (0,) and len(talk.turns) == 1 and text in prompts.decode(row.ids)
                asked.append((int(batch.meta[sample]["path"].rpartition("#")[2]), text))
    assert sorted(asked) == [(0, "unused"), (1, "x"), (4, "it"), (4, "the thing")]
    assert left_out == {NO_OBJECT: 2, NO_TEXT: 1}


def test_only_chosen_objects_are_asked_about(mixed_set: Path, tmp_path: Path):
    """An expression of another object is left out and counted, one of no object is asked for."""
    folder = Path(shutil.copytree(mixed_set, tmp_path / "mixed"))
    write_table(folder)
    shards = ShardSet(folder)
    chosen = select(shards, "list_contains(texts, 'it')")
    found = dict[str | None, set[str]]()
    left_out = Counter[str]()
    for kind in (None, "segment"):
        options = {"frames": 2, "no_target": "empty_mask", "selections": {shards: chosen}}
        reader = ConversationReader(shards, kind, build("tiny").prompts, 8, **options)
        found[kind] = set()
        for samples, batches in reader.read([[(shards, n) for n in range(len(shards))]]):
            rows = (talk for batch, _ in batches for talk in batch.conversations)
            found[kind] |= {target.phrase for talk in rows for target in talk.targets}
            left_out += sum((sample.left_out for sample in samples), Counter())
    assert found == {None: {"the zebra", "the thing", "it"}, "segment": {"the thing", "it"}}
    assert left_out["expressions of objects that the condition leaves out"] == 1


def _check_predictions(file: Path, shards: ShardSet) -> None:
    """Each written mask has the IoU that its line says with the objects and the frame that it names."""
    of_key = {shards.key(n): shards[n] for n in range(len(shards))}
    empty = 0
    found = read_predictions(file).of_item.values()
    for prediction in found:
        about = prediction.sample
        sample = of_key[about["key"]]
        name = "masks" if len(sample["meta"]["frames"]) == 1 else f"masks{about['frame']}"
        mask = prediction.decoded(1024, 1024)[0]
        if not about["objects"]:
            empty += 1
            continue
        truth = sample[name][about["objects"]].any(axis=0)
        assert prediction.numbers["iou"] == pytest.approx((truth & mask).sum() / (truth | mask).sum(), abs=1e-6)
    assert (len(found), empty) == (11, 1)


def test_metrics_equal_an_independent_computation(
    released: Path, mixed_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Masks enlarged densely and areas counted by numpy; expressions of no object ask for an empty mask."""
    areas: list[np.ndarray] = []
    clips: list[np.ndarray] = []
    languages: dict[str, list[float]] = {}
    original = ConversationObjective.judge

    def spying(self, batch, side):
        judged = original(self, batch, side)
        kinds = [talk.kind for talk in batch.conversations]
        for kind, loss in zip(kinds, judged.values["lang"].tolist(), strict=True):
            languages.setdefault(kind, []).append(loss)
        if batch.masks is None:
            return judged
        dense = F.interpolate(judged.logits[:, None], (1024, 1024), mode="bilinear", align_corners=False)[:, 0] > 0
        of_seg: dict[int, np.ndarray] = {}
        for found, mask, seg in zip(dense.numpy(), batch.masks.numpy(), batch.seg_of_mask.tolist(), strict=True):
            area = np.array([(found & mask).sum(), (found | mask).sum(), mask.sum()])
            areas.append(area)
            of_seg[seg] = of_seg.get(seg, 0) + area
        rows = [row for row, talk in enumerate(batch.conversations) for _ in talk.targets]
        clips.extend(area[:2] for seg, area in of_seg.items() if len(batch.conversations[rows[seg]].frames) > 1)
        return judged

    monkeypatch.setattr(ConversationObjective, "judge", spying)
    out = tmp_path / "numbers.json"
    options = {"no_target": "empty_mask", "frames": 3, "max_caption_tokens": 2, "batch_size": 4, "json_file": out}
    lines = tmp_path / "predictions.jsonl"
    shown = evaluate(str(released), [str(mixed_set)], device="cpu", predictions=lines, **options)
    _check_predictions(lines, ShardSet(mixed_set))
    numbers = json.loads(out.read_text())
    found = numbers["all"]
    assert numbers["objective"] == "converse"  # some samples have texts and no region
    assert (found["samples"], found["items"], found["masks"], found["empty_masks"]) == (6, 8, 11, 1)
    full = np.array([area for area in areas if area[2]])
    every = np.array(areas)
    ious = full[:, 0] / full[:, 1]
    expected = {
        "giou": ious.mean(),
        "ciou": every[:, 0].sum() / every[:, 1].sum(),
        "pr@0.5": (ious > 0.5).mean(),
        "video_iou": np.mean([both / either for both, either in clips]),
        "empty_right": np.mean([area[1] == 0 for area in areas if not area[2]]),
        "lang_ce": np.mean([*chain(*languages.values())]),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=2e-6)
    assert numbers["kinds"]["chat"]["lang_ce"] == pytest.approx(np.mean(languages["chat"]), abs=1e-6)
    assert {kind: values["items"] for kind, values in numbers["kinds"].items()} == {
        "chat": 2,
        "grounded_caption": 2,
        "referring": 4,
    }
    assert {"seg_asked", "seg_unasked", "refused_wrong"} <= found.keys() and "refused_right" not in found
    assert "kind grounded_caption" in shown and "1 samples without a conversation" in shown


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(released: Path, mixed_set: Path, tmp_path: Path):
    """One of them has text alone in a batch, the other masks."""
    options = ["--objective", "converse", "--batch-size", 2, "--max-caption-tokens", 2, "--frames", 2]
    command = ["evaluate", "--model", released, "--shards", mixed_set, *options, "--json", tmp_path / "two.json"]
    two = Joined(2, command_line, command, log=tmp_path / "said")
    assert two.wait() == [0, 0], (tmp_path / "said").read_text()[-3000:]
    how = {"objective": "converse", "batch_size": 2, "max_caption_tokens": 2, "frames": 2, "device": "cpu"}
    evaluate(str(released), [str(mixed_set)], **how, json_file=tmp_path / "one.json")
    one, other = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    for part in ("sources", "kinds"):
        assert one[part].keys() == other[part].keys()
        for name, values in one[part].items():
            found = other[part][name]
            assert found.keys() == values.keys()
            for key, value in values.items():
                assert found[key] == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value), key


def test_an_evaluation_in_training_and_one_of_its_checkpoint_agree(tmp_path: Path):
    """Of held-out samples with one caption each, since training takes one. Areas are counted at other points."""
    captioned = {**RECORDS[1], "captions": RECORDS[1]["captions"][:1]}
    mixed_set = shard([RECORDS[0], captioned, *RECORDS[2:]] * 2, tmp_path)
    folder = tmp_path / "run"
    held_out = {"data.holdout": 0.6, "data.holdout_by": "sample"}
    options = {"data.shards": f"[{mixed_set}]", "objective": "converse", "steps": 1, "output_dir": folder, **held_out}
    small = {"batch_size": 2, "accumulation": 1, "data.objects_per_sample": 2, "eval.show": 2, "eval.answer_tokens": 3}
    main([*SMALL, *(f"{key}={value}" for key, value in {**options, **small}.items())])
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    training = {name.removeprefix("held_out/"): value for name, value in json.loads(lines[-1]).items()}
    reset_accelerate()
    how = {"objective": "converse", "holdout": 0.6, "holdout_by": "sample", "frames": 1, "max_caption_tokens": 3}
    evaluate(str(folder), [str(mixed_set)], **how, batch_size=3, device="cpu", json_file=tmp_path / "numbers.json")
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert training["step"] == 1 and {"lang", "seg_unasked", "referring/lang"} <= training.keys()
    for name in ("seg_asked", "seg_unasked", "refused_right", "refused_wrong"):
        assert training.get(name) == numbers["all"].get(name)
    assert numbers["all"]["lang_ce"] == pytest.approx(training["lang"], rel=1e-4)
    assert numbers["all"]["giou"] == pytest.approx(training["iou"], abs=0.01)
    assert numbers["kinds"]["referring"]["lang_ce"] == pytest.approx(training["referring/lang"], rel=1e-4)
    assert "data:image/jpeg" in (folder / "report.html").read_text()
