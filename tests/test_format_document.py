"""docs/FORMAT.md holds a reader that a stranger can copy: this runs that very text."""

import re
from pathlib import Path

import numpy as np
import pytest
import webdataset

from shards.reader import read_samples
from shards.recode import recode
from shards.select import sample

DOCUMENT = Path(__file__).parents[1] / "docs" / "FORMAT.md"


@pytest.fixture
def jpeg_set(sav_set: Path, tmp_path: Path) -> Path:
    """Two samples of `sav_set`, lossy."""
    sample(sav_set, tmp_path / "two", 2, 0, 10**8)
    recode(tmp_path / "two", tmp_path / "sav", "jpeg")
    return tmp_path / "sav"


@pytest.mark.parametrize("codec", ["sav_set", "raw_set", "jpeg_set"])
def test_the_documents_reader_returns_what_ours_does(codec, request):
    (snippet,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text("utf-8"), re.S)
    assert len([line for line in snippet.splitlines() if line.strip()]) <= 43
    stranger: dict = {}
    exec(compile(snippet, str(DOCUMENT), "exec"), stranger)
    for tar in sorted(request.getfixturevalue(codec).glob("*.tar")):
        for met, wanted in zip(stranger["read_samples"](tar), read_samples(tar), strict=True):
            assert met.keys() == wanted.keys()
            for name, value in wanted.items():
                assert met[name].dtype == value.dtype if isinstance(value, np.ndarray) else True
                assert np.array_equal(met[name], value) if isinstance(value, np.ndarray) else met[name] == value


def test_plain_webdataset_reads_the_tars(sav_set):
    tar = sorted(sav_set.glob("*.tar"))[0]
    plain = list(webdataset.WebDataset(str(tar), shardshuffle=False).decode())
    ours = list(read_samples(tar))
    assert [sample["__key__"] for sample in plain] == [sample["__key__"] for sample in ours]
    for met, wanted in zip(plain, ours, strict=True):
        assert met["json"] == wanted["meta"]
        assert np.array_equal(met["prompt_masks2.npy"], wanted["prompt_masks2"])
        assert isinstance(met["g_pixel_values1.up.zst"], bytes)


def test_plain_webdataset_decodes_raw_pictures(raw_set):
    tar = sorted(raw_set.glob("*.tar"))[0]
    plain = list(webdataset.WebDataset(str(tar), shardshuffle=False).decode())
    for met, wanted in zip(plain, read_samples(tar), strict=True):
        assert np.array_equal(met["g_pixel_values1.npy"], wanted["g_pixel_values1"])
        assert met["pixel_values2.npy"].shape == (3, 448, 448) and met["pixel_values2.npy"].dtype == np.uint8
