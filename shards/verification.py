"""Checking shard sets against `docs/FORMAT.md`, from the bytes of the tars up to the agreement of the formats."""

from __future__ import annotations

import glob
import hashlib
import multiprocessing as mp
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from tarfile import RECORDSIZE
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from shards.archive import BLOCK, MappedTar
from shards.checksum import crc32
from shards.errors import BadShard, UserError
from shards.format import INDEX, LEDGER, MANIFEST, Field
from shards.hidden import is_hidden
from shards.lossy import ROUNDED, Psnr
from shards.manifest import Manifest, ShardInfo, positions_by_shard, read_index, read_ledger, sha256
from shards.memory import keep_freed_memory
from shards.report import Failure, Report
from shards.sample_checks import Derive, SampleChecker
from shards.sets import find_sets
from shards.table import check_tables
from shards.table_list import check_list

_CHUNK = 1 << 24  # bytes


@dataclass(frozen=True)
class _Task:
    """One shard to be checked, as a worker process gets it."""

    folder: Path
    manifest: Manifest
    info: ShardInfo
    rows: NDArray[Any]
    """Rows of the index that belong to the shard."""
    derive: Derive | None


def verify(
    paths: Sequence[str | Path],
    derive: Derive | None = None,
    same_inputs: Callable[[Manifest, Path], bool] | None = None,
    workers: int = 1,
    allow_lossy: bool = False,
) -> Report:
    """Check tars, shard sets, folders of sets, or patterns such as shards/sav*.

    Args:
        derive: makes a sample again from the raw files. Every bit must be equal; pictures of a lossy set must have
            their recorded PSNR. Picklable, if there are several workers.
        same_inputs: returns whether the raw files are those that a set was made from, by its manifest and its folder.
        workers: processes; each checks one shard at a time.
        allow_lossy: check lossy sets too; otherwise each of them is a failure.

    Raises:
        UserError: a path that names nothing.
    """
    report = Report()
    tasks: list[_Task] = []
    for folder, names in _requested(paths).items():
        tasks += _check_set(folder, names, derive, same_inputs, report, allow_lossy)
    total = sum(task.info.samples for task in tasks)
    ratios: dict[Path, array[float]] = {}
    with tqdm(total=total, unit="sample", desc="verify", mininterval=0.5) as bar:
        for folder, checked in _check_all(tasks, workers):
            report.merge(checked)
            ratios.setdefault(folder, array("d")).extend(checked.psnr)
            bar.update(checked.samples)
    sets = {task.folder: task.manifest for task in tasks}
    expected = sum(manifest.objects for manifest in sets.values())
    complete = len(tasks) == sum(len(manifest.shards) for manifest in sets.values())
    if complete and report.ok and report.objects != expected:
        place = ", ".join(str(folder / MANIFEST) for folder in sets)
        report.fail(Failure(place, "", "", "objects", str(report.objects), str(expected)))
    for folder, manifest in sets.items():
        check_list(folder, manifest, report)
        if report.ok and len(manifest.shards) == sum(task.folder == folder for task in tasks):
            check_tables(folder, report, workers)
        if manifest.psnr:
            report.lossy.append(f"{folder}: {manifest.pictures}")
            if len(manifest.shards) == sum(task.folder == folder for task in tasks):
                _check_psnr(folder, manifest.psnr, Psnr.summarise(ratios[folder]), report)
    report.fields = dict(sorted(report.fields.items(), key=lambda item: _order(item[0])))
    return report


def _check_psnr(folder: Path, recorded: Psnr, found: Psnr | None, report: Report) -> None:
    """The PSNR in the manifest summarises what the samples record."""
    if found is None or abs(found.min - recorded.min) > ROUNDED or abs(found.mean - recorded.mean) > 2 * ROUNDED:
        report.fail(Failure(str(folder / MANIFEST), "", "", "PSNR", str(recorded), f"{found}, as the samples say"))


def _order(name: str) -> tuple[int, str]:
    """Return a sort key for the name of a field: by frame, then in the order of the members."""
    field = Field.parse(name)
    return field.frame or 0, {"pixel_values": "0", "g_pixel_values": "1", "prompt_masks": "2"}.get(field.name, "3")


