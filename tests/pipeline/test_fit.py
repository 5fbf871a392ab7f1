"""Masks that differ from their picture by a pixel: refused, with the option that accepts them, and accepted with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.fit import OFF, size_difference
from pipeline.formats import make_sample
from pipeline.sources import SOURCES, source_named
from pipeline.sources.video_file import VideoFile
from shards.errors import BadInput
from shards.recipe import named_recipe
from tests.pipeline.sources import test_coco as coco
from tests.pipeline.sources import test_sa1b as sa1b
from tests.pipeline.sources import videos as v

ADVICE = "--mask-slack 1 takes masks that are off by so many pixels"
NARROW = coco.WIDTH - 1


def test_annotations_that_state_a_column_less(tmp_path):
    mask = coco.blob()[:, :NARROW]
    root = coco.write_instances(
        tmp_path / "coco", [{**coco.picture(7), "width": NARROW}], [coco.annotation(1, 7, coco.packed(mask))]
    )
    coco.jpeg(root / "train2017" / f"{7:012d}.jpg")
    files = {"sa_1.jpg": sa1b.photo(), "sa_1.json": sa1b.annotation_json(1, sa1b.annotation(5, mask), width=NARROW)}
    sa1b.write(tmp_path / "sa1b", files)
    for name in ("coco", "sa1b"):
        (error,) = coco.load_all(tmp_path / name, name)[0].values()
        assert error.met.endswith(f"{coco.HEIGHT} x {coco.WIDTH}") and error.do == ADVICE
        (raw,) = coco.load_all(tmp_path / name, name, mask_slack=1)[0].values()
        assert raw.notes == {OFF: 1} and np.array_equal(raw.frames[0].masks[0], mask)
        sample, notes = make_sample(raw, named_recipe("default", None))
        assert notes[OFF] == 1 and sample.meta["objects"][0]["mask_sizes"] == [[coco.HEIGHT, NARROW]]
        columns = (2 * np.arange(1024) + 1) * NARROW // 2048  # the centres of 1024 pixels on the mask's columns
        rows = (2 * np.arange(1024) + 1) * coco.HEIGHT // 2048
        assert np.array_equal(sample.frames[0].masks[0], mask[np.ix_(rows, columns)])


def test_frames_of_a_video_whose_masks_are_a_column_narrower(tmp_path):
    file: Path = tmp_path / "a.mp4"
    v.write_video(file, 3)
    narrow = (v.HEIGHT, v.WIDTH - 1)
    with pytest.raises(BadInput, match=rf"met {v.HEIGHT} x {v.WIDTH}; wanted {v.HEIGHT} x {v.WIDTH - 1}; {ADVICE}"):
        VideoFile(file).pictures([1], narrow)
    assert VideoFile(file).pictures([1], narrow, 1)[0].size == (v.WIDTH, v.HEIGHT)
    with pytest.raises(BadInput, match=r"differ in size; .* wanted 160 x 120$"):
        VideoFile(file).pictures([1], (v.WIDTH, v.HEIGHT), 1)


def test_every_source_that_compares_sizes_to_the_pixel_has_the_option():
    # One file holds both, or shapes are compared, or polygons are drawn for the picture.
    tolerant = {"sav", "openimages", "osprey", "dam", "gcg", "reasonseg", "llava", "videoqa", "text"}
    tolerant |= {name for name in SOURCES if name.startswith(("gcg-", "osprey-"))}
    assert {name for name in SOURCES if "mask_slack" in source_named(name).choices} == SOURCES.keys() - tolerant
    assert size_difference((10, 20), (12, 17)) == 3
