"""The verb `rows`, compared with what stands in the shards and with what a training reads."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from accelerate import Accelerator

import cli
from pipeline.request import make_request
from pipeline.run import run
from shards.join import join_file
from shards.reader import ShardSet
from shards.table import write_table
from tests.pipeline.sources.test_folder import write as write_lines
from tests.pipeline.sources.test_folder import write_pictures
from trainer.build import open_data
from trainer.config import load_config
from trainer.conversations.wording import ANSWERS, QUESTIONS
from trainer.data.batch import ConversationBatch
from trainer.model.sa2va import build
from trainer.model.tokenizer import byte_tokenizer
from trainer.released.folder import save_model

TURN = re.compile(r"<\|im_start\|>user\n(.*?)<\|im_end\|>\n<\|im_start\|>assistant\n(.*?)<\|im_end\|>\n", re.DOTALL)
PICTURE = "<img>" + "<IMG_CONTEXT>" * 256 + "</img>"
HOSTILE = "Is [SEG] a <p>?"
FEW = ["batch_size=2", "accumulation=2", "steps=2", "warmup_steps=0", "data.holdout=0", "data.objects_per_sample=2"]


@pytest.fixture(scope="module")
def folder_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 pairs of photographs with 2 objects, one of whose texts spells a mark. Not to be changed."""
    root = write_pictures(tmp_path_factory.mktemp("rows"))
    lines = []
    for number in range(8):
        masks = [[[x, 5, x + 30 + number, 5, x + 20, 50]] for x in (2, 40)]
        objects = [
            {"masks": [mask, mask], "texts": [text]} for mask, text in zip(masks, ("a cup", HOSTILE), strict=True)
        ]
        lines.append({"id": f"n{number}", "frames": ["a.jpg", "b.png"], "objects": objects})
    write_lines(root, *lines)
    out = root / "shards" / "folder"
    run(make_request("folder", root, shard_bytes=10**7), out, 1, 0.0)
    return out


@pytest.fixture
def arguments(folder_set: Path) -> list[str]:
    return [f"data.shards=[{folder_set}]", *FEW]


