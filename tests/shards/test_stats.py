"""Statistics of a set equal those counted from what the reader returns."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from shards.errors import UserError
from shards.manifest import Manifest
from shards.printable import printable, printable_lines
from shards.reader import read_samples
from shards.stats import AREA, BYTES, CELLS, FRAMES, OBJECTS, SIDE, TEXTS, WORDS, measure_sets, table, write_page
from tests.shards.conftest import change_frame


def two_objects(samples):
    """The first sample with a second object: with two texts, not visible in frame 2, with 2 cells in frame 1."""
    sample = samples[0]
    objects = [{**sample.meta["objects"][0], "id": "a"}, {"id": "b", "texts": ["a b c", "d", "..."], "filled": [1, 0]}]
    for k in (1, 2):
        masks = np.concatenate([sample.frames[k - 1].masks, np.zeros((1, 1024, 1024), bool)])
        cells = np.concatenate([sample.frames[k - 1].prompt_masks, np.zeros((1, 16, 16), bool)])
        if k == 1:
            masks[1, :32, :64] = True
            cells[1, 0, :2] = True
        sample = change_frame(sample, k, masks=masks, prompt_masks=cells)
    return [type(sample)(sample.key, {**sample.meta, "objects": objects}, sample.frames), *samples[1:]]


def test_numbers_equal_those_of_the_plain_reader(faulty):
    folder = faulty(two_objects)
    (stats,) = measure_sets([folder], 10**6)
    tar = folder / "sav-000000.tar"
    samples = list(read_samples(tar))
    pairs = [
        (100 * s[f"masks{k}"][n].mean(), s[f"prompt_masks{k}"][n].sum())
        for s in samples
        for k in (1, 2)
        for n in range(len(s["meta"]["objects"]))
    ]
    not_empty = [(area, cells) for area, cells in pairs if area]
    assert len(pairs) == len(not_empty) + 1 == 2 * len(samples) + 2
    assert np.allclose(stats.values[AREA], [area for area, _ in not_empty])
    assert stats.values[CELLS].tolist() == [cells for _, cells in not_empty]
    few = sum(bool(cells < 4) for _, cells in not_empty)
    filled = sum(bool(n) for s in samples for item in s["meta"]["objects"] for n in item["filled"])
    assert stats.regions == {"empty": 1, "filled up": filled, "fewer than 4 cells": few} and few
    assert stats.values[OBJECTS].tolist() == [2] + [1] * (len(samples) - 1)
    assert stats.values[TEXTS].tolist() == [0, 2] + [0] * (len(samples) - 1)  # one of three texts is blank
    assert stats.values[WORDS].tolist() == [3, 1]
    assert set(stats.values[FRAMES]) == {2} and set(stats.values[SIDE]) == {512}
    assert stats.values[BYTES].sum() * 1e6 == pytest.approx(
        tar.stat().st_size, abs=12_000
    )  # all but the end of the tar
    assert f"{len(samples)} samples, {len(samples) + 1} objects, 1 shards" in stats.lines()[0]
    assert stats.to_json()["quantities"][AREA]["quartiles"][2] == pytest.approx(
        np.median([area for area, _ in not_empty])
    )


def test_measured_samples_are_spread_over_the_set(sav_set):
    (stats,) = measure_sets([sav_set], 5)
    assert stats.measured == len(stats.values[FRAMES]) == 5
    assert stats.manifest.samples == Manifest.read(sav_set).samples == 12


def test_the_page_needs_no_other_file(sav_set, tmp_path):
    stats = measure_sets([sav_set, sav_set], 4)
    page = write_page(stats, tmp_path / "new" / "page.html").read_text("utf-8")
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!data:|#)""", page)
    assert page.count("<svg") == 2 * len(stats[0].plots()) > 0
    assert all(line in page and line in " ".join(table(stats).split()) for line in stats[0].lines())


def test_from_the_command_line(sav_set, tmp_path):
    command = [sys.executable, "cli.py", "stats", str(sav_set), "--out", str(tmp_path / "x.html"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["measured"] == 12
    assert (tmp_path / "x.html").exists()


def test_without_a_set_there_is_no_page(tmp_path):
    with pytest.raises(UserError, match="no manifest"):
        measure_sets([tmp_path], 4)


@pytest.mark.parametrize("name", ["[/red]", "a\x1b[2Jb", "a\u2028b", "<b>", "\udcff"])
def test_names_of_folders_are_text_in_tables_and_pages(sav_set, tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)  # one has a slash
    (tmp_path / name).symlink_to(sav_set)
    found = measure_sets([tmp_path / name], 1)
    text = table(found)
    assert printable(name) in "".join(line.strip() for line in text.split("\n"))  # a long path is folded
    assert printable_lines(text) == text
    page = write_page(found, tmp_path / "page.html").read_text("utf-8")
    assert "<b>" not in page and "<script" not in page
