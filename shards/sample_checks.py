"""Checking one sample: its members, JSON and arrays, whether they agree, and whether the raw files give the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards import codec
from shards.archive import BLOCK, MappedTar, group_members, plain_header
from shards.checksum import crc32
from shards.errors import BadShard, UserError
from shards.format import KEY, META_EXTENSION, Field
from shards.groups import groups_of
from shards.lossy import psnr, recorded_psnr
from shards.manifest import Manifest
from shards.meta import check_meta, parse_meta
from shards.reader import decode_field, stored_fields
from shards.report import Failure, FieldRow, Report
from shards.same_picture import Measured, measure, picture_disagreements
from shards.same_region import region_disagreements
from shards.sample import Sample, letters_of, usable_objects

Derive = Callable[[dict[str, Any], Manifest], Sample]
"""Makes a sample again from the raw files, given its JSON and the manifest. Raises `UserError` where it cannot."""
Array = NDArray[Any]
_MASKS_AT_ONCE = 16  # that are compared with one another's prompts
_JPEG_TOLERANCE = 0.05  # dB; what another version of the JPEG library may round differently


class SampleChecker:
    """Checks one sample and adds what it finds to a report.

    Args:
        path: of the tar, for messages.
        key: of the sample.
        derive: makes the sample again, to compare every bit; None: without the raw files.
    """

    def __init__(self, report: Report, path: str, key: str, manifest: Manifest, derive: Derive | None) -> None:
        self.report = report
        self.path = path
        self.key = key
        self.manifest = manifest
        self.recipe = manifest.recipe
        self.derive = derive
        self._measured: dict[Field, Measured] = {}
        """Of each picture that was decoded."""

    def _fail(self, field: object, what: str, met: object = "", wanted: object = "") -> None:
        self.report.fail(Failure(self.path, self.key, str(field), what, str(met), str(wanted)))

    def check(self, tar: MappedTar, row: Any) -> None:
        """Check the sample that `row` of the index points at."""
        try:
            found = list(tar.members(int(row["offset"]), int(row["size"])))
            self._check_headers(tar, found)
            groups = list(group_members(iter(found)))
            if len(groups) != 1 or groups[0][0] != self.key or not KEY.fullmatch(self.key):
                self._fail("", "members of one sample", [group[0] for group in groups], f"key {self.key}")
                return
            members = groups[0][2]
            if META_EXTENSION not in members:
                self._fail(META_EXTENSION, "sample without JSON", sorted(members), f"{self.key}.{META_EXTENSION}")
                return
            meta = parse_meta(members[META_EXTENSION])
            self.manifest.check_sample(len(meta["frames"]), bool(meta["objects"]))
            fields = stored_fields(meta, members, self.manifest.codec, self.manifest.version)
        except BadShard as error:
            self._fail("", error.what, error.met, error.wanted)
            return
        self._check_meta(meta, fields)
        recorded = self._recorded_psnr(meta, fields)
        arrays: dict[Field, Array] = {}
        for field, data in fields.items():
            self._count(field, len(meta["objects"]))
            if (checksum := crc32(data)) != meta["crc32"].get(str(field)):
                self._fail(field, "CRC-32", checksum, meta["crc32"].get(str(field)))
            try:
                arrays[field] = self._decode(field, data, len(meta["objects"]))
            except BadShard as error:
                self._fail(field, error.what, error.met, error.wanted)
            except MemoryError as error:
                self._fail(field, "does not fit in this machine's memory", error, "a machine with more")
        self.report.objects += len(meta["objects"])
        self._check_emptiness(meta, arrays)
        self._check_pair(meta, arrays)
        self._check_usable(meta, arrays, row)
        self._check_groups(meta, row)
        if len(arrays) == len(fields):
            self._check_agreement(meta, arrays)
            if self.derive is not None:
                self._check_against(meta, arrays, self.derive, recorded)

    def _recorded_psnr(self, meta: dict[str, Any], fields: dict[Field, memoryview]) -> dict[Field, float]:
        """Return the PSNR in dB of each picture, as recorded in the JSON; {} for a lossless set."""
        pictures = [field for field in fields if field.is_picture]
        try:
            self.report.psnr.extend(recorded_psnr(meta, pictures, bool(self.manifest.psnr)))
        except BadShard as error:
            self._fail(META_EXTENSION, error.what, error.met, error.wanted)
            return {}
        return {field: meta["psnr"][str(field)] for field in pictures} if self.manifest.psnr else {}

    def _count(self, field: Field, objects: int) -> None:
        row = self.report.fields.get(str(field))
        if row is None:
            shape = field.shape(self.recipe, objects)
            text = (f"({shape[0]}, " if field.is_picture else "(N, ") + f"{shape[1]}, {shape[2]})"
            row = self.report.fields[str(field)] = FieldRow(str(field), text, str(field.dtype))
        row.samples += 1

    def _check_meta(self, meta: dict[str, Any], fields: Iterable[Field]) -> None:
        """The JSON follows the format, names the set's source and has a checksum per field."""
        try:
            check_meta(meta)
        except BadShard as error:
            self._fail(META_EXTENSION, error.what, error.met, error.wanted)
        for name in ("source", "dataset_type"):
            if meta.get(name) != self.manifest.source:
                self._fail(META_EXTENSION, name, repr(meta.get(name))[:80], repr(self.manifest.source))
        if meta["crc32"].keys() != {*map(str, fields)}:
            self._fail(META_EXTENSION, "crc32", ", ".join(map(str, meta["crc32"]))[:80], "a number for each field")

    def _check_headers(self, tar: MappedTar, members: Sequence[tuple[int, str, memoryview]]) -> None:
        """Headers are plain, and zeros fill the last block of each member."""
        for offset, name, data in members:
            begin = offset + BLOCK + len(data)
            if tar.view[offset : offset + BLOCK] != plain_header(name.encode("ascii"), len(data)):
                self._fail("", "header of a member", name, "mode 0644, time 0, owner 0, ustar")
            elif bytes(tar.view[begin : begin + -len(data) % BLOCK]).strip(b"\0"):
                self._fail("", "padding of a member", name, "zeros")

    def _decode(self, field: Field, data: memoryview, objects: int) -> Array:
        """Decode what is stored of `field`: pictures before normalisation, masks packed. Note its range.

        Raises:
            BadShard: it cannot be decoded, or has another shape or dtype.
        """
        expected = field.shape(self.recipe, objects)
        if field.name == "masks" and (count := codec.count_masks(data)) != objects:
            raise BadShard("number of masks", met=str(count), wanted=f"{objects}, as in the JSON")
        if field.is_picture:
            picture = codec.decode_picture(data, expected[1])
            self._measured[field] = measured = measure(picture)
            ends: Array = measured.ends
            if field.name == "pixel_values":  # it rises with the stored value: the ends of each channel are enough
                ends = codec.normalise(ends[..., None], self.recipe.mean, self.recipe.std)
            self._note_range(field, ends.min(), ends.max())
            return picture
        # Masks stay packed until they are compared: an eighth of the memory.
        regions = decode_field(field, data, self.recipe, as_stored=True)
        if field.name == "masks":
            self._note_range(field, bool(regions.min(initial=255) == 255), bool(regions.max(initial=0)))
            return regions
        if regions.shape != expected or regions.dtype != field.dtype:
            met = f"{regions.shape} {regions.dtype}"
            raise BadShard("shape and dtype", met=met, wanted=f"{expected} {field.dtype}")
        self._note_range(field, regions.min(), regions.max())
        return regions

    def _note_range(self, field: Field, least: float, most: float) -> None:
        row = self.report.fields[str(field)]
        row.min = min(row.min, float(least))
        row.max = max(row.max, float(most))

    def _check_emptiness(self, meta: dict[str, Any], arrays: dict[Field, Array]) -> None:
        """Both frames of a pair show an object; of other samples at least one frame."""
        empty = [field for field, array in arrays.items() if field.name == "masks" and not array.max(initial=0)]
        if meta.get("has_paired_frame") is True or len(empty) == len(meta["frames"]):
            for field in empty:
                self._fail(field, "all masks are empty", "0 pixels", "an object")

    def _check_pair(self, meta: dict[str, Any], arrays: dict[Field, Array]) -> None:
        """The pair flag is true if and only if there are two frames and both show one of the objects.

        An object in a frame has a prompt cell, though `masks` may have none of its pixels.
        """
        objects = len(meta["objects"])
        frames = len(meta["frames"])
        regions = [array for field, array in arrays.items() if not field.is_picture]
        if not objects and meta.get("has_paired_frame") is True:
            self._fail(META_EXTENSION, "has_paired_frame", True, "False, as there are no objects")
        elif objects and [len(array) for array in regions] == [objects] * (2 * frames) and self.recipe.min_prompt_cells:
            visible = [array.reshape(objects, -1).max(axis=1) > 0 for array in regions]
            paired = frames == 2 and bool(((visible[0] | visible[1]) & (visible[2] | visible[3])).any())
            flag = meta.get("has_paired_frame")
            if flag is not paired:
                self._fail(META_EXTENSION, "has_paired_frame", flag, f"{paired}, as the regions say")

    def _check_usable(self, meta: dict[str, Any], arrays: dict[Field, Array], row: Any) -> None:
        """The index has the right counts: of objects that a trainer can ask for, and of frames and letters.

        Sets of older releases have no columns of the latter.
        """
        for name, count in (("frames", len(meta["frames"])), ("letters", letters_of(meta))):
            if name in row.dtype.names and row[name] != count:
                self._fail("", f"{name} in the index", int(row[name]), count)
        prompts = [array for field, array in arrays.items() if field.name == "prompt_masks"]
        if not meta["objects"] or [len(cells) for cells in prompts] == [len(meta["objects"])] * len(meta["frames"]):
            expected = usable_objects(meta["objects"], prompts)
            counts = int(row["texts"]), int(row["regions"])
            if counts != expected:
                self._fail("", "objects with a text, with a region, in the index", counts, expected)

    def _check_groups(self, meta: dict[str, Any], row: Any) -> None:
        """The index has the sample's groups. Sets of older releases have no such columns, or 0."""
        expected = groups_of(self.key, str(meta.get("path", "")), len(meta["frames"]))
        for name, value in expected._asdict().items():
            if name in row.dtype.names and row[name] not in (0, value):
                self._fail("", f"{name} in the index", int(row[name]), value)

    def _check_agreement(self, meta: dict[str, Any], arrays: dict[Field, Array]) -> None:
        """The formats of each frame agree with one another."""
        pictures = []
        measured = []
        names = []
        for i, frame in enumerate(meta["frames"]):
            number = None if len(meta["frames"]) == 1 else i + 1
            large = Field("g_pixel_values", number)
            if large in arrays:
                small = Field("pixel_values", number)
                pictures.append((arrays[small], arrays[large]))
                measured.append((self._measured[small], self._measured[large]))
                names.append(str(large))
            if not meta["objects"]:
                continue
            field = Field("prompt_masks", number)
            prompts = arrays[field]
            masks = arrays[Field("masks", number)]
            by_size: dict[tuple[int, int], list[int]] = {}
            for n, item in enumerate(meta["objects"]):
                by_size.setdefault(_mask_size(item, i, frame), []).append(n)
            for (height, width), objects in sorted(by_size.items()):
                for start in range(0, len(objects), _MASKS_AT_ONCE):
                    some = objects[start : start + _MASKS_AT_ONCE]
                    for found in region_disagreements(prompts[some], masks[some], height, width, self.recipe, field):
                        self._fail(found.field, found.what, found.met, found.wanted)
        for found in picture_disagreements(pictures, names, measured):
            self._fail(found.field, found.what, found.met, found.wanted)

    def _check_against(
        self, meta: dict[str, Any], arrays: dict[Field, Array], derive: Derive, recorded: dict[Field, float]
    ) -> None:
        """The sample is what the raw files give now, bit for bit; a lossy picture has its recorded PSNR."""
        try:
            again = derive(meta, self.manifest)
        except UserError as error:
            self._fail("", f"cannot be derived again: {error.what}", error.met, error.wanted)
            return
        if again.key != self.key:
            self._fail("", "key", self.key, again.key)
        for name in again.meta.keys() | (meta.keys() - {"crc32", "psnr"}):
            if meta.get(name) != again.meta.get(name):
                self._fail(META_EXTENSION, name, str(meta.get(name))[:200], str(again.meta.get(name))[:200])
        if (found := [*map(str, arrays)]) != (expected := [*map(str, again.fields)]):
            self._fail("", "fields", ", ".join(found), ", ".join(expected))
            return
        for field, stored in arrays.items():
            derived = getattr(again.frames[(field.frame or 1) - 1], field.name)
            if field.name == "masks":
                derived = np.packbits(derived, axis=2)
            if stored.shape != derived.shape:
                self._fail(field, "not what the raw file gives", stored.shape, derived.shape)
            elif field in recorded:
                ratio = psnr(stored, derived)
                if abs(ratio - recorded[field]) > _JPEG_TOLERANCE:
                    what = "PSNR against what the raw file gives"
                    self._fail(field, what, f"{ratio:.2f} dB", f"{recorded[field]:.2f} dB")
            elif differing := int(np.count_nonzero(stored != derived)):
                self._fail(field, "not what the raw file gives", f"{differing} other values", "every bit equal")


def _mask_size(item: dict[str, Any], frame: int, meta: dict[str, Any]) -> tuple[int, int]:
    """Return (H, W) of an object's original mask in frame `frame`, from 0: the picture's, unless the JSON differs."""
    try:
        height, width = item["mask_sizes"][frame]
        if min(int(height), int(width)) >= 1:
            return int(height), int(width)
    except (KeyError, IndexError, TypeError, ValueError):
        pass
    return int(meta["height"]), int(meta["width"])
