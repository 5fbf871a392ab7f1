"""Evaluation: each item once on any number of processes, and the numbers that an independent computation gives."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from skimage import data as photographs

from evaluation.conversations import ConversationReader
from evaluation.evaluate import _default_objective, evaluate
from evaluation.items import NO_REGION, NO_TEXT, group_samples, make_batches, read_groups
from evaluation.published.predictions import read_predictions
from evaluation.scores import Tally, table
from inference.loading import load
from pipeline.request import make_request
from pipeline.run import run
from shards.errors import UserError
from shards.join import join_file
from shards.reader import ShardSet, decode_field
from shards.recipe import named_recipe
from shards.table import write_table
from tests.conftest import files_of
from tests.joined import Joined, command_line
from trainer import processes
from trainer.config import Config
from trainer.data.selection import select
from trainer.export import export
from trainer.model.sa2va import build
from trainer.model.trainable import set_trainable
from trainer.objectives import load_objective
from trainer.released.folder import save_model
from trainer.trained import Origin, save_trained, trained_tensors

SENTENCES = [
    [["the cup", "a white cup", "the cup"], ["spoon"]],
    [["left"], ["right", "on the right"], [" "]],
    [["dark thing"]],
    [["table"], ["cup", "mug"]],
    [["one"], ["two"], ["three"]],
]
"""Texts per object per picture, for five pictures; one text is blank."""
BOXES = [(5, 5, 60, 50), (30, 20, 79, 59), (2, 2, 20, 58)]


def sharded(name: str, root: Path, out: Path, **options: Any) -> Path:
    run(make_request(name, root, shard_bytes=10**7, **options), out, 1, 0.0)
    return out


@pytest.fixture(scope="module")
def refer_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RefCOCO, split val, in refer's layout: 5 pictures, 11 objects, 14 texts and a blank one."""
    root = tmp_path_factory.mktemp("refer")
    folder = root / "refcoco"
    photos = root / "images/mscoco/images/train2014"
    folder.mkdir()
    photos.mkdir(parents=True)
    images = []
    objects = []
    refs = []
    for number, of_picture in enumerate(SENTENCES):
        images.append({"id": number, "file_name": f"COCO_train2014_{number:012d}.jpg", "height": 60, "width": 80})
        Image.fromarray(photographs.coffee()[number * 20 :]).resize((80, 60)).save(photos / images[-1]["file_name"])
        for (left, top, right, bottom), sentences in zip(BOXES, of_picture, strict=False):
            identity = len(objects)
            polygon = [[left, top, right, top, right, bottom, left, bottom]]
            objects.append({"id": identity, "image_id": number, "category_id": 1, "segmentation": polygon})
            known = {"ref_id": identity, "ann_id": identity, "image_id": number, "category_id": 1, "split": "val"}
            entries = [{"sent_id": n, "raw": text, "sent": text} for n, text in enumerate(sentences)]
            refs.append({**known, "sentences": entries})
    body = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "cup"}]}
    (folder / "instances.json").write_text(json.dumps(body))
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    return sharded("refcoco", root, root / "shards" / "refcoco", split="val")


