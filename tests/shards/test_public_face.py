"""`import shards` offers what docs/API.md lists; its snippets and the examples run."""

import pickle
import re
import subprocess
import sys
from glob import glob
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from torch.utils.data import DataLoader

import shards
from shards.errors import BadShard
from shards.reader import read_samples

REPOSITORY = Path(__file__).parents[2]


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=REPOSITORY)


def assert_same(sample: dict, expected: dict) -> None:
    assert sample.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, np.ndarray):
            assert sample[name].dtype == value.dtype and np.array_equal(sample[name], value)
        else:
            assert sample[name] == value


def test_each_exported_name_exists_and_is_documented():
    document = (REPOSITORY / "docs" / "API.md").read_text("utf-8")
    for name in shards.__all__:
        assert getattr(shards, name).__doc__
        assert f"`{name}" in document, name
    with pytest.raises(AttributeError, match="nothing_like_it"):
        shards.nothing_like_it  # noqa: B018


def test_reading_needs_numpy_zstd_and_pillow_alone(small_set):
    """All other packages are made impossible to import; a set is opened, read, and its samples are decoded."""
    code = """
import sys
ALLOWED = {"numpy", "backports", "PIL"}
class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        known = top in sys.stdlib_module_names or top in ALLOWED or top == "shards"
        if not known and not top.startswith("__editable__"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
import shards
assert "numpy" not in sys.modules
samples = shards.open_set(sys.argv[1])
print(len(samples), sorted(name for name in samples[0]))
"""
    done = run(code, str(small_set))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("8 ") and "pixel_values1" in done.stdout


def test_a_set_is_a_map_style_dataset(small_set):
    samples = shards.open_set(small_set)
    expected = [sample for tar in sorted(glob(f"{small_set}/*.tar")) for sample in read_samples(tar)]
    assert len(samples) == len(expected) == 8
    for sample, other in zip(samples, expected, strict=True):
        assert_same(sample, other)
    assert_same(samples[-1], expected[-1])
    assert samples.meta(3) == expected[3]["meta"]
    for position in (8, -9):
        with pytest.raises(IndexError):
            samples[position]
    part = samples.read(2, fields=["masks2"], objects=[0])
    assert part.keys() == {"__key__", "meta", "masks2"}
    assert np.array_equal(part["masks2"], expected[2]["masks2"][:1])
    with pytest.raises(BadShard, match="no such field"):
        samples.read(0, fields=["masks"])


def test_a_pickled_set_is_opened_again(small_set):
    samples = pickle.loads(pickle.dumps(shards.open_set(small_set, check="always")))
    assert samples.check == "always"
    assert_same(samples[1], shards.open_set(small_set)[1])


@pytest.mark.slow
def test_spawned_workers_read_a_set(small_set):
    samples = shards.open_set(small_set)
    loader = DataLoader(
        samples, batch_size=4, num_workers=2, multiprocessing_context="spawn", collate_fn=shards.collate
    )
    batches = list(loader)
    assert [key for batch in batches for key in batch["keys"]] == [samples.key(i) for i in range(8)]
    for number, batch in enumerate(batches):
        expected = [samples[4 * number + i] for i in range(4)]
        assert batch["pixel_values1"].dtype == torch.float32 and batch["pixel_values1"].shape == (4, 3, 448, 448)
        assert torch.equal(batch["g_pixel_values2"][3], torch.from_numpy(expected[3]["g_pixel_values2"]))
        assert np.array_equal(batch["masks1"].numpy(), np.concatenate([s["masks1"] for s in expected]))
        counts = [len(s["masks1"]) for s in expected]
        assert batch["image_of_object"].tolist() == [i for i, n in enumerate(counts) for _ in range(n)]


def test_samples_of_different_frames_are_not_joined(small_set):
    samples = shards.open_set(small_set)
    one = samples.read(0, fields=["pixel_values1"])
    with pytest.raises(BadShard, match="different fields"):
        shards.collate([samples[1], one])


def test_webdataset_and_datasets_use_our_decoders(small_set, raw_set):
    from datasets import load_dataset

    for folder in (small_set, raw_set):
        tars = sorted(glob(f"{folder}/*.tar"))[:2]
        expected = [sample for tar in tars for sample in read_samples(tar)]
        plain = webdataset.WebDataset(tars, shardshuffle=False)
        for sample, other in zip(plain.map(shards.decode_sample), expected, strict=True):
            assert_same(sample, other)
        for sample, other in zip(plain.decode(shards.decoder), expected, strict=True):
            for name, value in other.items():
                if isinstance(value, np.ndarray):
                    (decoded,) = [v for k, v in sample.items() if k.partition(".")[0] == name]
                    assert decoded.dtype == value.dtype and np.array_equal(decoded, value)
        table = load_dataset("webdataset", data_files={"train": tars}, split="train", streaming=True)
        for sample, other in zip(table.map(shards.decode_sample), expected, strict=True):
            assert_same({name: value for name, value in sample.items() if name in other}, other)


def test_a_damaged_member_is_found(small_set):
    (sample, *_) = webdataset.WebDataset(sorted(glob(f"{small_set}/*.tar"))[:1], shardshuffle=False)
    name = next(name for name in sample if name.startswith("masks1."))
    damaged = sample | {name: sample[name][:-1] + bytes([sample[name][-1] ^ 1])}
    with pytest.raises(BadShard, match="CRC-32 of the member"):
        shards.decode_sample(damaged)
    with pytest.raises(BadShard, match="incomplete sample"):
        shards.decode_sample({key: value for key, value in sample.items() if key != name})
    with pytest.raises(BadShard, match="without JSON"):
        shards.decode_sample({"__key__": "a"})
    assert shards.decoder(".cls", b"1") is None
    assert shards.decoder(".masks1.jpg", b"1") is None


@pytest.mark.slow
@pytest.mark.parametrize("example", ["own_loop.py", "webdataset_loop.py"])
def test_the_examples_run(example, small_set):
    done = subprocess.run(
        [sys.executable, REPOSITORY / "examples" / example, small_set], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr
    for sample in shards.open_set(small_set):
        assert sample["__key__"] in done.stdout


def test_the_documented_snippets_run(small_set):
    document = (REPOSITORY / "docs" / "API.md").read_text("utf-8")
    snippets = re.findall(r"```python\n(.*?)```", document, re.S)
    assert snippets
    names: dict = {}
    for snippet in snippets:
        exec(compile(snippet.replace("shards/sav", str(small_set)), "docs/API.md", "exec"), names)
