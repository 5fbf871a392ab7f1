"""Trackers: each gets every record once, also of a run that was killed and did steps again; read by their own means."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import PartialState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from shards.errors import UserError
from trainer.config import Config, load_config
from trainer.measure.trackers import TRACKERS, Trackers, check_installed, record_of

Row = tuple[int, str, float]
"""Step, name, value."""
SHEET = np.full((8, 12, 3), 200, np.uint8)
_BLOCK = 32768


@pytest.fixture(autouse=True)
def state(monkeypatch: pytest.MonkeyPatch) -> None:
    PartialState(cpu=True)  # Accelerate's trackers ask it which process is the main one
    # TensorBoard reads files of one second in the order of this number as a text: 10 comes before 9.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


def values(step: int) -> dict[str, float]:
    return {"train/loss": 1 / step, "train/lr": step / 7}


def record(step: int) -> dict[str, Any]:
    return {"step": step, "loss": 1 / step, "lr": step / 7}


def killed_twice(config: Config, folder: Path) -> None:
    """Steps 1 to 6 with an evaluation after 4, in three processes: the first is killed after step 5, the second after
    step 3, and both had a checkpoint of step 2 alone. Each time the steps after it are done again, with what differs
    as it does on a GPU."""
    lines: list[dict[str, Any]] = []
    for start, last in ((None, 5), (2, 3), (2, 6)):
        trackers = Trackers(config, folder, start, lines)
        lines = [line for line in lines if line["step"] <= (start or 0)]
        for step in range((start or 0) + 1, last + 1):
            lines.append(record(step))
            trackers.log(values(step), step)
            if step == 4:
                lines.append({"step": 4, "held_out/iou": 0.5})
                trackers.picture("held_out/dual", SHEET, ["a cup", "a plate"], 4)
                trackers.log({"held_out/iou": 0.5}, 4)
        for tracker in trackers.opened:
            tracker.finish()


def expected() -> list[Row]:
    rows = [(step, name, value) for step in range(1, 7) for name, value in values(step).items()]
    return sorted([*rows, (4, "held_out/iou", 0.5)])


def of_tensorboard(folder: Path) -> list[Row]:
    events = EventAccumulator(str(folder / "tensorboard"), {"scalars": 0}).Reload()
    return [(event.step, name, event.value) for name in events.Tags()["scalars"] for event in events.Scalars(name)]


def of_wandb(folder: Path) -> tuple[list[Row], list[int], set[str]]:
    """Rows, steps of pictures and identities of runs, of the files that `wandb sync` would send."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows: list[Row] = []
    pictures = []
    runs = set()
    for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        for body in log_records(path.read_bytes()):
            entry = Record()
            entry.ParseFromString(body)
            if entry.HasField("run"):
                runs.add(entry.run.run_id)
            named = {tuple(item.nested_key): json.loads(item.value_json) for item in entry.history.item}
            step = named.pop(("step",), 0)
            for (name, *part), value in named.items():
                if part == ["_type"]:  # a picture has several values
                    pictures.append(step)
                elif not part and not name.startswith("_"):
                    rows.append((step, name, value))
    return rows, pictures, runs


def log_records(data: bytes) -> list[bytes]:
    """Records of a file in LevelDB's log format, after a header of 7 bytes."""
    found = []
    body = b""
    at = 7
    while at + 7 <= len(data):
        if _BLOCK - at % _BLOCK < 7:
            at += _BLOCK - at % _BLOCK
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        body += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last part
            found.append(body)
            body = b""
    return found


def of_trackio(project: str) -> tuple[list[Row], list[int], list[str]]:
    from trackio.sqlite_storage import SQLiteStorage

    rows: list[Row] = []
    pictures = []
    runs = SQLiteStorage.get_runs(project)
    for run in runs:
        for line in SQLiteStorage.get_logs(project, run):
            step = line.pop("step")
            line.pop("timestamp")
            for name, value in line.items():
                if isinstance(value, dict):
                    pictures.append(step)
                else:
                    rows.append((step, name, value))
    return rows, pictures, runs


