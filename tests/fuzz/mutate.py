"""Damage the files of a layout: their bytes, their content, and their places in folders."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import random
import shutil
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.pickles import read_pickle
from tests.fuzz import values

LEAVES = (".jpg", ".jpeg", ".png", ".npz", ".mp4")
"""Files that hold the data of one input or object. Annotations and archives decide which inputs there are."""
MARK = "EXECUTED"
"""Name of the file, in the folder above the layout, that hostile input would make if any of it were run."""


@dataclass(frozen=True)
class Mutation:
    kind: str
    path: str
    """Relative to the layout's root."""
    within: bool
    """True where only the content of a leaf changed: the inputs must be the same."""

    def __str__(self) -> str:
        return f"{self.kind} {self.path!a}"


def mutate(root: Path, draw: random.Random) -> list[Mutation]:
    """Damage one to three files below `root`, which may be hard links: a changed file is always a new one."""
    done: list[Mutation] = []
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
        if not files:
            break
        file = draw.choice(files)
        name = file.relative_to(root).as_posix()
        fits = [kind for suffixes, kind in _CONTENT if file.suffix.lower() in suffixes]
        chance = draw.random()
        if fits and chance < 0.5:
            change = draw.choice(fits)
            within = True
        elif chance < 0.85:
            change = draw.choice(_BYTES)
            within = True
        else:
            change = draw.choice(_PLACES)
            within = False
        with suppress(Exception):  # an earlier change may have left nothing to read
            change(file, draw)
            within = within and file.suffix.lower() in LEAVES and not os.path.islink(file)
            done.append(Mutation(change.__name__.strip("_"), name, within))
    return done


def _write(file: Path, data: bytes) -> None:
    file.unlink(missing_ok=True)  # it may be a hard link to the sound one
    file.write_bytes(data)


# Bytes


