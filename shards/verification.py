"""Is a shard set what `docs/FORMAT.md` says? Checked from the bytes of the tars up to the agreement of the formats."""

from __future__ import annotations

import glob
import hashlib
import multiprocessing as mp
import zlib
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

from shards import codec
from shards.agree import pictures_agree, regions_agree
from shards.archive import BLOCK, MappedTar, group_members, plain_header
from shards.errors import BadShard, UserError
from shards.format import INDEX, KEY, LEDGER, MANIFEST, META_EXTENSION, Field, frame_fields
from shards.groups import groups_of
from shards.hidden import is_hidden
from shards.lossy import ROUNDED, Psnr, psnr, ratios_of
from shards.manifest import Manifest, ShardInfo, positions_by_shard, read_index, read_ledger, sha256
from shards.memory import keep_freed_memory
from shards.meta import check_meta, parse_meta
from shards.reader import decode_field, stored_fields
from shards.recipe import Recipe
from shards.report import Failure, FieldRow, Report
from shards.sample import Sample, usable_objects
from shards.sets import find_sets

Derive = Callable[[dict[str, Any], Manifest], Sample]
Array = NDArray[Any]
_CHUNK = 1 << 24
_AT_ONCE = 16  # masks that are unpacked at a time, a megabyte each
_DECODERS = 0.05  # dB; what another version of the JPEG library may round otherwise


@dataclass(frozen=True)
class _Shard:
    """One shard's work, as a worker process gets it."""

    folder: Path
    manifest: Manifest
    info: ShardInfo
    rows: Array
    derive: Derive | None


def verify(
    paths: Sequence[str | Path],
    derive: Derive | None = None,
    same_inputs: Callable[[Manifest], bool] | None = None,
    workers: int = 1,
    allow_lossy: bool = False,
) -> Report:
    """Check tars, shard sets, folders of sets, or patterns such as shards/sav*.

    Args:
        derive: makes a sample again from the raw files, given its JSON and the manifest; every bit must be equal, or
            the PSNR of a lossy set's pictures the one that was told. Raises `UserError` where it cannot. Picklable, if
            there are several workers.
        same_inputs: whether the raw files are those that a set was made from.
        workers: processes; each takes one shard at a time.
        allow_lossy: check sets of lossy pictures too; else each of them is a failure.

    Raises:
        UserError: a path that leads nowhere.
    """
    report, work = Report(), []
    for folder, names in _requested(paths).items():
        work += _check_set(folder, names, derive, same_inputs, report, allow_lossy)
    total = sum(shard.info.samples for shard in work)
    lost: dict[Path, array[float]] = {}
    with tqdm(total=total, unit="sample", desc="verify", mininterval=0.5) as bar:
        for folder, done in _check_all(work, workers):
            report.merge(done)
            lost.setdefault(folder, array("d")).extend(done.lost)
            bar.update(done.samples)
    sets = {shard.folder: shard.manifest for shard in work}
    wanted = sum(manifest.objects for manifest in sets.values())
    whole = len(work) == sum(len(manifest.shards) for manifest in sets.values())
    if whole and report.ok and report.objects != wanted:
        place = ", ".join(str(folder / MANIFEST) for folder in sets)
        report.fail(Failure(place, "", "", "objects", str(report.objects), str(wanted)))
    for folder, manifest in sets.items():
        if manifest.psnr:
            report.lossy.append(f"{folder}: {manifest.pictures}")
            if len(manifest.shards) == sum(shard.folder == folder for shard in work):
                _check_psnr(folder, manifest.psnr, Psnr.of(lost[folder]), report)
    report.fields = dict(sorted(report.fields.items(), key=lambda item: _order(item[0])))
    return report


def _check_psnr(folder: Path, told: Psnr, met: Psnr | None, report: Report) -> None:
    """What the manifest says was lost is what the samples say of themselves."""
    if met is None or abs(met.min - told.min) > ROUNDED or abs(met.mean - told.mean) > 2 * ROUNDED:
        report.fail(Failure(str(folder / MANIFEST), "", "", "PSNR", str(told), f"{met}, as the samples say"))


