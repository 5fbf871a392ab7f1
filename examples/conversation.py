"""Talk with a model about a picture: phrases with masks, a region from a click, an answer while it is generated.

    python examples/conversation.py mine cat.jpg 120,80

The model is a folder as `cli.py export` writes it, or a released one. 120,80 is a pixel of what is to be described.
"""

import sys
from pathlib import Path

from inference.chat import Reply
from inference.loading import load
from inference.pictures import read_picture
from inference.predictor import Predictor

CAPTION = (
    "Could you please give me a brief description of the image? Please respond with interleaved segmentation masks for "
    "the corresponding parts of the answer."
)


def main(model: str, picture: str, point: str, max_new_tokens: int = 512) -> None:
    predictor = Predictor(load(model), max_new_tokens=max_new_tokens)
    chat = predictor.chat(read_picture(Path(picture)), name=picture)
    reply = chat.ask(CAPTION)
    print(reply.plain)
    for phrase in reply.phrases:
        print(f"  {phrase.text or '(no phrase)'}: {[int(mask.sum()) for mask in phrase.masks]} pixels")
    x, y = (float(number) for number in point.split(","))
    region = chat.region_at(points=[(x, y)])
    print(f"region1: {int(region.sum())} pixels")
    for part in chat.stream("What is region1?", region[None]):
        print(part.plain if isinstance(part, Reply) else f"... {part}")
    print(chat.ask("And where is it?").plain)


if __name__ == "__main__":
    main(*sys.argv[1:])