def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """What the command prints."""
    monkeypatch.setattr(sys, "argv", ["cli.py", "rows", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    return capsys.readouterr().out


def stored(folder: Path, key: str) -> dict[str, Any]:
    shards = ShardSet(folder)
    (position,) = (n for n in range(len(shards)) if shards.key(n) == key)
    sample: dict[str, Any] = shards[position]
    return sample


def expected_ids(turns: list[tuple[str, str]]) -> tuple[list[int], list[int]]:
    """Ids and labels of turns that were asked in letters alone, with the picture in front of the first."""
    tokenizer = byte_tokenizer()

    def ids_of(text: str, letters: bool = False) -> list[int]:
        parts = [*text] if letters else [text]
        return [token for part in parts for token in tokenizer(part, add_special_tokens=False).input_ids]

    ids: list[int] = []
    labels: list[int] = []
    for question, answer in turns:
        picture = ids_of(PICTURE) if question.startswith(PICTURE) else []
        asked = [*ids_of("<|im_start|>user\n"), *picture, *ids_of(question.removeprefix(PICTURE), letters=True)]
        asked += ids_of("<|im_end|>\n<|im_start|>assistant\n")
        said = ids_of(answer + "<|im_end|>")
        ids += [*asked, *said, *ids_of("\n")]
        labels += [*[-100] * len(asked), *said, -100]
    return ids, labels


def test_rows_ask_for_chosen_objects_with_joined_texts(folder_set, tmp_path, monkeypatch, capsys):
    folder = Path(shutil.copytree(folder_set, tmp_path / "folder"))
    write_table(folder)
    keys = pq.read_table(folder / "objects.parquet", columns=["key", "object"])
    captions = [None, *(f"thing {n}" for n in range(1, len(keys)))]
    pq.write_table(keys.append_column("caption", pa.array(captions)), tmp_path / "captions.parquet")
    join_file(folder, tmp_path / "captions.parquet")
    condition = "object = 1 and position < 4"
    arguments = [f"data.shards=[{folder}]", *FEW, f"data.where={condition}", "data.texts=captions.caption"]
    monkeypatch.setattr(sys, "argv", ["cli.py", "rows", "objective=segment", *arguments, "--n", "9", "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr()
    assert not ended.value.code
    assert {(seg["phrase"], *seg["objects"]) for row in json.loads(printed.out) for seg in row["segs"]} == {
        (f"thing {2 * n + 1}", "1") for n in range(4)
    }
    assert printed.err.splitlines()[-2:] == [
        f"{folder}: where {condition}: 4 of 16 objects, in 4 of 8 samples; the others are left out",
        f"{folder}: texts captions.caption: 0 of 4 chosen objects have none",
    ]


def test_rows_are_those_that_the_shards_call_for(folder_set, arguments, monkeypatch, capsys):
    rows = json.loads(shown(monkeypatch, capsys, ["objective=converse", *arguments, "--n", "4", "--json"]))
    assert len(rows) == len({row["sample"] for row in rows}) == 4
    for row in rows:
        sample = stored(folder_set, row["sample"])
        assert (row["objective"], row["source"], row["kind"]) == ("converse", "folder", "referring")
        turns = TURN.findall(byte_tokenizer().decode(row["ids"]))
        assert len(turns) == len(row["segs"]) == 2
        texts = {item["id"]: item["texts"] for item in sample["meta"]["objects"]}
        for turn, ((question, answer), seg) in enumerate(zip(turns, row["segs"], strict=True)):
            (name,) = seg["objects"]
            assert seg["phrase"] in texts[name] and answer in ANSWERS
            asked = [seg["phrase"]] if "?" in seg["phrase"] else [q.format(phrase=seg["phrase"]) for q in QUESTIONS]
            assert question in [("" if turn else PICTURE + "\n") + one for one in asked]
            number = [*texts].index(name)
            assert seg["pixels"] == [int(sample[f"masks{frame}"][number].sum()) for frame in row["frames"]]
            assert seg["pixels"][0] > 0 and len(row["frames"]) == 1
        assert (row["ids"], row["labels"]) == expected_ids(turns)
        said = [answer + "<|im_end|>" for _, answer in turns]
        assert [part["text"] for part in row["text"] if part["trained"]] == said
        assert (row["tokens"], row["trained_tokens"]) == (len(row["ids"]), sum(one != -100 for one in row["labels"]))


def test_what_is_trained_is_marked_for_people(arguments, monkeypatch, capsys):
    arguments = ["objective=converse", *arguments, "--n", "8"]
    text = shown(monkeypatch, capsys, arguments)
    rows = json.loads(shown(monkeypatch, capsys, [*arguments, "--json"]))
    blocks = text.strip("\n").split("\n\n")
    assert len(blocks) == len(rows) == 8
    for block, row in zip(blocks, rows, strict=True):
        assert block.startswith(f"converse: {row['sample']} of folder, kind referring, frames {row['frames'][0]}; ")
        assert f"; {row['tokens']:,} tokens, {row['trained_tokens']} of them trained\n" in block
        assert re.findall(r"\{\{(.*?<\|im_end\|>)\}\}", block) == [p["text"] for p in row["text"] if p["trained"]]
        assert block.count("<img><IMG_CONTEXT> x 256 </img>") == 1
        for number, seg in enumerate(row["segs"], 1):
            share = f"{seg['pixels'][0] / 1024**2:.2%} of frame {row['frames'][0]}"
            assert f"[SEG] {number}: {seg['phrase']!r}, objects {seg['objects'][0]}; {share}" in block
    assert "Is \\[SEG] a \\<p>?<|im_end|>" in text  # what the dataset wrote
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    coloured = shown(monkeypatch, capsys, [*arguments[:-1], "1"])
    assert "\x1b[1;32m" in coloured and "{{" not in coloured


def test_regions_are_shown_with_their_cells(folder_set, arguments, monkeypatch, capsys):
    talks = "conversation.kinds={folder: describe}"
    (row,) = json.loads(shown(monkeypatch, capsys, ["objective=converse", talks, *arguments, "--n", "1", "--json"]))
    sample = stored(folder_set, row["sample"])
    (region,) = row["regions"]
    number = [item["id"] for item in sample["meta"]["objects"]].index(region["object"])
    assert region["cells"] == int(sample[f"prompt_masks{row['frames'][0]}"][number].sum())
    assert row["ids"].count(byte_tokenizer().convert_tokens_to_ids("<IMG_CONTEXT>")) == 256 + region["cells"]
    assert not row["segs"]


def test_no_weights_are_read(arguments, tmp_path, monkeypatch, capsys):
    save_model(build("tiny"), tmp_path / "model")
    bare = shutil.copytree(tmp_path / "model", tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    arguments = ["objective=converse", *arguments, "--n", "2", "--json"]
    assert shown(monkeypatch, capsys, [*arguments, f"model.path={bare}"]) == shown(monkeypatch, capsys, arguments)


def test_rows_of_pairs_are_made_during_the_step(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cli.py", "rows", "mix={dual: {}, reverse: {}}", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    out, err = capsys.readouterr()
    assert not out and err.splitlines() == [
        f"{name}: its rows are made during the step" for name in ("dual", "reverse")
    ]


def test_a_mistake_in_the_configuration_is_one_line(arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cli.py", "rows", *arguments, "step=3"])
    with pytest.raises(SystemExit, match="unknown key; met step; did you mean steps"):
        cli.main()


def test_rows_are_those_of_the_first_steps_of_a_training(arguments, monkeypatch, capsys):
    more = ["objective=converse", "data.group_by_length=true", "conversation.with_replacement=true", "seed=3"]
    rows = json.loads(shown(monkeypatch, capsys, [*more, *arguments, "--n", "12", "--json"]))
    config = load_config([*more, *arguments])
    loader = open_data(config, Accelerator(cpu=True), print).train["converse"]
    batches = [batch for epoch in (0, 1) for batch in loader.epoch(epoch)]
    read = [row for batch in batches if isinstance(batch, ConversationBatch) for row in batch.rows]
    assert [(row["sample"], row["ids"], row["labels"]) for row in rows] == [
        (r.name, r.ids, r.labels) for r in read[:12]
    ]
