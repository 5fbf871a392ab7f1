"""Folders of safetensors: what is in them, read strictly, written whole. No code of a folder is ever run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict, snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor

from shards.errors import UserError
from shards.regular_file import check_regular, read_regular
from trainer.released.seal import UNSEALED, check_seal, seal

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
_WANTED = ("*.json", "*.safetensors", "tokenizer.model", "vocab.txt", "merges.txt", "trained_on.bin")  # and no code


def resolve(source: str | Path) -> Path:
    """The folder `source`; where there is none and the name is that of a hub's repository, what the hub holds.

    Raises:
        UserError: neither a folder nor a repository that can be fetched.
    """
    path = Path(source)
    if path.is_dir():
        _refuse_special_files(path)
        return path
    if path.is_absolute() or len(path.parts) != 2 or path.parts[0].startswith("."):
        raise UserError("no such folder", where=str(source), wanted="a model folder, or OWNER/NAME on the hub")
    try:
        return Path(snapshot_download(str(source), allow_patterns=list(_WANTED)))
    except Exception as error:  # the network, the hub and its client have many ways to fail
        met = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError("no such folder, and the hub does not give it", where=str(source), met=met) from None


def _refuse_special_files(folder: Path) -> None:
    """Raise `UserError` where a file that would be read is a named pipe or a device: libraries would wait for ever."""
    for file in folder.iterdir():
        if any(file.match(pattern) for pattern in _WANTED) and file.exists():
            try:
                check_regular(file)
            except OSError as error:
                raise UserError("cannot be read", where=str(file), met=str(error.strerror), wanted="a file") from None


def read_json(path: Path) -> dict[str, Any]:
    """Raise `UserError` where there is no JSON object."""
    try:
        value = json.loads(read_regular(path).decode("utf-8"))
    except FileNotFoundError:
        raise UserError("no such file", where=str(path), wanted="a released model folder holds one") from None
    except (OSError, ValueError) as error:
        raise UserError("cannot be read as JSON", where=str(path), met=str(error)) from None
    if not isinstance(value, dict):
        raise UserError("not a JSON object", where=str(path), met=type(value).__name__)
    return value


class TensorFolder:
    """The tensors of a folder's safetensors files, read one by one. To be used in a `with` statement.

    A file that holds its own checksum, as those of an export do, is compared with it first.

    Raises:
        UserError: a file that is missing, broken, changed since it was written, or does not hold what the index says.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open = ExitStack()
        self._file_of: dict[str, Any] = {}
        if (folder / INDEX).exists():
            index = read_json(folder / INDEX).get("weight_map")
            if not isinstance(index, dict) or not all(isinstance(v, str) and v == Path(v).name for v in index.values()):
                raise UserError("no map of names to files of this folder", where=f"{folder / INDEX}, weight_map")
        elif (folder / SINGLE).exists():
            index = None
        else:
            do = "convert other formats with their own tools: loading them can run code"
            raise UserError("no weights", where=str(folder), wanted=f"{INDEX} or {SINGLE}", do=do)
        for name in sorted(set(index.values())) if index else [SINGLE]:
            try:
                check_seal(folder / name)
                file = self._open.enter_context(safe_open(folder / name, framework="pt"))
            except FileNotFoundError:
                raise UserError("no such file", where=str(folder / name), wanted=f"as {INDEX} says") from None
            except (OSError, SafetensorError) as error:
                raise UserError("not a whole safetensors file", where=str(folder / name), met=str(error)) from None
            self._file_of |= dict.fromkeys(file.keys(), file)
        if index is not None and (differ := set(index) ^ set(self._file_of)):
            raise UserError("files and index differ", where=str(folder / INDEX), met=_some(sorted(differ)))

    def __enter__(self) -> TensorFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(file.get_slice(name).get_shape()) for name, file in self._file_of.items()}

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._file_of[name].get_tensor(name)
        return tensor


def check_fit(wanted: Mapping[str, tuple[int, ...]], met: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Raise `UserError` that lists what is missing, unexpected or of another shape, unless all fits."""
    faults = {
        "missing": [name for name in wanted if name not in met],
        "unexpected": [name for name in met if name not in wanted],
        "of another shape": [
            f"{name} {list(met[name])}, wanted {list(shape)}"
            for name, shape in wanted.items()
            if name in met and tuple(met[name]) != tuple(shape)
        ],
    }
    said = ". ".join(f"{len(names)} {fault}: {_some(names)}" for fault, names in faults.items() if names)
    if said:
        raise UserError("the tensors are not this model's", where=where, met=said)


def _some(names: list[str], shown: int = 8) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `out` at the end; where an exception ends it, nothing remains.

    Raises:
        UserError: `out` is neither missing nor an empty folder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError("there is something already", where=str(out), wanted="a new folder", do="choose another --out")
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
    """Write `out`, which stands under its name only when it is whole.

    Args:
        out: a folder that does not exist or is empty.
        tensors: by their names; written into shards of at most `shard_bytes` with an index.
        files: writes all other files into the folder it is given.

    Raises:
        UserError: `out` holds something already.
    """
    with new_folder(out) as folder:
        contiguous = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
        save_torch_state_dict(contiguous, folder, max_shard_size=shard_bytes, metadata=dict(UNSEALED))
        for path in folder.glob("*.safetensors"):
            seal(path)
        files(folder)


def floating(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """As `dtype` where it is a floating point tensor and a dtype is given."""
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
