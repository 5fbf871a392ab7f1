"""A source of one's own, for a made-up dataset: photos, and a table of boxes with a text each.

    ROOT/boxes.csv        photo,top,left,bottom,right,text
    ROOT/photos/*.jpg

    python cli.py shard --source examples.your_own_source:Boxes --root ROOT --out shards/
    python cli.py verify-shard shards/boxes --against ROOT --source examples.your_own_source:Boxes

`pipeline.sources.Source` documents the interface; docs/datasets/your-own-source.md goes through this file.
"""

from __future__ import annotations

from collections import Counter
from functools import partial

import numpy as np

from pipeline.finder import below
from pipeline.pictures import read_picture
from pipeline.raw import RawObject
from pipeline.sources import Source
from pipeline.sources.objects import Candidate, sample_of
from pipeline.tables import read_table
from shards.errors import BadInput


class Boxes(Source):
    name = "boxes"

    def find(self, root, choices, records):
        counts = Counter()
        rows = read_table(root / "boxes.csv")
        header = next(rows)
        for row in rows:
            box = dict(zip(header, row, strict=False))
            path = f"photos/{box['photo']}"
            file = below(root, path)  # refuses names that would leave the dataset's folder
            counts["photos"] += records.add(path, file.stat().st_size if file.exists() else 0)
            records.attach(path, box)
            counts["boxes"] += 1
        return dict(counts)

    def load(self, root, path, options, parts):
        picture = read_picture(below(root, path))
        size = (picture.height, picture.width)
        candidates = [
            Candidate(RawObject(str(number), (box["text"],)), [partial(box_mask, box, size)])
            for number, box in enumerate(parts)
        ]
        return sample_of(path, self.name, [(path, picture)], candidates)


def box_mask(box, size):
    """(H, W) bool: True inside of the box. Called once per frame; a `BadInput` leaves out this object alone."""
    top, left, bottom, right = (int(box[side]) for side in ("top", "left", "bottom", "right"))
    if not (0 <= top < bottom <= size[0] and 0 <= left < right <= size[1]):
        raise BadInput("box outside its photo", met=f"{top}, {left}, {bottom}, {right}", wanted=f"inside of {size}")
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask
