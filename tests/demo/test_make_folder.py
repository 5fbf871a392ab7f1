"""The demo's photographs and masks belong together."""

import json

import numpy as np
from PIL import Image, ImageDraw

from demo import make_folder
from demo.make_sav import SCENES, SIZE, crop, draw, photograph, shown


def test_masks_of_named_objects_match_the_photograph(tmp_path):
    every = [(name, shapes) for name, things in SCENES.items() for shapes in things.values()]
    make_folder.write(tmp_path, len(every), seed=5)
    rng = np.random.default_rng(5)
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    for line, (name, shapes) in zip(lines, every, strict=True):
        box = crop(photograph(name), shapes, 0.5, rng)
        assert Image.open(tmp_path / line["image"]).size == (SIZE, SIZE)
        expected = [thing for thing, outlines in SCENES[name].items() if shown(photograph(name), outlines, box) >= 0.5]
        assert [one["texts"] for one in line["objects"]] == [[thing] for thing in expected]
        for one in line["objects"]:
            drawn = Image.new("L", (SIZE, SIZE))
            for polygon in one["mask"]:
                ImageDraw.Draw(drawn).polygon(polygon, fill=255)
            truth = np.asarray(draw(SCENES[name][one["id"]], box, (SIZE, SIZE))) > 0
            both = truth & (np.asarray(drawn) > 0)
            either = truth | (np.asarray(drawn) > 0)
            assert both.sum() > 0.97 * either.sum()
