"""Sets of conversations: the same bytes with two workers, and after a kill."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.request import make_request
from pipeline.run import run
from shards.archive import ShardWriter
from shards.errors import UserError
from tests.layouts import CASES


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["llava", "videoqa", "text"])
def test_the_bytes_do_not_depend_on_workers_and_interruptions(name, tmp_path, monkeypatch):
    CASES[name].write(tmp_path / "raw")
    request = make_request(name, tmp_path / "raw", shard_bytes=1, frames=2 if name == "videoqa" else None)
    whole = run(request, tmp_path / "whole", 1, 1)
    assert whole.manifest.samples == CASES[name].samples and len(whole.manifest.shards) == CASES[name].samples
    run(request, tmp_path / "two", 2, 1)
    assert bytes_of(tmp_path / "two") == bytes_of(tmp_path / "whole")
    put = ShardWriter.put
    calls = iter(range(9))

    def put_once(self, sample, members):
        if next(calls):
            raise OSError(28, "No space left on device")
        put(self, sample, members)

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "put", put_once)
        with pytest.raises(UserError, match="No space left"):
            run(request, tmp_path / "again", 1, 1)
    assert run(request, tmp_path / "again", 1, 1).written_now < whole.written_now
    assert bytes_of(tmp_path / "again") == bytes_of(tmp_path / "whole")