def _check_all(tasks: list[_Task], workers: int) -> Iterator[tuple[Path, Report]]:
    """Yield the folder of the set and the report for each task, as they are done."""
    if workers == 1 or len(tasks) <= 1:
        yield from ((task.folder, _check_shard(task)) for task in tasks)
        return
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=mp.get_context("spawn")) as pool:
        try:
            folders = {pool.submit(_check_shard, task): task.folder for task in tasks}
            for future in as_completed(folders):
                yield folders[future], future.result()
        except BrokenProcessPool:
            raise UserError(
                "a worker process died", met="killed, or out of memory", do="give fewer --workers"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _requested(paths: Sequence[str | Path]) -> dict[Path, set[str] | None]:
    """Return the folders of the sets to check, each with the names of the tars to check, or None for all of it."""
    sets: dict[Path, set[str] | None] = {}
    for path in map(str, paths):
        is_pattern = glob.has_magic(path) and not Path(path).exists()
        matches = [Path(match) for match in (sorted(glob.glob(path)) if is_pattern else [path])]
        tars = [m for m in matches if m.suffix == ".tar" and m.is_file() and not (is_pattern and is_hidden(m.name))]
        if not (is_pattern or tars or matches[0].is_dir()):
            raise UserError("no such tar or folder", where=path, wanted="a tar or the folder of a shard set")
        for tar in tars:
            names = sets.setdefault(tar.parent, set())
            if names is not None:
                names.add(tar.name)
        if any(match.is_dir() for match in matches) or not tars:
            sets |= {Path(folder): None for folder in find_sets([path])}
    return sets


def _check_set(
    folder: Path,
    names: set[str] | None,
    derive: Derive | None,
    same_inputs: Callable[[Manifest, Path], bool] | None,
    report: Report,
    allow_lossy: bool,
) -> list[_Task]:
    """Check manifest, index and ledger of a set; return tasks for those of its shards that exist.

    Args:
        names: check these tars alone; None: all.
    """

    def fail(file: str, what: str, found: object = "", expected: object = "") -> None:
        report.fail(Failure(str(folder / file), "", "", what, str(found), str(expected)))

    try:
        manifest = Manifest.read(folder)
        index = read_index(folder)
    except UserError as error:
        report.fail(Failure(error.where, "", "", error.what, error.met, error.wanted or error.do))
        return []
    if manifest.psnr and not allow_lossy:
        fail(MANIFEST, "a lossy set", manifest.pictures, "a lossless one, or --allow-lossy")
        return []
    for file, expected in ((INDEX, manifest.index_sha256), (LEDGER, manifest.ledger_sha256)):
        path = folder / file
        digest = sha256(path.read_bytes()) if path.is_file() else "no such file"
        if digest != expected:
            fail(file, "SHA-256", digest, expected)
    try:
        reasons = Counter(str(line.reason) for line in read_ledger(folder))
        if reasons != manifest.left_out:
            fail(LEDGER, "inputs left out", dict(reasons), manifest.left_out)
    except UserError as error:
        fail(LEDGER, error.what, error.met)
    if not manifest.samples:
        fail(MANIFEST, "a set without samples", 0, "at least one sample")
    counted = sum(shard.samples for shard in manifest.shards)
    if not counted == len(index) == manifest.samples:
        fail(MANIFEST, "samples", f"{counted} in shards, {len(index)} in the index", manifest.samples)
    if manifest.samples + sum(manifest.left_out.values()) != manifest.inputs:
        fail(MANIFEST, "samples + left out", manifest.samples + sum(manifest.left_out.values()), manifest.inputs)
    keys, counts = np.unique(index["key"], return_counts=True)
    for key in keys[counts > 1]:
        fail(INDEX, "key stands twice", key.decode("ascii", "replace"))
    listed = {shard.name for shard in manifest.shards}
    existing = {path.name for path in folder.glob("*.tar") if not is_hidden(path.name)}
    for name in sorted(existing - listed if names is None else names - listed):
        fail(name, "tar that the manifest does not list")
    if same_inputs is not None and not same_inputs(manifest, folder):
        fail(MANIFEST, "the raw files are not those of this set", "other names or sizes", f"{manifest.inputs} inputs")
    tasks = []
    for info, rows in zip(manifest.shards, positions_by_shard(index, len(manifest.shards)), strict=True):
        if names is not None and info.name not in names:
            continue
        if info.name in existing:
            tasks.append(_Task(folder, manifest, info, index[rows], derive))
        else:
            fail(info.name, "missing", "no such file", f"{info.bytes} bytes")
    return tasks


def _check_shard(task: _Task) -> Report:
    """Check one tar. Everything that can be read is checked, even where the checksum of the tar is wrong."""
    keep_freed_memory()
    report = Report()
    info = task.info
    path = task.folder / info.name

    def fail(key: str, what: str, found: object = "", expected: object = "") -> None:
        report.fail(Failure(str(path), key, "", what, str(found), str(expected)))

    try:
        tar = MappedTar(path)
    except BadShard as error:
        fail("", error.what, error.met, error.wanted)
        return report
    if len(tar) != info.bytes:
        fail("", "size of the tar", f"{len(tar)} bytes", f"{info.bytes} bytes")
    digest = hashlib.sha256()
    for start in range(0, len(tar), _CHUNK):
        digest.update(tar.view[start : start + _CHUNK])
    if digest.hexdigest() != info.sha256:
        fail("", "SHA-256", digest.hexdigest(), info.sha256)
    end = 0
    for row in task.rows:
        key = row["key"].decode("ascii", "replace")
        offset = int(row["offset"])
        size = int(row["size"])
        if offset != end:
            fail(key, "place in the tar", f"byte {offset}", f"byte {end}, where the sample before ends")
        end = offset + size
        if end > len(tar):
            fail(key, "place in the tar", f"up to byte {end}", f"up to byte {len(tar)}")
            continue
        if (checksum := crc32(tar.view[offset:end])) != row["crc32"]:
            fail(key, "CRC-32 of the sample", checksum, row["crc32"])
        SampleChecker(report, str(path), key, task.manifest, task.derive).check(tar, row)
        report.samples += 1
    rest = tar.view[end:]
    padding = 2 * BLOCK + -(end + 2 * BLOCK) % RECORDSIZE
    if len(rest) != padding or any(rest):
        fail("", "end of archive", f"{len(rest)} bytes after the last sample", f"{padding} zeros")
    if report.samples != info.samples:
        fail("", "samples", report.samples, info.samples)
    return report
