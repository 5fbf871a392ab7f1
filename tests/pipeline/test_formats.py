"""From an npz file to what the reader returns: bit-equal to torch and torchvision, for both recipes and ranges."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision import transforms as T
from torchvision.transforms import InterpolationMode

from pipeline.cropped import Mask
from pipeline.formats import make_sample
from pipeline.raw import RawFrame, RawObject, RawSample
from shards.reader import ShardSet
from shards.recipe import named_recipe
from tests.conftest import shard_sav

FILTER = {"default": InterpolationMode.BILINEAR, "sa2va": InterpolationMode.BICUBIC}


def independent(frame: np.ndarray, mask: np.ndarray, recipe: str) -> dict[str, np.ndarray]:
    """The four formats from raw float arrays in [0, 255], with torchvision's and torch's functions alone."""
    picture = Image.fromarray(np.round(frame).astype(np.uint8))
    normalise = T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    to_448 = T.Compose([T.Resize((448, 448), FILTER[recipe]), T.ToTensor(), normalise])
    to_1024 = T.Compose([T.Resize((1024, 1024), FILTER[recipe]), T.PILToTensor()])
    binary = torch.from_numpy(mask > 127.5)[None, None].float()
    mode = {"default": "nearest-exact", "sa2va": "nearest"}[recipe]
    prompt = F.interpolate(binary, (16, 16), mode=mode)[0].bool()
    if recipe == "default":
        share = F.adaptive_avg_pool2d(binary, 16)[0].flatten()
        for cell in sorted(range(256), key=lambda cell: -share[cell]):
            if prompt.sum() < 4 and share[cell] > 0:
                prompt.view(-1)[cell] = True
    return {
        "pixel_values": to_448(picture).numpy(),
        "g_pixel_values": to_1024(picture).numpy(),
        "prompt_masks": prompt.numpy(),
        "masks": F.interpolate(binary, (1024, 1024), mode="nearest-exact")[0].bool().numpy(),
    }


@pytest.fixture(scope="module", params=["float in 0..255", "float in 0..1"])
def root(request, sav_root: Path, tmp_path_factory) -> Path:
    """Pairs with fractional values, as interpolation makes them, in either range."""
    folder = tmp_path_factory.mktemp("formats")
    rng = np.random.default_rng(0)
    for path in sorted(sav_root.rglob("*.npz"))[::3]:
        with np.load(path) as stored:
            arrays = {name: stored[name] for name in stored.files}
        for name in ("frame1", "frame2"):
            jitter = rng.uniform(-0.4, 0.4, arrays[name].shape).astype(np.float32)
            arrays[name] = np.clip(arrays[name] + jitter, 0, 255)
        if request.param == "float in 0..1":
            arrays = {name: array / np.float32(255) for name, array in arrays.items()}
        target = folder / path.relative_to(sav_root)
        target.parent.mkdir(exist_ok=True)
        np.savez(target, **arrays)
    return folder


@pytest.mark.parametrize("recipe", ["default", "sa2va"])
def test_every_format_is_bit_equal(root: Path, recipe: str, tmp_path: Path):
    shard_sav(root, tmp_path / "sav", recipe=recipe)
    shards = ShardSet(tmp_path / "sav")
    assert len(shards)
    for i in range(len(shards)):
        sample = shards[i]
        with np.load(root / sample["meta"]["path"]) as raw:
            for k in (1, 2):
                frame = raw[f"frame{k}"]
                mask = raw[f"mask{k}"]
                if mask.max() <= 1:
                    frame = frame * np.float32(255)
                    mask = mask * np.float32(255)
                for name, expected in independent(frame, mask, recipe).items():
                    stored = sample[f"{name}{k}"]
                    assert stored.dtype == expected.dtype, name
                    assert np.array_equal(stored, expected), (sample["__key__"], name, k)


def test_sa2va_drops_what_default_fills(sav_root: Path, tmp_path: Path):
    filled = shard_sav(sav_root, tmp_path / "default").manifest
    dropped = shard_sav(sav_root, tmp_path / "sa2va", recipe="sa2va", max_bad=0).manifest
    assert filled.samples == filled.inputs == 12
    assert filled.notes["small regions given more prompt cells"] > 0
    assert dropped.left_out == {"all regions have too few prompt cells": 12 - dropped.samples}
    assert 0 < dropped.samples < 12
    for sample in (ShardSet(tmp_path / "sa2va")[i] for i in range(dropped.samples)):
        assert min(sample["prompt_masks1"].sum(), sample["prompt_masks2"].sum()) >= 4


def test_area_pooling_can_be_asked_for(sav_root: Path, tmp_path: Path):
    manifest = shard_sav(sav_root, tmp_path / "sav", prompt_pooling="area", limit=3).manifest
    assert manifest.recipe.prompt_pooling == "area"
    sample = ShardSet(tmp_path / "sav")[0]
    at_448 = F.interpolate(
        torch.from_numpy(np.load(sav_root / sample["meta"]["path"])["mask1"] > 127.5)[None, None].float(),
        (448, 448),
        mode="nearest-exact",
    )
    area = (F.adaptive_avg_pool2d(at_448, 16) > 0.5)[0].numpy()
    assert area.sum() >= 4 and np.array_equal(sample["prompt_masks1"], area)


def test_the_json_says_where_a_sample_comes_from(sav_set: Path):
    sample = ShardSet(sav_set)[0]
    meta = sample["meta"]
    assert meta["source"] == meta["dataset_type"] == "sav" and meta["has_paired_frame"] is True
    assert meta["path"] == "sav_astronaut/masklet_data_00000.npz"
    assert meta["frames"] == [{"name": f"frame{k}", "height": 512, "width": 512} for k in (1, 2)]
    assert meta["objects"] == [{"id": "0", "texts": [], "filled": [0, 0]}]


def test_notes_count_regions_that_got_cells_and_those_still_small():
    """Four regions of a picture of 1600 x 1600, whose cells are 100 x 100: each touches the cells that it names."""
    recipe = named_recipe("default", None)
    masks = []
    for rows, columns in (
        ((0, 400), (0, 400)),
        ((240, 260), (240, 260)),
        ((280, 320), (280, 320)),
        ((590, 610), (520, 580)),
    ):
        mask = np.zeros((1600, 1600), np.bool_)  # 16 cells; 1 at its centre; 4 corners, none at a centre; 2, no centre
        mask[slice(*rows), slice(*columns)] = True
        masks.append(Mask.from_array(mask))
    frame = RawFrame("a", Image.new("RGB", (1600, 1600)), tuple(masks))
    raw = RawSample("a", "folder", (frame,), tuple(RawObject(str(n)) for n in range(4)), {}, {})
    sample, notes = make_sample(raw, recipe)
    assert [item["filled"] for item in sample.meta["objects"]] == [[0], [0], [4], [2]]
    assert notes == {
        "small regions given more prompt cells": 2,
        "regions still below the least number of prompt cells": 2,
    }
