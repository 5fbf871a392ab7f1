"""Folders of safetensors: read strictly, written completely or not at all. No code in a folder is run."""

from __future__ import annotations

import difflib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict, snapshot_download
from safetensors import safe_open
from torch import Tensor

from shards.errors import UserError
from shards.output_folder import check_output_folder
from shards.regular_file import check_regular, read_regular
from trainer.released.pointers import refuse_pointers
from trainer.released.seal import UNSEALED, check_seal, seal

_WRAPPERS = {"module", "model", "_orig_mod", "base_model"}
"""Prefixes of names that wrappers of a model add; no part of Sa2VA, InternVL or SAM 2 has such a name."""
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_WEIGHTS = "*.safetensors"
_FILES = ("*.json", _WEIGHTS, "tokenizer.model", "vocab.txt", "merges.txt", "trained_on.bin")
"""Files to read or download; no code among them."""


def resolve(source: str | Path, *, weights: bool = True) -> Path:
    """Return the folder `source`, or if there is none, the downloaded folder of that name on the hub.

    Args:
        source: a folder, or OWNER/NAME on the hub.
        weights: whether the files of weights are needed.

    Raises:
        UserError: neither a folder nor a repository that can be fetched.
    """
    path = Path(source)
    if path.is_dir():
        _refuse_special_files(path)
        refuse_pointers(file for pattern in _FILES for file in path.glob(pattern))
        return path
    if path.is_absolute() or len(path.parts) != 2 or path.parts[0].startswith("."):
        raise UserError("no such folder", where=str(source), wanted="a model folder, or OWNER/NAME on the hub")
    try:
        patterns = [pattern for pattern in _FILES if weights or pattern != _WEIGHTS]
        return Path(snapshot_download(str(source), allow_patterns=patterns))
    except Exception as error:  # the network, the hub and its client have many ways to fail
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        siblings = [str(path.parent / name.name) for name in path.parent.iterdir()] if path.parent.is_dir() else []
        close = difflib.get_close_matches(str(source), siblings, n=1)
        do = f"did you mean {close[0]}?" if close else ""
        raise UserError("no such folder, and the hub does not give it", where=str(source), met=reason, do=do) from None


