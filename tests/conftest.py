"""Real data for all tests: pairs of real photographs in SAV's layout, and a shard set made of them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from tqdm import tqdm

import cli
from demo.make_sav import write
from pipeline.engines import EngineName
from pipeline.request import Request, make_request
from pipeline.run import RunSummary, run
from shards.recode import recode
from shards.select import sample
from shards.storage import retry
from shards.table_list import LIST
from tests.fresh_accelerate import reset_accelerate
from tests.servers import FaultyServer, s3_server, serving

Process = subprocess.CompletedProcess[str]

# tqdm's own lock is shared with forks: one that is killed while it holds it would stop this process for ever.
tqdm.set_lock(threading.RLock())

# The same examples in each run, and no limit of time, which a busy machine would exceed. Other examples:
# pytest --hypothesis-profile=default
settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("same")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--flips", type=int, default=40, help="how often the test of damaged tars flips a bit")
    parser.addoption("--kills", type=int, default=3, help="how often the test of killed runs kills")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with slow tests first: workers that take whole files then end at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def own_state() -> Iterator[None]:
    """Restore what tests of a process share: Accelerate's state, threads, environment, current folder, arguments."""
    environment = dict(os.environ)
    arguments = [*sys.argv]
    folder = os.getcwd()
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else 0
    yield
    reset_accelerate()
    if threads:
        torch.set_num_threads(threads)
    for name in {*environment, *os.environ} - {"PYTEST_CURRENT_TEST"}:
        if name not in environment:
            del os.environ[name]
        elif os.environ.get(name) != environment[name]:
            os.environ[name] = environment[name]
    os.chdir(folder)
    sys.argv[:] = arguments


@pytest.fixture(scope="session")
def sav_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 pairs of 11 objects in 4 photographs, below folders whose file names repeat."""
    root = tmp_path_factory.mktemp("raw") / "sav"
    write(root, 12)
    return root


def sav_request(root: Path, *, shard_bytes: int = 10_000_000, **more: Any) -> Request:
    """Return the request of `cli.py shard --source sav`."""
    return make_request("sav", root, shard_bytes=shard_bytes, **more)


def shard_sav(
    root: Path,
    out: Path | str,
    *,
    workers: int | None = 1,
    max_bad: float = 0.05,
    overwrite: bool = False,
    engine: EngineName = "local",
    **request: Any,
) -> RunSummary:
    """Run `cli.py shard --source sav` in this process."""
    return run(sav_request(root, **request), out, workers, max_bad, overwrite=overwrite, engine=engine)


@pytest.fixture(scope="session")
def sav_set(sav_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished shard set of `sav_root`, recipe `default`, several tars. Not to be changed."""
    folder = tmp_path_factory.mktemp("shards") / "sav"
    shard_sav(sav_root, folder)
    return folder


@pytest.fixture(scope="session")
def raw_set(sav_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`sav_set` with its pictures stored raw. Not to be changed."""
    folder = tmp_path_factory.mktemp("raw_shards") / "sav"
    recode(sav_set, folder, "raw", 2)
    return folder


@pytest.fixture(scope="session")
def small_set(sav_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 samples of `sav_set`, a tar each. Not to be changed."""
    folder = tmp_path_factory.mktemp("small") / "sav"
    sample(sav_set, folder, 8, 0, 1)
    return folder


@pytest.fixture
def server(small_set: Path, short_pauses: None) -> Iterator[FaultyServer]:
    """Serves `small_set` as /sav."""
    with serving(small_set.parent) as server:
        yield server


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the pauses between attempts at a file of a URL."""
    monkeypatch.setattr(retry, "_FIRST_PAUSE", 0.01)


@pytest.fixture
def small_pair(sav_root: Path) -> dict[str, np.ndarray]:
    """One real pair at a quarter of its size: quick to write again with a fault."""
    with np.load(sav_root / "sav_astronaut" / "masklet_data_00000.npz") as arrays:
        return {name: arrays[name][::4, ::4].copy() for name in arrays.files}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Process]:
    """`cli.py` with these arguments, in this process: starting one takes longer than the work."""

    def call(*arguments: object) -> Process:
        command = [str(Path(cli.__file__)), *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", command)
        monkeypatch.setattr(sys, "orig_argv", [sys.executable, *command])
        capsys.readouterr()
        status: int | str | None = 0
        try:
            cli.main()
        except SystemExit as end:
            status = end.code
        printed = capsys.readouterr()
        # A string that a program exits with is printed to stderr, and the exit status is 1.
        error = f"{status}\n" if isinstance(status, str) else ""
        return Process(command, 1 if error else int(status or 0), printed.out, printed.err + error)

    return call


@pytest.fixture(scope="session")
def s3() -> Iterator[int]:
    """The port of an S3-compatible server with the bucket `bucket`; each test uses another folder of it."""
    with s3_server() as port:
        yield port


def without_tables(folder: Path) -> Path:
    """Remove the tables of a set, as older releases wrote it, and before its manifest is changed; return the folder."""
    for path in (*folder.glob("*.parquet"), folder / LIST):
        path.unlink(missing_ok=True)
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
