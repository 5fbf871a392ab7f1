"""Trackers of a run beside `metrics.jsonl`: TensorBoard, Weights & Biases, Trackio, through Accelerate.

A run that goes on continues the same run of each tracker. TensorBoard hides what it had of steps after the checkpoint.
The other two cannot take anything back, so what they were given before is not given to them again. OUTPUT_DIR/
trackers.json holds the identity of their runs, and which records after the checkpoint they have:

    {"wandb": {"id": "3f2a91c0", "on": true, "given": [[57, "train"]]}}
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from shards.atomic import atomic_write
from shards.errors import UserError
from trainer.config import Config, flat
from trainer.measure.drawing import Picture

TRACKERS = "trackers.json"
_PROJECT = "sa2va"
_TEXT = 2000
"""Letters of a caption, at most: trackers show it in one line below a picture."""

Record = tuple[int, str]
"""Step, and what was recorded: `train` or the first part of the names, as in held_out/iou."""


def check_installed(names: Iterable[str]) -> None:
    """Raise `UserError` where the package of a tracker is missing."""
    if missing := [name for name in names if find_spec(name) is None]:
        do = "pip install 'sa2va-shards[trackers]', or give another"
        raise UserError("a package is missing", where="tracker", met=f"no {', '.join(missing)}", do=do)


def record_of(record: Mapping[str, Any]) -> Record:
    """Return what identifies a record of `metrics.jsonl`."""
    names = [name for name in record if name != "step"]
    return record["step"], "train" if "loss" in record else names[0].partition("/")[0]


class Trackers:
    """Gives values and pictures to the trackers of one run, in its main process.

    Args:
        config: of the run; `tracker` names the trackers.
        folder: `output_dir`, which exists.
        step: of the checkpoint that the run goes on from; None: it begins anew.
        records: that `metrics.jsonl` held before this start, those after the checkpoint too.

    Raises:
        UserError: a tracker cannot be started.
    """

    def __init__(
        self, config: Config, folder: Path, step: int | None, records: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        names = config.trackers()
        check_installed(names)
        notes = _notes(folder, names, step, records)
        self._given = {name: {(at, what) for at, what in note["given"]} for name, note in notes.items()}
        hyperparameters = None if step is not None else {name: str(value) for name, value in flat(config).items()}
        self.opened = [
            _tensorboard(folder, step)
            if name == "tensorboard"
            else _of_service(name, notes[name]["id"], folder, hyperparameters)
            for name in names
        ]
        for tracker in self.opened:
            _start(tracker, hyperparameters)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Give scalars to all trackers. The part of the names before the first slash is the same in all."""
        for tracker in self._open(step, values):
            if tracker.name == "wandb":
                tracker.log({**values, "step": step})
            else:
                tracker.log(dict(values), step=step)

    def picture(self, name: str, picture: Picture, text: Sequence[str], step: int) -> None:
        """Give a picture (h, w, 3) with lines of text to all trackers."""
        for tracker in self._open(step, [name]):
            if tracker.name == "tensorboard":
                tracker.log_images({name: picture[None]}, step, dataformats="NHWC")
                tracker.log({f"{name}/captions": "\n\n".join(text)}, step)
            elif tracker.name == "wandb":
                import wandb

                tracker.log({name: wandb.Image(picture, caption="\n".join(text)[:_TEXT]), "step": step})
            else:
                import trackio

                tracker.log({name: trackio.Image(picture, caption="\n".join(text)[:_TEXT])}, step=step)

    def _open(self, step: int, names: Iterable[str]) -> list[GeneralTracker]:
        """Return the trackers that do not have this record yet."""
        record = (step, next(iter(names)).partition("/")[0])
        return [tracker for tracker in self.opened if record not in self._given.get(tracker.name, ())]


def _tensorboard(folder: Path, step: int | None) -> GeneralTracker:
    return TensorBoardTracker("tensorboard", str(folder), purge_step=0 if step is None else step + 1)


def _of_service(name: str, identity: str, folder: Path, hyperparameters: dict[str, str] | None) -> GeneralTracker:
    shown = f"{folder.resolve().name}-{identity}"
    project = os.environ.get(f"{name.upper()}_PROJECT", _PROJECT)
    if name == "wandb":
        more = {"id": identity, "dir": str(folder)}
        return WandBTracker(project, name=shown, resume="allow", config=hyperparameters, **more)
    return TrackioTracker(project, name=shown, resume="allow", config=hyperparameters, embed=False)


def _start(tracker: GeneralTracker, hyperparameters: dict[str, str] | None) -> None:
    try:
        tracker.start()
    except Exception as error:  # each has errors of its own
        reason = " ".join(str(error).split())
        do = "mend that, or give another tracker"
        do += "; WANDB_MODE=offline needs no account and sends nothing" if tracker.name == "wandb" else ""
        raise UserError(f"{tracker.name} does not start", where="tracker", met=reason, do=do) from None
    if tracker.name == "wandb":
        # Its own counter takes no step twice; an evaluation comes after the step that it is of, with the same number.
        tracker.tracker.define_metric("step")
        tracker.tracker.define_metric("*", step_metric="step")
    if tracker.name == "tensorboard" and hyperparameters is not None:
        tracker.store_init_configuration(hyperparameters)


def _notes(
    folder: Path, names: Sequence[str], step: int | None, records: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Read, bring up to date and write `trackers.json`; return what it says of the trackers in `names`."""
    path = folder / TRACKERS
    notes: dict[str, dict[str, Any]] = {}
    if step is not None and path.exists():
        try:
            notes = json.loads(path.read_text(encoding="utf-8"))
            for note in notes.values():
                given = {(at, what) for at, what in note["given"]} | {*map(record_of, records if note["on"] else ())}
                note["given"] = sorted(record for record in given if record[0] >= step)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            do = "remove it: trackers then begin another run"
            raise UserError("cannot be read", where=str(path), met=str(error), do=do) from None
    for name in set(names) - {"tensorboard"} - notes.keys():
        notes[name] = {"id": uuid.uuid4().hex[:8], "given": []}
    for name, note in notes.items():
        note["on"] = name in names
    if notes or path.exists():
        atomic_write(path, (json.dumps(notes, indent=1, sort_keys=True) + "\n").encode())
    return {name: note for name, note in notes.items() if name in names}
