"""Outputs that cannot be written, and sets without their ledger, are one line of every verb."""

import shutil

import pytest


@pytest.mark.parametrize(
    "verb, out, error",
    [
        (["preview"], "file", "{tmp}/file: a file, not a folder; give another --out"),
        (["preview"], "file/below", "{tmp}/file/below: cannot be made; met Not a directory"),
        (["stats"], "file/page.html", "{tmp}/file: a file, not a folder; give another --out"),
        (["stats"], "folder", "{tmp}/folder: a folder, not a file; give the name of a file"),
        (["recode", "--codec", "raw"], "file", "{tmp}/file/.work: cannot write; met Not a directory"),
        (["sample", "--n", "1"], "file", "{tmp}/file/.work: cannot write; met Not a directory"),
        (["split", "--share", "0.5", "--by", "sample"], "file", "Not a directory"),
        (["shard", "--source", "sav", "--root", "{raw}"], "file", "{tmp}/file"),
    ],
)
def test_an_out_that_cannot_be_is_one_line(here, small_set, sav_root, tmp_path, verb, out, error):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    name, *options = [word.replace("{raw}", str(sav_root)) for word in verb]
    set_path = [] if name == "shard" else [small_set]
    done = here(name, *set_path, *options, "--out", tmp_path / out)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and last.startswith("error: ") and error.replace("{tmp}", str(tmp_path)) in last
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize("verb", [["recode", "--codec", "raw"], ["sample", "--n", "1"], ["split"]])
def test_a_set_without_its_ledger_is_one_line(here, small_set, tmp_path, verb):
    broken = shutil.copytree(small_set, tmp_path / "sav")
    (broken / "ledger.jsonl").unlink()
    name, *options = verb
    done = here(name, broken, *options, "--out", tmp_path / "new")
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert f"{broken}/ledger.jsonl: not a ledger; met No such file or directory; wanted SHA-256" in done.stderr
    assert "copy the set again" in done.stderr and not (tmp_path / "new").exists()
