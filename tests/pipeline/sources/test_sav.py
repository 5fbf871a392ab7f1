"""SAV npz pairs: every known fault becomes a line in the ledger, and never a wrong sample."""

import pickle
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.dataset import find_inputs
from pipeline.raw import RawInput
from pipeline.records import Records
from pipeline.sources import sav
from pipeline.sources.sav import SOFT, Sav
from shards.errors import BadInput

OPTIONS = {"value_range": 255}


class Ran(Exception):
    """Raised by a pickle that gets to run."""


class Bomb:
    def __reduce__(self):
        return exec, ("raise __import__('tests.pipeline.sources.test_sav').pipeline.sources.test_sav.Ran",)


def save(folder: Path, arrays: dict[str, np.ndarray], **changed: np.ndarray) -> Path:
    path = folder / "masklet_data_00000.npz"
    np.savez(path, **{**arrays, **changed})
    return path


def reason(path: Path) -> str:
    with pytest.raises(BadInput) as caught:
        Sav().load(path.parent, path.name, OPTIONS)
    assert caught.value.met and caught.value.wanted
    return caught.value.what


def test_a_good_pair(tmp_path, small_pair):
    sample = Sav().load(tmp_path, save(tmp_path, small_pair).name, OPTIONS)
    for frame, k in zip(sample.frames, (1, 2), strict=True):
        assert np.array_equal(frame.picture, small_pair[f"frame{k}"]) and frame.picture.mode == "RGB"
        assert np.array_equal(frame.masks[0], small_pair[f"mask{k}"] == 255)


def test_truncated_at_any_byte(tmp_path, small_pair):
    path = save(tmp_path, small_pair)
    whole = path.read_bytes()
    for size in (0, 1, 30, 1000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert reason(path) == "not a whole npz file"


def test_a_flipped_byte_fails_the_zips_checksum(tmp_path, small_pair):
    path = save(tmp_path, small_pair)
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 16
    path.write_bytes(data)
    assert reason(path) == "not a whole npz file"


def test_wrong_keys(tmp_path, small_pair):
    small_pair["picture"] = small_pair.pop("frame2")
    assert reason(save(tmp_path, small_pair)) == "wrong keys"


@pytest.mark.parametrize("name, shape", [("frame1", (128, 128)), ("frame2", (128, 128, 4)), ("mask1", (128, 128, 1))])
def test_wrong_shape(tmp_path, small_pair, name, shape):
    assert reason(save(tmp_path, small_pair, **{name: np.zeros(shape, np.float32)})) == "wrong shape"


def test_mask_of_another_size_than_its_frame(tmp_path, small_pair):
    assert reason(save(tmp_path, small_pair, mask2=small_pair["mask2"][:-1])) == "wrong shape"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(tmp_path, small_pair, value):
    small_pair["frame2"][5, 5, 1] = value
    assert reason(save(tmp_path, small_pair)) == "NaN or infinite values"


@pytest.mark.parametrize("name, value", [("frame1", -1.0), ("frame2", 256.0), ("mask1", 300.0)])
def test_outside_the_range(tmp_path, small_pair, name, value):
    small_pair[name].flat[7] = value
    assert reason(save(tmp_path, small_pair)) == "values outside the range"


@pytest.mark.parametrize("name", ["mask1", "mask2"])
def test_empty_mask(tmp_path, small_pair, name):
    assert reason(save(tmp_path, small_pair, **{name: np.zeros_like(small_pair[name])})) == "empty mask"


def test_object_arrays_are_not_unpickled(tmp_path, small_pair):
    bomb = np.empty((2,), object)
    bomb[:] = [Bomb(), Bomb()]
    path = save(tmp_path, small_pair, mask2=bomb)
    with pytest.raises(Ran):  # the trap is armed: numpy runs it when it may
        np.load(path, allow_pickle=True)["mask2"]
    assert reason(path) == "object array"


def test_a_bare_pickle_under_the_name(tmp_path):
    path = tmp_path / "masklet_data_00000.npz"
    path.write_bytes(pickle.dumps(Bomb()))
    assert reason(path) == "not a whole npz file"


def test_a_bomb_is_not_decompressed(tmp_path, small_pair):
    path = save(tmp_path, small_pair)
    side = 1 << 13
    with (
        zipfile.ZipFile(path) as source,
        zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target,
    ):
        for name in ("frame1", "frame2", "mask1"):
            target.writestr(f"{name}.npy", source.read(f"{name}.npy"))
        with target.open("mask2.npy", "w") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (side, side)})
            for _ in range(256):
                file.write(bytes(1 << 20))
    assert (tmp_path / "bomb.npz").stat().st_size < 1 << 22
    tracemalloc.start()
    assert reason(tmp_path / "bomb.npz") == "array too large"
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()


