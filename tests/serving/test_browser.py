"""The page in Chromium: upload, ask, see masks, go on, paint a region, ask about it."""

from __future__ import annotations

import asyncio
import io
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from tests.serving.conftest import Scripted, answer_ids

async_api = pytest.importorskip("playwright.async_api", reason="the package playwright is not installed")

QUESTION = "Please <b>segment</b> ${1 + 1} {{value}} & all."
SPOKEN = "A cat with an <b>eye</b> & ear."


@dataclass
class Watch:
    """Opens pages, and notes what they ask for and their errors. Answers of addresses with `fails` may be errors."""

    fails: str = "\n"
    asked: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    async def open(self, browser: Any, address: str, width: int = 1280) -> Any:
        """Open a page as a visitor of its own."""
        page = await browser.new_page(viewport={"width": width, "height": 900})
        page.set_default_timeout(60_000)
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("response", self._note)
        await page.goto(address)
        return page

    def _note(self, answer: Any) -> None:
        if answer.status >= 400 and self.fails not in answer.url:
            self.errors.append(answer.url)


def browse(
    address: str, steps: Callable[[Any], Awaitable[None]], width: int = 1280, watch: Watch | None = None
) -> None:
    """Take steps on the page in Chromium without a window: playwright's own, or one that is installed.

    Nothing may be asked of another server, fail to load, or raise an error on the way, in any page of `watch`.
    """
    watch = watch or Watch()

    async def run() -> bool:
        async with async_api.async_playwright() as playwright:
            names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
            found = [path for path in (playwright.chromium.executable_path, *map(shutil.which, names)) if path]
            paths = [path for path in found if Path(path).exists()]
            if not paths:
                return False
            browser = await playwright.chromium.launch(executable_path=paths[0], args=["--no-sandbox"])  # for root
            await steps(await watch.open(browser, address, width))
            await browser.close()
            return True

    if not asyncio.run(run()):
        pytest.skip("no Chromium: neither playwright's own nor chromium, chromium-browser or google-chrome on PATH")
    hosts = {urlsplit(url).netloc for url in watch.asked if not url.startswith(("blob:", "data:"))}
    assert hosts == {urlsplit(address).netloc}
    assert watch.errors == []


async def ask(page, text: str, turns: int) -> None:
    """Ask, with the button or in odd turns with Enter, and wait until so many answers are there."""
    await page.fill("#question textarea", text)
    if turns % 2:
        await page.press("#question textarea", "Enter")
    else:
        await page.click("#ask")
    ended = (
        "n => document.querySelectorAll('#talk .answer img').length == n && !document.querySelector('[aria-busy=true]')"
    )
    await page.wait_for_function(ended, arg=turns)


async def picture_of(page, selector: str) -> np.ndarray:
    """The pixels (h, w, 3) of the last picture at `selector`."""
    source = await page.locator(selector).last.get_attribute("src")
    answer = await page.request.get(f"{page.url}{source}")
    assert answer.status == 200
    return np.asarray(Image.open(io.BytesIO(await answer.body())).convert("RGB"))


def coloured(picture: np.ndarray) -> float:
    """The share of pixels that are not grey."""
    return float((np.ptp(picture.astype(int), axis=2) > 40).mean())


async def paint(page) -> None:
    """Draw one stroke through the middle of the picture."""
    canvas = page.locator("#editor canvas").first
    await canvas.scroll_into_view_if_needed()
    await page.wait_for_timeout(500)
    box = await canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    await page.mouse.move(x - 50, y)
    await page.mouse.down()
    for n in range(1, 6):
        await page.mouse.move(x - 50 + 20 * n, y)
    await page.mouse.up()
    await page.wait_for_timeout(500)


async def click(page, x: int, y: int) -> None:
    """Click on the picture, and wait until it shows that; again where gradio was drawing it anew and lost the click."""
    await page.wait_for_timeout(500)
    shown = await page.locator("#pointing img").get_attribute("src")
    another = "old => document.querySelector('#pointing img').getAttribute('src') != old"
    for seconds in (15, 30, 60):
        await page.locator("#pointing img").click(position={"x": x, "y": y})
        try:
            await page.wait_for_function(another, arg=shown, timeout=1000 * seconds)
            return
        except async_api.TimeoutError:
            pass
    pytest.fail("no click changes the picture")


@pytest.mark.slow
def test_a_conversation(address, cat, photos):
    async def steps(page) -> None:
        await page.set_input_files("input[type=file]", cat)
        await page.wait_for_selector("#editor canvas")
        await ask(page, QUESTION, 1)
        assert await page.locator("#talk .question").inner_text() == QUESTION
        assert await page.input_value("#question textarea") == ""
        assert await page.locator("#talk .answer p").first.inner_text() == SPOKEN
        marks = page.locator("#talk .answer mark")
        assert await marks.all_inner_texts() == ["A cat", "an <b>eye</b> & ear"]
        styles = [await marks.nth(n).evaluate("e => getComputedStyle(e).backgroundColor") for n in range(2)]
        assert styles == ["rgb(0, 114, 178)", "rgb(230, 159, 0)"]
        shown = await picture_of(page, "#talk .answer img")
        assert shown.shape == photos[0].shape and 0.02 < coloured(shown) < 0.98  # the random masks

        await paint(page)
        await ask(page, "What is region1?", 2)
        assert await page.locator("#talk .question").count() == 2
        region = await picture_of(page, "#talk .question img")
        rows, columns = (np.ptp(region.astype(int), axis=2) > 40).nonzero()
        height, width = region.shape[:2]
        assert 0.005 < coloured(region) < 0.2
        assert abs(rows.mean() / height - 0.5) < 0.06 and abs(columns.mean() / width - 0.5) < 0.06
        await page.wait_for_function("document.querySelector('#note').innerText.includes('region2')")

        await page.get_by_role("tab", name="Point").click()
        await page.get_by_text("Box: two corners").click()
        await click(page, 40, 40)
        await click(page, 160, 120)
        await ask(page, "", 3)
        assert (await page.locator("#talk .question").last.inner_text()).strip() == "Describe region2."

    browse(address, steps)