@pytest.fixture(scope="module")
def released(talker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "sa2va"
    save_model(talker, folder)
    return folder


@pytest.fixture(scope="module")
def refer_tabled(refer_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(refer_set, tmp_path_factory.mktemp("tabled") / "refcoco"))
    write_table(folder)
    return folder


def groups(folder: Path, size: int = 8) -> list:
    return groups_of(ShardSet(folder), size)


def groups_of(shards: ShardSet, size: int = 8) -> list:
    return group_samples([(shards, position) for position in range(len(shards))], size)


def asked(folder: Path, objective: str, size: int, rank: int, world_size: int) -> list[list[tuple[str, str, int]]]:
    """By batch: key, text and area of the mask of each item."""
    return [
        [
            (batch.keys[image], text, int(mask.sum()))
            for image, [text], mask in zip(batch.image_of_object, batch.texts, batch.frames[0].masks, strict=True)
        ]
        for group in read_groups(groups(folder, size)[rank::world_size], objective)
        for batch, _ in make_batches(group, objective, size)
    ]


@pytest.mark.parametrize(("size", "world_size"), [(1, 2), (2, 2), (2, 3), (3, 1), (4, 2), (8, 3)])
def test_each_text_of_each_object_is_an_item_once(refer_set: Path, size: int, world_size: int):
    expected = Counter[tuple[str, str, int]]()
    for sample in (ShardSet(refer_set)[i] for i in range(5)):
        for item, mask in zip(sample["meta"]["objects"], sample["masks"], strict=True):
            expected.update((sample["__key__"], text, int(mask.sum())) for text in item["texts"] if text.strip())
    assert expected.total() == 14 and max(expected.values()) == 2  # a sentence that occurs twice counts twice
    of_rank = [asked(refer_set, "reverse", size, rank, world_size) for rank in range(world_size)]
    assert Counter(item for batched in of_rank for batch in batched for item in batch) == expected
    alone = asked(refer_set, "reverse", size, 0, 1)
    assert sorted(batch for batched in of_rank for batch in batched) == sorted(alone)
    assert max(map(len, alone)) <= size


@pytest.mark.parametrize("objective", ["dual", "reverse"])
def test_only_chosen_objects_are_asked_about(refer_tabled: Path, objective: str):
    shards = ShardSet(refer_tabled)
    chosen = select(shards, "list_contains(texts, 'cup') or words > 2")
    wanted = [
        (sample["__key__"], number)
        for sample in shards
        for number, item in enumerate(sample["meta"]["objects"])
        for text in (item["texts"] if objective == "reverse" else [""])
        if "cup" in item["texts"] or any(len(text.split()) > 2 for text in item["texts"])
    ]
    read = read_groups(groups_of(shards), objective, {shards: chosen})
    assert Counter((s.key, item.number) for group in read for s in group for item in s.items) == Counter(wanted)
    assert 0 < len(wanted) < 10


def test_an_evaluation_of_chosen_objects_says_so(released: Path, refer_tabled: Path, tmp_path: Path):
    """Of the two kinds of readers, that of conversations; the holdout is that without a condition."""
    how = {"objective": "segment", "batch_size": 4, "json_file": tmp_path / "numbers.json"}
    shown = evaluate(str(released), [str(refer_tabled)], where="object = 1 and words > 0", **how)
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    line = (
        f"{refer_tabled}: where object = 1 and words > 0: 4 of 11 objects, in 4 of 5 samples; the others are left out"
    )
    assert line in shown and line in numbers["notes"] and numbers["where"] == "object = 1 and words > 0"
    of_second = [text for texts in SENTENCES for text in texts[1:2] for text in text]
    assert numbers["all"]["items"] == len(of_second) and numbers["all"]["samples"] == 4
    with pytest.raises(UserError, match=r"no such column; met wrds; wanted words"):
        evaluate(str(released), [str(refer_tabled)], where="wrds > 0", **how)


@pytest.mark.parametrize("names", [["captions.caption"], ["source", "captions.caption"]])
def test_joined_texts_are_asked_for_in_place_of_those_of_the_source_or_beside_them(
    released: Path, refer_tabled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], names: list[str]
):
    folder = Path(shutil.copytree(refer_tabled, tmp_path / "refcoco"))
    rows = pq.read_table(folder / "objects.parquet", columns=["key", "object"])
    captions = [None if n % 4 == 1 else f"caption {n}" for n in range(len(rows))]
    pq.write_table(rows.append_column("caption", pa.array(captions)), tmp_path / "captions.parquet")
    join_file(folder, tmp_path / "captions.parquet")
    of_object = iter(captions)
    expected = Counter[tuple[str, str]]()
    for sample in (shards := ShardSet(folder)):
        for item in sample["meta"]["objects"]:
            texts = [*(item["texts"] if "source" in names else []), next(of_object)]
            expected.update((sample["__key__"], text) for text in texts if text and text.strip())
    selections = {shards: select(shards, None, names)}
    read = [sample for group in read_groups(groups_of(shards), "reverse", selections) for sample in group]
    assert Counter((sample.key, item.text) for sample in read for item in sample.items) == expected
    reader = ConversationReader(
        shards, "segment", load(str(released), "cpu").model.prompts, 8, 5, "refusal", selections
    )
    asked = Counter(
        (batch.keys[batch.sample_of_row[row]], target.phrase)
        for _, batches in reader.read(groups_of(shards))
        for batch, _ in batches
        for row, talk in enumerate(batch.conversations)
        for target in talk.targets
    )
    assert asked == expected
    if "source" in names:
        return
    json_file = tmp_path / "numbers.json"
    command = ["evaluate", "--model", released, "--shards", folder, "--texts", *names, "--objective", "reverse"]
    with pytest.raises(SystemExit) as status:
        command_line([*command, "--json", json_file, "--device", "cpu"])
    assert not status.value.code
    numbers = json.loads(json_file.read_text())
    assert numbers["all"]["items"] == expected.total() == 8 and numbers["texts"] == names
    said = f"{folder}: texts captions.caption: 3 of 11 objects have none"
    assert said in numbers["notes"] and said in capsys.readouterr().out


