"""The inputs that a source finds, and their hash, are equal in every process and search."""

import os
import pickle
from dataclasses import replace

import numpy as np
import pytest

from pipeline.dataset import find_dataset, spread_inputs
from pipeline.plan import Plan, make_plan
from pipeline.raw import RawInput
from pipeline.records import Records, RecordsWriter
from pipeline.request import make_request
from shards.errors import UserError
from tests.conftest import sav_request


def test_records_are_those_of_the_file_now(tmp_path):
    """A file that is written again is read again, without anybody's telling; copies for other processes are too."""
    for name in ("first", "second"):
        with RecordsWriter(tmp_path / "records") as writer:
            writer.add(name, 1)
            writer.attach(name, {"text": name})
        records = Records(tmp_path / "records")
        for one in (records, pickle.loads(pickle.dumps(records))):
            assert one.inputs() == [RawInput(name, 1)] and one.parts(name) == [{"text": name}]


def test_files_that_change_between_two_searches_are_noticed(sav_root, tmp_path):
    root = tmp_path / "raw"
    root.mkdir()
    for name in ("masklet_data_00000.npz", "masklet_data_00001.npz"):
        os.link(sav_root / "sav_coffee" / "masklet_data_00000.npz", root / name)
    before = find_dataset(sav_request(root), tmp_path / "records")
    first = before.digest
    (root / name).unlink()
    (root / name).write_bytes((sav_root / "sav_rocket" / "masklet_data_00000.npz").read_bytes() + b"\0")
    after = find_dataset(sav_request(root), tmp_path / "records")
    assert before.digest == first != after.digest


def test_the_codec_and_all_options_decide_the_digest(sav_root, tmp_path):
    requests = [sav_request(sav_root, **more) for more in ({}, {"codec": "raw"}, {"limit": 3}, {"shard_bytes": 1})]
    requests.append(sav_request(sav_root, recipe="sa2va"))
    digests = {find_dataset(request, tmp_path / "records").digest for request in requests}
    assert len(digests) == len(requests)


def test_a_plan_is_saved_and_read(sav_root, tmp_path):
    request = sav_request(sav_root, codec="raw", limit=2)
    dataset = find_dataset(request, tmp_path / "records")
    plan = make_plan(request, dataset)
    assert plan.codec == plan.options["codec"] == "raw" and "codec" not in dataset.job.options
    assert Plan.from_bytes(plan.to_bytes(), "plan") == plan
    saved = replace(plan, per_shard=2, sample_bytes=1)
    assert make_plan(request, dataset, saved) == saved  # not probed again
    with pytest.raises(UserError, match="not a plan of this version"):
        Plan.from_bytes(plan.to_bytes().replace(b'"raw"', b'"mine"'), "plan")


def test_spans_are_a_partition(sav_root, tmp_path):
    request = sav_request(sav_root)
    plan = replace(make_plan(request, find_dataset(request, tmp_path / "records")), per_shard=5)
    inputs = np.arange(plan.inputs)
    assert np.array_equal(np.concatenate([inputs[plan.span(shard)] for shard in plan.shards]), inputs)
    assert [plan.count([shard]) for shard in plan.shards] == [5, 5, 2] and plan.count(plan.shards) == plan.inputs


def test_chosen_inputs_are_spread():
    inputs = [RawInput(str(n), 0) for n in range(10)]
    assert [item.path for item in spread_inputs(inputs, 4)] == ["0", "2", "5", "7"]
    assert spread_inputs(inputs, 20) == inputs and spread_inputs([], 4) == []


def test_a_folder_without_inputs(tmp_path):
    (tmp_path / "raw").mkdir()
    with pytest.raises(UserError, match="no sav files found"):
        find_dataset(make_request("sav", tmp_path / "raw"), tmp_path / "records")
    with pytest.raises(UserError, match="no such folder"):
        find_dataset(make_request("sav", tmp_path / "none"), tmp_path / "records")