async def begin(page, cat: Path) -> None:
    """Upload the picture, ask, and wait until the answer grows."""
    await page.set_input_files("input[type=file]", cat)
    await page.wait_for_selector("#editor canvas")
    await page.fill("#question textarea", "What?")
    await page.click("#ask")
    await page.wait_for_function("document.querySelector('#talk').innerText.includes('and and')")


async def is_at_rest(page, endless: Scripted) -> None:
    """Check that the model says nothing for two seconds: the token that is made when Stop is pressed is still made."""
    before = -1
    for _ in range(20):
        if before == endless.said:
            break
        before = endless.said
        await page.wait_for_timeout(2000)
    assert 0 < endless.said == before < 1500


STOPPED = "document.querySelector('#talk').innerText == 'Stopped.'"


@pytest.mark.slow
def test_stop_ends_an_answer_whose_turn_is_not_kept(address, cat, endless, speaker):
    async def steps(page) -> None:
        await begin(page, cat)
        await page.fill("#question textarea", "And?")
        await page.click("#ask")
        message = page.locator(".toast-body")
        await message.wait_for()
        assert "the question before is not answered yet" in await message.inner_text()
        await page.click("#stop")
        await page.wait_for_function(STOPPED)
        await is_at_rest(page, endless)
        endless.ids, endless.said, endless.pause = answer_ids(speaker.model), 0, 0.0
        await ask(page, QUESTION, 1)
        assert await page.locator("#talk .question").all_inner_texts() == [QUESTION]
        assert await page.locator("#talk .answer p").first.inner_text() == SPOKEN
        await page.click("#stop")
        await page.wait_for_timeout(300)
        assert "Stopped." not in await page.locator("#talk").inner_text()  # nothing was said then

    browse(address, steps)


@pytest.mark.slow
def test_stop_takes_back_a_question_that_waits_for_another_visitors_answer(address, cat, endless):
    async def steps(page) -> None:
        await begin(page, cat)
        other = await watch.open(page.context.browser, address)
        await other.set_input_files("input[type=file]", cat)
        await other.wait_for_timeout(1000)  # an upload waits for the model, too
        await page.click("#stop")
        await page.wait_for_function(STOPPED)
        await other.wait_for_selector("#editor canvas")
        await page.fill("#question textarea", "What?")
        await page.click("#ask")
        await page.wait_for_function("document.querySelector('#talk').innerText.includes('and and')")
        await other.fill("#question textarea", "Where?")
        await other.click("#ask")
        await other.wait_for_function("document.querySelector('#talk').innerText.includes('Where?')")
        await other.click("#stop")
        await other.wait_for_function(STOPPED)
        await page.click("#stop")
        await page.wait_for_function(STOPPED)
        await is_at_rest(page, endless)  # the question that waited is not answered
        assert await other.locator("#talk").inner_text() == "Stopped."

    watch = Watch()
    browse(address, steps, watch=watch)


@pytest.mark.slow
def test_a_new_conversation_ends_an_answer(address, cat, endless):
    async def steps(page) -> None:
        await begin(page, cat)
        await page.click("#new")
        await page.wait_for_function("document.querySelector('#talk').innerText.startsWith('Upload a picture')")
        await is_at_rest(page, endless)
        assert (await page.locator("#talk").inner_text()).startswith("Upload a picture")

    browse(address, steps)


@pytest.mark.slow
def test_on_a_phone_nothing_is_beyond_the_edge_and_mistakes_are_one_line(address, cat, tmp_path):
    (tmp_path / "text.png").write_text("text")

    async def steps(page) -> None:
        await page.set_input_files("input[type=file]", tmp_path / "text.png")
        message = page.locator(".toast-body")
        await message.wait_for()
        assert "cannot be read as a picture; met none of these formats" in await message.inner_text()
        await page.wait_for_function("!document.body.innerText.includes('text.png')")  # there is room for another
        await page.set_input_files("input[type=file]", cat)
        await page.wait_for_selector("#editor canvas")
        assert await page.evaluate("document.documentElement.scrollWidth") <= 390
        for part in ("#ask", "#stop", "#new", "#question", "#editor"):
            box = await page.locator(part).bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= 390
        await page.click("#new")
        await page.wait_for_selector("#editor", state="hidden")
        assert "Upload a picture" in await page.locator("#talk").inner_text()

    browse(address, steps, width=390)
