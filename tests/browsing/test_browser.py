"""The page in Chromium: filter, open, next, mark, export; a set of many samples; texts that look like HTML."""

from __future__ import annotations

import io
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from browsing.app import make_app
from browsing.collection import Collection
from browsing.marks import Marks
from browsing.server import serving
from shards.format import INDEX, MANIFEST
from shards.manifest import sha256
from shards.reader import ShardSet
from shards.table import write_table
from tests.serving.test_browser import Watch, browse
from tests.shards.conftest import stored_samples, write_set

NAME = "s<b>\"' &%2f#?é"
TEXT = "</li><script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\"> \" ' & {{1}}"
MANY = 300_000


@pytest.fixture
def collection(small_set: Path, tmp_path: Path) -> Collection:
    """A set with texts that look like HTML, and one that has its samples again and again."""
    shards = ShardSet(small_set)
    samples = [replace(one, meta={**one.meta, "path": TEXT}) for one in stored_samples(small_set)]
    for one in samples:
        one.meta["objects"][0]["texts"] = [TEXT]
    write_set(tmp_path / NAME, shards.manifest, samples)
    write_table(tmp_path / NAME)
    many = tmp_path / "many"
    many.mkdir()
    for info in shards.manifest.shards:
        (many / info.name).symlink_to(small_set / info.name)
    np.save(many / INDEX, np.resize(np.load(small_set / INDEX), MANY))
    digest = sha256((many / INDEX).read_bytes())
    (many / MANIFEST).write_bytes(replace(shards.manifest, samples=MANY, index_sha256=digest).to_bytes())
    (many / "ledger.jsonl").write_bytes(b"")
    return Collection.open([tmp_path / NAME, many])


async def until(page, condition: str) -> None:
    """Wait until an expression is true. Playwright's own way would evaluate it inside the page, which forbids that."""
    end = time.monotonic() + 60
    while not await page.evaluate(condition):
        assert time.monotonic() < end, f"never true: {condition}"
        await page.wait_for_timeout(20)


async def shown_keys(page) -> list[str]:
    """The keys of the samples whose pictures are there."""
    await until(
        page,
        "[...document.querySelectorAll('.cell img')].length > 0 && "
        "[...document.querySelectorAll('.cell img')].every(img => img.complete && img.naturalWidth > 0)",
    )
    return await page.locator(".cell .name").all_inner_texts()


@pytest.mark.slow
def test_filter_open_next_mark_export(collection, tmp_path):
    shards = collection.sets[NAME].shards
    rows = pq.read_table(tmp_path / NAME / "objects.parquet").to_pylist()
    limit = sorted(row["area"] for row in rows)[4]
    expected = sorted((row for row in rows if row["area"] >= limit), key=lambda row: -row["area"])
    marks = tmp_path / "marks.jsonl"

    async def steps(page) -> None:
        assert sorted(await shown_keys(page)) == sorted(shards.key(n) for n in range(8))
        await page.fill("#where", f"aera >= {limit!r}")
        await page.press("#where", "Enter")
        await page.wait_for_selector("#message.error")
        assert "no such column; met aera; wanted area" in await page.locator("#message").inner_text()
        await page.fill("#where", f"area >= {limit!r}")
        await page.press("#where", "Enter")
        await until(page, "document.querySelector('#message').textContent.startsWith('4 samples')")
        await page.select_option("#sort", "area")
        await page.click("#direction")
        await until(page, "location.search.includes('sort=-area') && document.querySelectorAll('.cell').length == 4")
        assert await shown_keys(page) == [row["key"] for row in expected]

        await page.keyboard.press("ArrowRight")
        await page.keyboard.press("Enter")
        await until(page, "document.querySelectorAll('.stack img.masks[src]').length == 2")
        assert await page.locator("#key").inner_text() == expected[1]["key"]
        assert await page.locator("#place").inner_text() == "2 of 4"
        assert TEXT in await page.locator("#objects").inner_text()
        assert TEXT in await page.locator("#facts").inner_text()
        await page.keyboard.press("j")
        await until(page, "document.querySelector('#place').textContent == '3 of 4'")
        await until(page, f"document.querySelector('#key').textContent == {json.dumps(expected[2]['key'])}")
        await page.keyboard.press("b")
        await page.wait_for_selector("#marks .badge")
        shared = page.url
        assert json.loads(marks.read_text()) == {
            "set": NAME, "key": expected[2]["key"], "object": None, "mark": "broken"
        }  # fmt: skip
        async with page.expect_download() as waiting:
            await page.click("#export")
        table = pq.read_table(io.BytesIO(Path(await (await waiting.value).path()).read_bytes()))
        assert table.to_pylist() == [{"key": expected[2]["key"], "object": 0, "mark": "broken"}]

        await page.keyboard.press("m")
        assert await page.locator(".stack img.masks:visible").count() == 0
        await page.keyboard.press("c")
        assert await page.locator(".stack img.cells:visible").count() == 2
        await page.goto("about:blank")
        await page.goto(shared)  # a copied address shows the same
        await until(page, "document.querySelector('#place').textContent == '3 of 4'")
        await until(page, f"document.querySelector('#key').textContent == {json.dumps(expected[2]['key'])}")
        await page.keyboard.press("Escape")
        await page.wait_for_selector(".cell.selected .badge")
        assert await page.locator(".cell.selected .name").inner_text() == expected[2]["key"]

        await page.select_option("#set", "many")
        await page.fill("#where", "")
        await page.click("#direction")
        await until(page, "document.querySelector('#message').textContent == '300,000 samples'")
        await page.keyboard.press("End")
        await until(page, f"location.search.includes('at={MANY - 1}')")
        last = collection.sets["many"].shards.key(MANY - 1)
        await shown_keys(page)
        assert await page.locator(".cell.selected .name").inner_text() == last
        await page.evaluate(
            "document.querySelector('#grid').scrollTop = document.querySelector('#grid').scrollHeight / 2"
        )
        cell = "document.querySelectorAll('.cell')[14]"
        place = f"+new URLSearchParams({cell}?.search).get('at')"
        await until(page, f"{0.49 * MANY} < {place} && {place} < {0.51 * MANY}")
        await shown_keys(page)
        link = await page.locator(".cell").nth(14).get_attribute("href")
        assert await page.locator(".cell").count() < 80
        before = await page.locator(f".cell[href='{link}']").bounding_box()
        await page.mouse.move(600, 500)
        await page.mouse.wheel(0, 100)
        selector = json.dumps(f'.cell[href="{link}"]')
        moved = f"{before['y']} - document.querySelector({selector})?.getBoundingClientRect().y"
        await until(page, f"{moved} >= 90")
        await page.wait_for_timeout(100)
        assert 90 <= await page.evaluate(moved) <= 110  # a short step is as long as it looks
        assert await page.title() != "run"

    with serving(make_app(collection, dict.fromkeys(collection.sets, Marks(marks)))) as address:
        browse(address, steps, watch=Watch(fails="where="))
