"""The server's answers: rows, samples, pictures, marks; what it refuses; what damaged bytes do."""

from __future__ import annotations

import io
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from starlette.testclient import TestClient

from browsing.app import make_app
from browsing.collection import Collection
from browsing.marks import Marks
from shards.join import join_file
from shards.reader import ShardSet
from shards.table import COLUMNS
from shards.where import choose


def opened(answer) -> Image.Image:
    assert answer.status_code == 200, answer.text
    return Image.open(io.BytesIO(answer.content), formats=["JPEG", "PNG"])


def test_the_sets_with_their_columns_or_why_there_are_none(client, sets):
    found = {one["name"]: one for one in client.get("/api/sets").json()["sets"]}
    assert sorted(found) == ["mixed", "sav"]
    assert client.get("/api/sav/columns").json()["columns"] == COLUMNS
    mixed = client.get("/api/mixed/columns").json()
    assert mixed["columns"] == {} and f"table {sets / 'mixed'}" in mixed["no_table"]
    assert found["sav"]["samples"] == 8 and found["mixed"]["facts"]["source"] == "mixed"


def test_rows_are_those_of_the_condition_with_their_chosen_objects(client, sets):
    shards = ShardSet(sets / "sav")
    areas = [shards[n]["masks1"].mean(axis=(1, 2)) for n in range(8)]  # of one object each, in two frames
    areas = [(a + shards[n]["masks2"].mean(axis=(1, 2)))[0] / 2 for n, a in enumerate(areas)]
    limit = float(np.median(areas))
    expected = [n for n in range(8) if areas[n] > limit]
    rows = client.get("/api/sav/rows", params={"where": f"area > {limit!r}"}).json()
    assert [row["position"] for row in rows["samples"]] == expected and rows["total"] == len(expected) == 4
    assert [row["key"] for row in rows["samples"]] == [shards.key(n) for n in expected]
    falling = client.get("/api/sav/rows", params={"sort": "-area", "begin": 2, "count": 3}).json()
    assert [row["position"] for row in falling["samples"]] == np.argsort(areas)[::-1][2:5].tolist()
    place = client.get(f"/api/sav/{expected[1]}/place", params={"where": f"area > {limit!r}"}).json()
    assert (place["place"], place["before"], place["after"]) == (1, expected[0], expected[2])


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/api/sav/rows?where=aera%3E0", 422, "no such column; met aera; wanted area"),
        ("/api/sav/rows?sort=nothing", 422, "no such column; met nothing"),
        ("/api/sav/rows?begin=-1", 422, "begin: not a number"),
        ("/api/mixed/rows?where=true", 422, "no table of its objects"),
        ("/api/nothing/rows", 404, "no such set"),
        ("/api/sav/8", 404, "no such sample; met 8; wanted 0 to 7"),
        ("/api/sav/0/3/large", 422, "no such frame; met 3; wanted 1 to 2"),
        ("/api/sav/0/1/secret", 404, "no such layer"),
        ("/api/sav/0/1/masks?objects=x", 422, "not numbers of objects"),
        ("/api/sav/ledger?begin=7", 422, "no line begins at byte 7"),
    ],
)
def test_what_is_not_there_is_one_line(client, path, status, text):
    answer = client.get(path)
    assert answer.status_code == status
    assert text in answer.json()["error"] and "\n" not in answer.json()["error"]


@pytest.mark.parametrize(
    "path", ["/manifest.json", "/../sav/manifest.json", "/api/..%2fsav/rows", "/page/index.html", "//etc/passwd"]
)
def test_no_file_is_served_but_the_pages_own(client, path):
    assert client.get(path).status_code == 404


def test_other_hosts_and_other_sites_are_refused(client):
    assert client.get("/api/sets", headers={"host": "rebound.example"}).status_code == 400
    assert client.get("/api/sets", headers={"host": "localhost:1"}).status_code == 200
    mark = {"position": 0, "object": None, "mark": "keep"}
    for headers in ({"origin": "http://other.example"}, {"content-type": "text/plain"}):
        sent = {"content-type": "application/json", **headers}
        assert client.post("/api/sav/marks", content=json.dumps(mark), headers=sent).status_code == 422
    assert client.get("/api/sav/marks").json() == {"marks": []}
    own = {"origin": "http://127.0.0.1:8860"}
    assert client.post("/api/sav/marks", json=mark, headers=own).status_code == 200
    for path in ("/", "/api/sets", "/api/sav/0/picture", "/nothing"):
        policy = client.get(path).headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy


def test_layers_are_the_stored_pictures_masks_and_cells(client, sets):
    sample = ShardSet(sets / "sav")[3]
    frame = np.asarray(opened(client.get("/api/sav/3/2/large"))).astype(int)
    stored = sample["g_pixel_values2"].transpose(1, 2, 0).astype(int)
    assert frame.shape == (1024, 1024, 3) and np.abs(frame - stored).mean() < 3  # JPEG
    for name, field in (("masks", "masks2"), ("cells", "prompt_masks2")):
        layer = np.asarray(opened(client.get(f"/api/sav/3/2/{name}")).convert("RGBA"))
        wanted = sample[field].any(axis=0)
        side = len(layer) // len(wanted)
        assert np.array_equal(layer[..., 3] > 0, wanted.repeat(side, 0).repeat(side, 1))
        nothing = opened(client.get(f"/api/sav/3/2/{name}?objects=")).convert("RGBA")
        assert not np.asarray(nothing)[..., 3].any()
    plain, marked = (np.asarray(opened(client.get(f"/api/sav/3/picture?masks={n}"))).astype(int).sum(2) for n in (0, 1))
    changed = np.abs(plain - marked) > 60
    share = sample["masks1"].any(axis=0).mean()
    assert plain.shape == (224, 224) and 0.3 * share < changed.mean() < share + 0.02


def test_samples_of_all_kinds(client, sets):
    shards = ShardSet(sets / "mixed")
    kinds = set()
    for position in range(len(shards)):
        meta = shards.meta(position)
        sample = client.get(f"/api/mixed/{position}").json()
        assert json.loads(sample["json"]) == meta
        assert [item["id"] for item in sample["objects"]] == [item["id"] for item in meta["objects"]]
        answer = client.get(f"/api/mixed/{position}/picture")
        kinds.add((answer.headers["content-type"], bool(meta["objects"])))
        if not meta["frames"]:
            assert answer.json()["text"].startswith(meta["turns"][0]["question"])
    assert kinds == {("image/jpeg", True), ("image/jpeg", False), ("application/json", False)}


def test_damaged_bytes_are_one_line_in_place_of_the_picture(sets, tmp_path):
    shutil.copytree(sets / "sav", tmp_path / "sav")
    shards = ShardSet(tmp_path / "sav")
    row = shards.index[2]
    tar = tmp_path / "sav" / shards.manifest.shards[int(row["shard"])].name
    data = bytearray(tar.read_bytes())
    data[int(row["offset"]) + int(row["size"]) // 2] ^= 1
    tar.write_bytes(data)
    collection = Collection.open([tmp_path / "sav"])
    with TestClient(make_app(collection, {"sav": Marks(tmp_path / "m")}), base_url="http://localhost") as client:
        for path in ("picture", "1/large", ""):
            answer = client.get(f"/api/sav/2/{path}".rstrip("/"))
            assert answer.status_code == 422 and "CRC-32 of the sample" in answer.json()["error"]
        assert client.get("/api/sav/3/picture").status_code == 200
        for one in (tmp_path / "sav").glob("*.tar"):
            one.unlink()
        other = client.get("/api/sav/5/picture")
        assert other.status_code == 422 and "No such file" in other.json()["error"]


def test_the_ledger_by_pages_and_reasons(sets, tmp_path):
    folder = tmp_path / "sav"
    shutil.copytree(sets / "sav", folder)
    lines = [{"path": f"a/{n}\u2028<b>", "reason": f"r{n % 3}", "detail": "d", "bad": n % 2 == 0} for n in range(250)]
    (folder / "ledger.jsonl").write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    with TestClient(make_app(Collection.open([folder]), {}), base_url="http://localhost") as client:
        for reason in ("", "r1"):
            found, begin = [], 0
            while begin is not None:
                answer = client.get("/api/sav/ledger", params={"begin": begin, "reason": reason}).json()
                found += answer["lines"]
                begin = answer["next"]
            assert found == [line for line in lines if reason in ("", line["reason"])]
        size = (folder / "ledger.jsonl").stat().st_size
        with open(folder / "ledger.jsonl", "a") as file:
            file.write("[]\n")
        damaged = client.get("/api/sav/ledger", params={"begin": size})
        assert damaged.status_code == 422 and f"met the line at byte {size}: []" in damaged.json()["error"]


def test_marks_and_their_table(client, sets, tmp_path):
    key, _, other = (row["key"] for row in client.get("/api/sav/rows").json()["samples"][4:7])
    for number, mark in ((None, "broken"), (0, "keep"), (0, "<b>'\""), (None, "keep")):
        client.post("/api/sav/marks", json={"position": 4, "object": number, "mark": mark})
    client.post("/api/sav/marks", json={"position": 5, "object": None, "mark": "keep"})
    client.post("/api/sav/marks", json={"position": 5, "object": None, "mark": ""})
    client.post("/api/sav/marks", json={"position": 6, "object": None, "mark": "broken"})
    bad = client.post("/api/sav/marks", json={"position": 99, "object": None, "mark": "keep"})
    assert bad.status_code == 422 and "not a mark" in bad.json()["error"]
    table = pq.read_table(io.BytesIO(client.get("/api/sav/marks.parquet").content))
    assert table.to_pylist() == [
        {"key": key, "object": 0, "mark": "<b>'\""},
        {"key": other, "object": 0, "mark": "broken"},
    ]
    assert client.get("/api/mixed/marks").json() == {"marks": []}
    shutil.copytree(sets / "sav", tmp_path / "sav")
    pq.write_table(table, tmp_path / "marks.parquet")
    join_file(tmp_path / "sav", tmp_path / "marks.parquet")  # as it is
    assert np.flatnonzero(choose(ShardSet(tmp_path / "sav"), "mark = 'broken'").counts).tolist() == [6]