def _mask_size(item: dict[str, Any], frame: int, meta: dict[str, Any]) -> tuple[int, int]:
    """(H, W) of an object's original mask in frame number `frame`: the picture's, unless the JSON says otherwise."""
    try:
        height, width = item["mask_sizes"][frame]
        if min(int(height), int(width)) >= 1:
            return int(height), int(width)
    except (KeyError, IndexError, TypeError, ValueError):
        pass
    return int(meta["height"]), int(meta["width"])


def _order(name: str) -> tuple[int, str]:
    field = Field.parse(name)
    return field.frame or 0, {"pixel_values": "0", "g_pixel_values": "1", "prompt_masks": "2"}.get(field.name, "3")


def _check_all(work: list[_Shard], workers: int) -> Iterator[tuple[Path, Report]]:
    if workers == 1 or len(work) <= 1:
        yield from ((shard.folder, _check_shard(shard)) for shard in work)
        return
    with ProcessPoolExecutor(min(workers, len(work)), mp_context=mp.get_context("spawn")) as pool:
        try:
            folders = {pool.submit(_check_shard, shard): shard.folder for shard in work}
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
    same_inputs: Callable[[Manifest], bool] | None,
    report: Report,
    allow_lossy: bool,
) -> list[_Shard]:
    """Check what the set says of itself; return the shards that are there to be checked."""

    def fail(file: str, what: str, met: object = "", wanted: object = "") -> None:
        report.fail(Failure(str(folder / file), "", "", what, str(met), str(wanted)))

    try:
        manifest, index = Manifest.read(folder), read_index(folder)
    except UserError as error:
        report.fail(Failure(error.where, "", "", error.what, error.met, error.wanted or error.do))
        return []
    if manifest.psnr and not allow_lossy:
        fail(MANIFEST, "a lossy set", manifest.pictures, "a lossless one, or --allow-lossy")
        return []
    for file, wanted in ((INDEX, manifest.index_sha256), (LEDGER, manifest.ledger_sha256)):
        path = folder / file
        if not path.is_file() or (met := sha256(path.read_bytes())) != wanted:
            fail(file, "SHA-256", met if path.is_file() else "no such file", wanted)
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
    known = {shard.name for shard in manifest.shards}
    there = {path.name for path in folder.glob("*.tar") if not is_hidden(path.name)}
    for name in sorted(there - known if names is None else names - known):
        fail(name, "tar that the manifest does not list")
    if same_inputs is not None and not same_inputs(manifest):
        fail(MANIFEST, "the raw files are not those of this set", "other names or sizes", f"{manifest.inputs} inputs")
    work = []
    for info, rows in zip(manifest.shards, positions_by_shard(index, len(manifest.shards)), strict=True):
        if names is not None and info.name not in names:
            continue
        if info.name in there:
            work.append(_Shard(folder, manifest, info, index[rows], derive))
        else:
            fail(info.name, "missing", "no such file", f"{info.bytes} bytes")
    return work