def test_objects_have_texts_for_the_default_objective_where_a_joined_table_has_them(sav_set: Path, tmp_path: Path):
    folder = Path(shutil.copytree(sav_set, tmp_path / "sav"))
    write_table(folder)
    rows = pq.read_table(folder / "objects.parquet", columns=["key", "object"])
    pq.write_table(rows.append_column("caption", pa.array(["x"] * len(rows))), tmp_path / "captions.parquet")
    join_file(folder, tmp_path / "captions.parquet")
    shards = ShardSet(folder)
    joined = {shards: select(shards, None, ["captions.caption"])}
    assert (_default_objective([shards], {}), _default_objective([shards], joined)) == ("dual", "segment")


def test_objects_without_text_are_counted_and_frames_show_the_object(
    refer_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (group,) = read_groups(groups(refer_set), "reverse")
    assert sum((sample.left_out for sample in group), Counter()) == {NO_TEXT: 1}
    root = tmp_path / "clip"
    root.mkdir()
    for n in (0, 1):
        Image.fromarray(photographs.coffee()[:60, :80]).save(root / f"{n}.png")
        Image.fromarray(np.pad(np.full((20, 20), 255, np.uint8), ((10, 30), (10 + 9 * n, 50 - 9 * n)))).save(
            root / f"m{n}.png"
        )
    objects = [{"masks": ["m0.png", "m1.png"]}, {"masks": [None, "m1.png"]}]
    line = {"frames": ["0.png", "1.png"], "objects": objects}
    (root / "samples.jsonl").write_text(json.dumps(line) + "\n")
    (group,) = read_groups(groups(sharded("folder", root, tmp_path / "shards")), "dual")
    assert [(item.number, item.frames) for item in group[0].items] == [(0, (0, 1)), (1, (1, 1))]
    assert not group[0].left_out
    (batch,) = (batch for batch, _ in make_batches(group, "dual", 8))
    assert batch.paired.tolist() == [True, False] and batch.image_of_object.tolist() == [0, 1]
    whole = ShardSet(tmp_path / "shards")[0]
    for row, number in ((0, 0), (1, 1)):
        assert np.array_equal(batch.frames[1].masks[row], whole["masks2"][number])
        assert np.array_equal(batch.frames[0].prompt_masks[row], whole[f"prompt_masks{1 + row}"][number])
        assert np.array_equal(batch.frames[0].pixel_values[row], whole[f"pixel_values{1 + row}"])
    monkeypatch.setattr("evaluation.items.decode_field", lambda *how: np.zeros_like(decode_field(*how)))
    (group,) = read_groups(groups(tmp_path / "shards"), "dual")
    assert not group[0].items and group[0].left_out == {NO_REGION: 2}


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_each_object_swaps_captions_with_another(refer_set: Path, size: int):
    """The other object is of the same picture where it has one."""
    object_count = 0
    for group in read_groups(groups(refer_set, size), "dual"):
        number = {sample.key: len(sample.items) for sample in group}
        for batch, _ in make_batches(group, "dual", size):
            objects = Counter(batch.keys[image] for image in batch.image_of_object.tolist())
            assert all(count > 1 or number[key] == 1 for key, count in objects.items())
            assert 1 < objects.total() <= size + 2
            object_count += objects.total()
    assert object_count == 11


@pytest.mark.parametrize(("count", "size", "sizes"), [(0, 2, []), (1, 2, [1]), (5, 2, [2, 3]), (6, 1, [2, 2, 2])])
def test_groups_hold_every_sample(sav_set: Path, count: int, size: int, sizes: list[int]):
    found = group_samples([(ShardSet(sav_set), position) for position in range(count)], size)
    assert [len(group) for group in found] == sizes
    assert [position for group in found for _, position in group] == [*range(count)]


@pytest.mark.parametrize("objective", ["segment", "reverse"])
def test_metrics_equal_an_independent_computation(
    released: Path, refer_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str
):
    """Masks enlarged densely, and areas counted by numpy; one truth is emptied."""
    actual: list[tuple[np.ndarray, np.ndarray]] = []
    caption_losses: list[float] = []
    judged_objective = load_objective(objective)
    original = judged_objective.judge

    def spying(self, batch, side):
        truth = batch.masks if judged_objective.reads_conversations else batch.frames[0].masks
        if not actual:
            truth[0] = False
        judged = original(self, batch, side)
        dense = F.interpolate(judged.logits[:, None], (1024, 1024), mode="bilinear", align_corners=False)[:, 0] > 0
        actual.extend((p.numpy().ravel(), t.numpy().ravel()) for p, t in zip(dense, truth, strict=True))
        caption_losses.extend(judged.values["caption"].tolist() if objective == "reverse" else [])
        return judged

    monkeypatch.setattr(judged_objective, "judge", spying)
    out = tmp_path / "numbers.json"
    shown = evaluate(str(released), [str(refer_set)], objective=objective, batch_size=4, json_file=out)
    numbers = json.loads(out.read_text())["all"]
    assert len(actual) == numbers["items"] == 14 and numbers["samples"] == 5
    assert numbers["left_out"] == {NO_TEXT: 1}
    both, found, there = (
        np.array([area(p, t) for p, t in actual], float)
        for area in (lambda p, t: (p & t).sum(), lambda p, t: p.sum(), lambda p, t: t.sum())
    )
    unions = found + there - both

    # Of conversations, an empty truth is measured apart.
    counted = there > 0 if judged_objective.reads_conversations else there >= 0

    def mean(part: np.ndarray, whole: np.ndarray) -> float:
        either = np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
        return float(np.where(unions == 0, 1.0, either)[counted].mean())

    expected = {
        "ciou": both.sum() / unions.sum(),
        "giou": mean(both, unions),
        "pr@0.5": np.mean((2 * both > unions)[counted]),
        "dice": mean(2 * both, found + there),
        "precision": mean(both, found),
        "recall": mean(both, there),
    }
    assert {name: numbers[name] for name in expected} == pytest.approx(expected, abs=2e-6)
    assert 0 < expected["ciou"] != expected["giou"]
    assert numbers.get("empty_masks", 1) == 1
    assert ("caption_ce" in numbers) == (objective == "reverse")
    if caption_losses:
        assert numbers["caption_ce"] == pytest.approx(np.mean(caption_losses), abs=1e-6)
    assert "refcoco" in shown and f"{numbers['ciou']:.4f}" in shown and "cIoU" in shown


def test_sums_of_empty_masks_and_at_thresholds():
    """Two both empty, one exactly at the threshold, one with no caption-swap gap."""
    tally = Tally()
    iou = torch.tensor([1.0, 0.5, 0.75, 0.0])
    overlap = torch.tensor([0.0, 5.0, 3.0, 0.0])
    union = torch.tensor([0.0, 10.0, 4.0, 6.0])
    tally.add({"iou": iou, "overlap": overlap, "union": union, "swap_gap": torch.tensor([0.2, torch.nan, 0.4, 0.0])}, 4)
    found = tally.to_json("dual")
    assert found["ciou"] == 8 / 20 and found["giou"] == found["cycle_iou"] == 2.25 / 4
    assert found["pr@0.5"] == 0.5  # 0.5 itself is no hit; both empty is one
    assert found["swap_gap"] == pytest.approx(0.2) and found["swap_items"] == 3 and found["items"] == 4
    empty = Tally()
    empty.add({"iou": iou[:1], "overlap": overlap[:1], "union": union[:1]}, 1)
    assert empty.metrics()["ciou"] == 1
    assert Tally().metrics() == {}
    parts = Tally(), Tally(), Tally()
    for part, rows in zip(parts, (slice(0, 1), slice(1, 3), slice(3, 4)), strict=True):
        part.add({"iou": iou[rows], "overlap": overlap[rows], "union": union[rows]}, len(iou[rows]))
    parts[0].merge(parts[1])
    parts[0].merge(parts[2])
    assert parts[0].metrics() == {name: found[name] for name in ("ciou", "giou", "pr@0.5")}
    assert "0.2000" in table("t", {"sav": found}) and "cycle IoU" in table("t", {"sav": found})


def started_by_accelerate(folder: Path, script: Path) -> None:
    """`cli.py evaluate` in the one process that Accelerate starts for two; it starts `script` in place of itself."""
    sys.argv = [str(script)]
    processes.asked_processes = lambda command: 2
    print("returned", evaluate("/nowhere", [str(folder)]))


@pytest.mark.slow
def test_evaluation_starts_the_processes_that_accelerate_does_not(refer_set: Path, tmp_path: Path):
    """They start before a model is loaded, and run the same command line as one process group."""
    script = tmp_path / "script.py"
    log = tmp_path / "said"
    script.write_text("import os\nprint(os.environ['RANK'], 'of', os.environ['WORLD_SIZE'], flush=True)\n")
    environment = {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_PORT": "29500"}  # as Accelerate leaves it
    run = Joined(1, started_by_accelerate, refer_set, script, log=log, environment=environment)
    assert run.wait() == [0]
    assert {"0 of 2", "1 of 2", "returned None"} <= {*log.read_text().splitlines()}


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(released: Path, refer_set: Path, sav_set: Path, tmp_path: Path):
    """A process has 3 pictures with 6 objects, the other 3 pairs with 3: they need 3 batches and 1."""
    arguments = ["--shards", refer_set, "--shards", sav_set, "--objective", "dual", "--batch-size", 2]
    arguments += ["--limit", 3, "--max-caption-tokens", 3]
    command = ["evaluate", "--model", released, *arguments, "--json", tmp_path / "two.json"]
    command += ["--predictions", tmp_path / "two.jsonl"]
    two = Joined(2, command_line, command, log=tmp_path / "said")
    codes = two.wait()
    log = (tmp_path / "said").read_text()
    assert codes == [0, 0], log[-3000:]
    assert log.count("cycle IoU") == 1  # printed by one process
    assert "process 1 of 2" in log and "sample/s" in log
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        options = {"objective": "dual", "batch_size": 2, "limit": 3, "max_caption_tokens": 3}
        evaluate(
            str(released),
            [str(refer_set), str(sav_set)],
            **options,
            json_file=tmp_path / "one.json",
            predictions=tmp_path / "one.jsonl",
        )
    finally:
        torch.set_num_threads(threads)
    one, other = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert one.keys() == other.keys() and one["sources"].keys() == {"refcoco", "sav"}
    for part in ("all", "refcoco", "sav"):
        expected, actual = ({**numbers["sources"], "all": numbers["all"]}[part] for numbers in (one, other))
        assert expected.keys() == actual.keys()
        for name, value in expected.items():
            assert actual[name] == (pytest.approx(value, abs=1e-6) if isinstance(value, float) else value), name
    assert (one["all"]["samples"], one["all"]["items"], one["all"]["swap_items"]) == (6, 9, 9)
    by_item = [read_predictions(tmp_path / f"{name}.jsonl").of_item for name in ("one", "two")]
    assert by_item[0].keys() == by_item[1].keys() and len(by_item[0]) == 9
    assert np.mean([p.numbers["iou"] for p in by_item[1].values()]) == pytest.approx(one["all"]["giou"], abs=1e-6)
    for prediction in by_item[0].values():  # its mask has the IoU that it says
        about = prediction.sample
        shards = ShardSet({"sav": sav_set}.get(about["set"], refer_set))
        position = [shards.key(n) for n in range(len(shards))].index(about["key"])
        frame = "" if about["set"] != "sav" else about["frame"]
        truth = shards[position][f"masks{frame}"][about["objects"][0]]
        mask = prediction.decoded(1024, 1024)[0]
        iou = (truth & mask).sum() / (truth | mask).sum()
        assert iou == pytest.approx(prediction.numbers["iou"], abs=1e-6)


def test_a_run_is_measured_while_it_trains(sav_set: Path, tmp_path: Path):
    """Its checkpoint gives what its export gives; nothing there is touched."""
    config = Config(trainable=["lora", "mlp1"])
    config.lora.r = 4
    torch.manual_seed(0)
    model = build("tiny")
    new = set(model.state_dict())
    set_trainable(model, config.trainable, **vars(config.lora))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    folder = tmp_path / "run"
    save_trained(
        folder / "checkpoint", trained_tensors(model, new), Origin.of(config, 3, named_recipe("default"), ["sav"])
    )
    before = files_of(folder)
    export(folder, tmp_path / "exported")
    expected = load(tmp_path / "exported", "cpu").model.state_dict()
    for model_folder in (folder, folder / "checkpoint"):
        loaded = load(model_folder, "cpu").model
        assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
        assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    out = tmp_path / "one.json"
    evaluate(str(folder), [str(sav_set)], limit=2, batch_size=2, max_caption_tokens=2, json_file=out)
    assert json.loads(out.read_text())["objective"] == "dual"  # SAV has no texts
    assert files_of(folder) == before


def test_the_held_out_part_is_evaluated(released: Path, sav_set: Path, tmp_path: Path):
    out = tmp_path / "held_out.json"
    evaluate(str(released), [str(sav_set)], holdout=0.2, batch_size=4, max_caption_tokens=1, json_file=out)
    assert 0 < json.loads(out.read_text())["all"]["samples"] < 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "testA"}, r"--split: no shards of this split; met .*refcoco: val; wanted testA"),
        ({"of": "both"}, r"some shards have texts and some have none; met .*refcoco with, .*sav without"),
        ({"json_file": Path("/nowhere/numbers.json")}, r"/nowhere/numbers.json: no such folder"),
        ({"of": "sav", "objective": "segment"}, r"nothing to evaluate; met 2 objects without a text; choose another"),
        ({"holdout": 1e-9}, r"nothing to evaluate; met no sample in this part"),
        (
            {"objective": "converse", "kind": "chat"},
            r"nothing to evaluate; met 2 samples without a conversation of kind",
        ),
        (
            {"objective": "converse", "kind": "talk"},
            r"--kind: no such kind of conversation; met talk; wanted segment or",
        ),
        ({"objective": "dual", "kind": "chat"}, r"--kind: an objective without a choice of kinds; met dual"),
        ({"model": "/nowhere"}, r"/nowhere: no such folder"),
    ],
)
def test_mistakes_are_one_line(released: Path, refer_set: Path, sav_set: Path, options: dict, message: str):
    sets = {"both": [refer_set, sav_set], "sav": [sav_set], "refcoco": [refer_set]}[options.pop("of", "refcoco")]
    with pytest.raises(UserError, match=message):
        evaluate(options.pop("model", str(released)), [str(path) for path in sets], limit=2, **options)


def test_only_sets_of_the_chosen_split_are_evaluated(released: Path, refer_set: Path, sav_set: Path, tmp_path: Path):
    out = tmp_path / "val.json"
    evaluate(str(released), [str(refer_set), str(sav_set)], split="val", limit=1, json_file=out)
    numbers = json.loads(out.read_text())
    assert numbers["objective"] == "segment" and [s["source"] for s in numbers["shards"]] == ["refcoco"]
