"""The measurements for docs/GPU.md, in their small form on the CPU."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import gpu
from shards.compiled import is_compiled


def printed(command: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `python -m benchmarks.gpu ...` prints, run in this process: starting one takes longer than the work."""
    monkeypatch.setattr(sys, "argv", command[2:])
    with redirect_stdout(io.StringIO()) as output:
        gpu.main()
    return [json.loads(line) for line in output.getvalue().splitlines()]


@pytest.mark.slow
def test_all_is_measured_in_the_small_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    page = tmp_path / "GPU.md"
    page.write_text(gpu.PAGE.read_text())
    records = tmp_path / "gpu.jsonl"
    monkeypatch.setattr(sys, "argv", ["gpu", "--small", "--write-page", "--page", str(page), "--records", str(records)])
    monkeypatch.setattr(gpu, "lines_of", lambda command, seconds: printed(command, monkeypatch))
    gpu.main()
    first, *found = [json.loads(line) for line in records.read_text().splitlines()]
    assert {"device", "python", "torch"} <= first["machine"].keys()
    assert first["machine"]["reader"] == ("compiled" if is_compiled() else "Python")
    [plan] = gpu.plans(small=True)
    assert [record["what"] for record in found] == [*plan.cases]
    assert not [record for record in found if "left out" in record]
    steps = {record["what"]: record for record in found if "ms" in record}
    assert steps.keys() == {*plan.cases} - {"normalise: device"}
    assert all(record["ms"] > 0 and record["tflops"] > 0 and record["loss"] > 0 for record in steps.values())
    assert steps["dual"]["captions"] > 0 and steps["segment"]["captions"] == 0
    assert all("data_wait" in steps[f"{codec} shards"] for codec in ("raw", "gradient"))
    text = page.read_text()
    head, tail = gpu.PAGE.read_text().split(gpu.BEGIN)[0], gpu.PAGE.read_text().split(gpu.END)[1]
    assert text.startswith(head) and text.endswith(tail) and "Not measured yet" not in text
    assert f"| tiny | `dual` | 1 | {steps['dual']['ms']:,.0f} |" in text and "the same bits as the host" in text
    assert gpu.table([first, *found]) in capsys.readouterr().out


def test_a_command_is_ended_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch):
    """What it had printed by then counts."""
    code = "import time\nprint('{\"a\": 1}', flush=True)\nprint('a warning', flush=True)\ntime.sleep(600)"
    lines = gpu.lines_of([sys.executable, "-c", code], 300.0)
    assert next(lines) == {"a": 1}
    late = time.monotonic() + 299.9
    monkeypatch.setattr(gpu, "time", SimpleNamespace(monotonic=lambda: late))
    assert [*lines] == []
    monkeypatch.undo()
    assert [*gpu.lines_of([sys.executable, "-c", "print('{}')"], 30.0)] == [{}]


def test_what_was_left_out_is_said():
    records = [{"size": "sa2va-8b", "what": "dual", "left out": "out of memory with 1 sample(s) per step"}]
    assert "- left out: sa2va-8b, `dual`: out of memory with 1 sample(s) per step" in gpu.table(records)