def _check_shard(shard: _Shard) -> Report:
    """Check one tar. Everything that can still be read is checked even where its checksum fails."""
    keep_freed_memory()
    report, path, info = Report(), shard.folder / shard.info.name, shard.info

    def fail(key: str, field: str, what: str, met: object = "", wanted: object = "") -> None:
        report.fail(Failure(str(path), key, field, what, str(met), str(wanted)))

    try:
        tar = MappedTar(path)
    except BadShard as error:
        fail("", "", error.what, error.met, error.wanted)
        return report
    if len(tar) != info.bytes:
        fail("", "", "size of the tar", f"{len(tar)} bytes", f"{info.bytes} bytes")
    digest = hashlib.sha256()
    for start in range(0, len(tar), _CHUNK):
        digest.update(tar.view[start : start + _CHUNK])
    if digest.hexdigest() != info.sha256:
        fail("", "", "SHA-256", digest.hexdigest(), info.sha256)
    end = 0
    for row in shard.rows:
        key, offset, size = row["key"].decode("ascii", "replace"), int(row["offset"]), int(row["size"])
        if offset != end:
            fail(key, "", "place in the tar", f"byte {offset}", f"byte {end}, where the sample before ends")
        end = offset + size
        if end > len(tar):
            fail(key, "", "place in the tar", f"up to byte {end}", f"up to byte {len(tar)}")
            continue
        if (crc32 := zlib.crc32(tar.view[offset:end])) != row["crc32"]:
            fail(key, "", "CRC-32 of the sample", crc32, row["crc32"])
        _Checker(report, str(path), key, shard).check(tar, row)
        report.samples += 1
    rest, wanted = tar.view[end:], 2 * BLOCK + -(end + 2 * BLOCK) % RECORDSIZE
    if len(rest) != wanted or any(rest):
        fail("", "", "end of archive", f"{len(rest)} bytes after the last sample", f"{wanted} zeros")
    if report.samples != info.samples:
        fail("", "", "samples", report.samples, info.samples)
    return report


