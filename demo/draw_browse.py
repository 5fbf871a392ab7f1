"""Draw the picture of the page in docs/BROWSING.md.

python -m demo.draw_browse docs/browsing.png
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from browsing.app import make_app
from browsing.collection import Collection
from browsing.marks import Marks
from browsing.server import serving
from demo.make_folder import write
from demo.screenshot import draw_from_command_line, photographed
from pipeline.request import make_request
from pipeline.run import run


def draw(out: Path, chromium: str) -> None:
    """Write the picture of a sample among those that a condition chooses."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "folder")
        write(Path(name, "raw"), 12, 104)
        run(make_request("folder", Path(name, "raw")), folder, 1, 0)
        app = make_app(Collection.open([folder]), {"folder": Marks(Path(name, "marks.jsonl"))})
        with serving(app) as address, photographed(out, chromium) as page:
            page.goto(f"{address}?where=area > 0.02&sort=-area&sample=0")
            page.wait_for_selector("#objects li")
            page.keyboard.press("x")
            page.wait_for_selector("#marks .badge")


if __name__ == "__main__":
    draw_from_command_line(draw, __doc__)
