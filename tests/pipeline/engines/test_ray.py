"""Shards written on a real Ray cluster of three nodes, of which one dies: the bytes of a local run."""

import os
import re
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from pipeline.request import make_request
from pipeline.run import run
from pipeline.sources import source_named
from shards.errors import UserError
from shards.recipe import named_recipe
from shards.verification import verify
from tests.conftest import files_of, shard_sav
from tests.pipeline.built import SQUARE, jpeg, put
from tests.servers import objects, reach, serving

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def way(s3):
    with serving(upstream=s3) as way:
        yield way


@pytest.fixture(scope="module")
def cluster(way):
    """A head without processors, and two nodes with one each; processes on them reach the object store."""
    more = {**reach(way.server_port), "PYTHONPATH": str(REPOSITORY), "RAY_USAGE_STATS_ENABLED": "0"}
    more["RAY_agent_register_timeout_ms"] = "120000"  # on a busy machine
    with pytest.MonkeyPatch.context() as patch:
        for name, value in more.items():
            patch.setenv(name, value)
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        try:
            for _ in range(2):
                cluster.add_node(num_cpus=1)
            patch.setenv("RAY_ADDRESS", cluster.address)
            yield cluster
        finally:
            cluster.shutdown()


def stopped_while_writing(node) -> psutil.Process | None:
    """Return a worker of the node whose tar is growing, stopped with SIGSTOP; None where there is none."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    for worker in raylet.children():
        with suppress(psutil.NoSuchProcess):
            if growing(worker):
                worker.suspend()
                if growing(worker):
                    return worker
                worker.resume()
    return None


def growing(worker: psutil.Process) -> list[str]:
    return [name for name in (Path(file.path).name for file in worker.open_files()) if name.startswith("sav-")]


@pytest.mark.slow
def test_a_node_that_is_killed_and_replaced(cluster, sav_root, sav_set, tmp_path):
    """Node and worker get kill -9 in the middle of a shard, as when a machine dies: the shard is begun again."""
    out = tmp_path / "sav"
    failed = []

    def write() -> None:
        try:
            shard_sav(sav_root, out, engine="ray", workers=None)
        except BaseException as error:
            failed.append(error)

    leader = threading.Thread(target=write)
    killed: list[str] = []
    leader.start()
    while leader.is_alive() and not killed:
        time.sleep(0.005)
        for node in [*cluster.worker_nodes]:
            if not killed and (worker := stopped_while_writing(node)):
                killed = growing(worker)
                node.kill_raylet()
                worker.kill()
                cluster.remove_node(node, allow_graceful=False)
                cluster.add_node(num_cpus=1)
    leader.join()
    assert killed and not failed, failed
    assert killed[0].endswith(".tmp") and (out / f"{killed[0].partition('.')[0]}.tar").exists()
    assert files_of(out) == files_of(sav_set)
    assert verify([out]).ok


@pytest.mark.slow
def test_into_an_object_store_with_uploads_that_fail(cluster, way, sav_root, sav_set):
    way.fail(".tar", sound=1, cut=True)
    with pytest.raises(UserError, match=r"s3://bucket/ray/sav/sav-00000\d\.tar.*give the same command"):
        shard_sav(sav_root, "s3://bucket/ray/sav", engine="ray", workers=None)
    tars = {name: data for name, data in objects(way.upstream, "ray/sav").items() if name.endswith(".tar")}
    assert tars.items() <= files_of(sav_set).items() and len(tars) <= 1
    way.heal()
    command = [sys.executable, str(REPOSITORY / "cli.py"), "shard", "--engine", "ray", "--source", "sav"]
    command += ["--root", str(sav_root), "--out", "s3://bucket/ray", "--shard-size", "10MB"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "samples written" in done.stdout, done.stderr
    assert re.search(r"ray: cluster at \S+:\d+, nodes: \d, processors: \d", done.stderr), done.stderr
    assert objects(way.upstream, "ray/sav") == files_of(sav_set)


@pytest.mark.slow
def test_annotations_travel_and_bad_inputs_go_to_the_ledger(cluster, tmp_path):
    root = tmp_path / "raw"
    annotations = [
        {
            "id": i,
            "image_id": i,
            "category_id": 1,
            "segmentation": [SQUARE],
            "iscrowd": 0,
            "area": 1600.0,
            "bbox": [10, 20, 40, 40],
        }
        for i in (1, 2, 3)
    ]
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 96, "width": 128} for i in (1, 2, 3)]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    put(root / "annotations/instances_val2017.json", content)
    for i in (1, 3):
        put(root / f"val2017/{i}.jpg", jpeg())
    put(root / "val2017/2.jpg", b"no picture")

    request = make_request("coco", root, shard_bytes=1, split="val")
    alone = run(request, tmp_path / "alone", 1, 0.5)
    assert alone.manifest.samples == 2 and len(alone.manifest.shards) == 2
    run(request, tmp_path / "ray", None, 0.5, engine="ray")
    assert files_of(tmp_path / "ray") == files_of(tmp_path / "alone")
    with pytest.raises(UserError, match="too many bad inputs"):
        run(request, tmp_path / "few", 1, 0.0, engine="ray")


def test_a_node_must_see_what_the_leader_sees(sav_root, sav_set, tmp_path):
    """Otherwise its inputs would be missing files and go to the ledger."""
    from pipeline.dataset import Job
    from pipeline.engines.ray import _check_node, _Run
    from pipeline.plan import library_versions
    from pipeline.records import Records
    from shards.storage.store import LocalFolder

    store = LocalFolder(tmp_path / "out")
    store.work.mkdir(parents=True)
    store.put(".work/plan", b"plan")
    names = tuple(os.listdir(sav_root))
    libraries = library_versions()
    job = Job(source_named("sav"), sav_root, named_recipe("default"), "zstd", {}, Records(tmp_path / "records"))
    _check_node(_Run(job, store, b"plan", names, libraries))
    (tmp_path / "empty").mkdir()
    unmounted = replace(job, root=tmp_path / "empty")
    for run_of_leader, wrong in [
        (_Run(unmounted, store, b"plan", names, libraries), "does not see the raw data"),
        (_Run(job, LocalFolder(tmp_path / "elsewhere"), b"plan", names, libraries), "does not see the shard set"),
        (_Run(job, store, b"another", names, libraries), "does not see the shard set"),
        (_Run(job, store, b"plan", names, {**libraries, "pillow": "0.1"}), "one version"),
    ]:
        with pytest.raises(UserError, match=wrong):
            _check_node(run_of_leader)


def test_a_missing_ray_is_one_line_with_the_install_command(sav_root, tmp_path):
    arguments = ["--source", "sav", "--root", str(sav_root), "--out", str(tmp_path), "--engine", "ray", "--limit", "1"]
    code = (
        f"import sys; sys.modules['ray'] = None\nimport cli\nsys.argv = ['cli.py', 'shard', *{arguments!r}]\ncli.main()"
    )
    command = [sys.executable, "-c", code]
    refused = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert refused.returncode == 1 and "pip install" in refused.stderr.splitlines()[-1], refused.stderr
    assert "Traceback" not in refused.stderr