class _Checker:
    """Checks one sample."""

    def __init__(self, report: Report, path: str, key: str, shard: _Shard) -> None:
        self.report, self.path, self.key, self.shard = report, path, key, shard
        self.recipe: Recipe = shard.manifest.recipe

    def fail(self, field: object, what: str, met: object = "", wanted: object = "") -> None:
        self.report.fail(Failure(self.path, self.key, str(field), what, str(met), str(wanted)))

    def check(self, tar: MappedTar, row: Any) -> None:
        """Check the sample where `row` of the index says that it stands."""
        try:
            stored = list(tar.members(int(row["offset"]), int(row["size"])))
            self._check_headers(tar, stored)
            groups = list(group_members(iter(stored)))
            if len(groups) != 1 or groups[0][0] != self.key or not KEY.fullmatch(self.key):
                self.fail("", "members of one sample", [group[0] for group in groups], f"key {self.key}")
                return
            members = groups[0][2]
            if META_EXTENSION not in members:
                self.fail(META_EXTENSION, "sample without JSON", sorted(members), f"{self.key}.{META_EXTENSION}")
                return
            meta = parse_meta(members[META_EXTENSION])
            fields = stored_fields(meta, members, self.shard.manifest.codec, self.shard.manifest.version)
        except BadShard as error:
            self.fail("", error.what, error.met, error.wanted)
            return
        self._check_meta(meta)
        told = self._told(meta, fields)
        arrays: dict[Field, Array] = {}
        for field, data in fields.items():
            self._begin(field, len(meta["objects"]))
            if (crc32 := zlib.crc32(data)) != meta["crc32"].get(str(field)):
                self.fail(field, "CRC-32", crc32, meta["crc32"].get(str(field)))
            try:
                arrays[field] = self._decode(field, data, len(meta["objects"]))
            except BadShard as error:
                self.fail(field, error.what, error.met, error.wanted)
            except MemoryError as error:
                self.fail(field, "does not fit in this machine's memory", error, "a machine with more")
        self.report.objects += len(meta["objects"])
        self._check_emptiness(meta, arrays)
        self._check_pair(meta, arrays)
        self._check_usable(meta, arrays, row)
        self._check_groups(meta, row)
        if len(arrays) == len(fields):
            self._check_agreement(meta, arrays)
            if self.shard.derive is not None:
                self._check_against(meta, arrays, self.shard.derive, told)

    def _told(self, meta: dict[str, Any], fields: dict[Field, memoryview]) -> dict[Field, float]:
        """The PSNR of each picture, as the JSON of a sample of a lossy set has it."""
        pictures = [field for field in fields if field.is_picture]
        try:
            self.report.lost.extend(ratios_of(meta, pictures, bool(self.shard.manifest.psnr)))
        except BadShard as error:
            self.fail(META_EXTENSION, error.what, error.met, error.wanted)
            return {}
        return {field: meta["psnr"][str(field)] for field in pictures} if self.shard.manifest.psnr else {}

    def _begin(self, field: Field, objects: int) -> None:
        shape = field.shape(self.recipe, objects)
        text = ("(N, " if field.name in ("masks", "prompt_masks") else f"({shape[0]}, ") + f"{shape[1]}, {shape[2]})"
        row = self.report.fields.setdefault(str(field), FieldRow(str(field), text, str(field.dtype)))
        row.samples += 1

    def _check_meta(self, meta: dict[str, Any]) -> None:
        try:
            check_meta(meta)
        except BadShard as error:
            self.fail(META_EXTENSION, error.what, error.met, error.wanted)
        for name in ("source", "dataset_type"):
            if meta.get(name) != self.shard.manifest.source:
                self.fail(META_EXTENSION, name, repr(meta.get(name))[:80], repr(self.shard.manifest.source))
        if meta["crc32"].keys() != {str(field) for field in frame_fields(len(meta["frames"]))}:
            self.fail(META_EXTENSION, "crc32", ", ".join(map(str, meta["crc32"]))[:80], "a number for each field")

    def _check_headers(self, tar: MappedTar, stored: Sequence[tuple[int, str, memoryview]]) -> None:
        """Headers are plain ones, and what fills a member's last block is zeros."""
        for offset, name, data in stored:
            begin = offset + BLOCK + len(data)
            if tar.view[offset : offset + BLOCK] != plain_header(name.encode("ascii"), len(data)):
                self.fail("", "header of a member", name, "mode 0644, time 0, owner 0, ustar")
            elif any(tar.view[begin : begin + -len(data) % BLOCK]):
                self.fail("", "padding of a member", name, "zeros")

    def _decode(self, field: Field, data: memoryview, objects: int) -> Array:
        """What is stored of `field` (pictures before normalisation), with its shape, dtype and range noted."""
        wanted = field.shape(self.recipe, objects)
        if field.name == "masks" and (count := codec.count_masks(data)) != objects:
            raise BadShard("number of masks", met=str(count), wanted=f"{objects}, as in the JSON")
        stored: Array
        if field.name in ("masks", "prompt_masks"):
            # Masks stay packed, an eighth of the memory, until they are compared.
            stored = value = decode_field(field, data, self.recipe, as_stored=True)
        else:
            stored = value = codec.decode_picture(data, wanted[1])
        if field.name == "pixel_values":
            value = codec.normalise(stored, self.recipe.mean, self.recipe.std)
        if field.name == "masks":
            self._note_range(field, bool((value == 255).all()), bool(value.any()))
            return stored
        if value.shape != wanted or value.dtype != field.dtype:
            raise BadShard("shape and dtype", met=f"{value.shape} {value.dtype}", wanted=f"{wanted} {field.dtype}")
        self._note_range(field, value.min(), value.max())
        return stored

    def _note_range(self, field: Field, least: float, most: float) -> None:
        row = self.report.fields[str(field)]
        row.min, row.max = min(row.min, float(least)), max(row.max, float(most))

    def _check_emptiness(self, meta: dict[str, Any], arrays: dict[Field, Array]) -> None:
        """Both frames of a pair show the object; of other samples at least one frame."""
        empty = [field for field, array in arrays.items() if field.name == "masks" and not array.any()]
        if meta.get("has_paired_frame") is True or len(empty) == len(meta["frames"]):
            for field in empty:
                self.fail(field, "all masks are empty", "0 pixels", "an object")

    def _check_pair(self, meta: dict[str, Any], arrays: dict[Field, Array]) -> None:
        """The pair flag says whether there are two frames and both show one of the objects.

        One that is there has a prompt cell, though none of its pixels may have come into `masks`.
        """
        objects, frames = len(meta["objects"]), len(meta["frames"])
        regions = [array for field, array in arrays.items() if not field.is_picture]
        if [len(array) for array in regions] == [objects] * (2 * frames) and self.recipe.min_prompt_cells:
            there = [array.reshape(objects, -1).any(axis=1) for array in regions]
            paired = frames == 2 and bool(((there[0] | there[1]) & (there[2] | there[3])).any())
            if meta.get("has_paired_frame") is not paired:
                told = meta.get("has_paired_frame")
                self.fail(META_EXTENSION, "has_paired_frame", told, f"{paired}, as the regions say")

    def _check_usable(self, meta: dict[str, Any], arrays: dict[Field, Array], row: Any) -> None:
        """The index counts the objects that a trainer can ask for."""
        prompts = [array for field, array in arrays.items() if field.name == "prompt_masks"]
        if [len(cells) for cells in prompts] == [len(meta["objects"])] * len(meta["frames"]):
            wanted, met = usable_objects(meta["objects"], prompts), (int(row["texts"]), int(row["regions"]))
            if met != wanted:
                self.fail("", "objects with a text, with a region, in the index", met, wanted)

    def _check_groups(self, meta: dict[str, Any], row: Any) -> None:
        """The index says which samples show the same thing; sets of older releases say nothing, or 0."""
        wanted = groups_of(self.key, str(meta.get("path", "")), len(meta["frames"]))
        for name, value in wanted._asdict().items():
            if name in row.dtype.names and row[name] not in (0, value):
                self.fail("", f"{name} in the index", int(row[name]), value)

    def _check_agreement(self, meta: dict[str, Any], arrays: dict[Field, Array]) -> None:
        pictures, names = [], []
        for i, frame in enumerate(meta["frames"]):
            number = None if len(meta["frames"]) == 1 else i + 1
            pictures.append((arrays[Field("pixel_values", number)], arrays[Field("g_pixel_values", number)]))
            names.append(str(Field("g_pixel_values", number)))
            field = Field("prompt_masks", number)
            prompts, masks = arrays[field], arrays[Field("masks", number)]
            by_size: dict[tuple[int, int], list[int]] = {}
            for n, item in enumerate(meta["objects"]):
                by_size.setdefault(_mask_size(item, i, frame), []).append(n)
            for (height, width), own in sorted(by_size.items()):
                for some in (own[start : start + _AT_ONCE] for start in range(0, len(own), _AT_ONCE)):
                    unpacked = np.unpackbits(masks[some], axis=2).view(np.bool_)
                    for found in regions_agree(prompts[some], unpacked, height, width, self.recipe, field):
                        self.fail(found.field, found.what, found.met, found.wanted)
        for found in pictures_agree(pictures, names):
            self.fail(found.field, found.what, found.met, found.wanted)

    def _check_against(
        self, meta: dict[str, Any], arrays: dict[Field, Array], derive: Derive, told: dict[Field, float]
    ) -> None:
        try:
            again = derive(meta, self.shard.manifest)
        except UserError as error:
            self.fail("", f"cannot be derived again: {error.what}", error.met, error.wanted)
            return
        if again.key != self.key:
            self.fail("", "key", self.key, again.key)
        for name in again.meta.keys() | (meta.keys() - {"crc32", "psnr"}):
            if meta.get(name) != again.meta.get(name):
                self.fail(META_EXTENSION, name, str(meta.get(name))[:200], str(again.meta.get(name))[:200])
        if len(again.frames) != len(meta["frames"]):
            return
        for field, met in arrays.items():
            wanted = getattr(again.frames[(field.frame or 1) - 1], field.name)
            if field.name == "masks":
                wanted = np.packbits(wanted, axis=2)
            if met.shape != wanted.shape:
                self.fail(field, "not what the raw file gives", met.shape, wanted.shape)
            elif field in told:
                if abs((ratio := psnr(met, wanted)) - told[field]) > _DECODERS:
                    self.fail(field, "PSNR against what the raw file gives", f"{ratio:.2f} dB", f"{told[field]:.2f} dB")
            elif differing := int(np.count_nonzero(met != wanted)):
                self.fail(field, "not what the raw file gives", f"{differing} other values", "every bit equal")
