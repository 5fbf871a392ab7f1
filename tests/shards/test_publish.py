"""Publishing: what may be passed on, what is sent and in which order, what is compared, and the card."""

import io
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.sources import SOURCES
from shards.errors import UserError
from shards.licences import LICENCES
from shards.manifest import Manifest
from shards.publish import publish
from shards.reader import ShardSet
from shards.select import sample
from shards.table import write_table
from shards.verification import verify
from tests.cards import snippets
from tests.conftest import files_of, without_tables
from tests.killed import fork_killed_at

FREE = {"sav", "sav-video", "openimages", "mevis"}
"""Sources whose owners let everybody pass on all pictures, as docs/SHARING.md lists them."""


@pytest.fixture
def changeable(tiny_set: Path, tmp_path: Path) -> Path:
    """A copy of `tiny_set`, to change."""
    return Path(shutil.copytree(tiny_set, tmp_path / "changeable"))


@pytest.fixture
def with_table(tiny_set: Path, tmp_path: Path) -> Path:
    """`tiny_set` with its tables, to change."""
    folder = Path(shutil.copytree(tiny_set, tmp_path / "set" / "sav"))
    write_table(folder)
    return folder


def test_a_published_folder_is_a_set_with_a_card(with_table, tmp_path, here):
    out = tmp_path / "out" / "sav"
    done = here("publish", with_table, "--to", out)
    assert done.returncode == 0, done.stderr
    files = files_of(out)
    assert files.items() >= files_of(with_table).items()
    assert files.keys() - files_of(with_table).keys() == {"README.md", "contact-sheet.jpg"}
    assert f"{len(files)} files sent" in done.stdout and "SHA-256 of each file, read again" in done.stdout
    with Image.open(io.BytesIO(files["contact-sheet.jpg"]), formats=["JPEG"]) as sheet:
        assert sheet.size == (4 * 260, 2 * 2 * 260)  # four tiles of a row; two frames of two samples
    assert verify([out]).ok
    again = here("publish", with_table, "--to", f"file://{out}")
    assert f"0 files sent (0.00 GB), {len(files)} stood there already" in again.stdout


def test_the_manifest_goes_last_and_what_is_right_is_not_sent_again(with_table, tmp_path, monkeypatch):
    out = tmp_path / "out"
    sent: list[str] = []
    fault = "sav-000001.tar"

    def rename(source: Path, target: Path) -> None:
        if target.name == fault:
            raise OSError(28, "No space left on device")
        sent.append(target.name)
        source.rename(target)

    monkeypatch.setattr("shards.storage.destination.os.replace", rename)
    with pytest.raises(UserError, match=r"sav-000001\.tar: cannot be written; met No space left .*same command goes"):
        publish(with_table, str(out))
    assert sent == ["sav-000000.tar"] and sorted(files_of(out)) == sent
    sent.clear()
    fault = ""
    done = publish(with_table, str(out))
    assert sent[0] == "sav-000001.tar" and sent[-1] == "manifest.json" and done.stood == 1
    for name in ("sav-000000.tar", "index.npy"):
        (out / name).write_bytes((out / name).read_bytes()[:-1] + b"x")
    sent.clear()
    publish(with_table, str(out))
    assert sent == ["sav-000000.tar", "index.npy"]
    assert files_of(out).items() >= files_of(with_table).items()


def of_source(folder: Path, source: str) -> Path:
    """The set in `folder`, with another source in its manifest, and without tables."""
    manifest = replace(Manifest.read(folder), source=source)
    (without_tables(folder) / "manifest.json").write_bytes(manifest.to_bytes())
    return folder


def test_killed_at_random_moments_it_goes_on_in_a_folder(small_set, tmp_path, pytestconfig):
    """By kill -9 of a forked process. Nothing that is half written stays, and no manifest stands before the end."""
    chance = random.Random(18)
    expected = files_of(small_set)
    kills = 0
    for _ in range(pytestconfig.getoption("kills")):
        kills += fork_killed_at(chance.randint(1, 80), tmp_path, lambda: publish(small_set, str(tmp_path)))
        assert kills
        found = files_of(tmp_path)
        assert "manifest.json" not in found or found.items() >= expected.items()
        assert all(found[name] == expected[name] for name in found.keys() & expected.keys())
    publish(small_set, str(tmp_path))
    assert files_of(tmp_path).items() >= expected.items()
    assert not any(name.startswith(".") for name in files_of(tmp_path))