def _refuse_special_files(folder: Path) -> None:
    """Raise `UserError` where a file to read is a named pipe or a device: libraries would wait for ever."""
    for file in folder.iterdir():
        if any(file.match(pattern) for pattern in _FILES) and file.exists():
            try:
                check_regular(file)
            except OSError as error:
                raise UserError("cannot be read", where=str(file), met=str(error.strerror), wanted="a file") from None


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file. Raises `UserError` where there is none."""
    try:
        value = json.loads(read_regular(path).decode("utf-8-sig"))
    except FileNotFoundError:
        raise UserError("no such file", where=str(path), wanted="a folder of a released model, which has one") from None
    except (OSError, ValueError) as error:
        refuse_pointers([path])
        raise UserError("cannot be read as JSON", where=str(path), met=str(error)) from None
    except RecursionError:
        raise UserError("cannot be read as JSON", where=str(path), met="nested too deeply") from None
    if not isinstance(value, dict):
        raise UserError("not a JSON object", where=str(path), met=type(value).__name__)
    return value


class TensorFolder:
    """The tensors of a folder's safetensors files, read one by one. Use it in a `with` statement.

    A file with a checksum in its header, as in an export, is compared with it first.

    Raises:
        UserError: a file is missing, broken or changed since it was written, or its tensors are not those of the index.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open = ExitStack()
        self._file_of: dict[str, Any] = {}
        index = _read_index(folder)
        for name in sorted(set(index.values())) if index else [SINGLE]:
            file = self._open_file(folder / name)
            if twice := sorted(self._file_of.keys() & file.keys()):
                raise UserError("tensors that another file holds too", where=str(folder / name), met=_some(twice))
            self._file_of |= dict.fromkeys(file.keys(), file)
        if index is not None and (differ := set(index) ^ set(self._file_of)):
            raise UserError("files and index differ", where=str(folder / INDEX), met=_some(sorted(differ)))
        self._stored_names = without_prefix(self._file_of)

    def _open_file(self, path: Path) -> Any:
        try:
            check_seal(path)
            return self._open.enter_context(safe_open(path, framework="pt"))
        except FileNotFoundError:
            raise UserError("no such file", where=str(path), wanted=f"as {INDEX} says") from None
        except UserError:
            raise
        except Exception as error:  # the parser of a header has many ways to fail
            refuse_pointers([path])
            what = "not a whole safetensors file"
            raise UserError(what, where=str(path), met=str(error), do="download or copy it again") from None

    def __enter__(self) -> TensorFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all tensors, by name without the prefix of a wrapper."""
        stored = self._stored_names.items()
        return {name: tuple(self._file_of[key].get_slice(key).get_shape()) for name, key in stored}

    def __getitem__(self, name: str) -> Tensor:
        key = self._stored_names[name]
        try:
            tensor: Tensor = self._file_of[key].get_tensor(key)
        except Exception as error:  # a type that PyTorch does not have, a disk that fails
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError("a tensor that cannot be read", where=f"{self.folder}, {key}", met=reason) from None
        return tensor


def _read_index(folder: Path) -> dict[str, str] | None:
    """Return the index, name of a tensor -> name of its file; None for a single file."""
    if (folder / INDEX).exists():
        index = read_json(folder / INDEX).get("weight_map")
        if not isinstance(index, dict) or not all(isinstance(v, str) and v == Path(v).name for v in index.values()):
            raise UserError("no map of names to files of this folder", where=f"{folder / INDEX}, weight_map")
        return index
    if not (folder / SINGLE).exists():
        do = "convert other formats with their own tools: loading them can run code"
        raise UserError("no weights", where=str(folder), wanted=f"{INDEX} or {SINGLE}", do=do)
    return None


def without_prefix(names: Iterable[str]) -> dict[str, str]:
    """Map names without the prefixes that wrappers of a model put in front of all of them to the whole names.

    >>> without_prefix(["module.mlp1.0.bias", "module.mlp1.1.bias"])
    {'mlp1.0.bias': 'module.mlp1.0.bias', 'mlp1.1.bias': 'module.mlp1.1.bias'}
    """
    short = {name: name for name in names}
    while short and len(first := {name.partition(".")[0] for name in short}) == 1 and first <= _WRAPPERS:
        short = {name.partition(".")[2]: whole for name, whole in short.items()}
    return short


def checked(tensor: Tensor, like: Tensor, name: str, where: str) -> Tensor:
    """Return `tensor` after checking that it can replace `like`.

    Raises:
        UserError: whole numbers in place of floating point ones or the reverse, values of 8 bits (which mean nothing
            without their scales), or values that are not finite.
    """
    if tensor.is_floating_point() != like.is_floating_point() or (tensor.is_floating_point() and tensor.itemsize < 2):
        expected = "float32, bfloat16 or float16" if like.is_floating_point() else str(like.dtype)
        raise UserError("a tensor of another type", where=f"{where}, {name}", met=str(tensor.dtype), wanted=expected)
    # `aminmax`, because `isfinite()` takes as much memory again. The extremes of values with a NaN are NaN.
    has_values = tensor.is_floating_point() and tensor.numel() and not tensor.is_meta
    if has_values and not all(map(math.isfinite, torch.stack(torch.aminmax(tensor)).tolist())):
        count = f"{int((~tensor.isfinite()).sum()):,} of {tensor.numel():,} values"
        do = "the training that wrote them went wrong, or the file is damaged"
        raise UserError("weights that are not finite", where=f"{where}, {name}", met=count, do=do)
    return tensor


def check_fit(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Raise `UserError` that lists tensors that are missing, unexpected or of another shape, unless all fit."""
    faults = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of another shape": [
            f"{name} {list(found[name])}, wanted {list(shape)}"
            for name, shape in expected.items()
            if name in found and tuple(found[name]) != tuple(shape)
        ],
    }
    adapters = [name for name in found if ".lora_" in name or ".base_layer." in name or ".base_model." in name]
    do = "merge the adapters into the weights with the tool that trained them"
    summary = ". ".join(f"{len(names)} {fault}: {_some(names)}" for fault, names in faults.items() if names)
    if summary:
        hint = do if adapters and faults["unexpected"] else ""
        raise UserError("the tensors are not this model's", where=where, met=summary, do=hint)


def _some(names: list[str], shown: int = 8) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def check_new_folder(out: Path) -> None:
    """Check that `out` can become a new folder; raises `UserError` otherwise. Makes nothing."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError("there is something already", where=str(out), wanted="a new folder", do="choose another --out")
    check_output_folder(out)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a folder to write into, which gets the name `out` at the end; an exception removes it.

    Raises:
        UserError: `out` is neither missing nor an empty folder.
    """
    check_new_folder(out)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        yield partial
        if out.exists():
            out.rmdir()
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_folder(
    out: Path, tensors: Mapping[str, Tensor], files: Callable[[Path], None], shard_bytes: int = 5 * 10**9
) -> None:
    """Write a folder of safetensors, which gets its name once it is complete.

    Args:
        out: a folder that does not exist or is empty.
        tensors: by name; written into shards of at most `shard_bytes` with an index.
        files: writes all other files into a folder.

    Raises:
        UserError: there is something in `out` already.
    """
    with new_folder(out) as folder:
        contiguous = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
        save_torch_state_dict(contiguous, folder, max_shard_size=shard_bytes, metadata=dict(UNSEALED))
        for path in folder.glob("*.safetensors"):
            seal(path)
        files(folder)


def floating(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return a floating point tensor as `dtype`; others, and all where `dtype` is None, unchanged."""
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
