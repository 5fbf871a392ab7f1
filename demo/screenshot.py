"""Pictures of pages for the documents, drawn by Chromium."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright


@contextmanager
def photographed(out: Path, chromium: str) -> Iterator[Page]:
    """Yield a page of Chromium; write what it shows at the end to `out`, a PNG of 128 colours."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1180, "height": 740})
        yield page
        page.wait_for_timeout(2000)
        page.screenshot(path=str(out))
        browser.close()
    Image.open(out, formats=["PNG"]).convert("RGB").quantize(128).save(out, optimize=True)


def draw_from_command_line(draw: Callable[[Path, str], None], document: str | None) -> None:
    """Call `draw` with the file and the path of Chromium that the command line gives. `document` is its help."""
    parser = argparse.ArgumentParser(description=(document or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    arguments = parser.parse_args()
    draw(arguments.out, arguments.chromium)
