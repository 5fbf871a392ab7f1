"""Draw the picture of the page in docs/BROWSING.md.

python -m demo.draw_browse docs/browsing.png
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from browsing.app import make_app
from browsing.collection import Collection
from browsing.marks import Marks
from browsing.server import serving
from demo.make_folder import write
from pipeline.request import make_request
from pipeline.run import run
from shards.table import write_table


def draw(out: Path, chromium: str) -> None:
    """Write the picture of a sample among those that a condition chooses."""
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name, "folder")
        write(Path(name, "raw"), 12, 104)
        run(make_request("folder", Path(name, "raw")), folder, 1, 0)
        write_table(folder)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1180, "height": 740})
        app = make_app(Collection.open([folder]), {"folder": Marks(Path(name, "marks.jsonl"))})
        with serving(app) as address:
            page.goto(f"{address}?where=area > 0.02&sort=-area&sample=0")
            page.wait_for_selector("#objects li")
            page.keyboard.press("x")
            page.wait_for_selector("#marks .badge")
            page.wait_for_timeout(2000)
            page.screenshot(path=str(out))
            browser.close()
    Image.open(out, formats=["PNG"]).convert("RGB").quantize(128).save(out, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    arguments = parser.parse_args()
    draw(arguments.out, arguments.chromium)
