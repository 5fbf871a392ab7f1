"""What a checkpoint holds: everything that a run needs to continue as if it had not been interrupted.

A folder: `trained.safetensors` and `origin.json` (`trainer/trained.py` reads them), `teacher.safetensors` (its float32
shadow), `optimizer.safetensors`, `rng.json` (of each process), `state.json`, and `checksums.json`, against which all
of these are checked when a run resumes. Tensors by name and JSON: no code is run by reading them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from shards.errors import UserError
from trainer.checksums import ListedFiles
from trainer.data.batch import Position
from trainer.fsdp import distribute_like, full_tensors, host_copy, resharded
from trainer.objectives.step import Step
from trainer.optimizer import from_stored, set_rate, to_stored
from trainer.released.files import read_json
from trainer.trained import TEACHER, WEIGHTS, Origin, fill, read_tensors, trained_tensors, write_trained
from trainer.zero import full_moments, restore_moments

STATE = "state.json"
_OPTIMIZER = "optimizer.safetensors"
_RNG = "rng.json"
_VERSION = 1

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class State:
    """What a checkpoint records of the run beside tensors: `state.json`."""

    step: int
    """Optimiser steps done."""
    position: dict[str, Position]
    """By objective: how far its data is consumed."""
    global_batch: int
    """Samples per optimiser step on all processes together."""
    held_out: float | None
    """Mask loss of the evaluation after this step; None where there was none, or no masks are predicted."""
    scheduler: dict[str, Any]
    config: dict[str, Any]
    """By dotted key."""
    data: list[str]
    """One line per objective and shard set, with what identifies the set."""


@dataclass(frozen=True)
class Parts:
    """What a training changes: unwrapped by DDP and Accelerate, but laid out over the processes."""

    module: Step
    new: frozenset[str]
    """Names of the tensors that no file held, see `base_model`."""
    optimizer: torch.optim.Optimizer
    scheduler: LambdaLR
    zero: Any = None
    """DeepSpeed's optimiser around `optimizer`; None without DeepSpeed."""

    def tensors(self, keep: bool = True, copy: bool = False) -> dict[str, Tensors]:
        """Return all tensors by file and name: those of the run itself, or gathered copies of sharded ones.

        All processes have to call this; one that does not `keep` the copies gets the others alone.

        Args:
            keep: whether this process keeps gathered copies.
            copy: return copies in the host's memory of all tensors, which the run does not change.
        """
        found = {WEIGHTS: trained_tensors(self.module.model, self.new), TEACHER: self.module.teacher.shadow}
        found[_OPTIMIZER] = self._optimizer_tensors()
        full = {file: full_tensors(tensors, keep) for file, tensors in found.items()}
        return {file: {n: host_copy(t) for n, t in tensors.items()} for file, tensors in full.items()} if copy else full

    def read(self, folder: Path) -> None:
        """Restore tensors and schedule from the checkpoint `folder`.

        Raises:
            UserError: a file is missing, broken, or of another model or optimiser.
        """
        fill(trained_tensors(self.module.model, self.new), folder / WEIGHTS)
        fill(self.module.teacher.shadow, folder / TEACHER)
        stored = from_stored(read_tensors(folder / _OPTIMIZER))
        if self.zero is not None:
            restore_moments(self.module, self.zero, stored)
            self._restore_schedule(folder)
            return
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        index_of = {name: index for index, name in enumerate(self._names())}
        moments: dict[int, Tensors] = {}
        for key, tensor in stored.items():
            name, _, kind = key.rpartition(":")
            if name not in index_of:
                raise UserError("the tensors are not this optimiser's", where=str(folder / _OPTIMIZER), met=key)
            like = parameters[index_of[name]]
            placed = distribute_like(tensor, like) if tensor.shape == like.shape else tensor
            moments.setdefault(index_of[name], {})[kind] = placed
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self._restore_schedule(folder)

    def _restore_schedule(self, folder: Path) -> None:
        state = read_state(folder)
        # The schedule follows from the step and the configuration. It may end at another step now, and the parameters
        # may be in other groups than when the checkpoint was written.
        scheduler = self.scheduler
        rates = [
            float(base * factor(state.step))
            for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        ]
        position = {"last_epoch": state.step, "_step_count": state.step + 1, "_last_lr": rates}
        scheduler.load_state_dict({**scheduler.state_dict(), **position})
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            set_rate(group, rate)

    def schedule(self) -> dict[str, Any]:
        """Return the scheduler's state as plain numbers."""
        state: dict[str, Any] = self.scheduler.state_dict()
        return {key: [*map(_plain, value)] if isinstance(value, list) else value for key, value in state.items()}

    def _names(self) -> list[str]:
        """Return the names of the optimiser's parameters, in its order."""
        name_of = {parameter: name for name, parameter in resharded(self.module).named_parameters()}
        return [name_of[parameter] for group in self.optimizer.param_groups for parameter in group["params"]]

    def _optimizer_tensors(self) -> Tensors:
        """Return the moments by "PARAMETER:MOMENT"."""
        if self.zero is not None:
            return full_moments(self.module, self.zero)
        names = self._names()
        state: dict[int, Tensors] = self.optimizer.state_dict()["state"]
        return to_stored(
            {f"{names[i]}:{kind}": tensor for i, moments in state.items() for kind, tensor in moments.items()}
        )


def _plain(value: Any) -> Any:
    return float(value) if isinstance(value, torch.Tensor) else value


def write(
    folder: Path, tensors: dict[str, Tensors], state: State, origin: Origin, random_states: Sequence[dict[str, Any]]
) -> None:
    """Write a checkpoint into `folder`, which does not count as one yet.

    Args:
        folder: exists.
        tensors: of `Parts.tensors`.
        state: of the run.
        origin: of the model.
        random_states: of all processes, in the order of their ranks.

    Raises:
        OSError: a file cannot be written.
    """
    with ListedFiles(folder) as files:
        write_trained(files, tensors[WEIGHTS], origin)
        for name in (TEACHER, _OPTIMIZER):
            files.write_tensors(name, tensors[name])
        files.write(_RNG, json.dumps(random_states).encode())
        files.write(STATE, (json.dumps({"version": _VERSION, **asdict(state)}, indent=1) + "\n").encode())


def nbytes(tensors: dict[str, Tensors]) -> int:
    """Return the bytes of all tensors of a checkpoint."""
    return sum(tensor.nbytes for group in tensors.values() for tensor in group.values())


def read_state(folder: Path) -> State:
    """Return the state in a checkpoint; raise `UserError` where `folder` is no checkpoint of this version."""
    body = read_json(folder / STATE)
    if body.pop("version", None) != _VERSION:
        raise UserError("another version of checkpoint", where=str(folder / STATE), wanted=str(_VERSION))
    try:
        return State(**body)
    except TypeError as error:
        raise UserError("not the state of a run", where=str(folder / STATE), met=str(error)) from None


def read_random_states(folder: Path) -> tuple[dict[str, Any], ...]:
    """Return the random state of each process, in the order of their ranks. Raises `UserError`."""
    try:
        return tuple(json.loads((folder / _RNG).read_bytes()))
    except (OSError, ValueError) as error:
        raise UserError("cannot be read as JSON", where=str(folder / _RNG), met=str(error)) from None
