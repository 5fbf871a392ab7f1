"""Versions and the device, checked before a run."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from trainer.config import Config
from trainer.doctor.findings import Finding, fail, ok, size, warn

NEEDED = {
    "torch": ">=2.10",
    "torchvision": ">=0.25",
    "transformers": ">=5.10,<6",
    "accelerate": ">=1.10,<2",
    "peft": ">=0.17,<1",
    "sam2": ">=1.1,<2",
}
"""As pyproject.toml says."""
_PYTHON = (3, 11)
_DRIVER = Path("/proc/driver/nvidia/version")


def check_versions() -> Iterator[Finding]:
    """Python and the packages that training is made of."""
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
        said = ", ".join(f"{name} {version}" for name, version in found.items())
        yield ok("versions", f"python {platform.python_version()}, {said}")
    wanted = [Requirement(text) for text in metadata.requires("torchvision") or ()] if found["torchvision"] else []
    for pair in wanted:
        if pair.name == "torch" and not pair.specifier.contains(torch.__version__, prereleases=True):
            said = f"torchvision {found['torchvision']} was built for torch {pair.specifier}, not {torch.__version__}"
            yield fail("versions", f"{said}; install the pair that belongs together")


def check_device(config: Config) -> Iterator[Finding]:
    """The GPUs, or that there is none, and whether they can do the precision asked for."""
    bf16 = config.mixed_precision == "bf16"
    if not torch.cuda.is_available():
        if torch.version.cuda is None and _DRIVER.exists():
            yield warn("device", "a GPU, and a PyTorch without CUDA; install one with CUDA, or train on the CPU")
        elif bf16:
            yield warn("device", f"CPU, {torch.get_num_threads()} threads: bf16 gains little; set mixed_precision=no")
        else:
            yield ok("device", f"CPU, {torch.get_num_threads()} threads")
        return
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        said = f"cuda:{number} {properties.name}, {size(properties.total_memory)}, CUDA {torch.version.cuda}"
        if bf16 and properties.major < 8:
            yield fail("device", f"{said}: no bf16; set mixed_precision=no and model.dtype=float32")
        else:
            yield ok("device", f"{said}, {config.mixed_precision}")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
