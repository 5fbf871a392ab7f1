"""What a model says of a set's objects, compared with plain passes of the model and with what evaluation measures."""

from __future__ import annotations

import json
import shutil
import signal
import statistics
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.state import PartialState

from evaluation.annotate import annotate
from evaluation.evaluate import evaluate
from inference.loading import load
from shards.errors import UserError
from shards.reader import ShardSet
from shards.select import sample as take_sample
from shards.table import write_table
from shards.where import choose
from tests.batches import make_loader
from tests.evaluation.test_evaluate import refer_set, released  # noqa: F401 (fixtures)
from tests.joined import Joined, command_line, dies_after_a_line
from trainer.model.sa2va import Sa2VA

TOKENS = 5


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    PartialState._reset_state()


@pytest.fixture(scope="module")
def tabled(small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 samples of `small_set` with their table, an object in two frames each. Not to be changed."""
    folder = tmp_path_factory.mktemp("annotated") / "sav"
    take_sample(small_set, folder, 4, 0, 10**9)
    write_table(folder, 1)
    return folder


@pytest.fixture(scope="module")
def captions(tabled: Path, released: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """The captions of `tabled`. Not to be changed."""
    file = tmp_path_factory.mktemp("captions") / "run7.parquet"
    run([*command(released, tabled, file), "--device", "cpu"])
    return file


def command(model: Path, folder: Path, out: Path) -> list[object]:
    options = ["--what", "captions", "--max-caption-tokens", TOKENS, "--batch-size", 2]
    return ["annotate", "--model", model, "--shards", folder, "--out", out, *options]


def run(arguments: list[object]) -> None:
    """`cli.py ...` in this process."""
    with pytest.raises(SystemExit) as status:
        command_line(arguments)
    assert not status.value.code
    PartialState._reset_state()


def greedy(model: Sa2VA, visual_tokens: torch.Tensor, cells: torch.Tensor) -> tuple[list[int], float]:
    """Write a caption without a cache of keys: tokens and the sum of their log-probabilities."""
    prompts = model.prompts
    ends = set(prompts.end_tokens)
    ids: list[int] = []
    total = 0.0
    while len(ids) < TOKENS and not (ids and ids[-1] in ends):
        row = prompts.padded([prompts.describe("x", [int(cells.sum())], ids)], model.device)
        embeddings = model.embed_rows(row, visual_tokens, torch.tensor([0]), cells[None, None])
        states = model.run_language_model(embeddings, row.attention, row.positions)
        scores = model.language_model.lm_head(states[0, -1]).float().log_softmax(-1)
        allowed = prompts.ordinary.clone()
        allowed[prompts.end_ids] = bool(ids)
        ids.append(int(scores.masked_fill(~allowed, -torch.inf).argmax()))
        total += float(scores[ids[-1]])
    return ids, total


@pytest.mark.slow
def test_captions_and_their_probabilities_are_those_of_plain_passes(
    tabled: Path,
    captions: Path,
    released: Path,  # noqa: F811
):
    model = load(str(released), "cpu").model
    rows = pq.read_table(captions).to_pylist()
    assert [row["key"] for row in rows] == keys_of(tabled)
    for row, sample in list(zip(rows, ShardSet(tabled), strict=True))[::2]:
        frame = next(f for f in (1, 2) if sample[f"prompt_masks{f}"][row["object"]].any())
        assert row["frame"] == frame - 1 and row["mask_frame"] == 1
        with torch.no_grad():
            visual_tokens = model.encode_image(torch.from_numpy(sample[f"pixel_values{frame}"])[None])
            ids, total = greedy(model, visual_tokens, torch.from_numpy(sample[f"prompt_masks{frame}"][row["object"]]))
        words = ids[:-1] if ids[-1] in model.prompts.end_tokens else ids
        assert row["caption"] == model.prompts.readable(words)
        assert row["logprob_sum"] == pytest.approx(total, abs=1e-3)
        assert row["logprob"] == pytest.approx(total / len(ids), abs=1e-3)


def keys_of(folder: Path) -> list[str]:
    shards = ShardSet(folder)
    return [shards.key(position) for position in range(len(shards))]


@pytest.mark.slow
def test_cycle_iou_and_swap_gap_are_those_of_an_evaluation(
    tabled: Path,
    captions: Path,
    released: Path,  # noqa: F811
    tmp_path: Path,
):
    file = tmp_path / "numbers.json"
    options: dict[str, Any] = {"objective": "dual", "max_caption_tokens": TOKENS, "json_file": file}
    evaluate(str(released), [str(tabled)], batch_size=2, limit=2, **options)
    measured = json.loads(file.read_text())["all"]
    rows = pq.read_table(captions).to_pylist()[:2]
    assert statistics.fmean(row["cycle_iou"] for row in rows) == pytest.approx(measured["cycle_iou"], abs=1e-7)
    assert statistics.fmean(row["swap_gap"] for row in rows) == pytest.approx(measured["swap_gap"], abs=1e-7)
    assert measured["items"] == measured["swap_items"] == 2


@pytest.mark.slow
def test_masks_of_the_own_texts_and_mean_visual_tokens(
    refer_set: Path,  # noqa: F811
    released: Path,  # noqa: F811
    tmp_path: Path,
):
    """Of the first two pictures: 4 objects with a text, 1 without."""
    folder = Path(shutil.copytree(refer_set, tmp_path / "refcoco"))
    write_table(folder, 1)
    first: dict[str, Any] = {"where": "position < 2", "batch_size": 3}
    said = annotate(str(released), [str(folder)], "masks-iou", tmp_path / "iou.parquet", **first)
    assert said and "4 of 5 objects; left out: 1 objects without a text" in said
    PartialState._reset_state()
    file = tmp_path / "numbers.json"
    evaluate(str(released), [str(folder)], objective="reverse", batch_size=3, limit=2, json_file=file)
    rows = pq.read_table(tmp_path / "iou.parquet").to_pylist()
    every = [iou for row in rows for iou in row["ious"]]
    assert len(every) == 7
    assert statistics.fmean(every) == pytest.approx(json.loads(file.read_text())["all"]["giou"], abs=1e-7)
    assert all(row["iou"] == pytest.approx(statistics.fmean(row["ious"])) and row["frame"] == 0 for row in rows)
    PartialState._reset_state()
    annotate(str(released), [str(folder)], "embeddings", tmp_path / "tokens.parquet", **first)
    model = load(str(released), "cpu").model
    rows = pq.read_table(tmp_path / "tokens.parquet").to_pylist()
    for sample in islice(ShardSet(folder), 2):
        with torch.no_grad():
            tokens = model.mlp1(model.encode_image(torch.from_numpy(sample["pixel_values"])[None]))[0].numpy()
        for number, cells in enumerate(sample["prompt_masks"]):
            (row,) = (row for row in rows if (row["key"], row["object"]) == (sample["__key__"], number))
            np.testing.assert_allclose(row["embedding"], tokens[cells.flatten()].mean(0), atol=1e-5)
    assert len(rows) == 5


def test_only_chosen_objects_are_annotated(tabled: Path, released: Path, tmp_path: Path):  # noqa: F811
    out = tmp_path / "some.parquet"
    options: dict[str, Any] = {"where": "position in (1, 3)"}
    assert annotate(str(released), [str(tabled)], "embeddings", out, **options).startswith(
        f"{out}: 2 of 2 objects; put"
    )
    assert pq.read_table(out)["key"].to_pylist() == [keys_of(tabled)[i] for i in (1, 3)]
    PartialState._reset_state()
    assert annotate(str(released), [str(tabled)], "embeddings", out, **options) == f"{out}: up to date"
    PartialState._reset_state()
    with pytest.raises(UserError, match=r"some.parquet: another file; wanted what this call writes, or none; .*--out"):
        annotate(str(released), [str(tabled)], "embeddings", out, **{**options, "where": "position = 1"})
    PartialState._reset_state()
    with pytest.raises(UserError, match="no object is chosen; met where position = 99"):
        annotate(str(released), [str(tabled)], "embeddings", tmp_path / "none.parquet", where="position = 99")
    PartialState._reset_state()
    other = tmp_path / "other.parquet"
    (tmp_path / "other.parquet.partial").mkdir()
    (tmp_path / "other.parquet.partial" / "run.json").write_text('{"what": "captions"}')
    with pytest.raises(UserError, match="answers of another run; met what captions"):
        annotate(str(released), [str(tabled)], "embeddings", other, **options)


def test_each_of_several_sets_has_a_file_of_its_name(tabled: Path, released: Path, tmp_path: Path):  # noqa: F811
    sets = [tmp_path / "sets" / name for name in ("a", "b")]
    for number, folder in enumerate(sets):
        take_sample(tabled, folder, 1, number, 10**9)
        assert annotate(str(released), [str(folder)], "embeddings", tmp_path / f"{folder.name}.parquet")
        PartialState._reset_state()
    out = tmp_path / "said"
    every: list[Any] = [str(released), [str(tmp_path / "sets")], "embeddings", out]
    said = annotate(*every)
    assert said is not None
    for line, folder in zip(said.splitlines(), sets, strict=True):
        file = out / f"{folder.name}.parquet"
        assert line.startswith(f"{file}: 1 of 1 objects; put it ") and line.endswith(f"join {folder} {file}")
    assert sorted(path.name for path in out.iterdir()) == ["a.parquet", "b.parquet"]
    for path in out.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()
    (out / "b.parquet").unlink()
    PartialState._reset_state()
    first, second = (annotate(*every) or "").splitlines()
    assert first == f"{out}/a.parquet: up to date" and "1 of 1 objects" in second
    with pytest.raises(UserError, match=r"two sets of one name, .*; met .*sav and .*sav; annotate each"):
        annotate(str(released), [str(tabled), str(Path(shutil.copytree(tabled, tmp_path / "sav")))], "embeddings", out)


@pytest.mark.slow
def test_killed_processes_are_gone_on_with_and_each_object_is_there_once(
    tabled: Path,
    captions: Path,
    released: Path,  # noqa: F811
    tmp_path: Path,
):
    out = tmp_path / "run7.parquet"
    lines = tmp_path / "run7.parquet.partial" / "samples.jsonl"
    arguments = command(released, tabled, out)
    joined = Joined(1, dies_after_a_line, arguments, log=tmp_path / "log")
    assert joined.wait() == [-signal.SIGKILL], (tmp_path / "log").read_text()
    done = {json.loads(line)["sample"] for line in lines.read_bytes().splitlines()}
    assert 0 < len(done) < 4 and not out.exists()
    with open(lines, "ab") as file:
        file.write(b'{"sample": 3, "ro')  # a line that was torn
    log = tmp_path / "log2"
    joined = Joined(2, command_line, arguments, log=log)
    assert joined.wait() == [0, 0], log.read_text()
    assert "4 of 4 objects" in log.read_text()
    assert out.read_bytes() == captions.read_bytes() and not lines.parent.exists()


def test_annotate_join_and_a_condition_decide_what_is_trained(
    tabled: Path,
    captions: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    """Annotate (`captions`), join, and what a training takes whose condition is the cycle IoU of the captions."""
    folder = Path(shutil.copytree(tabled, tmp_path / "sav"))
    run(["join", folder, captions, "--as", "captions"])
    said = capsys.readouterr().out
    assert "4 rows by key, object; 0 objects without a partner, 0 rows of run7.parquet unused" in said
    rows = pq.read_table(captions).to_pylist()
    median = statistics.median(row["cycle_iou"] for row in rows)
    kept = sorted((row["key"], row["object"]) for row in rows if row["cycle_iou"] > median)
    assert len(kept) == 2

    def trained(where: str | None) -> list[tuple[str, int]]:
        loads = make_loader([folder], fields=("prompt_masks1",), batch_size=1, need="regions", seed=7, where=where)
        return sorted((batch.keys[0], number) for batch in loads.epoch(0) for number in batch.objects)

    everything = trained(None)
    assert len(everything) == 4
    assert trained(f"captions.cycle_iou > {median!r}") == trained(f"cycle_iou > {median!r}") == kept
    assert trained(f"cycle_iou <= {median!r}") == [one for one in everything if one not in kept]
    assert [*choose(ShardSet(folder), "logprob < 0").tables] == ["captions.parquet"]
