"""Draw the picture of the page in docs/SERVING.md.

python -m demo.draw_page docs/serving.png

The answer is written here, not by a model: the page is real, the tiny model of the demo would not name so much.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
from PIL import Image, ImageDraw

from demo.screenshot import draw_from_command_line, photographed
from inference.chat import Phrase, Reply
from serving.server import serving

QUESTION = "Please describe the picture, with masks."
PLAIN = "A cup of coffee on a saucer with a spoon."
SHAPES = {  # ellipses of the photograph `skimage.data.coffee()`: left, top, right, bottom
    "A cup of coffee": (172, 16, 406, 262),
    "a saucer": (76, 60, 474, 385),
}


class Written:
    """Answers as the script says, in place of a model."""

    def __init__(self) -> None:
        self.turns: list[tuple[str, Reply]] = []
        self.regions = 0

    def chat(self, picture: np.ndarray, name: str = "") -> Written:
        self.size = picture.shape[:2]
        return self

    def stream(self, text: str, regions: Any = None) -> Iterator[str | Reply]:
        masks = np.stack([ellipse(self.size, box) for box in SHAPES.values()])
        masks[1] &= ~masks[0]
        phrases = []
        for n, phrase in enumerate(SHAPES):
            start = PLAIN.index(phrase)
            phrases.append(Phrase(phrase, masks[n : n + 1], start, start + len(phrase), range(n, n + 1)))
        yield Reply(PLAIN, PLAIN, masks, tuple(phrases), None, 0, 0)


def ellipse(size: Sequence[int], box: tuple[int, int, int, int]) -> np.ndarray:
    """Return an ellipse as a mask of size (H, W)."""
    image = Image.new("1", (size[1], size[0]))
    ImageDraw.Draw(image).ellipse(box, fill=1)
    return np.asarray(image)


def draw(out: Path, chromium: str) -> None:
    """Write the picture of the page after one answer."""
    with tempfile.TemporaryDirectory() as folder:
        Image.fromarray(skimage.data.coffee()).save(Path(folder, "coffee.jpg"))
        with (
            serving(Written(), title="Ask Sa2VA") as address,  # type: ignore[arg-type]
            photographed(out, chromium) as page,
        ):
            page.goto(address)
            page.set_input_files("input[type=file]", Path(folder, "coffee.jpg"))
            page.wait_for_selector("#editor canvas")
            page.fill("#question textarea", QUESTION)
            page.click("#ask")
            page.wait_for_selector("#talk .answer img")


if __name__ == "__main__":
    draw_from_command_line(draw, __doc__)