def test_tensorboard_shows_each_step_once(tmp_path: Path):
    killed_twice(Config(), tmp_path)
    rows = sorted(of_tensorboard(tmp_path))
    assert [row[:2] for row in rows] == [row[:2] for row in expected()]
    assert [row[2] for row in rows] == pytest.approx([row[2] for row in expected()])
    assert not (tmp_path / TRACKERS).exists()


@pytest.mark.slow
def test_wandb_continues_one_run_and_has_each_record_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    killed_twice(load_config(["tracker=wandb"]), tmp_path)
    rows, pictures, runs = of_wandb(tmp_path)
    assert sorted(rows) == expected()
    assert pictures == [4] and len(runs) == 1
    assert json.loads((tmp_path / TRACKERS).read_text())["wandb"]["id"] in runs


def test_trackio_continues_one_run_and_has_each_record_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("trackio")
    project = f"test-{tmp_path.name}"
    monkeypatch.setenv("TRACKIO_PROJECT", project)
    for module in [name for name in sys.modules if name.split(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, module)  # it reads TRACKIO_DIR when it is imported
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "database"))
    (tmp_path / "run").mkdir()
    killed_twice(load_config(["tracker=[trackio, tensorboard]"]), tmp_path / "run")
    rows, pictures, runs = of_trackio(project)
    assert sorted(rows) == expected()
    assert pictures == [4] and len(runs) == 1
    assert runs[0].startswith("run-")
    assert len(of_tensorboard(tmp_path / "run")) == len(expected())


def test_a_tracker_that_was_off_gets_what_it_has_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Off from step 3 to 4; on again after a checkpoint of step 2, it has nothing of what follows."""
    pytest.importorskip("trackio")
    given = []
    monkeypatch.setattr("trainer.measure.trackers._start", lambda *_: None)
    monkeypatch.setattr(
        "accelerate.tracking.TrackioTracker.log", lambda self, values, step=None, **_: given.append(step)
    )
    on = load_config(["tracker=trackio"])
    Trackers(on, tmp_path, None).log(values(1), 1)
    Trackers(load_config(["tracker=none"]), tmp_path, 1, [record(1)])
    trackers = Trackers(on, tmp_path, 2, [record(step) for step in (1, 2, 3, 4)])
    trackers.log(values(3), 3)
    assert given == [1, 3]


def test_a_record_is_known_by_its_step_and_kind():
    assert record_of({"step": 3, "loss": 1.0, "dual/bce": 2.0}) == (3, "train")
    assert record_of({"step": 3, "held_out/dual/iou": 2.0}) == (3, "held_out")


def test_mistakes_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match="tracker: none, and others; met wandb, none"):
        load_config(["tracker=[wandb, none]"])
    with pytest.raises(UserError, match="tracker"):
        load_config(["tracker=mlflow"])
    assert load_config(["tracker=none"]).trackers() == []
    with pytest.raises(UserError, match=r"a package is missing; met no wandb_; pip install 'sa2va-shards\[trackers\]'"):
        check_installed(["wandb_"])
    (tmp_path / TRACKERS).write_text("{")
    with pytest.raises(UserError, match=r"trackers\.json: cannot be read; .*remove it"):
        Trackers(load_config(["tracker=tensorboard"]), tmp_path, 4)


def test_wandb_without_an_account_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb")

    def refuse(**_: object) -> None:
        raise ValueError("No API key configured.\nUse `wandb login` to log in.")

    monkeypatch.setattr("wandb.init", refuse)
    with pytest.raises(
        UserError, match=r"wandb does not start; met No API key configured. Use .wandb login.*WANDB_MODE=offline"
    ):
        Trackers(load_config(["tracker=wandb"]), tmp_path, None)
