"""A batch on its device."""

import numpy as np
import torch

from tests.batches import make_loader, tensors_of
from trainer.data.loader import Loader
from trainer.measure.panels import panels
from trainer.objectives.dual import Dual
from trainer.objectives.judging import Judged

LIGHT = ("prompt_masks1",)


def loader(folder, **options) -> Loader:
    return make_loader([folder], **{"fields": LIGHT, "batch_size": 2, "seed": 7, **options})


def test_normalising_on_the_device_gives_the_tensors_of_the_host(sav_set, make_loop, monkeypatch):
    batches = []
    loop = make_loop()
    monkeypatch.setattr(Dual, "losses", lambda self, batch, draws: batches.append(batch) or {})
    monkeypatch.setattr(loop, "_total", lambda losses, weights: losses)
    for where, dtype, width in (("host", torch.float32, 1024), ("device", torch.uint8, 128)):
        batch = next(loader(sav_set, fields=Dual.training_fields, need="regions", normalise=where).epoch(0))
        assert batch.frames[0].pixel_values.dtype == batch.frames[1].pixel_values.dtype == dtype
        assert batch.frames[1].masks.shape == (2, 1024, width)
        loop(batch, "dual")
    host, device = (tensors_of(batch) for batch in batches)
    for field in Dual.training_fields:
        assert host[field].dtype == device[field].dtype and torch.equal(host[field], device[field]), field


def test_panels_are_equal_whether_host_or_device_normalises(sav_set):
    shown = []
    for where in ("host", "device"):
        batch = next(loader(sav_set, fields=Dual.panel_fields(), normalise=where).epoch(0))
        found = panels(batch, Judged({}, ["a", "b"], None), "dual")
        shown.append(np.array([[panel.prompt, panel.image, np.stack([panel.truth] * 3, -1)] for panel in found]))
    assert np.array_equal(*shown) and shown[0][:, 2].any((1, 2, 3)).all()