def test_a_header_of_a_larger_array_than_the_file(tmp_path, small_pair):
    path = save(tmp_path, small_pair)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "lie.npz", "w") as target:
        for info in source.infolist():
            data = source.read(info)
            if info.filename == "mask1.npy":
                data = data.replace(b"(128, 128), }  ", b"(99999, 128), }")
            target.writestr(info.filename, data)
    assert reason(tmp_path / "lie.npz") == "not a whole npz file"


def test_channels_first_is_understood(tmp_path, small_pair):
    path = save(tmp_path, small_pair, frame1=small_pair["frame1"].transpose(2, 0, 1))
    assert np.array_equal(Sav().load(tmp_path, path.name, OPTIONS).frames[0].picture, small_pair["frame1"])


def test_float_values_are_rounded_not_truncated(tmp_path, small_pair):
    small_pair["frame1"] = np.clip(small_pair["frame1"] - np.float32(0.3), 0, 255)
    sample = Sav().load(tmp_path, save(tmp_path, small_pair).name, OPTIONS)
    assert np.array_equal(sample.frames[0].picture, np.rint(small_pair["frame1"]))


def test_grey_mask_pixels_are_cut_at_half_and_counted(tmp_path, small_pair):
    mask = small_pair["mask1"]
    inside = np.argwhere(mask == 255)[0]
    outside = np.argwhere(mask == 0)[0]
    mask[tuple(inside)] = 128
    mask[tuple(outside)] = 127
    sample = Sav().load(tmp_path, save(tmp_path, small_pair).name, OPTIONS)
    mask = np.asarray(sample.frames[0].masks[0])
    assert mask[tuple(inside)] and not mask[tuple(outside)]
    assert sample.notes[SOFT] == 2


def test_zeros_and_ones_are_read_as_the_set_is(tmp_path, small_pair):
    black = {name: (array > 200).astype(np.float32) for name, array in small_pair.items()}
    path = save(tmp_path, black)
    for top in (1, 255):
        picture = np.asarray(Sav().load(tmp_path, path.name, {"value_range": top}).frames[0].picture)
        assert picture.max() == (255 if top == 1 else 1)


def found(root: Path, records: Path) -> list[RawInput]:
    find_inputs(Sav(), root, {}, records)
    return Records(records).inputs()


def test_the_sets_range_is_found_by_probing(tmp_path, small_pair):
    for top in (1, 255):
        folder = tmp_path / str(top)
        folder.mkdir()
        save(folder, {name: array * np.float32(top / 255) for name, array in small_pair.items()})
        assert Sav().options(folder, found(folder, tmp_path / f"{top}.sqlite"))["value_range"] == top


def test_files_are_found_below_the_root_in_the_order_of_their_paths(tmp_path):
    for name in ("b/masklet_data_00000.npz", "a/c/masklet_data_00000.npz", "a/masklet_data_00001.npz", "a/other.npz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    expected = ["a/c/masklet_data_00000.npz", "a/masklet_data_00001.npz", "b/masklet_data_00000.npz"]
    assert [item.path for item in found(tmp_path, tmp_path / "records.sqlite")] == expected


EDGES = [0.5, 1.5, 254.5, 127.5, 0.001, 1.001, 0.999, 254.999, 255.001, -0.001]  # of ranges, and between two bytes
NEAR = [np.nextafter(np.float32(edge), np.float32(to)).item() for edge in EDGES for to in (-1e9, edge, 1e9)]
VALUES = st.floats(0, 255, width=32) | st.sampled_from([*NEAR, 0.0, -0.0, 1e-45])
OUTSIDE = st.sampled_from([np.nan, -np.nan, np.inf, -np.inf, 256.0, -1.0, 3e38])


@given(arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=VALUES), st.none() | OUTSIDE)
def test_the_compiled_loops_and_numpy_read_the_same_values(values, outside):
    if sav._loops is None:
        pytest.skip("not compiled here")
    if outside is not None:
        values[-1, -1] = outside
    found = sav._rounded(values)
    if not np.all((values >= np.float32(-0.001)) & (values <= np.float32(255.001))):
        assert found is None
        with pytest.raises(BadInput):
            sav._in_range("frame1", values)
        return
    assert found.most == max(values.max(), 0) == sav._in_range("frame1", values).most
    assert np.array_equal(found.rounded, np.rint(values).astype(np.uint8))
    mask, soft = sav._binary(found)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sav, "_loops", None)
        expected, expected_soft = sav._binary(found)
    assert np.array_equal(mask, expected) and mask.dtype == np.bool_ and soft == expected_soft
