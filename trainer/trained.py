"""The tensors that a training changed, and the model that it started from.

A checkpoint is a folder. `trained.safetensors` holds the tensors that trained (the adapters alone, where only they
did), and those that no file held at the start. `origin.json` names the model that the others come from, and with
`trained_on.bin` the samples that it was trained on. `checksums.json` lists these files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as from_safetensors

from shards.errors import UserError
from shards.recipe import Recipe
from shards.regular_file import read_regular
from trainer.checksums import ListedFiles, check_checkpoint, check_files
from trainer.config import Config, LoraConfig, ModelConfig
from trainer.fsdp import distribute_like, local_shard
from trainer.model.prompts import Prompts
from trainer.model.sa2va import Sa2VA, build, preset_prompts
from trainer.model.trainable import set_trainable
from trainer.objectives import load_objective
from trainer.released.files import check_fit, checked, read_json
from trainer.released.folder import cast, load_model, load_parts, load_parts_prompts, load_prompts
from trainer.released.loaded import LoadedModel, ModelInfo
from trainer.released.training import recipe_from_json, recipe_to_json
from trainer.trained_on import FILE, KEY, TrainedOn, ids_to_bytes, read_trained_on

WEIGHTS = "trained.safetensors"
TEACHER = "teacher.safetensors"
ORIGIN = "origin.json"
_VERSION = 1


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint comes from."""

    model: ModelConfig
    trainable: list[str]
    lora: LoraConfig
    objective: str
    step: int
    """Optimiser steps done."""
    batch: int
    """Samples per optimiser step and process."""
    recipe: Recipe | None
    """How the tensors were made; None in a checkpoint of an earlier release that does not name a current recipe."""
    data: list[str]
    """One line per shard set."""
    trained_on: TrainedOn | None = None
    """None in a checkpoint of an earlier release."""
    frames: int | None = None
    """Most frames of a video that the language model was shown at once; None in a checkpoint of an earlier release."""

    @classmethod
    def of(
        cls, config: Config, step: int, recipe: Recipe, data: list[str], trained_on: TrainedOn | None = None
    ) -> Origin:
        """Return the origin of a run's checkpoint; folders of the model are made absolute, so that it can be moved."""
        fields = asdict(config.model)
        places: dict[str, Any] = {k: v and _absolute(v) for k, v in fields.items() if k in ("path", "internvl", "sam2")}
        batch = config.batch_size * config.accumulation
        model = replace(config.model, **places)
        objective = ", ".join(config.objectives())
        frames = frames_shown(config)
        return cls(model, config.trainable, config.lora, objective, step, batch, recipe, data, trained_on, frames)

    def to_bytes(self) -> bytes:
        """Return the bytes of `origin.json`."""
        more = {} if self.recipe is None else recipe_to_json(self.recipe)
        more[KEY] = None if self.trained_on is None else self.trained_on.to_json()
        body = asdict(replace(self, trained_on=None)) | more
        return (json.dumps({"version": _VERSION, **body}, indent=1) + "\n").encode()


def frames_shown(config: Config) -> int:
    """Return the most frames of a video that a training shows to the language model at once."""
    talks = any(load_objective(name).reads_conversations for name in config.objectives())
    return config.data.frames if talks else 1


def base_model(config: ModelConfig, device: torch.device | str) -> LoadedModel:
    """Load or build the model that a run starts from, on `device`."""
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.dtype]
    if config.path:
        return load_model(config.path, dtype=dtype, device=device)
    if config.internvl and config.sam2:
        return load_parts(config.internvl, Path(config.sam2), dtype=dtype, device=device)
    model = cast(build(config.preset), dtype).to(device)
    return LoadedModel(model, ModelInfo(trained_on=TrainedOn()), frozenset(model.state_dict()))


def base_prompts(config: ModelConfig) -> Prompts:
    """Load the prompts of the model that a run starts from; no weights are read."""
    if config.path:
        return load_prompts(config.path)
    return load_parts_prompts(config.internvl) if config.internvl else preset_prompts(config.preset)


