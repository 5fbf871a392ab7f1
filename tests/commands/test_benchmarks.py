"""Mistakes in benchmark and compare end in one line."""

import pytest

from tests.evaluation.published.conftest import root  # noqa: F401 (a fixture)


@pytest.mark.parametrize(
    "words, message",
    [
        ("benchmark --on refcoco --root none --from p.jsonl", "no such file; met none"),
        ("benchmark --on refcoco --root ROOT --from p.jsonl", "p.jsonl: no predictions; wanted a predictions.jsonl"),
        ("benchmark --on refcoco --root ROOT --from FILE", "FILE, line 1: not a prediction; met Expecting value"),
        ("benchmark --on refcoco --root ROOT", "a model or predictions; wanted exactly one of --model and --from"),
        ("benchmark --on refcoco --on grefcoco --root ROOT --from FILE", "--from: one benchmark for one file"),
        (
            "benchmark --on refcoco --root ROOT --model ROOT --out FILE",
            "FILE/refcoco-val: cannot be made",
        ),
        ("benchmark --on refcoco --root ROOT --model none --recipe x", "recipe"),
        ("benchmark --on dlc-bench --root ROOT --from FILE --judge x", "--judge: no address of a judge; met x"),
        ("compare FILE FILE", "FILE: which benchmark; met none"),
        ("compare FILE FILE --on refcoco --split val --root ROOT", "FILE, line 1: not a prediction"),
    ],
)
def test_a_mistake_is_one_line(here, root, tmp_path, monkeypatch, words, message):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("x\n")
    done = here(*words.replace("ROOT", str(root)).split())
    assert done.returncode == 1 and message in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ") and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["FILE"]
