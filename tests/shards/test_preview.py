"""The preview shows what the reader returns."""

import numpy as np
import pytest
from PIL import Image

from shards.errors import UserError
from shards.preview import preview
from shards.reader import ShardSet
from tests.shards.conftest import change_frame


def test_one_row_of_four_tiles_per_frame(sav_set, tmp_path):
    page = preview(sav_set, tmp_path / "out", samples=3)
    html = page.read_text("utf-8")
    sheets = sorted((tmp_path / "out").glob("*.png"))
    assert len(sheets) == 3 and all(f'src="{sheet.name}"' in html for sheet in sheets)
    assert "http" not in html
    shards = ShardSet(sav_set)
    sample = shards[0]
    sheet = np.asarray(Image.open(tmp_path / "out" / f"{shards.key(0)}.png"))
    assert sheet.shape == (2 * 260, 4 * 260, 3)
    for k in (1, 2):
        row = sheet[(k - 1) * 260 :]
        frame, mask, over, cells = (row[:256, i * 260 : i * 260 + 256].astype(int) for i in range(4))
        picture = sample[f"g_pixel_values{k}"]
        assert np.abs(frame - picture.reshape(3, 256, 4, 256, 4).mean((2, 4)).transpose(1, 2, 0)).max() <= 0.5
        region = sample[f"masks{k}"][0, ::4, ::4]
        assert np.array_equal(mask[..., 0], region * 255) and set(np.unique(mask)) <= {0, 255}
        assert np.array_equal(over[~region], frame[~region])
        assert (over[region][:, 0] > over[region][:, 1:].max(1)).mean() > 0.95  # red
        on = sample[f"prompt_masks{k}"][0].repeat(14, 0).repeat(14, 1)
        reddish = cells[:224, :224, 0] - cells[:224, :224, 1]
        assert reddish[on].mean() > reddish[~on].mean() + 30


def test_texts_are_escaped_and_objects_told_apart(faulty, tmp_path):
    def two_objects(samples):
        sample = samples[0]
        meta = {
            **sample.meta,
            "objects": [{"id": "a", "texts": ["<script>alert(1)</script>"]}, {"id": "b", "texts": ["blue"]}],
        }
        for k in (1, 2):
            frame = sample.frames[k - 1]
            sample = change_frame(
                sample, k, masks=frame.masks.repeat(2, 0), prompt_masks=frame.prompt_masks.repeat(2, 0)
            )
        return [type(sample)(sample.key, meta, sample.frames)]

    html = preview(faulty(two_objects), tmp_path / "out").read_text("utf-8")
    assert "object a: &lt;script&gt;" in html and "<script>" not in html
    assert '<b style="color: rgb(40, 120, 255)">&#9632;</b> object b: blue</li>' in html  # as it is drawn


def test_one_tar_of_a_set(sav_set, tmp_path):
    tar = sorted(sav_set.glob("*.tar"))[-1]
    shards = ShardSet(sav_set)
    preview(tar, tmp_path / "out", samples=50)
    last = len(shards.manifest.shards) - 1
    expected = {f"{shards.key(i)}.png" for i in range(len(shards)) if shards.index[i]["shard"] == last}
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == expected


def test_without_a_set_there_is_no_page(tmp_path):
    with pytest.raises(UserError):
        preview(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