def _flip_bit(file: Path, draw: random.Random) -> None:
    data = bytearray(file.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    _write(file, bytes(data))


def _flip_bit_near_the_start(file: Path, draw: random.Random) -> None:
    data = bytearray(file.read_bytes())
    data[draw.randrange(min(len(data), 600))] ^= 1 << draw.randrange(8)
    _write(file, bytes(data))


def _random_bytes(file: Path, draw: random.Random) -> None:
    data = bytearray(file.read_bytes())
    for _ in range(draw.choice([2, 8, 64])):
        data[draw.randrange(len(data))] = draw.randrange(256)
    _write(file, bytes(data))


def _truncate(file: Path, draw: random.Random) -> None:
    data = file.read_bytes()
    _write(file, data[: draw.choice([0, 1, len(data) // 2, len(data) - 1, draw.randrange(len(data))])])


def _cut_middle(file: Path, draw: random.Random) -> None:
    data = file.read_bytes()
    start = draw.randrange(len(data))
    _write(file, data[:start] + data[start + draw.choice([1, 100, 5000]) :])


def _repeat_block(file: Path, draw: random.Random) -> None:
    data = file.read_bytes()
    start = draw.randrange(len(data))
    block = data[start : start + draw.choice([1, 64, 4096])]
    _write(file, data[:start] + block * draw.choice([2, 3, 50]) + data[start:])


def _zeros(file: Path, draw: random.Random) -> None:
    data = bytearray(file.read_bytes())
    start = draw.randrange(len(data))
    length = draw.choice([4, 512, 8192])
    data[start : start + length] = bytes(len(data[start : start + length]))
    _write(file, bytes(data))


def _append(file: Path, draw: random.Random) -> None:
    _write(file, file.read_bytes() + draw.choice([b"\n", b"\0" * 1024, b"]", b"x" * 70_000, b"\xff\xfe"]))


def _mark_in_front(file: Path, draw: random.Random) -> None:
    _write(file, draw.choice([b"\xef\xbb\xbf", b"\xff\xfe", b"\n", b" ", b"\0"]) + file.read_bytes())


def _pointer(file: Path, draw: random.Random) -> None:
    lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:%064x\nsize 12345\n" % draw.getrandbits(256)
    _write(file, draw.choice([lfs, b"/annex/objects/MD5E-s1--0.jpg\n", b"<!DOCTYPE html><html>404</html>"]))


def _gzip(file: Path, draw: random.Random) -> None:
    data = file.read_bytes()
    _write(file, gzip.compress(draw.choice([data, data, bytes(200 << 20)]), 1, mtime=0))


def _other_file(file: Path, draw: random.Random) -> None:
    others = sorted(path for path in file.parent.rglob("*") if path.is_file() and path != file)
    _write(file, draw.choice(others).read_bytes())


_BYTES: tuple[Callable[[Path, random.Random], None], ...] = (
    *(_flip_bit, _flip_bit_near_the_start, _random_bytes, _truncate, _cut_middle, _repeat_block, _zeros, _append),
    *(_mark_in_front, _pointer, _gzip, _other_file),
)


# Places


def _delete(file: Path, draw: random.Random) -> None:
    file.unlink()


def _folder_instead(file: Path, draw: random.Random) -> None:
    file.unlink()
    file.mkdir()


def _fifo_instead(file: Path, draw: random.Random) -> None:
    file.unlink()
    os.mkfifo(file)


def _link_to_nothing(file: Path, draw: random.Random) -> None:
    file.unlink()
    file.symlink_to(draw.choice(["nowhere", file.name, "/dev/zero", "/proc/self/mem"]))


def _folder_in_a_circle(file: Path, draw: random.Random) -> None:
    (file.parent / draw.choice(["more", "images", "a b"])).symlink_to(draw.choice([".", ".."]))


def _moved_behind_a_link(file: Path, draw: random.Random) -> None:
    folder = file.parent
    target = folder.with_name(f".{folder.name}.moved")
    folder.rename(target)
    folder.symlink_to(target.name)


def _rename(file: Path, draw: random.Random) -> None:
    stem = file.stem
    suffix = file.suffix
    names = [stem + suffix.upper(), f"._{file.name}", unicodedata.normalize("NFD", f"\u00e9{file.name}")]
    file.rename(file.with_name(draw.choice([*names, f"{file.name} ", f"{stem}\u2028{suffix}", f"[/red]{suffix}"])))


def _hidden_twin(file: Path, draw: random.Random) -> None:
    twin = draw.choice([f"._{file.name}", ".DS_Store", "Thumbs.db"])
    (file.parent / twin).write_bytes(b"\0\5\x16\7Mac OS X" + bytes(80))


def _odd_twin(file: Path, draw: random.Random) -> None:
    """Copy the file to a name that is not UTF-8, or into a folder below."""
    place = draw.choice([os.fsdecode(b"\xff\xfe") + file.suffix, f"again/{file.name}", f"x\n{file.suffix}"])
    (file.parent / place).parent.mkdir(exist_ok=True)
    shutil.copyfile(file, file.parent / place)


_PLACES: tuple[Callable[[Path, random.Random], None], ...] = (
    *(_delete, _folder_instead, _fifo_instead, _link_to_nothing, _folder_in_a_circle, _moved_behind_a_link, _rename),
    *(_hidden_twin, _odd_twin),
)


# Content


def _json(file: Path, draw: random.Random) -> None:
    tree = json.loads(file.read_bytes())
    for _ in range(draw.choice([1, 1, 2])):
        tree = values.changed(draw, tree)
    _write(file, values.as_text(draw, tree).encode("utf-8", "surrogatepass"))


def _json_deep(file: Path, draw: random.Random) -> None:
    """Nest a value a hundred thousand brackets deep."""
    text = file.read_text("utf-8")
    depth = 100_000
    places = [i for i, letter in enumerate(text) if letter == ":"]
    place = draw.choice(places) + 1
    deep = draw.choice(["[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth])
    _write(file, f"{text[:place]}{deep},{text[place:]}".encode())


def _json_encoding(file: Path, draw: random.Random) -> None:
    text = file.read_text("utf-8")
    codec = draw.choice(["utf-16", "utf-8-sig", "utf-16-le", "utf-32"])
    _write(file, text.encode(codec))


def _json_lines(file: Path, draw: random.Random) -> None:
    lines = file.read_text("utf-8").splitlines()
    place = draw.randrange(len(lines))
    with suppress(ValueError):
        lines[place] = values.as_text(draw, values.changed(draw, json.loads(lines[place])))
    _write(file, "\n".join(lines).encode("utf-8", "surrogatepass"))


def _table(file: Path, draw: random.Random) -> None:
    """Change a cell, a column or the separators of a CSV, or of another text of lines."""
    lines = file.read_text("utf-8").split("\n")
    place = draw.randrange(len(lines))
    kind = draw.randrange(6)
    cells = lines[place].split(",")
    if kind == 0:
        lines = lines[:place] + lines[place + 1 :]
    elif kind == 1:
        lines.append(lines[place])
    elif kind == 2:
        lines = [line.replace(",", draw.choice([";", "\t", ""])) for line in lines]
    elif kind == 3:
        lines[place] = ",".join(cells[: draw.randrange(len(cells) + 1)])
    elif kind == 4:
        lines[place] = '"' + lines[place]
    else:
        cells[draw.randrange(len(cells))] = str(values.value(draw))
        lines[place] = ",".join(cells)
    _write(file, "\n".join(lines).encode("utf-8", "surrogatepass"))


def _picture_mode(file: Path, draw: random.Random) -> None:
    with Image.open(file) as image:
        image.load()
    mode = draw.choice(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "F", "YCbCr"])
    other = image.convert("L").convert("I") if mode == "I;16" else image.convert(mode)
    kind = draw.choice({"F": ["TIFF"], "CMYK": ["JPEG", "TIFF"], "YCbCr": ["JPEG"]}.get(mode, ["PNG", "TIFF"]))
    _save(file, other, kind)


def _picture_size(file: Path, draw: random.Random) -> None:
    with Image.open(file) as image:
        image.load()
    width, height = image.size
    sizes = [(width - 1, height), (height, width), (1, 1), (width, height + 1), (2 * width, 2 * height), (5000, 3)]
    _save(file, image.resize(draw.choice(sizes), Image.Resampling.NEAREST), "PNG")


def _picture_exif(file: Path, draw: random.Random) -> None:
    with Image.open(file) as image:
        image.load()
    block = draw.choice([b"Exif\0\0" + draw.randbytes(60), b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(40), b"Exif"])
    if draw.random() < 0.5:
        exif = Image.Exif()
        exif[0x0112] = draw.choice([0, 2, 3, 6, 8, 9, 65535])
        block = exif.tobytes()
    out = io.BytesIO()
    image.convert("RGB").save(out, "JPEG", exif=block)
    _write(file, out.getvalue())


def _picture_of_another_kind(file: Path, draw: random.Random) -> None:
    """Write PostScript that would write a file, a picture that claims to be enormous, or an animation."""
    kind = draw.randrange(4)
    if kind == 0:
        code = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n({file.parent}/{MARK}) (w) file closefile\nshowpage\n"
        _write(file, code.encode())
    elif kind == 1:
        side = draw.choice([9_000, 60_000, 2**31 - 1])
        head = struct.pack(">II", side, side) + bytes([8, draw.choice([0, 2, 6]), 0, 0, 0])
        _write(file, b"\x89PNG\r\n\x1a\n" + b"".join(map(_chunk, (b"IHDR" + head, b"IDAT" + zlib.compress(bytes(99))))))
    elif kind == 2:
        frames = [Image.new("P", (16, 16), n) for n in range(3)]
        _save(file, frames[0], "GIF", save_all=True, append_images=frames[1:])
    else:
        with Image.open(file) as image:
            image.load()
        _save(file, image.convert("RGB"), draw.choice(["WEBP", "BMP", "TIFF", "PPM", "ICO"]))


def _chunk(data: bytes) -> bytes:
    return struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))


def _mask_values(file: Path, draw: random.Random) -> None:
    """Write a mask of other values: grey edges, 16-bit ids, three channels, a void border."""
    with Image.open(file) as image:
        array = np.array(image.convert("L"))
    kind = draw.randrange(5)
    if kind == 0:
        array = np.where(array > 0, 2, 0).astype(np.uint8)
    elif kind == 1:
        array = (array.astype(np.uint16) + draw.choice([0, 255, 30_000])).astype(np.uint16)
    elif kind == 2:
        array = np.repeat(array[..., None], 3, axis=2)
        array[0, 0, 0] ^= 7
    elif kind == 3:
        array[:2] = 255
    else:
        array = np.random.default_rng(draw.getrandbits(32)).integers(0, 256, array.shape, dtype=np.uint8)
    _save(file, Image.fromarray(array), "PNG")


def _save(file: Path, image: Image.Image, kind: str, **more: Any) -> None:
    out = io.BytesIO()
    image.save(out, kind, **more)
    _write(file, out.getvalue())


def _arrays(file: Path, draw: random.Random) -> None:
    with np.load(file) as opened:
        arrays: dict[str, Any] = dict(opened)
    name = draw.choice([*arrays])
    array = arrays[name]
    kind = draw.randrange(9)
    if kind == 0:
        del arrays[name]
    elif kind == 1:
        arrays[name] = array.astype(draw.choice(["float64", "uint8", "int64", "bool", "float16", "complex64", "U3"]))
    elif kind == 2:
        arrays[name] = array[draw.choice([slice(0), slice(1), slice(None, None, 2)])]
    elif kind == 3:
        arrays[name] = np.moveaxis(array, 0, -1)
    elif kind == 4:
        array = array.copy()
        array.flat[0] = draw.choice([np.nan, np.inf, -1, 256, 1e30])
        arrays[name] = array
    elif kind == 5:
        arrays[name] = np.array([{"a": 1}, None], object)
    elif kind == 6:
        arrays[name] = array / 255
    elif kind == 7:
        arrays[name] = array[..., None]
    else:
        arrays[name] = np.zeros((draw.choice([1, 40_000]), 2_000), np.uint8)
    out = io.BytesIO()
    (np.savez_compressed if draw.random() < 0.5 else np.savez)(out, **arrays)
    _write(file, out.getvalue())


def _array_header(file: Path, draw: random.Random) -> None:
    """Write a header of npy that is no literal, too deep, or of impossible sizes."""
    texts = [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1" + "0" * draw.choice([3, 12, 30]) + ",), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 5), }",
        "{'descr': [('a', '<f4', (2,))], 'fortran_order': False, 'shape': (5,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (512, 512, 3), ",
        "(" * draw.choice([90, 5000]),
        "__import__('os').system('true')",
        "{'descr': '<M8[Y]', 'fortran_order': 0, 'shape': 5L, }",
        "\u00e9" * 10,
        "",
    ]
    text = draw.choice(texts).encode("latin-1")
    header = b"\x93NUMPY" + draw.choice([b"\1\0", b"\2\0", b"\3\0", b"\x09\0"]) + struct.pack("<H", len(text)) + text
    out = io.BytesIO()
    with zipfile.ZipFile(file) as opened, zipfile.ZipFile(out, "w") as target:
        names = opened.namelist()
        chosen = draw.choice(names)
        for name in names:
            data = opened.read(name)
            target.writestr(name, header + data[128:] if name == chosen else data)
    _write(file, out.getvalue())


class _Run:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


def _pickle(file: Path, draw: random.Random) -> None:
    tree = read_pickle(file)  # an earlier change may have made it hostile
    hostile = _Run(f"touch {file.parents[1] / MARK}")
    tree = [*tree, hostile] if draw.random() < 0.3 else values.changed(draw, tree)
    _write(file, pickle.dumps(tree, draw.choice([0, 2, 4])))


def _tar(file: Path, draw: random.Random) -> None:
    with tarfile.open(file) as opened:
        members = [(info, opened.extractfile(info).read()) for info in opened if info.isreg()]  # type: ignore[union-attr]
    place = draw.randrange(len(members))
    info, data = members[place]
    kind = draw.randrange(6)
    if kind == 0:
        info.name = draw.choice(["../" + info.name, "/" + info.name, "x" * 90, "\u00e9" + info.name, "a/" + info.name])
    elif kind == 1:
        members.append((info, data))
    elif kind == 2:
        members = members[:place] + members[place + 1 :]
    elif kind == 3:
        info.type = tarfile.SYMTYPE
        info.linkname = "/etc/passwd"
        data = b""
        info.size = 0
    elif kind == 4:
        members[place] = (info, draw.choice([b"", data[: len(data) // 2], b"[]", b'{"a":' * 2000]))
    else:
        members.insert(0, (tarfile.TarInfo(draw.choice(["._x.jpg", "__MACOSX/x", ".DS_Store", "x.txt"])), b"\0" * 30))
    out = io.BytesIO()
    form = draw.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    with tarfile.open(fileobj=out, mode=draw.choice(["w", "w", "w:gz"]), format=form) as target:
        for member, content in members:
            member.size = len(content)
            with suppress(ValueError):  # a name that this format has no room for
                target.addfile(member, io.BytesIO(content))
    _write(file, out.getvalue())


def _zip(file: Path, draw: random.Random) -> None:
    with zipfile.ZipFile(file) as opened:
        members = [(name, opened.read(name)) for name in opened.namelist()]
    place = draw.randrange(len(members))
    name, data = members[place]
    kind = draw.randrange(5)
    if kind == 0:
        members[place] = (draw.choice(["../" + name, "/" + name, "__MACOSX/" + name, name.upper(), "d/" + name]), data)
    elif kind == 1:
        members.append((name, data[::-1]))
    elif kind == 2:
        members[place] = (name, draw.choice([b"", data[:20], bytes(50 << 20)]))
    elif kind == 3:
        members = members[:place] + members[place + 1 :]
    out = io.BytesIO()
    method = draw.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    with zipfile.ZipFile(out, "w", method) as target:
        for member, content in members:
            target.writestr(member, content)
    _write(file, out.getvalue())


def _array_of_bytes(file: Path, draw: random.Random) -> None:
    """Change one byte of an npy header's text."""
    data = bytearray(file.read_bytes())
    end = 10 + int.from_bytes(data[8:10], "little")
    data[draw.randrange(6, end)] = draw.randrange(256)
    _write(file, bytes(data))


_PICTURES = (".jpg", ".jpeg", ".png")
_CONTENT: tuple[tuple[tuple[str, ...], Callable[[Path, random.Random], None]], ...] = (
    *(((".json",), change) for change in (_json, _json, _json, _json, _json_deep, _json_encoding)),
    *(((".jsonl",), change) for change in (_json_lines, _json_lines, _json_lines, _json_encoding)),
    *(((".csv", ".txt", ".jsonl"), change) for change in (_table,)),
    *((_PICTURES, change) for change in (_picture_mode, _picture_size, _picture_exif, _picture_of_another_kind)),
    *(((".png",), change) for change in (_mask_values,)),
    *(((".npz",), change) for change in (_arrays, _arrays, _array_header)),
    *(((".npy",), change) for change in (_array_of_bytes,)),
    *(((".p", ".pkl"), change) for change in (_pickle,)),
    *(((".tar",), change) for change in (_tar,)),
    *(((".zip",), change) for change in (_zip,)),
)
