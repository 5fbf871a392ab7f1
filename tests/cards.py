"""The snippets of a published set's card."""

from __future__ import annotations

import re

_LIBRARIES = ("webdataset", "datasets", "shards")


def snippets(card: str) -> dict[str, str]:
    """Return the card's snippets by the library that they load the set with."""
    found = re.findall(r"```python\n(.*?)```", card, re.S)
    return {next(name for name in _LIBRARIES if re.search(rf"^(import|from) {name}\b", s, re.M)): s for s in found}