def save_trained(folder: Path, tensors: Mapping[str, torch.Tensor], origin: Origin) -> None:
    """Write a checkpoint.

    Args:
        folder: created where it does not exist.
        tensors: of the trained model, as `trained_tensors` returns them, adapters not merged.
        origin: of the run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ListedFiles(folder) as files:
        write_trained(files, tensors, origin)


def write_trained(files: ListedFiles, tensors: Mapping[str, torch.Tensor], origin: Origin) -> None:
    """Write the files of `save_trained` into a folder that holds more. Raises `OSError`."""
    files.write_tensors(WEIGHTS, tensors)
    if origin.trained_on is not None:
        files.write(FILE, ids_to_bytes(origin.trained_on))
    files.write(ORIGIN, origin.to_bytes())


def trained_tensors(model: Sa2VA, new: AbstractSet[str]) -> dict[str, torch.Tensor]:
    """Return the tensors that trained and those that no file held, by name in `state_dict`: no copies."""
    names = _kept(model, new)
    return {name: tensor.detach() for name, tensor in model.state_dict().items() if name in names}


def load_trained(folder: Path, device: torch.device | str = "cpu", teacher: bool = False) -> tuple[LoadedModel, Origin]:
    """Load the trained model, adapters in place, frozen, in evaluation mode.

    Args:
        folder: of a checkpoint.
        device: of the model.
        teacher: load the teacher's weights (the moving average) in place of those that trained.

    Raises:
        UserError: no such checkpoint, or its files have changed since they were written, or its tensors are not those
            that its origin calls for.
    """
    check_checkpoint(folder, (WEIGHTS, TEACHER) if teacher else (WEIGHTS,))
    origin = read_origin(folder / ORIGIN)
    base = base_model(origin.model, device)
    set_trainable(base.model, origin.trainable, **asdict(origin.lora))
    fill(trained_tensors(base.model, base.new), folder / WEIGHTS)
    if teacher:
        fill(averaged_tensors(base.model), folder / TEACHER)
    base.model.requires_grad_(False).eval()
    info = replace(base.info, recipe=origin.recipe or base.info.recipe, trained_on=origin.trained_on)
    return replace(base, info=info), origin


def averaged_tensors(model: Sa2VA) -> dict[str, torch.Tensor]:
    """Return the tensors of a model that the teacher averages, by their names in its file: no copies."""
    return {f"model.{name}": p.detach() for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def fill(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Copy the tensors of the safetensors file at `path` into `tensors`.

    Raises:
        UserError: no such file, a broken one, or one with other tensors.
    """
    found = read_tensors(path)
    shapes, stored = ({name: tuple(tensor.shape) for name, tensor in group.items()} for group in (tensors, found))
    check_fit(shapes, stored, str(path))
    for name, tensor in tensors.items():
        checked(found[name], tensor, name, str(path))
        local_shard(tensor).copy_(local_shard(distribute_like(found[name], tensor)))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file; raise `UserError` where it is missing or incomplete."""
    try:
        return from_safetensors(read_regular(path))
    except FileNotFoundError:
        raise UserError("no such file", where=str(path)) from None
    except Exception as error:  # the parser of a header has many ways to fail
        raise UserError("not a whole safetensors file", where=str(path), met=str(error)) from None


def _kept(model: Sa2VA, new: AbstractSet[str]) -> set[str]:
    """Return the names in `state_dict` of trained and new tensors; LoRA renames the layers that it wraps."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    kept = trained | {name for name in model.state_dict() if name.replace(".base_layer", "") in new}
    return kept - ({"language_model.lm_head.weight"} if model.tied else set())


def read_origin(path: Path) -> Origin:
    """Read the `origin.json` at `path`; raise `UserError` where it is none of this version."""
    check_files(path.parent, (ORIGIN, FILE))
    body = read_json(path)
    try:
        if body.pop("version") != _VERSION:
            raise UserError("another version of checkpoint", where=str(path), wanted=str(_VERSION))
        model = ModelConfig(**body.pop("model"))
        lora = LoraConfig(**body.pop("lora"))
        recipe = recipe_from_json(body, str(path))
        others = {key: value for key, value in body.items() if key not in ("recipe", "recipe_hash", KEY)}
        trained_on = read_trained_on(path.parent, body, str(path))
        return Origin(model=model, lora=lora, recipe=recipe, trained_on=trained_on, **others)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError("not the origin of a checkpoint", where=str(path), met=str(error)) from None


def _absolute(name: str) -> str:
    path = Path(name)
    return str(path.resolve()) if path.exists() else name
