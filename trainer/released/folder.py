"""Sa2VA from and to what people have on disk. Loading is strict: every tensor lands, every parameter is filled."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shards.errors import UserError
from shards.regular_file import check_regular
from trainer.model.architecture import SAM_21_ONLY, Architecture, sa2va_config, sam_of
from trainer.model.prompts import Prompts
from trainer.model.sa2va import Sa2VA
from trainer.model.tokenizer import ADDED
from trainer.released.files import (
    TensorFolder,
    check_fit,
    checked,
    floating,
    read_json,
    resolve,
    without_prefix,
    write_folder,
)
from trainer.released.names import Stored, plan, released_name
from trainer.released.pointers import refuse_pointers
from trainer.released.settings import check_settings
from trainer.released.tokenizer import is_fault, load_tokenizer, save_tokenizer
from trainer.released.training import read_training, write_training

_SAM = "grounding_encoder.sam2_model."
_TABLE, _HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
_TEMPLATES = {"InternLM2ForCausalLM": "internlm2_chat"}


def load_model(source: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> Sa2VA:
    """A released Sa2VA: frozen, in evaluation mode.

    Args:
        source: a folder with config.json, safetensors and a tokenizer; or OWNER/NAME on the hub.
        dtype: of all floating point weights; None keeps what the files hold.
        device: of all weights.

    Raises:
        UserError: the folder is no Sa2VA of this kind, or a tensor is missing, unexpected or of another shape.
    """
    folder = resolve(source)
    config = read_json(folder / "config.json")
    if config.get("model_type") != "sa2va_chat":
        met, do = repr(config.get("model_type")), "an InternVL folder goes into model.internvl, with model.sam2"
        raise UserError(
            "not a Sa2VA", where=f"{folder / 'config.json'}, model_type", met=met, wanted="sa2va_chat", do=do
        )
    with TensorFolder(folder) as files:
        shapes = files.shapes
        check_settings(config, shapes, str(folder / "config.json"))
        sam = sam_of({n.removeprefix(_SAM): s for n, s in shapes.items() if n.startswith(_SAM)}, str(folder))
        model = _hollow(Architecture(config, sam, str(folder / "config.json")), folder)
        _fill(model, shapes, files.__getitem__, str(folder), dtype, device)
    model.recipe, model.trained_on = read_training(folder)
    return model


def load_parts(
    internvl: str | Path, sam2: Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> tuple[Sa2VA, set[str]]:
    """A Sa2VA before its first training, from InternVL 2.5 or 3 and SAM 2 or 2.1: frozen, in evaluation mode.

    Args:
        internvl: its folder in OpenGVLab's own layout, or OWNER/NAME on the hub.
        sam2: its checkpoint, a `.pt` file.
        dtype: of all floating point weights; None keeps what the files hold.
        device: of all weights.

    Returns:
        The model; and the names of its tensors that neither holds: `text_hidden_fcs`, and the token table and head
        where they got rows for Sa2VA's tokens.

    Raises:
        UserError: as in `load_model`.
    """
    folder = resolve(internvl)
    given = read_json(folder / "config.json")
    if given.get("model_type") != "internvl_chat":
        met, do = (
            repr(given.get("model_type")),
            "a Sa2VA folder goes into model.path; for others take OpenGVLab's layout",
        )
        where = f"{folder / 'config.json'}, model_type"
        raise UserError("not an InternVL", where=where, met=met, wanted="internvl_chat", do=do)
    with TensorFolder(folder) as files:
        check_settings(given, files.shapes, str(folder / "config.json"))
    language = dict(given["llm_config"])
    kind = (language.get("architectures") or ["?"])[0]
    # Without its architecture, the official code takes a vision configuration for another model's.
    vision = {"architectures": ["InternVisionModel"], **given["vision_config"]}
    config = sa2va_config(vision, language, _TEMPLATES.get(kind, "qwen_chat"))
    config |= {
        k: given[k] for k in ("force_image_size", "downsample_ratio", "ps_version", "select_layer") if k in given
    }
    of_sam = read_sam(sam2)
    sam = sam_of({name: tuple(tensor.shape) for name, tensor in of_sam.items()}, str(sam2))
    tables = [f"language_model.{n}" for n in ("model.embed_tokens", "lm_head", "model.tok_embeddings", "output")]
    with TensorFolder(folder) as files:
        shapes = files.shapes
        of_tables = [shapes[f"{name}.weight"] for name in tables if f"{name}.weight" in shapes]
        rows = max((shape[0] for shape in of_tables if shape), default=0)
        tokenizer = load_tokenizer(folder)
        tokenizer.add_tokens(ADDED, special_tokens=True)
        language["vocab_size"] = max(rows, len(tokenizer))
        model = _hollow(Architecture(config, sam, str(folder / "config.json")), folder, tokenizer)
        fresh = {f"text_hidden_fcs.{name}": t for name, t in model.text_hidden_fcs.state_dict().items()}
        beside = fresh | {released_name(_SAM + name): tensor for name, tensor in of_sam.items()}
        known = {name: tuple(tensor.shape) for name, tensor in beside.items()}
        grown = {f"{n}.weight" for n in tables if f"{n}.weight" in shapes} if rows < language["vocab_size"] else set()

        def read(name: str) -> Tensor:
            if name in beside:
                return beside[name]
            tensor = files[name]
            return _grow(tensor, language["vocab_size"]) if name in grown else tensor

        larger = {name: (language["vocab_size"], *shape[1:]) for name, shape in shapes.items() if name in grown}
        _fill(model, shapes | larger | known, read, f"{folder} and {sam2}", dtype, device)
        new = [part for stored in _plan(model) if stored.name in grown for part in stored.parts]
    return model, {*fresh, *new}


def read_sam(path: Path) -> dict[str, Tensor]:
    """The tensors of a SAM 2 checkpoint by their names in the `sam2` package; nothing but tensors is unpickled.

    Raises:
        UserError: the file is missing, or is not such a checkpoint.
    """
    try:
        check_regular(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise UserError("no such file", where=str(path), wanted="a SAM 2 checkpoint (.pt)") from None
    except Exception as error:  # a damaged archive or pickle has many ways to fail
        refuse_pointers([path])
        met = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError("not a checkpoint of tensors alone", where=str(path), met=met) from None
    tensors = loaded.get("model") if isinstance(loaded, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise UserError("not a SAM 2 checkpoint", where=str(path), wanted='a dict with the tensors under "model"')
    return {name: tensors[whole] for name, whole in without_prefix(tensors).items()}


def save_model(
    model: Sa2VA,
    out: Path,
    *,
    card: str = "",
    shard_bytes: int = 5 * 10**9,
) -> list[str]:
    """Write a released folder: config.json, safetensors with an index where there are several, tokenizer, model card;
    and training.json, where it is known what the model was trained on.

    Args:
        model: without adapters, see `trainer.model.adapters.merge_adapters`.
        out: a new folder. It stands under its name only when it is whole.
        card: the text of README.md.
        shard_bytes: at most so many bytes a file.

    Returns:
        The names of tensors that the layout has no place for: what SAM 2.1 holds for tracking.

    Raises:
        UserError: there is something at `out` already.
    """
    state = model.state_dict()
    stored = [s for s in _plan(model) if not s.name.removeprefix(_SAM).startswith(SAM_21_ONLY)]
    left_out = [s.name for s in _plan(model) if s.name.removeprefix(_SAM).startswith(SAM_21_ONLY)]

    def files(folder: Path) -> None:
        config = json.dumps(model.architecture.config, indent=2, ensure_ascii=False)
        (folder / "config.json").write_text(config + "\n", encoding="utf-8")
        save_tokenizer(model.prompts.tokenizer, model.source, folder)
        if model.source is not None:
            # Code that stood beside the weights stays beside them, for those who run it; here nobody does.
            for path in [*model.source.glob("*.py"), model.source / "generation_config.json"]:
                if path.exists():
                    shutil.copyfile(path, folder / path.name)
        (folder / "README.md").write_text(card, encoding="utf-8", errors="backslashreplace")
        write_training(folder, model)

    write_folder(out, {s.name: s.join(state) for s in stored}, files, shard_bytes)
    return left_out


def cast(model: Sa2VA, dtype: torch.dtype | None) -> Sa2VA:
    """Change the type of all floating point parameters in place. Buffers, such as rotary frequencies, stay float32."""
    for parameter in model.parameters():
        parameter.data = floating(parameter.data, dtype)
    return model


def _hollow(architecture: Architecture, folder: Path, tokenizer: Any = None) -> Sa2VA:
    model = hollow_model(architecture, tokenizer or load_tokenizer(folder), folder)
    model.source = folder
    return model


def hollow_model(architecture: Architecture, tokenizer: Any, folder: Path) -> Sa2VA:
    """A model without weights, frozen, in evaluation mode.

    Raises:
        UserError: values in the files of `folder` of which no model can be built.
    """
    try:
        prompts = Prompts(tokenizer, architecture.template, architecture.language.vocab_size)
        return Sa2VA(architecture, prompts, hollow=True).requires_grad_(False).eval()
    except UserError:
        raise
    except BaseException as error:  # transformers and sam2 check few of the values that they are given
        if not is_fault(error):
            raise
        met = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError("values that no model can be built of", where=architecture.where, met=met) from None


def _plan(model: Sa2VA) -> list[Stored]:
    """What a released folder holds for `model`; of tied weights only the first."""
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    if model.tied:
        del shapes[_HEAD]
    internlm2 = model.architecture.is_internlm2
    return plan(shapes, internlm2=internlm2, kv_heads=model.language_model.config.num_key_value_heads)


def _fill(
    model: Sa2VA,
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], Tensor],
    where: str,
    dtype: torch.dtype | None,
    device: torch.device | str,
) -> None:
    """Give all of `model` the tensors of files that have `shapes`."""
    internlm2 = model.architecture.is_internlm2
    head = released_name(_HEAD, internlm2=internlm2)
    # A configuration that says "tied" is believed only where the file has no head of its own.
    model.tied = head not in shapes and bool(model.architecture.config["llm_config"].get("tie_word_embeddings"))
    stored = _plan(model)
    check_fit({s.name: s.shape for s in stored}, shapes, where)
    state: dict[str, Tensor] = {}
    own = model.state_dict()
    for item in stored:
        tensor = checked(read(item.name).to(device), own[item.parts[0]], item.name, where)
        state |= {name: floating(t, dtype) for name, t in item.split(tensor).items()}
    if model.tied:
        state[_HEAD] = state[_TABLE]
    model.stored_dtype = read(released_name(_TABLE, internlm2=internlm2)).dtype
    model.load_state_dict(state, strict=True, assign=True)
    if model.tied:
        model.language_model.lm_head.weight = model.language_model.model.embed_tokens.weight
    model.to(device)  # the buffers that no file holds


def _grow(table: Tensor, rows: int) -> Tensor:
    """More rows, around the mean of those there are: a new token is neither likely nor unlikely (Hewitt 2021)."""
    mean, spread = table.float().mean(0), table.float().std(0)
    new = torch.empty(rows - len(table), table.shape[1])
    nn.init.normal_(new, std=0.1)
    return torch.cat([table, (mean + spread * new).to(table.dtype)])
