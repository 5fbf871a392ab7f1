"""Versions of packages and the device, checked before a run. PyTorch is imported for the device only."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from trainer.config import Config
from trainer.doctor.findings import Finding, fail, ok, size, warn

NEEDED = {
    "torch": ">=2.10",
    "torchvision": ">=0.25",
    "transformers": ">=5.10,<6",
    "accelerate": ">=1.10,<2",
    "peft": ">=0.19,<1",
    "sam2": ">=1.1,<2",
}
"""Versions of packages, as in pyproject.toml."""
_PYTHON = (3, 11)
_DRIVER = Path("/proc/driver/nvidia/version")


def count_processes() -> int:
    """Return the number of processes that `accelerate launch` starts: one per GPU, or one."""
    import torch

    return max(1, torch.cuda.device_count())


def check_versions() -> Iterator[Finding]:
    """Yield whether Python and the packages that training needs are there, without importing them."""
    found = {name: _version(name) for name in NEEDED}
    wrong = [
        f"{name} {version or 'missing'}, wanted {NEEDED[name]}"
        for name, version in found.items()
        if version is None or not SpecifierSet(NEEDED[name]).contains(version, prereleases=True)
    ]
    if sys.version_info < _PYTHON:
        wrong.append(f"python {platform.python_version()}, wanted >={'.'.join(map(str, _PYTHON))}")
    if wrong:
        yield fail("versions", f"{'; '.join(wrong)}; install again with make, or pip install -r requirements.lock")
    else:
        versions = ", ".join(f"{name} {version}" for name, version in found.items())
        yield ok("versions", f"python {platform.python_version()}, {versions}")
    if found["torchvision"] and found["torch"]:
        yield from _check_pair(found["torchvision"], found["torch"])


def _check_pair(torchvision: str, torch: str) -> Iterator[Finding]:
    """Yield a finding where torchvision was built for another torch."""
    for text in metadata.requires("torchvision") or ():
        requirement = Requirement(text)
        if requirement.name == "torch" and not requirement.specifier.contains(torch, prereleases=True):
            built = f"torchvision {torchvision} was built for torch {requirement.specifier}, not {torch}"
            yield fail("versions", f"{built}; install the pair that belongs together")


def check_device(config: Config) -> Iterator[Finding]:
    """Yield the GPUs, or that there is none, and whether they have the precision that is asked for."""
    import torch

    is_bf16 = config.mixed_precision == "bf16"
    if not torch.cuda.is_available():
        threads = f"CPU, {torch.get_num_threads()} threads"
        if torch.version.cuda is None and _DRIVER.exists():
            yield warn("device", "a GPU, and a PyTorch without CUDA; install one with CUDA, or train on the CPU")
        elif is_bf16:
            yield warn("device", f"{threads}: bf16 gains little; set mixed_precision=no")
        else:
            yield ok("device", threads)
        return
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        text = f"cuda:{number} {properties.name}, {size(properties.total_memory)}, CUDA {torch.version.cuda}"
        if is_bf16 and properties.major < 8:
            yield fail("device", f"{text}: no bf16; set mixed_precision=no and model.dtype=float32")
        else:
            yield ok("device", f"{text}, {config.mixed_precision}")


def _version(name: str) -> str | None:
    """Return the installed version of a package; None where it is missing."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
