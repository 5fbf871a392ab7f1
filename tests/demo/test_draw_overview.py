"""The picture of the README shows a frame, its mask, its cells and a prediction."""

import numpy as np

import shards
from demo import draw_overview, make_folder
from pipeline.request import make_request
from pipeline.run import run
from trainer.released.folder import save_model


def test_the_overview_shows_frame_mask_cells_and_prediction(model, tmp_path):
    make_folder.write(tmp_path / "folder", 1, seed=5)
    request = make_request("folder", tmp_path / "folder", shard_bytes=10**8)
    run(request, tmp_path / "set", 1)
    save_model(model, tmp_path / "model")
    sheet, iou = draw_overview.draw(tmp_path / "set", tmp_path / "model", 0)
    assert sheet.size == (4 * 256 + 3 * 8, 256 + 22) and 0 <= iou <= 1
    frame, mask, cells, _ = (np.asarray(sheet)[22:, 264 * i : 264 * i + 256].astype(int) for i in range(4))
    sample = shards.open_set(tmp_path / "set")[0]
    truth = sample["masks"][0][2::4, 2::4]
    changed = np.abs(mask - frame).sum(-1) > 0
    assert (changed == truth).mean() > 0.98  # all but some pixels at the outline
    assert (np.abs(cells - frame).sum(-1) > 0)[8::16, 8::16].sum() >= 0.9 * sample["prompt_masks"][0].sum()
