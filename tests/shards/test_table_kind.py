from dataclasses import replace

import numpy as np
import pytest

from shards.archive import encode_sample
from shards.codec import PackedMasks
from shards.reader import ShardSet
from shards.recode import decoded_sample, recode
from shards.sample import FrameTensors, Sample
from shards.table_kind import StoredContent, WrittenContent


@pytest.mark.parametrize("codec", ["zstd", "jpeg"])
def test_a_sample_in_memory_has_the_content_that_is_read_back(codec, mixed_set, tmp_path):
    exact = ShardSet(mixed_set)
    recode(mixed_set, tmp_path / "set", codec)
    stored = ShardSet(tmp_path / "set")
    for position in range(len(exact)):
        sample = decoded_sample(exact, position)
        frames = [
            FrameTensors(f.pixel_values, f.g_pixel_values, f.prompt_masks, PackedMasks(np.packbits(f.masks, axis=-1)))
            for f in sample.frames
        ]
        counted = [replace(f, mask_pixels=[int(mask.sum()) for mask in f.masks]) for f in frames]
        found = StoredContent(stored, position)
        arrays = stored[position]
        numbers = [""] if len(frames) == 1 else [*range(1, len(frames) + 1)]
        for one in (sample, *(Sample(sample.key, sample.meta, tuple(some)) for some in (frames, counted))):
            content = WrittenContent(one, position, encode_sample(one, codec), codec)
            assert (content.key, content.position, content.meta) == (found.key, position, found.meta)
            assert [*map(np.ndarray.tobytes, content.pictures())] == [*map(np.ndarray.tobytes, found.pictures())]
            for name in ("areas", "cells"):
                np.testing.assert_array_equal(getattr(content, name), getattr(found, name), strict=True)
            if sample.meta["objects"]:
                masks = [arrays[f"masks{k}"] for k in numbers]
                np.testing.assert_array_equal(content.areas, np.mean(masks, axis=(2, 3)))
