"""Mistakes in export, predict and evaluate end in one line, before a model is loaded."""

import pytest
from PIL import Image
from skimage import data


@pytest.mark.parametrize(
    "words, message",
    [
        ("export --checkpoint none --out FILE", "there is something already"),
        ("export --checkpoint none --out FILE/x", "FILE: a file, not a folder; give another --out"),
        ("export --checkpoint none --out new", "none: no model here"),
        ("export --checkpoint none --out new --format onnx", "no pictures to compare on"),
        ("export --checkpoint none --out new --format onnx --images none", "none: no folder of pictures"),
        ("export --checkpoint none --out new --format int8 --images none", "half of what masks are compared on"),
        ("predict --model none --image cat.png --text x --out FILE", "FILE: a file, not a folder; give another --out"),
        ("predict --model none --image cat.png --text x", "none: no such folder; wanted a model folder"),
        ("predict --model none --image none.png --text x", "none.png: no such file"),
        ("evaluate --model none --shards none", "none/manifest.json: no manifest"),
        ("evaluate --model none --shards SET", "none: no such folder; wanted a model folder"),
        ("evaluate --model none --shards SET --json none/x.json", "none/x.json: no such folder"),
        ("evaluate --model none --shards SET --json .", "a folder, not a file"),
        ("evaluate --model none --shards SET --cache-limit 7x", "not a size; met '7x'"),
    ],
)
def test_a_mistake_is_one_line(here, small_set, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("x")
    Image.fromarray(data.chelsea()).save(tmp_path / "cat.png")
    done = here(*words.replace("SET", str(small_set)).split())
    assert done.returncode == 1 and message in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ") and "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["FILE", "cat.png"]
