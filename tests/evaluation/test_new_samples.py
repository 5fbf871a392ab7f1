"""An evaluation leaves out samples that the model was trained on, or reports how many of them it counts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import PartialState

from evaluation.evaluate import evaluate
from evaluation.new_samples import explain_samples, new_parts, trained_on
from shards.errors import UserError
from shards.reader import ShardSet
from tests.batches import make_loader
from tests.fresh_accelerate import reset_accelerate
from tests.trainer.runs import SMALL
from trainer.export import export
from trainer.released.folder import save_model
from trainer.released.loaded import ModelInfo
from trainer.train import main
from trainer.trained_on import FILE, TrainedOn, after_training, picture_ids, sample_ids

HOLDOUT = 0.4


@pytest.fixture(scope="module")
def run(sav_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one step. Not to be changed."""
    out = tmp_path_factory.mktemp("run") / "run"
    options = [f"data.shards=[{sav_set}]", f"output_dir={out}", "steps=1", "batch_size=1", "accumulation=1"]
    main([*SMALL, *options, f"data.holdout={HOLDOUT}", "eval.samples=1", "eval.show=0"])
    reset_accelerate()
    return out


@pytest.fixture(scope="module")
def trained_keys(sav_set: Path) -> set[str]:
    """Return the keys of the samples in an epoch of that run."""
    loader = make_loader([sav_set], fields=("prompt_masks1",), batch_size=1, seed=0, holdout=HOLDOUT)
    return {key for batch in loader.epoch(0) for key in batch.keys}


def new_keys(folder: Path, record: TrainedOn | None) -> set[str]:
    shards = ShardSet(folder)
    (part,) = new_parts([shards], record)
    return {shards.key(position) for position in np.flatnonzero(part)}


def test_a_run_and_its_export_record_their_held_out_part(
    run: Path, trained_keys: set[str], sav_set: Path, raw_set: Path, small_set: Path, tmp_path: Path
):
    """This also holds in a recoded set and in a part of it."""
    export(run, tmp_path / "model")
    for folder in (run, run / "checkpoint", tmp_path / "model"):
        record = trained_on(str(folder))
        assert record is not None and record.complete  # the weights were random before
        for shards in (sav_set, raw_set, small_set):
            every = {ShardSet(shards).key(n) for n in range(len(ShardSet(shards)))}
            assert new_keys(shards, record) == every - trained_keys
    assert 0 < len(trained_keys) < 12


@pytest.mark.slow
def test_by_default_nothing_that_was_trained_on_is_counted(
    run: Path, trained_keys: set[str], sav_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    how = {"batch_size": 4, "max_caption_tokens": 1, "json_file": tmp_path / "numbers.json", "device": "cpu"}
    shown = evaluate(str(run), [str(sav_set)], **how)
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    left = 12 - len(trained_keys)
    for values in (numbers["all"], numbers["sources"]["sav"]):
        assert (values["samples"], values["trained_on"]) == (left, 0)
    line = f"{left} of 12 samples, none of which the model was trained on"
    assert line in numbers["notes"] and line in shown.splitlines() and line in capsys.readouterr().err
    PartialState._reset_state()
    shown = evaluate(str(run), [str(sav_set)], holdout=0, **how)
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert (numbers["all"]["samples"], numbers["all"]["trained_on"]) == (12, len(trained_keys))
    assert f"warning: the model was trained on {len(trained_keys)} of these 12 samples" in shown.splitlines()
    assert "trained on" in shown.split("\n", 3)[2]  # a column


def test_the_note_counts_the_samples_that_were_trained_on(sav_set: Path, talker, tmp_path: Path):
    shards = ShardSet(sav_set)
    places = [(shards, n) for n in range(12)]
    note = explain_samples([shards], places, None)
    assert note.startswith("what the model was trained on is unknown")
    save_model(talker, tmp_path / "released")
    assert trained_on(str(tmp_path / "released")) is None
    every = TrainedOn().extended([sample_ids(shards)], [shards.manifest.plan])
    assert new_parts([shards], every)[0].all()  # there is nothing else
    assert explain_samples([shards], places, every).endswith(
        "the model was trained on 12 of these 12 samples: "
        "the numbers tell how well it remembers them, not how good it is on new ones"
    )
    other = after_training(None, [sample_ids(shards)[:3]], ["another plan"])
    note = explain_samples([shards], places, other)
    assert "trained on 3 of these 12 samples; " in note and "recognised by source and name alone" in note
    assert note.endswith("what the model that its training started from was trained on is unknown")


def test_a_training_adds_to_what_the_model_was_trained_on_before(sav_set: Path):
    ids = sample_ids(ShardSet(sav_set))
    assert len(np.unique(ids)) == 12
    first = after_training(TrainedOn(), [ids[:4]], ["a"])
    second = after_training(first, [ids[3:6], ids[5:7]], ["b", "b"])
    assert second.holds(ShardSet(sav_set)).tolist() == [True] * 7 + [False] * 5
    assert second.plans == ("a", "b") and second.complete


def test_pictures_of_the_training_in_other_samples_are_counted(sav_set: Path, tmp_path: Path):
    """Pairs of the videos that were trained on, in a set of another source."""
    shards = ShardSet(sav_set)
    videos = [shards[n]["meta"]["path"].split("/")[0] for n in range(12)]
    record = TrainedOn().extended([sample_ids(shards)[:1], picture_ids(shards)[:1]], [shards.manifest.plan])
    shutil.copytree(sav_set, tmp_path / "other")
    other = ShardSet(tmp_path / "other")
    object.__setattr__(other.manifest, "source", "coco")
    same = [video == videos[0] for video in videos]
    assert record.shows(other).tolist() == same and not record.holds(other).any()
    note = explain_samples([other], [(other, n) for n in range(12)], record)
    assert f"none of which the model was trained on; {sum(same)} others show a picture or video" in note


def test_samples_of_another_source_are_other_samples(sav_set: Path, tmp_path: Path):
    shutil.copytree(sav_set, tmp_path / "other")
    other = ShardSet(tmp_path / "other")
    object.__setattr__(other.manifest, "source", "coco")
    assert not np.isin(sample_ids(ShardSet(sav_set)), sample_ids(other)).any()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "cannot be read"),
        (lambda path: path.write_bytes(path.read_bytes()[:-3]), "not as long as it should be; met"),
        (lambda path: _edit(path, names="7"), "not what a model was trained on"),
        (lambda path: _edit(path, plans=None), "not what a model was trained on"),
    ],
)
def test_a_damaged_record_is_one_line(talker, tmp_path: Path, damage, message: str):
    """Damage the record of an exported folder. Records of checkpoints are compared with their checksums."""
    record = TrainedOn(np.arange(7, dtype=np.uint64), ("a",))
    save_model(talker, tmp_path / "model", info=ModelInfo(trained_on=record))
    actual = trained_on(str(tmp_path / "model"))
    assert actual is not None and actual.ids.tolist() == [*range(7)] and actual.plans == ("a",)
    damage(tmp_path / "model" / FILE)
    with pytest.raises(UserError, match=message):
        trained_on(str(tmp_path / "model"))


def _edit(path: Path, **values: object) -> None:
    training = path.with_name("training.json")
    body = json.loads(training.read_text())
    body["trained_on"] |= values
    training.write_text(json.dumps(body))