@pytest.mark.parametrize("source", ["sa1b", "gcg-grandf", "coco", "my-own"])
def test_what_may_not_be_passed_on_is_refused_in_one_line(changeable, tmp_path, source):
    folder = of_source(changeable, source)
    with pytest.raises(UserError, match=rf"not passed on; met source {source}: .*; give --i-may if you have the right"):
        publish(folder, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_who_may_publishes_it_and_the_card_says_what_is_forbidden(changeable, tmp_path):
    publish(of_source(changeable, "sa1b"), str(tmp_path / "out"), i_may=True)
    card = (tmp_path / "out/README.md").read_text()
    assert "license: other\n" in card and "the SA-1B Research License forbids it" in card
    publish(changeable, str(tmp_path / "mine"), i_may=True, licence="cc0-1.0")
    assert "license: cc0-1.0\n" in (tmp_path / "mine/README.md").read_text()


def test_every_source_is_free_or_refused():
    assert LICENCES.keys() <= SOURCES.keys()
    assert {source for source, licence in LICENCES.items() if not licence.forbids} == FREE
    document = (Path(__file__).parents[2] / "docs/SHARING.md").read_text("utf-8")
    assert all(f"`{source}`" in document for source in LICENCES)


def test_another_set_is_replaced_only_where_that_is_asked_for(tiny_set, with_table, tmp_path):
    one = tmp_path / "one"
    sample(tiny_set, one, 1, 0, 10**8)
    out = str(tmp_path / "out")
    publish(one, out)
    with pytest.raises(UserError, match=r"another set stands there; met manifest\.json; give another --to, or -"):
        publish(with_table, out)
    assert files_of(tmp_path / "out").items() >= files_of(one).items()
    publish(with_table, out, overwrite=True)
    assert files_of(tmp_path / "out").keys() == {*files_of(with_table), "README.md", "contact-sheet.jpg"}
    assert files_of(tmp_path / "out").items() >= files_of(with_table).items()


def test_a_damaged_file_is_not_published(changeable, tmp_path):
    tar = sorted(changeable.glob("*.tar"))[1]
    data = bytearray(tar.read_bytes())
    data[5000] ^= 1
    tar.write_bytes(data)
    with pytest.raises(UserError, match=rf"{tar.name}: SHA-256; met .*it has changed since it was written"):
        publish(changeable, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_card_that_somebody_wrote_is_kept(tiny_set, tmp_path):
    (tmp_path / "README.md").write_text("# Mine\n")
    assert publish(tiny_set, str(tmp_path)).kept_card
    assert (tmp_path / "README.md").read_text() == "# Mine\n"


@pytest.mark.parametrize(
    "to, message",
    [
        ("https://host/set", "not a place to publish at; wanted a folder, or hf://, file://, s3://"),
        ("memory://set", "not a place to publish at"),
        ("hf://datasets/name", "not a dataset of the hub; wanted hf://datasets/OWNER/NAME"),
    ],
)
def test_other_places_are_one_line(tiny_set, to, message):
    with pytest.raises(UserError, match=message):
        publish(tiny_set, to)


def test_the_cards_snippets_load_the_set_in_three_libraries(with_table, tmp_path, monkeypatch, capsys):
    """They run as they are printed, where the folder is; all three give every sample."""
    publish(with_table, str(tmp_path / "out/sav"))
    assert {"tables.json", "objects.parquet"} <= files_of(tmp_path / "out/sav").keys()
    monkeypatch.chdir(tmp_path / "out")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    parts = snippets((tmp_path / "out/sav/README.md").read_text())
    samples = ShardSet(with_table)
    lines = [f"{samples.key(n)} {[item['id'] for item in samples.meta(n)['objects']]}" for n in range(len(samples))]
    for name in ("webdataset", "datasets"):
        names: dict[str, object] = {}
        exec(compile(parts[name], name, "exec"), names)
        assert capsys.readouterr().out.splitlines() == lines, name
        last = names["sample"]
        expected = samples[len(samples) - 1]
        assert last.keys() == expected.keys() and all(np.array_equal(last[key], expected[key]) for key in expected)
    exec(compile(parts["shards"], "shards", "exec"), {})
    assert "'masks2': (1, 1024, 1024)" in capsys.readouterr().out
