"""The reader in docs/FORMAT.md is run as it is printed there."""

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


def snippet_with(text: str) -> str:
    """The one Python snippet of the document that holds `text`."""
    (snippet,) = [s for s in re.findall(r"```python\n(.*?)```", DOCUMENT.read_text("utf-8"), re.S) if text in s]
    return snippet


def executed(snippet: str) -> dict:
    names: dict = {}
    exec(compile(snippet, str(DOCUMENT), "exec"), names)
    return names


@pytest.fixture
def old_set() -> Path:
    """A set of version 1."""
    return Path(__file__).parent / "shards" / "version_1" / "folder"


@pytest.mark.parametrize("codec", ["sav_set", "raw_set", "jpeg_set", "old_set"])
def test_the_documents_reader_equals_read_samples(codec, request):
    snippet = snippet_with("def read_samples")
    assert len([line for line in snippet.splitlines() if line.strip()]) <= 45
    names = executed(snippet)
    for tar in sorted(request.getfixturevalue(codec).glob("*.tar")):
        for actual, expected in zip(names["read_samples"](tar), read_samples(tar), strict=True):
            assert actual.keys() == expected.keys()
            for name, value in expected.items():
                assert actual[name].dtype == value.dtype if isinstance(value, np.ndarray) else True
                assert np.array_equal(actual[name], value) if isinstance(value, np.ndarray) else actual[name] == value


def test_the_documents_reader_finds_a_flip_in_a_member(sav_set, tmp_path):
    names = executed(snippet_with("def read_samples"))
    data = bytearray(sorted(sav_set.glob("*.tar"))[0].read_bytes())
    data[len(data) // 40] ^= 1
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(ValueError, match="CRC-32"):
        list(names["read_samples"](tmp_path / "a.tar"))


def test_plain_webdataset_reads_the_tars(sav_set):
    tar = sorted(sav_set.glob("*.tar"))[0]
    plain = list(webdataset.WebDataset(str(tar), shardshuffle=False).decode())
    samples = list(read_samples(tar))
    assert [stored["__key__"] for stored in plain] == [one["__key__"] for one in samples]
    for stored, expected in zip(plain, samples, strict=True):
        assert stored["json"] == expected["meta"]
        assert np.array_equal(stored["prompt_masks2.npy"], expected["prompt_masks2"])
        assert isinstance(stored["g_pixel_values1.grad"], bytes)


def test_plain_webdataset_decodes_raw_pictures(raw_set):
    tar = sorted(raw_set.glob("*.tar"))[0]
    plain = list(webdataset.WebDataset(str(tar), shardshuffle=False).decode())
    for stored, expected in zip(plain, read_samples(tar), strict=True):
        assert np.array_equal(stored["g_pixel_values1.npy"], expected["g_pixel_values1"])
        assert stored["pixel_values2.npy"].shape == (3, 448, 448) and stored["pixel_values2.npy"].dtype == np.uint8


@pytest.fixture
def mixed_set(tmp_path: Path) -> Path:
    """Samples of one frame and of two, whose JSON has other keys, stored as `gradient`."""
    recode(Path(__file__).parent / "shards" / "version_1" / "folder", tmp_path / "mixed", "gradient")
    assert {"tables.json", "objects.parquet"} <= {path.name for path in (tmp_path / "mixed").iterdir()}
    return tmp_path / "mixed"


@pytest.mark.parametrize("streaming", [True, False])
def test_hugging_face_datasets_opens_a_set(mixed_set, streaming, monkeypatch, tmp_path):
    """The library opens the set as the document shows. A library that unpacks by extension leaves the members alone."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    decode = executed(snippet_with("def read_samples"))["decode"]
    rows = list(executed(snippet_with("load_dataset"))["open_set"](mixed_set, streaming=streaming))
    samples = [one for tar in sorted(mixed_set.glob("*.tar")) for one in read_samples(tar)]
    assert [row["__key__"] for row in rows] == [one["__key__"] for one in samples] and len(rows) == 3
    for row, expected in zip(rows, samples, strict=True):
        assert row["json"] == expected["meta"]
        stored = {tuple(k.split(".")): v for k, v in row.items() if "." in k and v is not None}
        assert {field for field, _ in stored} == expected.keys() - {"__key__", "meta"}
        for (field, codec), value in stored.items():
            array = np.array(value) if codec == "npy" else decode(field, codec, value)
            assert np.array_equal(array, expected[field]), field


def test_webdataset_opens_a_set_of_mixed_samples(mixed_set):
    tars = [str(tar) for tar in sorted(mixed_set.glob("*.tar"))]
    plain = list(webdataset.WebDataset(tars, shardshuffle=False).decode())
    names = [{k.partition(".")[2]: type(v) for k, v in one.items() if "." in k} for one in plain]
    assert names == [{"grad": bytes, "npy": np.ndarray, "bits": bytes}] * 3


def test_no_library_decodes_our_extensions():
    from datasets.filesystems import EXTENSION_TO_COMPRESSION_FS_FILE_CLS as unpacked
    from datasets.packaged_modules.webdataset.webdataset import WebDataset as table
    from webdataset.autodecode import IMAGE_EXTENSIONS, decoders

    files = (table.IMAGE_EXTENSIONS, table.AUDIO_EXTENSIONS, table.VIDEO_EXTENSIONS, table.DECODERS)
    known = {*decoders, *IMAGE_EXTENSIONS, *(one.lstrip(".") for one in unpacked), *(x for some in files for x in some)}
    assert {"zst", "npy", "json", "jpg"} <= known and not {"grad", "up", "bits"} & known
