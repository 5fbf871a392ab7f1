import hashlib
import io

import numpy as np
import pytest
import scipy.fft
from PIL import Image, ImageEnhance
from skimage import data as photographs

from shards.pictures_table import NO_STRUCTURE, perceptual_hash, picture_rows, pixel_checksum

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


def test_one_row_per_frame_and_the_checksum_is_of_the_pixels_alone():
    pictures = [np.random.default_rng(n).integers(0, 256, (3, 448, 448), np.uint8) for n in range(2)]
    rows = picture_rows("a-0123456789abcdef", 7, [*pictures, pictures[0][:, ::-1]])
    assert [row[:3] for row in rows] == [("a-0123456789abcdef", 7, frame) for frame in range(3)]
    expected = hashlib.blake2b(pictures[1].tobytes()).digest()
    assert rows[1][3].to_bytes(8, "little") == expected[:8]
    assert rows[2][3] == pixel_checksum(pictures[0][:, ::-1].copy()) != rows[0][3]
    assert picture_rows("text-0123456789abcdef", 0, []) == []
