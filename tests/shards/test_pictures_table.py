import hashlib
import io
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.fft
from PIL import Image, ImageEnhance
from skimage import data as photographs

from shards.manifest import Manifest
from shards.pictures_table import NO_STRUCTURE, PICTURES, perceptual_hash, pixel_checksum
from shards.reader import ShardSet, decode_field
from shards.recode import recode
from shards.table import write_tables
from shards.table_list import TableInfo, record_table

PHOTOS = {
    name: Image.fromarray(getattr(photographs, name)()).convert("RGB")
    for name in ("astronaut", "chelsea", "coffee", "rocket", "immunohistochemistry", "camera", "coins", "page")
}


def view(picture):
    return np.asarray(picture.resize((448, 448), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


def compressed(picture):
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=50)
    return Image.open(file, formats=["JPEG"])


def cropped(picture, share=0.01):
    width, height = picture.size
    return picture.crop((int(share * width), int(share * height), int((1 - share) * width), int((1 - share) * height)))


CHANGES = {
    "JPEG of quality 50": compressed,
    "brighter": lambda picture: ImageEnhance.Brightness(picture).enhance(1.2),
    "half as large": lambda picture: picture.resize((picture.width // 2, picture.height // 2)),
    "cropped by 1 %": cropped,
}


def distance(a, b):
    return (perceptual_hash(a) ^ perceptual_hash(b)).bit_count()


@pytest.mark.parametrize("change", CHANGES)
def test_versions_of_a_photograph_are_near(change):
    distances = {name: distance(view(photo), view(CHANGES[change](photo))) for name, photo in PHOTOS.items()}
    assert max(distances.values()) <= 8, distances
    assert np.median([*distances.values()]) <= 4, distances


def test_different_photographs_are_far():
    views = {name: view(photo) for name, photo in PHOTOS.items()}
    distances = {(a, b): distance(views[a], views[b]) for a in views for b in views if a < b}
    assert min(distances.values()) >= 16, distances


@pytest.mark.parametrize("name", PHOTOS)
def test_the_hash_is_that_of_scipys_dct(name):
    picture = view(PHOTOS[name])
    means = picture.reshape(3, 32, 14, 32, 14).mean(axis=(2, 4))
    grey = 0.299 * means[0] + 0.587 * means[1] + 0.114 * means[2]
    coefficients = scipy.fft.dctn(grey)[1:9, 1:9].ravel()
    margin = np.abs(coefficients - np.median(coefficients))
    number = perceptual_hash(picture)
    bits = np.array([number >> n & 1 for n in range(64)], bool)
    sure = margin > 0.01 * np.median(margin)  # integers round the weights of grey, so those at the median may differ
    assert sure.sum() >= 60
    np.testing.assert_array_equal(bits[sure], (coefficients > np.median(coefficients))[sure])


@pytest.mark.parametrize("colour", [0, 1, 128, 255])
def test_a_picture_of_one_colour_has_no_structure(colour):
    assert perceptual_hash(np.full((3, 448, 448), colour, np.uint8)) == NO_STRUCTURE


def test_bits_are_the_same_on_every_machine():
    """A picture that integers make, and its values as they were when this was written."""
    y, x = np.mgrid[:448, :448]
    picture = np.stack([(x * y >> 5) % 256, (3 * x + y * y // 64) % 256, (x * x // 128 - y) % 256]).astype(np.uint8)
    assert f"{perceptual_hash(picture):016x}" == "aebafed0f07c1410"
    assert f"{pixel_checksum(picture):016x}" == "cd24feb823c4a1be"


def test_one_row_per_frame_also_of_samples_without_objects(mixed_set, tmp_path):
    own = Path(shutil.copytree(mixed_set, tmp_path / "set"))
    (own / PICTURES).unlink()
    write_tables(own, 2)
    assert (own / PICTURES).read_bytes() == (mixed_set / PICTURES).read_bytes()  # as shard wrote it
    shards = ShardSet(own)
    expected = []
    for position in range(len(shards)):
        meta, members = shards.sample(position)
        views = [
            decode_field(f, data, shards.recipe, as_stored=True)
            for f, data in members.items()
            if f.name == "pixel_values"
        ]
        assert len(views) == len(meta["frames"])
        for frame, picture in enumerate(views):
            digest = hashlib.blake2b(picture.tobytes()).digest()
            row = {"key": shards.key(position), "position": position, "frame": frame}
            expected.append(row | {"pixels": int.from_bytes(digest[:8], "little"), "hash": perceptual_hash(picture)})
    assert pq.read_table(own / PICTURES).to_pylist() == expected
    kinds = [len(shards.meta(position)["frames"]) for position in range(len(shards))]
    assert {0, 1} <= {*kinds}


def test_of_a_lossy_set_what_is_left_counts(small_set, tmp_path):
    recode(small_set, tmp_path / "lossy", "jpeg", 2)
    tables = [pq.read_table(folder / PICTURES) for folder in (small_set, tmp_path / "lossy")]
    pixels = [table.column("pixels").to_pylist() for table in tables]
    assert not {*pixels[0]} & {*pixels[1]}
    hashes = [table.column("hash").to_pylist() for table in tables]
    assert max((a ^ b).bit_count() for a, b in zip(*hashes, strict=True)) <= 2
    written = (tmp_path / "lossy" / PICTURES).read_bytes()
    write_tables(tmp_path / "lossy", 1, overwrite=True)
    assert (tmp_path / "lossy" / PICTURES).read_bytes() == written


def test_verify_names_a_wrong_hash(small_set, tmp_path, here):
    own = Path(shutil.copytree(small_set, tmp_path / "set"))
    table = pq.read_table(own / PICTURES)
    rows = table.to_pylist()
    rows[3]["hash"] ^= 1
    pq.write_table(pa.Table.from_pylist(rows, table.schema), own / PICTURES)
    manifest = Manifest.read(own)
    record_table(own, manifest, PICTURES, TableInfo.of_file(own / PICTURES, len(rows)))
    done = here("verify-shard", own, "--workers", 1)
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if "FAILED" in line]
    assert all(word in line for word in (PICTURES, rows[3]["key"], " hash: "))
